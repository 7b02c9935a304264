"""Recurrent layers in the forms that one sample call does not show, each against a plainer form of the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dgm_tb.algorithms.relevance import Relevance, RelevanceMode

LENGTHS = [3, 5, 1, 4]


def inputs() -> Tensor:
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def made(kind: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(*args, **options).double()


def relevance_of(run: Any, model: nn.Module, x: Tensor) -> Relevance:
    with torch.no_grad(), RelevanceMode(model, x) as mode:
        z = run(x)
    return mode.propagate(z)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_packed_sequence_is_what_its_examples_are_alone(kind: type[nn.Module]) -> None:
    model, x = made(kind, 6, 3, num_layers=2, bidirectional=True, batch_first=True), inputs()

    def packed(x: Tensor) -> Tensor:
        outputs, last = model(pack_padded_sequence(x, torch.tensor(LENGTHS), True, False))
        last = last[0] if isinstance(last, tuple) else last
        return torch.cat([pad_packed_sequence(outputs, batch_first=True)[0].sum(1), last.transpose(0, 1).flatten(1)], 1)

    def alone(x: Tensor) -> Tensor:
        outputs, last = model(x)
        last = last[0] if isinstance(last, tuple) else last
        return torch.cat([outputs.sum(1), last.transpose(0, 1).flatten(1)], 1)

    found = relevance_of(packed, model, x)
    assert not found.stopped
    for i, length in enumerate(LENGTHS):
        one = relevance_of(alone, model, x[i : i + 1, :length]).inputs["input"]
        assert torch.allclose(found.inputs["input"][i, :length], one[0], rtol=1e-10, atol=1e-12)
        assert not found.inputs["input"][i, length:].any()


@pytest.mark.parametrize(("layer", "cell"), [(nn.LSTM, nn.LSTMCell), (nn.GRU, nn.GRUCell), (nn.RNN, nn.RNNCell)])
def test_a_layer_is_its_cell_in_a_loop(layer: type[nn.Module], cell: type[nn.Module]) -> None:
    whole, part, x = made(layer, 6, 3, batch_first=True), made(cell, 6, 3), inputs()
    part.load_state_dict({name: whole.state_dict()[f"{name}_l0"] for name in part.state_dict()})

    def loop(x: Tensor) -> Tensor:
        state, outputs = None, []
        for t in range(x.shape[1]):
            state = part(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)

    one, other = relevance_of(lambda x: whole(x)[0], whole, x), relevance_of(loop, part, x)
    assert torch.allclose(one.inputs["input"], other.inputs["input"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_without_biases_all_relevance_arrives(kind: type[nn.Module]) -> None:
    options = {"proj_size": 2} if kind is nn.LSTM else {}
    model, x = made(kind, 6, 3, num_layers=2, bias=False, **options), inputs()
    with torch.no_grad(), RelevanceMode(model, x) as mode:
        z = model(x)[0]
    found = mode.propagate(z, relevance=z.abs())
    assert float(found.inputs["input"].sum()) == pytest.approx(found.total, rel=1e-4)


def test_dropout_between_layers_is_named_as_what_stops() -> None:
    model, x = made(nn.LSTM, 6, 3, num_layers=2, dropout=0.5), inputs()
    found = relevance_of(lambda x: model(x)[0], model, x)
    assert found.stopped == {"lstm": pytest.approx(found.total)}
    assert not relevance_of(lambda x: model.eval()(x)[0], model, x).stopped


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_give_each_token_what_its_vector_brought(mode: str) -> None:
    bag, tokens = made(nn.EmbeddingBag, 7, 4, mode=mode), torch.tensor([1, 3, 0, 2, 6])
    offsets = torch.tensor([0, 2])
    with torch.no_grad(), RelevanceMode(bag, tokens) as recorded:
        z = bag(tokens, offsets)
    found = recorded.propagate(z, 1).inputs["input"]
    vectors = [bag.weight[tokens[:2]].detach(), bag.weight[tokens[2:]].detach()]
    if mode == "max":
        truth = torch.cat([torch.where(v[:, 1] == v[:, 1].max(), v[:, 1], 0) for v in vectors])
    else:
        truth = torch.cat([v[:, 1] / (len(v) if mode == "mean" else 1) for v in vectors])
    assert torch.allclose(found, truth, rtol=1e-3)
