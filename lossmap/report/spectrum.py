"""The report of one spectrum: ends, trace, density, condition number and stability threshold, with error bars.

Rendered from the arrays and attributes that `spectra.spectrum_result.stored_spectrum` names and a file's group
`spectrum/LABEL` holds. Eigenvalues are in the unit of the loss per squared unit of theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isinf, isnan, nan

import numpy as np

from lossmap.report.definiteness import definiteness_of_ends
from lossmap.report.estimates import density_text, diagonal_text, mass_text, trace_text
from lossmap.report.loss_text import loss_and_gradient_text
from lossmap.report.stored import StoredReport
from lossmap.report.text import (
    FISHER,
    GAUSS_NEWTON,
    MATRICES,
    MC_FISHER,
    MIN_ROUNDING_SHARE,
    PRECONDITIONED,
    cost,
    count,
    counted,
    number,
    rough_number,
    rounded,
    titled,
    value_with_error,
    value_with_limit,
    wrapped,
    zero_clause,
)

NOT_MET = "; the requested error was not reached"
MAX_TENSORS_SHOWN = 6  # of the sums by tensor, the largest; the file holds all
LEADING = {"top 1": "lambda_1", "bottom 1": "lambda_n"}


@dataclass(frozen=True, eq=False)
class StoredEnd:
    """The eigenvalues at one end of a spectrum, the most extreme first.

    values, errors  (m,) an eigenvalue lies within the error of each
    tolerance       requested, relative to `scale`, the largest absolute eigenvalue
    limit           with probability `confidence` no eigenvalue lies beyond; NaN where not computed
    others          with that probability no eigenvalue but these lies beyond, at most `limit`; NaN where not computed
    rounding        the part of the errors that allows for rounding; NaN in files of version 0.1
    """

    values: np.ndarray
    errors: np.ndarray
    converged: bool
    tolerance: float
    scale: float
    products: int
    limit: float
    others: float
    confidence: float
    rounding: float = nan

    @property
    def extreme(self) -> tuple[float, float]:
        """The most extreme eigenvalue and its error."""
        return float(self.values[0]), float(self.errors[0])


def end_of(stored: StoredReport, name: str) -> StoredEnd | None:
    """The end `top` or `bottom`; None where it was not computed."""
    if name not in stored:
        return None
    limit = stored.number({"top": "upper_limit", "bottom": "lower_limit"}[name])
    others = stored.number(f"{name}_others")
    if isfinite(limit) and (others > limit if name == "top" else others < limit):
        others = limit  # of a second search cut short, looser than what holds for all
    return StoredEnd(
        values=stored.arrays[name],
        errors=stored.arrays[f"{name}_error"],
        converged=stored.flag(f"{name}_converged"),
        tolerance=stored.number(f"{name}_tolerance"),
        scale=stored.number(f"{name}_scale"),
        products=int(stored.number(f"{name}_products")),
        limit=limit,
        others=others,
        confidence=stored.number(f"{name}_confidence"),
        rounding=stored.number(f"{name}_rounding"),
    )


FISHER_TEXT = (
    "positive semidefinite, as a mean of outer products of the samples' gradients always is. It says how large these "
    "gradients are and how they differ; curvature, and stability thresholds with it, are the Hessian's"
)


MC_FISHER_TEXT = (
    "positive semidefinite, as a mean of outer products always is. Its mean over seeds is the Gauss-Newton matrix; the "
    "eigenvalues of one estimate of it spread further than those of the matrix, and its largest one is too large on "
    "average: more draws make both less"
)
DEFINITENESS = {FISHER: FISHER_TEXT, MC_FISHER: MC_FISHER_TEXT}


def spectrum_report(stored: StoredReport) -> str:
    """The report of one spectrum, several lines."""
    top, bottom = end_of(stored, "top"), end_of(stored, "bottom")
    matrix = stored.text("matrix")
    lines = [titled(f"Spectrum of the {MATRICES.get(matrix, matrix)}", stored.text("label"))]
    lines += wrapped("of", _subject(stored))
    frozen = int(stored.number("frozen", 0.0))
    if frozen:
        lines += wrapped("frozen", f"{count(frozen, 'parameter')} that require no gradient are left out")
    if stored.text("evaluation"):
        lines += wrapped("evaluation", stored.text("evaluation"))
    if isfinite(stored.number("loss")):
        lines += wrapped("loss", "{}; gradient norm {}".format(*loss_and_gradient_text(stored)))
    for name, end in (("largest", top), ("smallest", bottom)):
        if end is not None:
            lines += wrapped(name, end_text(name, end))
    limits = _limits(top, bottom)
    if limits:
        lines += wrapped("limits", limits)
    lines += _estimates(stored)
    if top is not None and bottom is not None:
        lines += wrapped("condition", condition_text(stored, top, bottom))
    if top is not None and matrix == PRECONDITIONED:
        lines += wrapped("stability", optimizer_text(*top.extreme, stored.number("optimizer_threshold")))
    elif top is not None and matrix not in DEFINITENESS and not (matrix == GAUSS_NEWTON and top.extreme == (0.0, 0.0)):
        lines += wrapped("stability", stability_text(*top.extreme, top.rounding))
    for which, shares in _localization(stored):
        lines += wrapped("localization", f"eigenvector of {which}: {shares_text(shares)}")
    definiteness = _definiteness(stored, matrix, top, bottom)
    if definiteness:
        lines += wrapped("definiteness", definiteness)
    lines += wrapped("cost", cost(int(stored.number("products")), stored.number("seconds")))
    return "\n".join(lines)


def _definiteness(stored: StoredReport, matrix: str, top: StoredEnd | None, bottom: StoredEnd | None) -> str:
    """The shape of the matrix in words; empty where the ends are not known."""
    if matrix in DEFINITENESS:
        return DEFINITENESS[matrix]
    if top is None or bottom is None:
        return ""
    rounding = float(np.fmax(top.rounding, bottom.rounding))
    seen = float(stored.arrays["node"][0]) if "node" in stored else nan
    return definiteness_of_ends(top.extreme, bottom.extreme, bottom.limit, top.limit, rounding, seen, matrix)


def _subject(stored: StoredReport) -> str:
    """Parameters, samples, precision and unit."""
    text = count(int(stored.number("size")), "parameter" if stored.text("matrix") in MATRICES else "row")
    samples = int(stored.number("samples", 0.0))
    if samples:
        text += f" of the mean loss over {count(samples, counted(stored.text('unit')))}"
    text += f", {stored.text('precision')}"
    if stored.text("unit") not in ("", "1"):
        squared = "squared " if stored.text("matrix") == FISHER else ""
        theta = "P^1/2 theta" if stored.text("matrix") == PRECONDITIONED else "theta"
        text += f"; eigenvalues in {squared}{stored.text('unit')} per squared unit of {theta}"
    return text


def _estimates(stored: StoredReport) -> list[str]:
    """Trace, density, and the shares of eigenvalues beyond the stated limits."""
    lines: list[str] = []
    if "trace" in stored.attributes:
        interval = (stored.number("trace_low"), stored.number("trace_high"))
        value, error = stored.number("trace"), stored.number("trace_error")
        text = trace_text(value, error, interval, stored.text("trace_method"), int(stored.number("trace_products")))
        lines += wrapped("trace", text + NOT_MET * (not stored.flag("trace_met")))
    lines += _entry_sums(stored)
    if "diagonal_error" in stored.attributes:
        low, high, error = (stored.number(f"diagonal_{name}") for name in ("smallest", "largest", "error"))
        text = diagonal_text(int(stored.number("size")), low, high, error, stored.text("trace_method"))
        lines += wrapped("diagonal", text)
    size, sure = int(stored.number("size")), stored.number("density_confidence")
    if "node" in stored:
        nodes = stored.arrays["node"]
        probes, steps, products = (int(stored.number(f"density_{k}")) for k in ("probes", "steps", "products"))
        ends, error = (float(nodes[0]), float(nodes[-1])), stored.number("density_error")
        text = density_text(ends, size, (probes, steps, products), error, sure)
        lines += wrapped("density", text + NOT_MET * (not stored.flag("density_met")))
    if "mass_at" in stored:
        for row in stored.rows(at="mass_at", below="mass_below", above="mass_above"):
            below, above = (mass_text(row[side], size, sure) for side in ("below", "above"))
            lines += wrapped("mass", f"below -{row['at']:g}: {below}; above {row['at']:g}: {above}")
    return lines


def _entry_sums(stored: StoredReport) -> list[str]:
    """The squared Frobenius norm, and each tensor's sum of the diagonal and of the squared entries in its rows."""
    if "square_sum" not in stored:
        return []
    columns = {"name": "entry_sum_of", "diagonal": "diagonal_sum", "diagonal_error": "diagonal_sum_error"}
    columns |= {"squares": "square_sum", "squares_error": "square_sum_error", "ends": "square_sum_interval"}
    whole, *tensors = stored.rows(**columns)
    if isnan(whole["squares"]):
        return wrapped("norm", "squared Frobenius norm not known: squares of the entries are below what float64 holds")
    text = f"squared Frobenius norm {value_with_error(whole['squares'], whole['squares_error'])}"
    if stored.text("trace_method") != "unit vectors":
        low, high = whole["ends"]
        text += f" (95 % interval {low:.4g} to {high:.4g}), from the trace's products"
    mean_square = max(whole["squares"], 0.0) / int(stored.number("size"))
    lines = wrapped("norm", f"{text}; root mean square of the eigenvalues {mean_square**0.5:.3g}")
    if not tensors:
        return lines
    order = sorted(tensors, key=lambda row: -row["squares"])
    texts = [
        f"{row['name']} {value_with_error(row['diagonal'], row['diagonal_error'])} and "
        f"{value_with_error(row['squares'], row['squares_error'])}"
        for row in order[:MAX_TENSORS_SHOWN]
    ]
    more = "; ..." * (len(order) > MAX_TENSORS_SHOWN)
    return lines + wrapped("by tensor", f"trace, and squared entries in its rows: {'; '.join(texts)}{more}")


