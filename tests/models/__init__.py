"""Small LightningModules of every kind that a recording must cope with, each with the data it trains on.

``CASES`` is the table: a test over all of it holds for a new entry without a new test. ``COMPILED_CASES`` are further
ones that take seconds each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from torch.utils.data import Dataset

from .classifiers import (
    CNN,
    Blocks,
    Checkpointed,
    Classifier,
    Compiled,
    DataclassOutputs,
    FrozenBatchNorm,
    KeywordsOnly,
    Residual,
    ResNet,
    SeveralOutputs,
    Stateful,
)
from .data import BATCH_SIZE, N_EXAMPLES, images, images_with, sequences, tokens
from .generative import GAN, VAE, VQVAE, Alternating, Diffusion, DistributionVAE, Flow, NormalizedGAN, PenalizedGAN
from .sequential import (
    Attentive,
    Bag,
    Bidirectional,
    CellLoop,
    CheckpointedTransformer,
    Heads,
    PackedGRU,
    Recurrent,
    Transformer,
)

__all__ = [
    "BATCH_SIZE",
    "CASES",
    "CNN",
    "COMPILED_CASES",
    "GAN",
    "N_EXAMPLES",
    "VAE",
    "Attentive",
    "Blocks",
    "Case",
    "CellLoop",
    "Classifier",
    "DistributionVAE",
    "PenalizedGAN",
    "Residual",
    "SeveralOutputs",
    "Stateful",
    "images",
    "images_with",
    "sequences",
    "tokens",
]


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        make: Makes the model.
        data: Makes the map-style data set.
        trainer: Further arguments of the Trainer.
    """

    make: Callable[[], L.LightningModule]
    data: Callable[[], Dataset[Any]] = images
    trainer: Mapping[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "vae": Case(VAE),
    "distribution_vae": Case(DistributionVAE),
    "vq_vae": Case(VQVAE),
    "gan": Case(GAN),
    "normalized_gan": Case(NormalizedGAN),
    "penalized_gan": Case(PenalizedGAN),
    "diffusion": Case(Diffusion),
    "flow": Case(Flow),
    "alternating": Case(Alternating),
    "cnn": Case(CNN),
    "residual": Case(Residual),
    "resnet": Case(ResNet),
    "blocks": Case(Blocks),
    "several_outputs": Case(SeveralOutputs),
    "dataclass_outputs": Case(DataclassOutputs),
    "keywords_only": Case(KeywordsOnly),
    "frozen_batch_norm": Case(FrozenBatchNorm),
    "recurrent": Case(Recurrent, tokens),
    "packed_gru": Case(PackedGRU, sequences),
    "bidirectional": Case(Bidirectional, sequences),
    "cell_loop": Case(CellLoop, sequences),
    "attentive": Case(Attentive, tokens),
    "heads": Case(Heads, tokens),
    "transformer": Case(lambda: Transformer(batch_first=True), tokens),
    "transformer_time_first": Case(lambda: Transformer(batch_first=False), sequences),
    "checkpointed_transformer": Case(CheckpointedTransformer, tokens),
    "embedding_bag": Case(Bag, tokens),
    "checkpointed": Case(lambda: Checkpointed(reentrant=False)),
    "checkpointed_reentrant": Case(lambda: Checkpointed(reentrant=True)),
    "stateful": Case(Stateful),
    "accumulating": Case(CNN, trainer={"accumulate_grad_batches": 2}),
    "clipping": Case(VAE, trainer={"gradient_clip_val": 0.5}),
}

COMPILED_CASES: dict[str, Case] = {
    "compiled_net": Case(lambda: Compiled(in_place=False)),
    "compiled_in_place": Case(lambda: Compiled(in_place=True)),
}
