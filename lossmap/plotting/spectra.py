"""Pictures of spectra: the density with its cumulative and error band, layers on one sheet, checkpoints compared.

Each takes a result file, a `Spectrum` or `BlockSpectra` from Python, or a mapping of them by label. Eigenvalues stand
on an axis by their inverse hyperbolic sine, linear near zero and logarithmic beyond, so that the bulk at zero and the
few large ones are both visible; the band is what is known of it, at all t together, with the confidence that the file
states. The smoothed density above it is for the eye.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmap.geometry.grid import curvature_unit
from lossmap.io.spectrum_layout import Source, layers_in, spectra_in
from lossmap.io.surface import Group
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.style import BLUE, COLUMN, DARK, GREEN, PAGE, PURPLE, RED, new_figure, style_context

COLOURS = (BLUE, RED, GREEN, PURPLE, "#b8860b", "#3b3b3b")


def draw_spectrum(source: Source, label: str | None = None) -> Figure:
    """One spectrum: smoothed density above, cumulative density with its band below, the ends marked.

    label  which of the file's spectra; the first, if left out. Raises ValueError for a label that is not there.
    """
    spectra = spectra_in(source)
    if label is None:
        label = next(iter(spectra))
    if label not in spectra:
        raise ValueError(f"there is no spectrum {label!r}; there are {', '.join(spectra)}")
    group = spectra[label]
    with style_context():
        figure = new_figure(COLUMN, 3.4)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
        linear = _linear([group])
        _density(upper, group, linear, BLUE, label)
        _cumulative(lower, group, BLUE, label)
        for axes in (upper, lower):
            _ends(axes, group)
            _scale(axes, linear, [group])
        upper.set_ylabel("density, smoothed")
        lower.set_ylabel("share of eigenvalues below")
        lower.set_xlabel(_axis(group))
        upper.set_title(_title(group, label), loc="left")
        _note(lower, group)
    return figure


def draw_comparison(source: Source) -> Figure:
    """Several spectra: cumulative densities with their bands on one axis, and the extreme eigenvalues beside."""
    spectra = spectra_in(source)
    with style_context():
        figure = new_figure(PAGE, 2.6)
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        groups = list(spectra.values())
        linear = _linear(groups)
        for i, (label, group) in enumerate(spectra.items()):
            _cumulative(left, group, COLOURS[i % len(COLOURS)], label)
        _scale(left, linear, groups)
        left.set_xlabel(_axis(groups[0]))
        left.set_ylabel("share of eigenvalues below")
        if any("tick" in g for g in groups):
            left.legend(loc="upper left")
        _extremes(right, spectra)
    return figure


def draw_layers(source: Source, label: str | None = None) -> Figure:
    """All blocks on one sheet: every eigenvalue of each on a common axis, and what each holds beside it.

    label  which of the file's readings; the first, if left out. Raises ValueError for a label that is not there.
    """
    readings = layers_in(source)
    if label is None:
        label = next(iter(readings))
    if label not in readings:
        raise ValueError(f"there are no layers {label!r}; there are {', '.join(readings)}")
    group = readings[label]
    names = [str(n) for n in group["block"]]
    with style_context():
        figure = new_figure(PAGE, 0.9 + 0.27 * len(names))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
        floor = float(np.max(group["floor"], initial=0.0))
        reach = float(np.max(np.abs([group["largest"], group["smallest"]])))
        linear = max(floor, reach * 1e-4, 1e-300)
        for row, name in enumerate(names):
            _block(left, group, name, row, linear)
        left.axvline(0.0, color=DARK, linewidth=0.6)
        left.set_xscale("asinh", linear_width=linear)
        _ticks(left, linear, [float(np.min(group["smallest"])), float(np.max(group["largest"]))], count=4)
        left.set_yticks(range(len(names)), [f"{n} ({int(s):,})" for n, s in zip(names, group["size"], strict=True)])
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlabel(f"eigenvalues of the block (linear up to about {linear:.0e})")
        left.set_title("Layer by layer" if label == "layers" else f"Layer by layer: {label}", loc="left")
        _signs(right, group)
    return figure


def _block(axes: Axes, group: Group, name: str, row: int, linear: float) -> None:
    """One block's eigenvalues: a tick each, or the nodes of its density, darker where more weight is."""
    key = name.replace("/", "_")
    if str(group["kind"][row]) == "zero":
        axes.text(linear * 1.3, row, "zero", va="center", color=DARK, fontsize=7)
        return
    values = np.asarray(group[f"eigenvalues:{key}"])
    axes.plot([values.min(), values.max()], [row, row], color="0.8", linewidth=0.8, zorder=1)
    nodes, strength = values, np.ones(len(values))
    if f"nodes:{key}" in group:
        nodes = np.asarray(group[f"nodes:{key}"])
        weights = np.asarray(group[f"weights:{key}"])
        strength = np.clip(0.25 + 0.75 * np.sqrt(weights / weights.max()), 0.0, 1.0)
        nodes, strength = np.append(nodes, values), np.append(strength, np.ones(len(values)))
    elif len(values) > 40:
        strength = np.full(len(values), 0.45)
    for sign, colour in ((1, BLUE), (-1, RED)):
        mine = sign * nodes > float(group["floor"][row])
        if mine.any():
            axes.scatter(nodes[mine], np.full(mine.sum(), row), s=22, marker="|", color=colour, alpha=strength[mine])  # type: ignore[arg-type]
    flat = np.abs(nodes) <= float(group["floor"][row])
    if flat.any():
        axes.scatter(nodes[flat], np.full(flat.sum(), row), s=16, marker="|", color=DARK, alpha=0.6)


