"""From verdicts to findings: the sentence, the evidence and the advice that a user reads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dgm_tb.algorithms.outliers import outlying_examples
from dgm_tb.callback.examples import largest_per_example
from dgm_tb.callback.explosions import Explosion
from dgm_tb.callback.investigate import Step, Verdict
from dgm_tb.callback.nested import tensors_in
from dgm_tb.records import Finding

_ADVICE = {
    "exp": "bound what goes into exp: softplus instead of exp for a variance, or clamp the log-variance to [-10, 10]; "
    "and look at the example",
    "log": "keep the argument of log away from zero: log(x + eps), log1p, or a loss that takes logits",
    "sqrt": "keep the argument of sqrt away from zero and below: sqrt(x + eps)",
    "div": "keep the divisor away from zero: x / (y + eps)",
    "pow": "bound what is raised to a power, or compute in float32",
}
_CHECK_EXAMPLE = "look at the example: is it scaled, decoded and labelled like the others? Remove it or repair it"
_CHECK_STEP = "lower the learning rate, clip gradients, and look at the layer's weights in the steps before"


def nonfinite_finding(verdict: Verdict, symptom_step: Step, cause: Step) -> Finding:
    """The finding for a step with NaN or Inf.

    Args:
        verdict: About the step that holds the cause.
        symptom_step: The step in which the first non-finite value was seen.
        cause: The step that holds the cause (often the same).
    """
    samples, evidence = _samples(verdict, cause)
    evidence["first_nonfinite_step"] = symptom_step.step
    evidence["symptom"] = verdict.symptom
    evidence["losses"] = dict(symptom_step.losses)
    return Finding(
        kind="nonfinite",
        severity="error",
        step=cause.step,
        first_step=cause.step,
        last_step=symptom_step.step,
        module=verdict.module,
        modules=verdict.modules,
        neurons=verdict.neurons,
        samples=samples,
        summary=_nonfinite_sentence(verdict, symptom_step, cause, samples),
        evidence=evidence,
        advice=_ADVICE.get(verdict.op, _CHECK_EXAMPLE if samples else _CHECK_STEP),
    )


def outlier_finding(verdict: Verdict, cause: Step, *, last_step: int, did_damage: bool) -> Finding:
    """The finding for an example that is out of line with its batch.

    Args:
        verdict: About the step that holds it; names at least one position.
        cause: That step.
        last_step: Last step of the evidence.
        did_damage: Whether it made something non-finite.
    """
    samples, evidence = _samples(verdict, cause)
    ratio = float(evidence.get("ratio_to_median_example", 0.0))
    where = evidence.get("first_out_of_line", "input")
    return Finding(
        kind="outlier_sample",
        severity="error" if did_damage else "warning",
        step=cause.step,
        first_step=cause.step,
        last_step=last_step,
        module=verdict.module,
        modules=verdict.modules,
        neurons=verdict.neurons,
        samples=samples,
        summary=f"{_example(samples, evidence)} is {ratio:.3g} times as large as the batch's median example at step "
        f"{cause.step}, from {where} on",
        evidence=evidence,
        advice=_CHECK_EXAMPLE,
    )


def spike_finding(step: Step, loss: str, last_step: int) -> Finding:
    """The finding for a loss that leapt in one step and came back: its batch is suspect.

    Args:
        step: The step of the spike.
        loss: Name of the loss.
        last_step: Step in which it was back.
    """
    indices = step.before.indices if step.before is not None else None
    samples = _strangest_first(step, indices or [])[:64]
    evidence = {"loss": loss, "value": step.losses[loss], "sample_index": "batch" if indices is None else "dataset"}
    batch = f"the batch with examples {min(samples)} ... {max(samples)}" if samples else "its batch"
    return Finding(
        kind="loss_spike",
        severity="warning",
        step=step.step,
        first_step=step.step,
        last_step=last_step,
        module="",
        samples=samples,
        summary=f"{loss} leaps to {step.losses[loss]:.3g} at step {step.step} and is back at once: {batch} is suspect",
        evidence=evidence,
        advice="look at the labels and inputs of this batch: a shard that is shuffled, mislabelled or scaled otherwise",
    )


def _strangest_first(step: Step, indices: Sequence[int]) -> list[int]:
    """Examples of a batch, those first that are out of line in one of its tensors (the targets, too)."""
    batch = step.before.batch if step.before is not None else ()
    tensors = [t for t in tensors_in(batch) if t.is_floating_point() and t.dim() and len(t) == len(indices)]
    if not tensors:
        return list(indices)
    found = outlying_examples(np.stack([largest_per_example(tensor) for tensor in tensors]))
    order = [*found.positions, *(p for p in range(len(indices)) if p not in found.positions)]
    return [indices[p] for p in order]


def explosion_finding(explosion: Explosion, step: Step) -> Finding:
    """What is seen while training of gradients that exploded without an example to blame; its cause, the reader tells.

    Args:
        explosion: What was seen.
        step: The step in which it was.
    """
    module = explosion.parameter.rpartition(".")[0]
    what = "times the largest recent one" if explosion.is_leap else f"times the norm of {explosion.parameter}"
    first = step.step if explosion.is_leap else 0
    where = module or "the model"
    return Finding(
        kind="exploding_gradient",
        severity="info",
        step=first,
        first_step=first,
        last_step=step.step,
        module=module,
        summary=f"the gradient reaches {explosion.norm:.2g}, {explosion.ratio:.2g} {what}, largest in {where}",
        evidence={"norm": explosion.norm, "ratio": explosion.ratio, "parameter": explosion.parameter},
        advice="clip gradients, lower the learning rate, and give recurrent or repeated layers a gain of at most one",
    )


def idle_finding(idle: Mapping[str, str], step: int) -> Finding:
    """What is known while training of parameters that do not train; whether that stays so, the reader sees.

    Args:
        idle: Module -> why.
        step: The step of the last look.
    """
    names = list(idle)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Finding(
        kind="not_training",
        severity="info",
        step=0,
        first_step=0,
        last_step=step,
        module=names[0],
        modules=names[1:],
        summary=f"up to step {step}, {names[0]}{more} did not train",
        evidence={"idle": dict(idle)},
        advice="if it is meant to stay as it is, requires_grad_(False) says so",
    )


def on_rank(finding: Finding, rank: int) -> Finding:
    """The finding of one of several processes: its examples are those of the rank's own batch."""
    evidence = {**finding.evidence, "rank": rank}
    return replace(finding, summary=f"rank {rank}: {finding.summary}", evidence=evidence)


