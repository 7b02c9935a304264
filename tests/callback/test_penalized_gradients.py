"""A gradient that is taken to be derived itself (gradient penalties) is not that of the loss, and is not recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from models import PenalizedGAN, images
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback


class _Oracle(L.Callback):
    """The gradient of every loss with respect to the output of every call so far, by autograd."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self._outputs: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if name and not list(module.children()):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            call = self._calls[name] = self._calls.get(name, -1) + 1
            self._outputs[f"{name}@{call}" if call else name] = output

        return hook

    def on_train_batch_start(self, *_: Any) -> None:
        self.gradients.append({})
        self._outputs, self._calls = {}, {}

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        found = torch.autograd.grad(loss, list(self._outputs.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(self._outputs, found, strict=True):
            if gradient is not None:
                assert name not in self.gradients[-1]
                self.gradients[-1][name] = gradient.double()


class _NotInPlace(PenalizedGAN):
    """Every output can be derived with respect to."""

    def __init__(self) -> None:
        super().__init__()
        self.to_image[1] = nn.ReLU()
        self.discriminator[1] = nn.Softplus()


def test_the_gradient_of_a_penalty_s_own_gradient_is_left_out(tmp_path: Path) -> None:
    oracle = _Oracle()
    torch.manual_seed(1)
    fit(_NotInPlace(), loader(images()), tmp_path / "bare", None, others=(oracle,), max_steps=4)
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1)
    fit(_NotInPlace(), loader(images()), tmp_path / "watched", callback, max_steps=4)
    recording = Recording.of(tmp_path / "watched")
    without = {layer.name for layer in recording.graph.layers} - set(oracle.gradients[0])
    assert without == {"discriminator.1", "discriminator.3"}, "only the slope of what they gave is in the penalty"
    for layer in recording.graph.layers:
        got = recording.dynamics(layer.name, "gradient", "rms/mean")
        assert len(got) == 2
        if layer.name in without:
            assert np.isnan(got).all()
            continue
        for step, gradients in enumerate(oracle.gradients):
            g = gradients[layer.name]
            want = g.movedim(1, 0).flatten(1).square().mean(1).sqrt().numpy()
            np.testing.assert_allclose(got[step], want, rtol=2e-3, atol=1e-4 * want.max(), err_msg=layer.name)
