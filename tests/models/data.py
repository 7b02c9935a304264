"""The data that the models train on: images of 8 x 8 pixels with one channel, and sequences of whole numbers."""

import torch
from torch.utils.data import TensorDataset

N_EXAMPLES = 48
BATCH_SIZE = 8


def images(n: int = N_EXAMPLES) -> TensorDataset:
    """Images in [0, 1] ``[n, 1, 8, 8]`` and labels 0 to 2; the same in every call."""
    rng = torch.Generator().manual_seed(11)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=rng), torch.randint(0, 3, (n,), generator=rng))


def images_with(index: int, scale: float) -> TensorDataset:
    """``images`` of which one is ``scale`` times too large."""
    data = images()
    data.tensors[0][index] *= scale
    return data


def tokens() -> TensorDataset:
    """Sequences of 5 whole numbers below 12, and labels 0 to 2."""
    rng = torch.Generator().manual_seed(12)
    return TensorDataset(
        torch.randint(0, 12, (N_EXAMPLES, 5), generator=rng), torch.randint(0, 3, (N_EXAMPLES,), generator=rng)
    )


def sequences() -> TensorDataset:
    """Sequences of 12 whole numbers below 12, labels 0 to 2, and how many of the numbers count (3 to 12)."""
    rng = torch.Generator().manual_seed(13)
    return TensorDataset(
        torch.randint(0, 12, (N_EXAMPLES, 12), generator=rng),
        torch.randint(0, 3, (N_EXAMPLES,), generator=rng),
        torch.randint(3, 13, (N_EXAMPLES,), generator=rng),
    )
