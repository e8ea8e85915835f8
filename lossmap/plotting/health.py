"""A network's health on one sheet: findings in words, and beside them the numbers that they rest on.

Drawn from what `Diagnosis.to_dict()` gives, or from group `health` of a result file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossmap.geometry.grid import curvature_unit
from lossmap.io.group_layout import check_group
from lossmap.io.read import read
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.round_ticks import number_few_decades
from lossmap.plotting.style import BLUE, DARK, GREEN, PURPLE, RED, name_scales, new_figure, page_width, style_context
from lossmap.report.health import estimate_text, undecided_text
from lossmap.report.text import count, value_with_error

Report = Mapping[str, Any]
COLOURS = {"serious": RED, "moderate": "#b8860b", "note": BLUE}
MAX_FINDINGS = 6  # on the sheet; the report has all
MAX_UNDECIDED = 4
HEAD, FINDING, UNDECIDED = 0.75, 0.72, 0.17  # inches that the head takes, each finding, each that is undecided


def report_in(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report that a result file holds. Raises KeyError where it holds none."""
    groups = read(path).groups
    if "health" not in groups:
        raise KeyError(f"{os.fspath(path)} holds no health report (lossmap health --surf-file makes one)")
    check_group("health", groups["health"], "health", os.fspath(path))
    report: dict[str, Any] = json.loads(str(groups["health"].attributes["report"]))
    return report