def _samples(verdict: Verdict, cause: Step) -> tuple[list[int], dict[str, Any]]:
    indices = cause.before.indices if cause.before is not None else None
    evidence = dict(verdict.evidence)
    evidence["sample_index"] = "batch" if indices is None else "dataset"
    evidence["batch_positions"] = list(verdict.positions)
    if verdict.op:
        evidence["op"] = verdict.op
    if indices is None:
        return list(verdict.positions), evidence
    return [indices[p] for p in verdict.positions if p < len(indices)], evidence


def _nonfinite_sentence(verdict: Verdict, symptom: Step, cause: Step, samples: list[int]) -> str:
    module = verdict.module or "training_step"
    what = {
        "forward": f"{verdict.op or 'the forward pass'} of {module} is not finite",
        "loss": f"the loss is not finite: {verdict.op or 'an operation'} after {module}",
        "backward": f"the gradient of {module} is not finite",
        "weights": f"the weights of {module} are not finite after the step",
        "outlier": f"{module} takes extreme values",
    }[verdict.symptom]
    sentence = f"{what} at step {cause.step}"
    if samples:
        sentence += f", because of {_example(samples, verdict.evidence | {'sample_index': _kind(cause)})}"
        largest, median = (verdict.evidence.get(key) for key in ("largest_activation", "median_activation"))
        if largest is not None and median is not None:
            sentence += f" (|activation| {largest:.3g}, median of the batch {median:.3g})"
    if symptom.step != cause.step:
        sentence += f"; the first NaN or Inf shows in step {symptom.step}, whose batch is innocent"
    return sentence


def _kind(step: Step) -> str:
    return "batch" if step.before is None or step.before.indices is None else "dataset"


def _example(samples: list[int], evidence: dict[str, Any]) -> str:
    kind = "example" if evidence.get("sample_index") == "dataset" else "batch position"
    return f"{kind} {samples[0]}" if samples else "an example"