def stability_text(largest: float, error: float, rounding: float = nan) -> str:
    """The stability threshold of plain gradient descent, 2/lambda_max, and what it does not bound."""
    if isnan(largest):
        return "threshold 2/lambda_max: unknown"
    if largest <= 0.0:
        return "threshold 2/lambda_max: none; the largest eigenvalue is not positive, so curvature sets no limit"
    if largest <= error:
        clause = zero_clause(error, rounding)
        return (
            f"threshold 2/lambda_max: none; the largest eigenvalue {clause}, so curvature sets no limit that is known"
        )
    threshold = value_with_error(2.0 / largest, 2.0 * (error / largest) / largest)
    return (
        f"threshold 2/lambda_max = {threshold}: above this step size full-batch gradient descent diverges along the "
        "leading eigenvector of the local quadratic model. It does not bound steps at other points, of Adam (which "
        "rescales), or with small batches (whose noise lowers it); heavy-ball momentum b raises it by 1 + b"
    )


def optimizer_text(largest: float, error: float, threshold: float) -> str:
    """The optimizer's own threshold, and how far from it the largest eigenvalue is."""
    if not isfinite(threshold):
        return "the optimizer's threshold is not known: where P is given alone, no learning rate is"
    share = value_with_error(largest / threshold, error / threshold)
    side = "below" if largest < threshold else "beyond"
    if abs(largest - threshold) <= error:
        side = "at"
    return (
        f"threshold of the optimizer {number(threshold)}, beyond which full-batch steps diverge with P as it is; the "
        f"largest eigenvalue is {share} of it, {side} the edge of stability"
    )


