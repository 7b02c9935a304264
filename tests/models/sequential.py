"""Classifiers of sequences: recurrent layers, loops over time, attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from .classifiers import Classifier


class Recurrent(Classifier):
    """Embedding and LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x))
        return self.head(states[:, -1])


class PackedGRU(Classifier):
    """A GRU on packed sequences of different lengths, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.head = nn.Embedding(12, 6), nn.GRU(6, 7), nn.Linear(14, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, labels, lengths = batch
        packed = pack_padded_sequence(self.embedding(x.T), lengths.cpu(), enforce_sorted=False)
        states, last = self.gru(packed)
        padded, _ = pad_packed_sequence(states)
        loss = F.cross_entropy(self.head(torch.cat([padded.mean(0), last[0]], 1)), labels)
        self.log("train_loss", loss)
        return loss


class Bidirectional(Classifier):
    """Two layers of an LSTM that reads both ways, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, dropout=0.1)
        self.norm, self.head = nn.LayerNorm(10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x.T))
        return self.head(self.norm(states).amax(0))


class CellLoop(Classifier):
    """An LSTMCell in a loop of 12 steps; its state and a running output go round."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(12, 6), nn.LSTMCell(6, 7)
        self.out, self.head = nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x)
        h = c = embedded.new_zeros(len(x), 7)
        outputs = []
        for t in range(x.shape[1]):
            h, c = self.cell(embedded[:, t], (h, c))
            outputs.append(torch.tanh(self.out(h)))
        return self.head(torch.stack(outputs, 1).mean(1))


class Attentive(Classifier):
    """A transformer block on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = self.norm(h + self.attention(h, h, h)[0])
        return self.head(h.mean(1))


class Transformer(Classifier):
    """torch's own encoder layers, with learned positions; examples first or time first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(12, 8), nn.Parameter(torch.zeros(12, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.positions[: x.shape[1]]
        h = self.encoder(h if self.batch_first else h.transpose(0, 1))
        return self.head(h[:, 0] if self.batch_first else h[0])


class CheckpointedTransformer(Transformer):
    """Each encoder layer runs a second time during the backward pass, with the same dropout."""

    def __init__(self) -> None:
        super().__init__(batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.positions[: x.shape[1]]
        for layer in self.encoder.layers:
            h = checkpoint(layer, h, use_reentrant=False)
        return self.head(h.mean(1))


class Heads(Classifier):
    """Attention whose weights are asked for per head, and attention by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.attention = nn.Embedding(12, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        attended, weights = self.attention(h, h, h, average_attn_weights=False)
        h = h + attended * torch.where(weights > 0.5, weights, 0.0).sum((1, 3)).unsqueeze(-1)
        q, k, v = self.qkv(h).chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v) + torch.einsum("bqd,bkd,bkd->bqd", q, k, v) / 12
        return self.head(h[:, 0])


class Bag(Classifier):
    """An embedding bag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(12, 8, mode="mean")
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bag(x))
