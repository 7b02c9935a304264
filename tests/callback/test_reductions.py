"""Reductions against float64, where float32 sums are at their worst."""

import numpy as np
import pytest
import torch
from torch import nn

from dgm_tb.callback.capture import Capture
from dgm_tb.callback.step_row import statistics_of


@pytest.mark.parametrize("shape", [(64, 20), (32, 5, 20), (16, 20, 6, 6)])
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0, -1e4])
def test_the_standard_deviation_survives_a_large_mean(shape: tuple[int, ...], mean: float) -> None:
    model = nn.Sequential(nn.Dropout(0.0) if len(shape) != 3 else nn.LayerNorm(20), nn.Hardtanh(-1e9, 1e9))
    capture = Capture(model)
    values = mean + 0.01 * max(1.0, abs(mean)) ** 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        capture.begin()
        model[1](values)
        row = capture.end()
        assert row is not None
    (slot,) = capture.slots
    activation, _ = statistics_of([row], capture.slots)
    axis = -1 if slot.is_last_axis else 1
    exact = np.moveaxis(values.double().numpy(), axis, 0).reshape(slot.neurons, -1)
    np.testing.assert_allclose(activation[0, 1], exact.std(1), rtol=1e-4)
    np.testing.assert_allclose(activation[0, 0], exact.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(activation[0, 2], exact.min(1).astype(np.float32))
    np.testing.assert_array_equal(activation[0, 3], exact.max(1).astype(np.float32))
