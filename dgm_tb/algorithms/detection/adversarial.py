"""Games of a generator and a discriminator that one of them has won, or that give the same image for ever."""

import numpy as np

from dgm_tb.algorithms.detection.flow import common_module, losses_of, modules_around, upstream
from dgm_tb.algorithms.detection.history import MIN_STEPS, Array, Detection, History, LayerHistory

PERFECT_LOSS = 0.02
"""A discriminator whose loss stays below this tells real from generated without fail; healthy ones stay above 0.2."""

UNIFORM = 0.05
"""Examples that differ by less than this share of what a unit gives are the same; working generators differ by 0.17."""


def gan_imbalance(history: History) -> list[Detection]:
    """A discriminator that tells real from generated without fail, so that the generator learns nothing.

    The discriminator is what is called on real and on generated examples; its loss is the one computed from both. Only
    losses that never go below zero are judged (not WGAN's).
    """
    for game in _games(history):
        first = _perfect_since(*history.losses[game.loss])
        if first is not None:
            return [_imbalance(game.discriminator, game.generator, game.loss, first, *history.losses[game.loss])]
    return []


class Game:
    """A generator and a discriminator.

    Attributes:
        generator: Its module.
        discriminator: Its module.
        loss: Name of the discriminator's recorded loss.
    """

    def __init__(self, generator: str, discriminator: str, loss: str) -> None:
        self.generator, self.discriminator, self.loss = generator, discriminator, loss


def _games(history: History) -> list[Game]:
    """The games of a training, from what flows where."""
    losses = {node: upstream(history, node) for node in losses_of(history)}
    detached = [node for node, (kind, _) in history.nodes.items() if kind == "detach"]
    found = []
    for node, before in losses.items():
        name = f"backward.{node.partition('@')[2] or 0}"
        cuts = [cut for cut in detached if cut in before]
        if not cuts or name not in history.losses:
            continue
        behind = {parent for cut in detached for parent in upstream(history, cut)}
        discriminator = common_module(history, [parent for parent in before - behind if "@" in parent])
        generator = common_module(history, list(behind))
        trains_generator = any(
            not any(cut in other for cut in detached) and {discriminator, generator} <= modules_around(history, other)
            for other in losses.values()
        )
        if discriminator and generator and trains_generator:
            found.append(Game(generator, discriminator, name))
    return found or _games_without_cut(history, losses)


def _games_without_cut(history: History, losses: dict[str, set[str]]) -> list[Game]:
    """Where generated examples are made without gradients, nothing is detached: known by noise and repeated calls."""
    noise = {node for node, (kind, _) in history.nodes.items() if kind == "random"}
    inputs = {node for node, (kind, _) in history.nodes.items() if kind == "input"}
    found = []
    for node, before in losses.items():
        name = f"backward.{node.partition('@')[2] or 0}"
        calls: dict[str, list[str]] = {}
        for other in before:
            if history.kind(other) == "module":
                calls.setdefault(other.partition("@")[0], []).append(other)
        judged = {
            module: [(bool(upstream(history, call) & noise), bool(upstream(history, call) & inputs)) for call in own]
            for module, own in calls.items()
        }
        of_both = [m for m, own in judged.items() if (False, True) in own and any(noisy for noisy, _ in own)]
        of_noise = [m for m, own in judged.items() if all(noisy and not real for noisy, real in own)]
        game = Game(common_module(history, of_noise), common_module(history, of_both), name)
        others = [modules_around(history, below) for other, below in losses.items() if other != node]
        trains_generator = any({game.generator, game.discriminator} <= modules for modules in others)
        if game.generator and game.discriminator and trains_generator and name in history.losses:
            found.append(game)
    return found


def _perfect_since(steps: Array, values: Array) -> int | None:
    """The step from which a loss that began high stays near zero to the end; None if it does not."""
    if len(values) < MIN_STEPS or not np.nanmin(values) >= 0 or not values[0] > 5 * PERFECT_LOSS:
        return None
    late = values[-max(MIN_STEPS // 2, len(values) // 4) :]
    if not np.median(late) < PERFECT_LOSS:
        return None
    return int(steps[int(np.argmax(values < PERFECT_LOSS))])


def _imbalance(discriminator: str, generator: str, name: str, first: int, steps: Array, values: Array) -> Detection:
    late = float(np.median(values[-max(MIN_STEPS // 2, len(values) // 4) :]))
    return Detection(
        kind="gan_imbalance",
        severity="error",
        step=first,
        first_step=first,
        last_step=int(steps[-1]),
        module=discriminator,
        modules=[generator],
        summary=f"{discriminator} tells real from generated without fail: its loss is {late:.2g}, below {PERFECT_LOSS} "
        f"since step {first}, so {generator} gets no useful gradient",
        evidence={"loss": name, "median_loss": late, "first_loss": float(values[0])},
        advice="weaken the discriminator (fewer steps, smaller learning rate, dropout, label smoothing, noise on its "
        "inputs) or use a loss that does not saturate",
    )


def mode_collapse(history: History) -> list[Detection]:
    """A generator that makes (nearly) the same of every point of its latent space.

    Its layers without positions tell by the deviation of each unit over the examples; those with positions by how far
    the largest activation differs from example to example, in the last steps.
    """
    for game in _games(history):
        inside = [layer for layer in history.layers if _is_in(layer.module, game.generator)]
        layers = [layer for layer in inside if layer.has_weights and layer.steps[-1] + 1 >= MIN_STEPS]
        known = [(layer, found) for layer in layers if (found := _diversity(history, layer)) is not None]
        if not known:
            continue
        layer, diversity = known[-1]
        if diversity[-1] >= UNIFORM:
            continue
        good = np.flatnonzero(diversity >= UNIFORM)
        onset = int(good[-1]) + 1 if len(good) else 0
        step = int(layer.steps[onset - 1]) + 1 if 0 < onset < len(layer.steps) else 0
        return [
            Detection(
                kind="mode_collapse",
                severity="error",
                step=step,
                first_step=step,
                last_step=history.last_step,
                module=game.generator,
                modules=[layer.module],
                summary=f"{game.generator} makes (nearly) the same of every latent point: examples differ by "
                f"{float(diversity[-1]):.2g} of what {layer.module} gives",
                evidence={"diversity": float(diversity[-1]), "first_diversity": float(diversity[0])},
                advice="look whether the latent reaches the generator at full scale; lower its learning rate, let the "
                "discriminator see batches (minibatch discrimination), or use another loss",
            )
        ]
    return []


def _is_in(module: str, around: str) -> bool:
    return module == around or module.startswith(f"{around}.")


def _diversity(history: History, layer: LayerHistory) -> Array | None:
    """How far a layer's answers to the examples differ, over their size ``[W]``."""
    mean, std = layer.neurons.get("mean"), layer.neurons.get("std")
    if mean is None or std is None or not mean.size:
        return None
    if len(layer.shape) == 2:
        return np.asarray(np.sqrt((std**2).sum(0) / np.maximum((mean**2 + std**2).sum(0), 1e-30)))
    largest = history.examples.get(layer.name)
    if largest is None or largest.shape[1] < 4:
        return None
    with np.errstate(invalid="ignore"):
        spread = np.nanstd(largest, 1) / np.maximum(np.nanmean(largest, 1), 1e-30)
    return np.asarray([float(np.nanmedian(spread))])