def condition_text(stored: StoredReport, top: StoredEnd, bottom: StoredEnd) -> str:
    """The condition number in words."""
    (high, _), (low, error) = top.extreme, bottom.extreme
    value = stored.number("condition")
    if isnan(value):
        return "unknown: it requires both ends of the spectrum"
    if high == low == 0.0:
        return "undefined: every eigenvalue is zero"
    if isinf(value):
        smallest = value_with_limit(low, error, bottom.limit)
        clause = "is not positive beyond its error"
        if abs(low) <= error and bottom.rounding >= MIN_ROUNDING_SHARE * error:
            clause = zero_clause(error, bottom.rounding)
        if low + error < 0.0:
            text = (
                f"none: the smallest eigenvalue, {smallest}, is negative, and a condition is one of positive matrices"
            )
        else:
            text = f"infinite: the smallest eigenvalue, {smallest}, {clause}"
            if low + error > 0.0 and high > 0.0:
                text += f" (if it is, the condition number is above {number(high / (low + error))})"
            text += "; ill-conditioned"
        known = stored.number("condition_beyond_floor")
        if isfinite(known):
            floor = stored.number("noise_floor")
            text += f"; beyond the noise floor of {floor:.1e}, |lambda|max / |lambda|min = "
            text += _ratio_text(known, max(abs(high), abs(low)), floor)
        return text
    text = f"{number(value)} = {high:.4g} / {low:.4g}"
    if stored.flag("ill_conditioned"):
        text += "; ill-conditioned (above 1,000)"
    if bottom.limit <= 0.0:
        text += "; a lower bound, since the limit does not exclude a smaller eigenvalue"
    return text


