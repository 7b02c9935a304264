"""Real handwritten digits that are always there: scikit-learn ships them."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def digits(*, is_augmented: bool = True) -> tuple[Tensor, Tensor]:
    """The 1797 digits of 8x8 pixels with a margin of two, optionally moved by one pixel to all four sides.

    Returns:
        Images ``[records, 1, 12, 12]`` in [0, 1] and labels ``[records]``. Record ``k * 1797 + i`` is digit ``i``
        moved by ``SHIFTS[k]``.

    Source: E. Alpaydin, C. Kaynak, UCI optical recognition of handwritten digits, 1998.
    """
    bunch = load_digits()
    images = F.pad(torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1), (2, 2, 2, 2))
    labels = torch.tensor(bunch.target)
    shifts = SHIFTS if is_augmented else SHIFTS[:1]
    return torch.cat([images.roll(shift, (2, 3)) for shift in shifts]), labels.repeat(len(shifts))