def _signs(axes: Axes, group: Group) -> None:
    """The shares of negative, zero and positive eigenvalues of each block: solid what is certain, hatched what is not.

    Each count is known as an interval. Its lower end is solid; what lies between the lower ends and all eigenvalues is
    undecided, and stands between the signs that it may belong to.
    """
    size = np.asarray(group["size"], dtype=float)
    ends = {k: 100.0 * np.asarray(group[k], dtype=float) / size[:, None] for k in ("negative", "zero", "positive")}
    low = {name: interval[:, 0] for name, interval in ends.items()}
    undecided = np.clip(100.0 - sum(low.values()), 0.0, 100.0)
    reach = {name: ends[name][:, 1] - low[name] for name in ("negative", "positive")}
    either = reach["negative"] + reach["positive"]
    below = undecided * np.where(either > 0, reach["negative"] / np.where(either > 0, either, 1.0), 0.5)
    rows, start = np.arange(len(size)), np.zeros(len(size))
    open_bar = {"facecolor": "white", "edgecolor": "0.6", "hatch": "//////", "linewidth": 0.0}
    for name, width, look in (
        ("negative", low["negative"], {"color": RED}),
        ("undecided", below, open_bar),
        ("zero", low["zero"], {"color": "0.8"}),
        ("_undecided", undecided - below, open_bar),
        ("positive", low["positive"], {"color": BLUE}),
    ):
        if name in ends or undecided.any():
            axes.barh(rows, width, left=start, height=0.55, label=name, **look)
        start = start + width
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of eigenvalues, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, handlelength=0.9, columnspacing=0.8)
    axes.tick_params(axis="y", left=False)