def draw_health(source: Report | str | os.PathLike[str]) -> Figure:
    """The sheet of a report as `Diagnosis.to_dict` makes it, or of the one that a result file holds.

    Raises KeyError where the file holds none; otherwise as `read`.
    """
    report = source if isinstance(source, Mapping) else report_in(source)
    tall = _height(report)
    with style_context():
        figure = new_figure(page_width(), 6.0 + tall)
        grid = figure.add_gridspec(4, 2, height_ratios=(tall / 2, 1, 1, 1))
        _findings(figure.add_subplot(grid[0, :]), report)
        panels = (_singular_values, _gains, _units, _gradients, _hessian, _collapse)
        for i, panel in enumerate(panels):
            panel(figure.add_subplot(grid[1 + i // 2, i % 2]), report)
        name_scales(figure)
    return figure


def _undecided(report: Report) -> Sequence[Mapping[str, Any]]:
    """What is beyond its threshold, but not by two standard errors."""
    undecided: Sequence[Mapping[str, Any]] = report.get("undecided", ())
    return undecided


def _height(report: Report) -> float:
    """Of the findings in words, inches."""
    shown = min(len(report["findings"]), MAX_FINDINGS), min(len(_undecided(report)), MAX_UNDECIDED)
    return HEAD + FINDING * shown[0] + UNDECIDED * shown[1]


def _findings(axes: Axes, report: Report) -> None:
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    findings, undecided = report["findings"], _undecided(report)
    height = _height(report)

    def write(inches: float, text: str, **look: Any) -> None:
        """Write a line so far below the top; it takes no space from the panels, however long it is."""
        axes.text(0, 1 - inches / height, text, va="top", **look).set_in_layout(False)

    summary = {0: "no finding"}.get(len(findings), count(len(findings), "finding"))
    if undecided:
        summary += f", {len(undecided)} undecided"
    write(0, f"{report['label']}: {summary}", fontsize=10, weight="bold")
    examined = f"{report['parameters']:,} parameters, {report['samples']:,} samples"
    if report.get("held_out_samples"):
        examined += f", {report['held_out_samples']:,} held out"
    write(0.22, f"{examined}; bars are two standard errors", fontsize=6.5, color=DARK)
    top = 0.5
    for i, finding in enumerate(findings[:MAX_FINDINGS]):
        headline = f"{finding['rule']}, {finding['where']}"
        if i == MAX_FINDINGS - 1 and len(findings) > MAX_FINDINGS:
            headline += f" (and {len(findings) - MAX_FINDINGS} more)"
        write(top, headline, color=COLOURS[finding["level"]], weight="bold")
        write(top + 0.18, f"{estimate_text(finding)}; threshold {finding['threshold']:g}", fontsize=6.5)
        write(top + 0.31, _wrap(finding["evidence"], 135, 1), fontsize=6.5)
        tries = "to try: " + "; ".join(t["what"] for t in finding["tries"])
        write(top + 0.46, _wrap(tries, 150, 1), fontsize=6, color=DARK)
        top += FINDING
    if not findings:
        text = (
            "Nothing is beyond its threshold by two standard errors. That is no proof of health: see what was examined."
        )
        write(top, text, fontsize=7)
        top += UNDECIDED
    for i, finding in enumerate(undecided[:MAX_UNDECIDED]):
        more = ""
        if i == MAX_UNDECIDED - 1 and len(undecided) > MAX_UNDECIDED:
            more = f" (and {len(undecided) - MAX_UNDECIDED} more)"
        write(top, _wrap(f"undecided{more}: {undecided_text(finding)}", 135, 1), fontsize=6.5, style="italic")
        top += UNDECIDED


def _wrap(text: str, width: int, max_lines: int) -> str:
    """The text in lines of fewer characters than `width`; what is beyond the last line is left out."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    wrapped = "\n".join(lines[:max_lines])
    if len(lines) > max_lines:
        return f"{wrapped} ..."
    return wrapped


def _absent(axes: Axes, report: Report, name: str, title: str) -> None:
    axes.axis("off")
    why = report["skipped"].get(name, "not requested")
    axes.text(0.5, 0.5, f"{title}: not examined\n{_wrap(why, 48, 4)}", ha="center", va="center", color=DARK)


def _singular_values(axes: Axes, report: Report) -> None:
    layers = report.get("weights")
    if not layers:
        _absent(axes, report, "weights", "weights")
        return
    shades = np.linspace(0.1, 0.85, len(layers))
    for shade, layer in zip(shades, layers, strict=True):
        values = np.maximum(layer["singular_values"], 1e-12)  # a layer of zeros stands below the axis
        colour = colormaps["viridis"](shade)
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, lw=0.9, label=layer["name"])
    axes.set(xscale="log", yscale="log", xlabel="index", ylabel="singular values")
    top = max(layer["spectral_norm"] for layer in layers)
    low = max(min(min(x["singular_values"]) for x in layers), 1e-4 * top, 1e-12) * 0.7
    axes.set_ylim(bottom=low)
    if top < 100 * low:
        number_few_decades(axes.yaxis)
    axes.set_title("weights, first layer dark", loc="left")
    if len(layers) <= 5:
        axes.legend()


def _gains(axes: Axes, report: Report) -> None:
    gains = [g for g in report.get("gains", ()) if g["gain"] is not None]
    if not gains:
        _absent(axes, report, "signals", "gains")
        return
    layers = np.arange(len(gains))
    values = np.array([g["gain"] for g in gains])
    errors = np.array([g["error"] or 0.0 for g in gains])
    colours = ["0.7" if g["first"] or g["last"] else BLUE for g in gains]
    axes.errorbar(layers, values, yerr=2 * errors, fmt="none", ecolor=DARK, lw=0.8)
    axes.scatter(layers, values, c=colours, s=14, zorder=3)
    axes.scatter([], [], c="0.7", s=14, label="not judged")
    axes.axhline(10, color=RED, ls="--", lw=0.8, label="thresholds")
    axes.axhline(0.05, color=RED, ls="--", lw=0.8)
    axes.axhline(1, color=DARK, lw=0.5)
    axes.set(yscale="log", xlabel="layer", ylabel="gain, normalisation included")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(ncol=2)
    axes.set_title("signals: what leaves over what enters", loc="left")


def _units(axes: Axes, report: Report) -> None:
    activations = report.get("activations")
    if not activations:
        _absent(axes, report, "signals", "units")
        return
    index = np.arange(len(activations))
    axes.bar(index, [100 * a["dead"] / a["units"] for a in activations], color=RED, label="dead")
    axes.plot(index, 100 * _numbers(activations, "rate"), color=BLUE, marker="o", ms=2.5, label="firing rate")
    saturated = 100 * _numbers(activations, "saturated")
    if np.isfinite(saturated).any():
        axes.plot(index, saturated, color=PURPLE, marker="s", ms=2.5, label="saturated")
    axes.axhline(30, color=RED, ls="--", lw=0.8, label="dead: threshold")
    axes.set(xlabel="activation", ylabel="%", ylim=(0, 140), yticks=(0, 50, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", ncols=2, columnspacing=0.8, handlelength=1.2)
    axes.set_title("units", loc="left")


def _numbers(entries: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A number of each entry, (entries,); NaN where it is None."""
    return np.array([entry[name] for entry in entries], dtype=np.float64)


def _gradients(axes: Axes, report: Report) -> None:
    gradients = report.get("gradients")
    if not gradients:
        _absent(axes, report, "gradients", "gradients")
        return
    values = np.array(gradients["spectrum"])
    values = values[values > 1e-6 * max(values.max(), 1e-300)]
    if not len(values):
        axes.axis("off")
        axes.text(0.5, 0.5, "gradients: those of all samples are the same", ha="center", va="center", color=DARK)
        return
    axes.plot(np.arange(1, len(values) + 1), values, color=GREEN)
    axes.set(xscale="log", yscale="log", xlabel="index", ylabel="eigenvalues of covariance")
    scale = report["numbers"].get("noise_scale", {})
    text = "no signal is seen"
    if scale.get("value") is not None:
        text = f"noise scale {estimate_text(scale)} samples"
    axes.set_title(f"{gradients['samples']:,} gradients: {text}", loc="left")


def _hessian(axes: Axes, report: Report) -> None:
    hessian = report.get("hessian")
    if not hessian:
        _absent(axes, report, "hessian", "Hessian")
        return
    values, errors = np.array(hessian["values"]), np.array(hessian["errors"])
    if "density" in hessian:
        nodes, shares = np.array(hessian["density"]["nodes"]), np.array(hessian["density"]["shares"])
        order = np.argsort(nodes)
        below = np.concatenate([[0.0], np.cumsum(shares[order])])
        axes.step(np.concatenate([nodes[order][:1], nodes[order]]), below, where="post", color=PURPLE)
    for value, error in zip(values, errors, strict=True):
        axes.axvspan(value - error, value + error, color=RED, alpha=0.5, lw=0)
        axes.axvline(value, color=RED, lw=0.8)
    reach = max(abs(values).max(), 1e-300)
    axes.set_xscale("symlog", linthresh=reach * 1e-2)
    decades = [10.0**k for k in range(ceil(log10(reach * 1e-2)), floor(log10(reach)) + 1)]
    axes.set_xticks([*(-d for d in decades if -d >= values.min() * 1.5), 0.0, *decades])
    unit = in_brackets(curvature_unit(str(report.get("unit", "nats"))))
    axes.set(xlabel="eigenvalue of the Hessian" + unit, ylabel="share below", ylim=(0, 1.02))
    low, high = int(np.argmin(values)), int(np.argmax(values))
    title = f"Hessian: {value_with_error(values[low], errors[low])} to {value_with_error(values[high], errors[high])}"
    if hessian.get("trace"):
        title += f"\ntrace {estimate_text(hessian['trace'])}"
    axes.set_title(title, loc="left")


def _collapse(axes: Axes, report: Report) -> None:
    names = [n for n in ("nc1", "nc2", "nc2_norms", "nc3", "nc4") if n in report["numbers"]]
    if not names:
        _absent(axes, report, "collapse", "neural collapse")
        return
    values = _numbers([report["numbers"][n] for n in names], "value")
    errors = [2 * (report["numbers"][n]["error"] or 0.0) for n in names]
    index = np.arange(len(names))
    axes.bar(index, values, yerr=errors, color=BLUE, width=0.6,
             error_kw={"lw": 0.8})  # fmt: skip
    titles = {"nc1": "NC1\nspread", "nc2": "NC2\nangles", "nc2_norms": "NC2\nnorms", "nc3": "NC3\nduality",
              "nc4": "NC4\ncentres"}  # fmt: skip
    axes.set_xticks(index, [titles[n] for n in names])
    axes.set_title("neural collapse: all 0 where it is whole", loc="left")
    if max(values[np.isfinite(values)], default=0.0) > 5:
        axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0)