def _ratio_text(ratio: float, largest: float, floor: float) -> str:
    """A ratio to the smallest |eigenvalue|, known to within the floor; both ends where that is coarse."""
    smallest = largest / ratio if ratio else inf
    text = rough_number(ratio, floor / smallest)
    if text.startswith("~"):
        text += f", between {largest / (smallest + floor):.1e} and {largest / max(smallest - floor, 1e-300):.1e}"
    return text


def end_text(name: str, end: StoredEnd) -> str:
    """The `largest` or `smallest` eigenvalues, their errors, how far out they may lie, and whether they converged."""
    outwards = 1.0 if name == "largest" else -1.0
    texts = [value_with_limit(*end.extreme, end.limit)]
    for value, error in zip(end.values[1:].tolist(), end.errors[1:].tolist(), strict=True):
        is_beyond = outwards * (end.others - value) > 0.0  # then another may stand in its place
        texts.append(value_with_limit(value, error, end.others if is_beyond else nan))
    text = ", ".join(texts)
    if end.converged:
        return text
    what = f"the errors here are not within {end.tolerance:g} of the largest"
    if bool((end.errors <= end.tolerance * end.scale).all()):
        what = "the order of some eigenvalues is uncertain"
    if end.rounding > end.tolerance * end.scale:
        return (
            f"{text}  NOT within {end.tolerance:g} of the largest: rounding in this precision alone leaves "
            f"+- {end.rounding:.2g}; use float64, or a larger tolerance"
        )
    return (
        f"{text}  NOT CONVERGED after {count(end.products, 'product')}: {what}; allow more products, or a larger "
        "tolerance"
    )


def shares_text(shares: dict[str, float], most: int = 4) -> str:
    """`fc2.weight 61 %, fc1.weight 30 %, ...`: the share of a vector's squared norm in each tensor, largest first."""
    order = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join([f"{name} {100 * share:.0f} %" for name, share in order[:most]] + ["..."] * (len(order) > most))


def _limits(top: StoredEnd | None, bottom: StoredEnd | None) -> str:
    """Beyond which no eigenvalue lies, and none but those reported, and with which probability."""
    parts: list[str] = []
    confidence = nan
    for end, side, word in ((top, 1.0, "above"), (bottom, -1.0, "below")):
        if end is None or not isfinite(end.limit):
            continue
        part = f"none {word} {rounded(end.limit, side)}"
        if len(end.values) > 1 and isfinite(end.others) and end.others != end.limit:
            part += f", no other {word} {rounded(end.others, side)}"
        parts.append(part)
        confidence = end.confidence
    if not parts:
        return ""
    how = f"each with probability {confidence:g}"
    if confidence == 1.0:
        how = "exact up to rounding"
    return f"eigenvalues: {'; '.join(parts)}; {how}"


def _localization(stored: StoredReport) -> Sequence[tuple[str, dict[str, float]]]:
    """The leading eigenvectors' shares by tensor, where there are several tensors."""
    tensors = stored.texts("tensor")
    if len(tensors) < 2:
        return []
    rows = dict(zip(stored.texts("vector"), np.asarray(stored.arrays["share_by_tensor"]).tolist(), strict=True))
    # An eigenvector of a zero eigenvalue is any vector of a null space: it has no shares.
    known = [v for v in LEADING if v in rows and isfinite(rows[v][0])]
    return [(LEADING[v], dict(zip(tensors, rows[v], strict=True))) for v in known]