def _density(axes: Axes, group: Group, linear: float, colour: str, label: str) -> None:
    """The nodes smoothed in the coordinate of the picture, per unit of it, so that areas are shares of eigenvalues.

    A node stands for all that lies nearer to it than to the probe's next one, and is drawn as wide as that.
    """
    if "node" not in group:
        axes.text(0.5, 0.5, "no density was asked for", transform=axes.transAxes, ha="center", color=DARK)
        return
    nodes, weights = np.asarray(group["node"]), np.asarray(group["weight"])
    position = _bent(nodes, linear)
    low, high = position.min(), position.max()
    width = _widths(position, int(group.attributes.get("density_probes", 0)), max(0.015 * (high - low), 1e-6))
    u = np.linspace(low - 4 * width[0], high + 4 * width[-1], 800)
    z = (u[:, None] - position) / width
    curve = np.exp(-0.5 * z * z) @ (weights / (width * np.sqrt(2 * np.pi)))
    x = _unbent(u, linear)
    axes.fill_between(x, curve, 0.0, where=list(x >= 0), color=colour, alpha=0.35, linewidth=0)
    axes.fill_between(x, curve, 0.0, where=list(x <= 0), color=RED, alpha=0.35, linewidth=0)
    axes.plot(x, curve, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_ylim(max(float(curve.max()) * 1e-4, 1e-12), float(curve.max()) * 2)


def _widths(position: np.ndarray, probes: int, smallest: float) -> np.ndarray:
    """A standard deviation for each node: half-way to the neighbours of its probe, not below `smallest`; (nodes,)."""
    if probes == 0 or len(position) <= 2 * probes:
        return np.full(len(position), smallest)
    i = np.arange(len(position))
    distance = position[np.minimum(i + probes, len(position) - 1)] - position[np.maximum(i - probes, 0)]
    result: np.ndarray = np.maximum(distance / 4.0, smallest)
    return result


def _cumulative(axes: Axes, group: Group, colour: str, label: str) -> None:
    """The share of eigenvalues below each value, with its band where it is an estimate."""
    if "tick" not in group:
        return
    tick = np.asarray(group["tick"])
    if int(group.attributes.get("density_probes", 0)) == 0:  # all eigenvalues are known: the staircase itself
        nodes = np.asarray(group["node"])
        axes.step([tick[0], *nodes, tick[-1]], [0.0, *np.cumsum(group["weight"]), 1.0], where="post", color=colour,
                  label=label)  # fmt: skip
    else:
        low, high = group["cumulative_low"], group["cumulative_high"]
        axes.fill_between(tick, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(tick, group["cumulative"], color=colour, label=label)
    axes.set_ylim(-0.03, 1.03)


def _ends(axes: Axes, group: Group) -> None:
    """The extreme eigenvalues as ticks along the bottom."""
    for name, colour in (("top", BLUE), ("bottom", RED)):
        if name in group:
            values = np.asarray(group[name])
            axes.plot(
                values, np.full(len(values), 0.03), "|", color=colour, markersize=6, clip_on=False,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _extremes(axes: Axes, spectra: dict[str, Group]) -> None:
    """Largest and smallest eigenvalues of each, with error bars."""
    labels = list(spectra)
    reach = max(float(np.nanmax(np.abs([*g["top"], *g["bottom"]]))) for g in spectra.values() if "top" in g)
    linear = max(1e-3 * reach, 1e-300)
    for i, group in enumerate(spectra.values()):
        for name, marker in (("top", "^"), ("bottom", "v")):
            if name in group:
                values, errors = np.asarray(group[name]), np.asarray(group[f"{name}_error"])
                axes.errorbar(
                    values, np.full(len(values), i), xerr=errors, fmt=marker, color=COLOURS[i % len(COLOURS)],
                    markersize=4, elinewidth=0.8, capsize=1.5, markerfacecolor="none", markeredgewidth=0.8,
                )  # fmt: skip
        first = float(group.arrays.get("top", [float("nan")])[0])
        axes.annotate(
            f"{first:.3g}", (first, i), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7,
            color=COLOURS[i % len(COLOURS)],
        )  # fmt: skip
    axes.axvline(0.0, color=DARK, linewidth=0.6)
    axes.set_xscale("asinh", linear_width=linear)
    ends = [float(v) for g in spectra.values() for n in ("top", "bottom") if n in g for v in g[n]]
    _ticks(axes, linear, [min(ends), max(ends)], count=2, margin=4.0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("extreme eigenvalues")


def _linear(groups: list[Group]) -> float:
    """Within which the axis is linear: a thousandth of the largest absolute node."""
    reach = [float(np.abs(g["node"]).max()) for g in groups if "node" in g]
    reach += [float(np.abs(g["top"]).max()) for g in groups if "top" in g and len(g["top"])]
    return max([r * 1e-3 for r in reach], default=1.0) or 1.0


def _scale(axes: Axes, linear: float, groups: list[Group]) -> None:
    axes.set_xscale("asinh", linear_width=linear)
    axes.axvline(0.0, color=DARK, linewidth=0.5, zorder=0.5)
    ends = [float(v) for g in groups for n in ("node", "top", "bottom") if n in g for v in (g[n].min(), g[n].max())]
    _ticks(axes, linear, ends or [0.0, 1.0])


def _ticks(axes: Axes, linear: float, values: list[float], count: int = 3, margin: float = 1.6) -> None:
    """Zero, and powers of ten that do not run into each other, `count` on each side at most."""
    low, high = min(values), max(values)
    first = int(np.ceil(np.log10(linear) - 1e-9))
    ticks: list[float] = [0.0]
    for sign, end in ((1.0, high), (-1.0, -low)):
        if end > linear:
            last = int(np.floor(np.log10(end)))
            step = max(1, -(-(last - first + 1) // count))
            ticks += [sign * 10.0**p for p in range(last, first - 1, -step)]
    ticks.sort()
    axes.set_xticks(ticks, [_power(tick) for tick in ticks])
    axes.minorticks_off()
    left, right = -linear * 0.5, linear
    if low < 0:
        left = min(low * margin, -linear)
    if high > 0:
        right = max(high * margin, linear)
    axes.set_xlim(left, right)


def _power(tick: float) -> str:
    if tick == 0 or 1e-3 <= abs(tick) < 1e4:
        return f"{tick:g}"
    return f"{tick:.0e}".replace("e-0", "e-")


def _bent(x: np.ndarray, linear: float) -> np.ndarray:
    """The coordinate of the picture: linear near zero, logarithmic beyond."""
    result: np.ndarray = np.arcsinh(x / linear)
    return result


def _unbent(u: np.ndarray, linear: float) -> np.ndarray:
    result: np.ndarray = linear * np.sinh(u)
    return result


def _axis(group: Group) -> str:
    """The label of an axis of eigenvalues, with their unit."""
    matrix = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton"}.get(str(group.attributes.get("matrix")), "matrix")
    label = f"eigenvalue of the {matrix}"
    if matrix == "matrix" or "unit" not in group.attributes:  # of any matrix nothing is known
        return label
    return label + in_brackets(curvature_unit(str(group.attributes["unit"])))


def _title(group: Group, label: str) -> str:
    size = int(group.attributes.get("size", 0))
    return f"{label}: {size:,} parameters"


def _note(axes: Axes, group: Group) -> None:
    """What the band is."""
    attributes: Any = group.attributes
    if "density_confidence" not in attributes:
        return
    text = "exact"
    if int(attributes["density_probes"]):
        kind = attributes.get("density_band", "pointwise")  # as of files of version 0.1
        text = f"band: {100 * float(attributes['density_confidence']):g} %, {kind}"
    axes.text(0.98, 0.14, text, transform=axes.transAxes, ha="right", fontsize=7, color=DARK)
