"""The report of a diagnosis: findings, what is undecided, and the chief numbers with their standard errors.

Rendered from the JSON of `Diagnosis.to_dict`, which a file's group `health` holds in its attribute `report`, and from
the arrays beside it, one a number, [value, standard error]: JSON knows no infinity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf, isfinite, isnan, nan
from typing import Any

from lossmap.report.stored import StoredReport
from lossmap.report.task import outstanding_text, task_text
from lossmap.report.text import WIDTH, count, counted, filled, value_with_error, value_with_limit, wrapped, zero_clause

INDENT = 14
COLUMN = 34  # characters of a number's title, wider than any
ANY_LAYER = "of the weights of any layer"
NUMBERS = {  # by its name in the file: title, what it is
    "accuracy": ("accuracy", "share of samples classified as labelled"),
    "surprise": ("negative log-likelihood", "mean over the samples, nats"),
    "label_noise": ("label noise", "share of confident samples predicted otherwise"),
    "held_out_accuracy": ("held-out accuracy", "of samples that were not trained on"),
    "held_out_surprise": ("held-out negative log-likelihood", "mean over these samples, nats"),
    "held_out_label_noise": ("held-out label noise", "includes the errors of the network"),
    "loss": ("loss", "{unit}, mean over the {counted}s that the Hessian is of"),
    "largest_eigenvalue": ("largest eigenvalue", "of the Hessian{by}, {unit} per squared unit of theta"),
    "smallest_eigenvalue": ("smallest eigenvalue", ""),
    "trace": ("trace", ""),
    "noise_scale": ("noise scale", "batch size at which noise is half of a step"),
    "coherence": ("gradient coherence", "mean cosine of two samples' gradients"),
    "gradients_first_direction": ("top-eigenvalue share", "of the trace of the gradient covariance"),
    "pulling_against": ("negative alignment", "share of gradients that oppose the others' mean"),
    "nc1": ("nc1", "within-class over between-class variability"),
    "nc2": ("nc2", "deviation of class-mean cosines from a simplex; always 0 for two classes"),
    "nc2_norms": ("nc2 norms", "relative spread of the norms of class means; always 0 for two classes"),
    "nc3": ("nc3", "distance of last-layer weights from class means"),
    "nc4": ("nc4", "share of samples nearer to another class mean"),
    "dead_units": ("dead units", "active for no sample"),
    "units": ("units", "of all activations"),
    "largest_spectral_norm": ("largest spectral norm", ANY_LAYER),
    "least_stable_rank": ("smallest stable rank", ANY_LAYER),
}


def health_report(stored: StoredReport) -> str:
    """The report of a diagnosis, several lines."""
    report: dict[str, Any] = json.loads(stored.text("report"))
    findings, undecided = report["findings"], report["undecided"]
    held_out = report.get("held_out_samples", 0)
    number = {0: "no finding"}.get(len(findings), count(len(findings), "finding"))
    beside = f", {held_out:,} held out" * bool(held_out)
    of = ""
    if report.get("weight") is not None:
        of = f" with {count(report['weight'], counted(report['unit']))}"
    size = f"{count(report['parameters'], 'parameter')}, {count(report['samples'], 'sample')}{of}{beside}"
    lines = [f"Health of {report['label']}: {number}  ({size})"]
    if len(lines[0]) > WIDTH:
        lines = [f"Health of {report['label']}: {number}", f"  ({size})"]
    task = report.get("task", {})  # files of earlier versions have none
    copes = "; ".join(filter(None, (task_text(task.get("examined"), task.get("held_out")), outstanding_text(findings))))
    if task:
        lines += wrapped("its task", copes, indent=INDENT)
    for note in report.get("evaluation", ()):
        lines += wrapped("evaluation", note, indent=INDENT)
    for i, finding in enumerate(findings, 1):
        lines += _finding_lines(i, finding)
    lines += [""] * bool(undecided)
    for finding in undecided:
        lines += wrapped("undecided", undecided_text(finding), indent=INDENT)
    lines += ["", *_number_lines(stored, report)]
    for name, why in report["skipped"].items():
        lines += wrapped("not examined", f"{name}: {why}", indent=17)
    return "\n".join(lines)


def _finding_lines(i: int, finding: Mapping[str, Any]) -> list[str]:
    """One finding: its number, evidence, what it may mean, and what could be tried."""
    lines = ["", f"  {i}. {finding['rule']}, {finding['where']}  [{finding['level']}]"]
    number = f"{estimate_text(finding)}; threshold {finding['threshold']:g} ({finding['source']})"
    texts = [("number", number), ("evidence", finding["evidence"]), ("may mean", finding["means"])]
    texts += [("try", _suggestion_text(suggestion)) for suggestion in finding["tries"]]
    for label, text in texts:
        lines += wrapped(label, text, indent=INDENT)
    return lines


def _suggestion_text(suggestion: Mapping[str, str]) -> str:
    text = suggestion["what"]
    if suggestion["source"] != "-":
        text += f" ({suggestion['source']})"
    caveat = suggestion.get("caveat", suggestion["doubt"])  # 0.1 wrote `doubt` alone
    if caveat != "-":
        text += f"; caveat: {caveat}"
    return text


def undecided_text(finding: Mapping[str, Any]) -> str:
    """Of what is beyond its threshold, but not by two standard errors: its number with its error, and the threshold."""
    text = f"{estimate_text(finding)} against {finding['threshold']:g}: not resolved at two standard errors"
    return f"{finding['rule']}, {finding['where']}: {text}"


def estimate_text(finding: Mapping[str, Any]) -> str:
    """The value of a finding or a number with its error.

    finding  value, error: JSON has None for what is not finite, and what is reported is never NaN
    """
    value, error = finding["value"], finding["error"]
    if value is None:
        value = inf
    if error is None:
        error = nan
    return value_with_error(value, error)


def _number_lines(stored: StoredReport, report: Mapping[str, Any]) -> list[str]:
    """The chief numbers, one a line, with what each is."""
    lines = []
    unit = report.get("unit", "nats")
    by = ""
    if "size" in report.get("hessian", {}):  # files of earlier versions do not say it
        by = f" by {report['hessian']['size']:,} of the parameters"
    for name, entry in report["numbers"].items():
        value, error = _exact(stored, name, entry)
        if isnan(value):
            continue
        text = "not resolved"
        title, what = NUMBERS.get(name, (name.replace("_", " "), ""))
        what = what.format(unit=unit, counted=counted(unit), by=by)
        if unit == "1":
            what = what.removeprefix("1, ").replace(", 1 per", ", per")
        if isfinite(value):
            text = value_with_limit(value, error, _or_nan(entry, "limit"))
            if "rounding" in entry and abs(value) <= error:  # of an eigenvalue
                what = f"{what}; {zero_clause(error, _or_nan(entry, 'rounding'))}".removeprefix("; ")
        line = f"  {title:<{COLUMN}}{text:<20}  {what}".rstrip()
        if len(line) > WIDTH:
            indent = COLUMN + 2
            lines += [f"  {title:<{COLUMN}}{text}", *(" " * indent + rest for rest in filled(what, WIDTH - indent))]
        else:
            lines.append(line)
    return lines


def _or_nan(entry: Mapping[str, float | None], name: str) -> float:
    """A number of an entry; NaN where it has none, as JSON has None."""
    number = entry.get(name)
    if number is None:
        return nan
    return number


def _exact(stored: StoredReport, name: str, entry: Mapping[str, float | None]) -> Sequence[float]:
    """A number and its error: as the array holds them, else as JSON does, where None is NaN."""
    if name in stored:
        value, error = stored.arrays[name].tolist()
        return value, error
    return _or_nan(entry, "value"), _or_nan(entry, "error")
