"""Where one kernel is the known cause, the difference of two contribution matrices names it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import Trial, a_normal_image, another_network, shares_of_hits


@pytest.mark.parametrize("make", [another_network, a_normal_image])
def test_the_difference_to_a_reference_names_the_kernel(make: Callable[[torch.Generator], Trial]) -> None:
    n_live, shares = shares_of_hits(make, ["epsilon"], 100)
    print(f"{make.__name__}: {n_live} live trials of 100, {shares}")
    assert n_live >= 90
    assert shares["epsilon difference"] >= 0.95
    assert shares["epsilon plain"] >= 0.8
