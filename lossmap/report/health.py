"""The report of a diagnosis."""

from __future__ import annotations

from math import isfinite
from typing import Any

from lossmap.report.text import value_with_error, wrapped

WORDS = {
    "accuracy": "share of the samples that are named as labelled",
    "surprise": "mean -log p of the label, nats",
    "label_noise": "share of confident samples that are surely another class",
    "held_out_accuracy": "the same, of samples not trained on",
    "held_out_surprise": "nats",
    "held_out_label_noise": "with the net's own mistakes",
    "loss": "{unit}, mean over the Hessian's samples",
    "largest_eigenvalue": "of the Hessian, {unit} per squared unit of theta",
    "smallest_eigenvalue": "",
    "trace": "",
    "noise_scale": "batch size at which a step is half noise",
    "coherence": "mean cosine of two samples' gradients",
    "gradients_first_direction": "share of the gradients' scatter along it",
    "pulling_against": "share of samples whose gradient opposes the others' mean",
    "nc1": "spread within classes against between them; 0: collapsed",
    "nc2": "how far class means' cosines are off a simplex's; 0: none",
    "nc2_norms": "spread of the lengths of class means, relative",
    "nc3": "distance of the last layer's weights from the class means",
    "nc4": "share of samples nearer to another class mean than to that named",
    "dead_units": "units that fire in no sample",
    "units": "that could",
    "largest_spectral_norm": "of any layer's weights",
    "least_stable_rank": "of any layer's weights",
}


def of_health(health: Any) -> list[str]:
    """The lines of a diagnosis: findings, what is undecided, the chief numbers."""
    counted = {0: "no finding", 1: "1 finding"}.get(len(health.findings), f"{len(health.findings)} findings")
    beside = f", {health.held_out.samples:,} held out" if health.held_out is not None else ""
    lines = [
        f"Health of {health.label}: {counted}  ({health.size:,} parameters, {health.samples:,} samples{beside})",
    ]
    for i, f in enumerate(health.findings, 1):
        lines += ["", f"  {i}. {f.rule}, {f.where}  [{f.severity}]"]
        lines += wrapped("number", f"{value_with_error(f.value, f.error)}; threshold {f.threshold:g} ({f.source})")
        lines += wrapped("evidence", f.evidence)
        lines += wrapped("may mean", f.means)
        for t in f.tries:
            doubt = f"; but {t.doubt}" if t.doubt != "-" else ""
            by = f" ({t.source})" if t.source != "-" else ""
            lines += wrapped("try", f"{t.what}{by}{doubt}")
    if health.undecided:
        lines.append("")
        for f in health.undecided:
            number = f"{value_with_error(f.value, f.error)} against {f.threshold:g}"
            lines += wrapped("undecided", f"{f.rule}, {f.where}: {number}: not told apart by two standard errors")
    lines.append("")
    for name, entry in health.numbers().items():
        value = entry["value"]
        if value == value:
            number = value_with_error(value, entry["error"]) if isfinite(value) else "none is seen"
            lines.append(f"  {name.replace('_', ' '):<27}{number:<21}{WORDS[name].format(unit=health.unit)}".rstrip())
    for name, why in health.skipped.items():
        lines += wrapped("not examined", f"{name}: {why}", indent=17)
    return lines
