"""Small trainings on scikit-learn's digits, each with a failure to be found; ``SCENARIOS`` lists them.

Reading the table loads no torch; a scenario's own module, imported by ``Scenario.build``, does.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgm_tb.demo.training import Training


@dataclass(frozen=True)
class Scenario:
    """One training that goes wrong, and what to look at.

    Attributes:
        module: Module of this package that has ``build() -> Training``.
        story: What goes wrong.
        look_at: Where the tab shows it.
    """

    module: str
    story: str
    look_at: str

    def build(self) -> "Training":
        """The model, its batches and the trainer's settings, seeded: the same on every call."""
        training: Training = import_module(f"{__name__}.{self.module}").build()
        return training


SCENARIOS: dict[str, Scenario] = {
    "vae-nan": Scenario(
        "vae_nan",
        "A VAE with two Gaussian sampling layers trains well for hundreds of steps; then its loss is NaN for good.",
        "Click the finding: it leads to the step, the layer whose exp() overflows, its neurons and the abnormal image.",
    ),
    "gan": Scenario(
        "gan",
        "A GAN whose discriminator overpowers the generator: its loss falls to zero and the generator stops learning.",
        "Click the finding; then compare the gradients of discriminator.0 (real digits) with its call @1 (generated).",
    ),
    "cnn": Scenario(
        "cnn",
        "A residual digits classifier that learns, although one of its blocks is dead: the skip connection hides it.",
        "Click the finding: every polyline of blocks.1.activation lies on zero. Its neighbours' polylines move.",
    ),
}
"""Name on the command line -> scenario, the default first."""
