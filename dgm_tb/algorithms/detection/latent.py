"""Variational autoencoders whose latent variables say nothing."""

import numpy as np

from dgm_tb.algorithms.detection.flow import nearest_layers, upstream
from dgm_tb.algorithms.detection.history import MIN_STEPS, Array, Detection, History, LayerHistory

INACTIVE = 0.01
"""A latent dimension is inactive if its KL divergence from the prior is below this (in nats); Burda et al. 2016 draw
the same line through the variance of its mean."""

COLLAPSED = 0.9
"""Share of inactive dimensions at which the posterior has collapsed. Single ones are switched off in healthy models."""


def posterior_collapse(history: History) -> list[Detection]:
    """Latent dimensions whose posterior is the prior for every example, at the end and before it."""
    for mean, logvar in _posteriors(history):
        kl = _divergence(mean, logvar)
        if kl is None or kl.shape[1] < 2 or mean.steps[-1] + 1 < MIN_STEPS:
            continue
        inactive = (kl[:, -2:] < INACTIVE).all(1)
        if inactive.mean() < COLLAPSED or _is_waking(kl):
            continue
        share = (kl < INACTIVE).mean(0) >= COLLAPSED
        onset = int(np.flatnonzero(~share)[-1]) + 1 if (~share).any() else 0
        step = int(mean.steps[onset - 1]) + 1 if onset else 0
        return [_collapse(history, mean, logvar, np.flatnonzero(inactive), kl, step)]
    return []


def _is_waking(kl: Array) -> bool:
    """Whether the divergence grows: a fresh network's posterior is close to the prior, too."""
    total = kl.mean(0)
    return bool(total[-1] > 2 * total.min() and total[-1] > 0.3 * INACTIVE)


def _posteriors(history: History) -> list[tuple[LayerHistory, LayerHistory | None]]:
    """Layers of the mean and of the log-variance of sampled variables; None: both come of one layer.

    A sample is a sum of the mean and of noise times something made of the log-variance.
    """
    found: list[tuple[LayerHistory, LayerHistory | None]] = []
    noise = {node for node, (kind, _) in history.nodes.items() if kind == "random"}
    tainted = {node: bool(upstream(history, node) & noise) for node in history.nodes}
    for node, parents in history.parents.items():
        if history.ops.get(node) not in ("add", "add_", "addcmul", "rsample") and history.kind(node) != "random":
            continue
        clean = [parent for parent in parents if not tainted[parent]]
        noisy = [parent for parent in parents if tainted[parent]]
        if history.kind(node) == "random" and clean:
            layers = nearest_layers(history, node)
        elif clean and noisy:
            layers = _layers_at(history, clean[0]) + [
                layer
                for parent in noisy
                for layer in nearest_layers(history, parent)
                if not tainted.get(layer.name, True)
            ]
        else:
            continue
        names = list({layer.name: layer for layer in layers}.values())
        if len(names) == 2 and len(names[0].low) == len(names[1].low):
            found.append((names[0], names[1]))
        elif len(names) == 1 and clean:
            found.append((names[0], None))
    return found


def _layers_at(history: History, node: str) -> list[LayerHistory]:
    own = [layer for layer in history.layers if layer.name == node]
    return own or nearest_layers(history, node)


def _divergence(mean: LayerHistory, logvar: LayerHistory | None) -> Array | None:
    """Kullback-Leibler divergence of each latent dimension from the standard normal prior ``[latents, W]``.

    Of a layer that gives both, means come first; its halves are told apart no further, since both are near zero where
    the posterior is the prior.
    """
    mu, mu_std = mean.neurons.get("mean"), mean.neurons.get("std")
    if mu is None or mu_std is None or not mu.size:
        return None
    if logvar is None:
        if len(mu) % 2:
            return None
        half = len(mu) // 2
        mu, mu_std, lv, lv_std = mu[:half], mu_std[:half], mu[half:], mu_std[half:]
    else:
        lv, lv_std = logvar.neurons["mean"], logvar.neurons["std"]
        if lv.shape != mu.shape:
            return None
    with np.errstate(over="ignore"):
        return np.asarray(0.5 * (mu**2 + mu_std**2 + np.exp(lv + lv_std**2 / 2) - 1 - lv))


def _collapse(
    history: History, mean: LayerHistory, logvar: LayerHistory | None, inactive: Array, kl: Array, step: int
) -> Detection:
    return Detection(
        kind="posterior_collapse",
        severity="error" if len(inactive) == len(kl) else "warning",
        step=step,
        first_step=step,
        last_step=history.last_step,
        module=mean.module,
        modules=[logvar.module] if logvar is not None else [],
        neurons=[int(n) for n in inactive[:64]],
        summary=f"{mean.module}: the posterior of {len(inactive)} of {len(kl)} latent dimensions is the prior, so they "
        f"say nothing of the input (largest KL {float(kl[inactive, -1].max()):.2g} nats)",
        evidence={"inactive": len(inactive), "latents": len(kl), "kl": [float(v) for v in kl[:16, -1]]},
        advice="weigh the KL term less or warm it up, leave it free bits, weaken the decoder, or take the path around "
        "the latent out",
    )
