"""Whether a network copes with its task, as one sentence: accuracy and loss against chance, on held-out samples first.

A word is never stronger than its number: `above chance` is what `diagnostics.label_noise` calls classifying, two
standard errors and more, and how good is good enough no number here says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from lossmap.report.text import meaningful_digits, percent_with_error, value_with_error

WHOLE_NETWORK = ("the model", "the data", "held-out samples")  # what findings are about that is no layer
MAX_LAYERS = 3  # that are named


def task_numbers(labels: Any) -> dict[str, Any]:
    """What the sentence rests on, of a `LabelNoise`; the keys stand in files."""
    accuracy, error = labels.accuracy_estimate
    loss, loss_error = labels.negative_log_likelihood
    return {
        "accuracy": accuracy, "accuracy_error": error, "chance": labels.chance, "loss": loss, "loss_error": loss_error,
        "entropy": labels.entropy, "samples": labels.samples, "above_chance": bool(labels.classifies),
    }  # fmt: skip


def task_text(
    examined: Mapping[str, Any] | None, held_out: Mapping[str, Any] | None, *, of_training: bool = True
) -> str:
    """The sentence; empty where neither is known.

    examined, held_out  as `task_numbers` has them, of samples examined and of samples that were not trained on
    of_training         whether the samples examined are those of the training
    """
    judged = held_out or examined
    if judged is None:
        return ""
    where = "held-out samples" if held_out else "samples examined"
    opening = "above chance" if judged.get("above_chance") else "not shown to be above chance"
    if "variance" in judged:
        opening = f"{'' if judged['is_better'] else 'not shown to be '}better than the targets' mean"
    text = f"{opening}: {_numbers(judged)} of {judged['samples']:,} {where}"
    if held_out and examined:
        text += f"; {_numbers(examined, brief=True)} of the {examined['samples']:,} samples examined"
    if not held_out and of_training:
        text += "; none were held out"
    return text


def regression_numbers(fit: Any) -> dict[str, Any]:
    """What the sentence of a regression rests on, of a `RegressionFit`; the keys stand in files."""
    loss, loss_error = fit.error
    return {
        "loss": loss, "loss_error": loss_error, "variance": fit.variance, "samples": fit.samples,
        "is_better": bool(fit.is_better),
    }  # fmt: skip


def _numbers(task: Mapping[str, Any], brief: bool = False) -> str:
    if "variance" in task:
        error = f"squared error {_loss(task)}"
        if brief or not task["variance"]:
            return error
        explained = 100 * (1 - task["loss"] / task["variance"])
        share = f", {explained:.3g} % of it explained" if task["is_better"] else ""
        return f"{error} (variance of the targets {_beside_loss(task, 'variance')}{share})"
    accuracy = f"accuracy {percent_with_error(task['accuracy'], task['accuracy_error'])}"
    loss = f"loss {_loss(task)} nats"
    if brief:
        return f"{accuracy}, {loss}"
    alone = _beside_loss(task, "entropy")
    return f"{accuracy} (chance {100 * task['chance']:.3g} %), {loss} (labels' frequencies alone {alone})"


def _beside_loss(task: Mapping[str, Any], name: str) -> str:
    """What the loss is compared with, to the digits that the loss's error leaves meaningful."""
    return meaningful_digits(task[name], task["loss_error"]) if task["loss_error"] else f"{task[name]:.3g}"


def _loss(task: Mapping[str, Any]) -> str:
    """JSON has None for what is not finite."""
    value, error = task["loss"], task["loss_error"]
    if value is None or not isfinite(value):
        return "infinite"
    return value_with_error(value, error or 0.0)


def outstanding_text(findings: Sequence[Mapping[str, Any]]) -> str:
    """The layers that findings are about, the most severe first, and what could be tried first; empty for none."""
    layers = dict.fromkeys(f["where"] for f in findings if f["where"] not in ("", *WHOLE_NETWORK))
    parts = []
    if layers:
        more = f" and {len(layers) - MAX_LAYERS} more" * (len(layers) > MAX_LAYERS)
        parts.append(f"layers that stand out: {', '.join(list(layers)[:MAX_LAYERS])}{more}")
    first = next((f for f in findings if f["tries"]), None)
    if first is not None:
        parts.append(f"could be tried first: {first['tries'][0]['what']} (for {first['rule']})")
    return "; ".join(parts)
