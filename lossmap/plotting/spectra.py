"""Pictures of spectra: the density with its cumulative and error band, layers on one sheet, checkpoints compared.

Each takes a result file, a `Spectrum` or `BlockSpectra` from Python, or a mapping of them by label. Eigenvalues stand
on an axis by their inverse hyperbolic sine, linear near zero and logarithmic beyond, so that the bulk at zero and the
few large ones are both visible; the band is what is known of it, at all t together, with the confidence that the file
states. The smoothed density above it is for the eye.
"""

from __future__ import annotations

from textwrap import fill, wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossmap.geometry.grid import curvature_unit
from lossmap.io.group_layout import checked
from lossmap.io.spectrum_layout import Source, layers_in, spectra_in
from lossmap.io.surface import Group
from lossmap.plotting.asinh_axis import asinh_ticks
from lossmap.plotting.lines import dashes
from lossmap.plotting.panels import add_legend_and_notes
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.style import (
    BLUE,
    DARK,
    GREEN,
    PURPLE,
    RED,
    column_width,
    name_scales,
    new_figure,
    page_width,
    style_context,
    type_size,
)
from lossmap.plotting.titles import LEGEND_LETTERS, NAME_LETTER, broken_name, set_titles
from lossmap.plotting.unfinished_spectra import MISSING
from lossmap.report.stored import names_in_file
from lossmap.report.text import value_with_error

PALE_RED = "#dd8a72"  # in grey lighter than the blue of the positive
NAME_LETTERS, SHARE_OF_NAME = 18, 0.2  # of a line of a spectrum's name at its row; of the figure's width, at most
SHORT_NAME, MAX_NAMES = 16, 4  # letters and names, up to which a legend stands within its panel
BESIDE_PANEL = 0.7  # inches, of what stands beside the panel of a spectrum
SHARE_OF_NAMES = 0.36  # of a figure's width, that names of layers take at most
WIDE_LAYERS = 3.4  # inches across both panels of layers, above which there is room for more ticks
STEM = 0.16  # height of a stem, of the panel's
COLOURS = (BLUE, RED, GREEN, PURPLE, "#b8860b", "#3b3b3b")


def draw_spectrum(source: Source, label: str | None = None) -> Figure:
    """One spectrum: smoothed density above, cumulative density with its band below, the ends marked.

    Without a density its extreme eigenvalues alone are drawn; of an L2 path the ends against the strength.

    label  which of the file's spectra; the first, if left out. Raises ValueError for a label that is not there, and
    where nothing is known that can be drawn.
    """
    spectra = checked(spectra_in(source), "spectrum", source)
    if label is None:
        label = next(iter(spectra))
    if label not in spectra:
        raise ValueError(f"there is no spectrum {label!r}; there are {', '.join(spectra)}")
    group = spectra[label]
    if is_l2_path(group):
        return draw_l2_path(group)
    if not is_drawable(group):
        raise ValueError(f"the spectrum {label!r} holds neither eigenvalues nor a density: there is nothing to draw")
    with style_context():
        if "node" in group:
            return _with_density(group, label)
        return _ends_alone(group, label)


def is_l2_path(group: Group) -> bool:
    """Whether a group is extreme eigenvalues against the strength of an L2 term, and no spectrum."""
    return "strength" in group and "largest" in group and "smallest" in group


def is_drawable(group: Group) -> bool:
    """Whether a spectrum holds eigenvalues or a density."""
    return any(name in group and len(group[name]) > 0 for name in ("top", "bottom", "node"))


def _with_density(group: Group, label: str) -> Figure:
    figure = new_figure(column_width(), 3.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    linear = _linear([group])
    _density(upper, group, linear, BLUE, label)
    _cumulative(lower, group, BLUE, label)
    _stems(upper, group)
    for axes in (upper, lower):
        _ends(axes, group)
        _scale(axes, linear, [group])
    upper.set_ylabel("density, smoothed")
    lower.set_ylabel("share of eigenvalues below")
    lower.set_xlabel(_axis(group))
    set_titles([upper], [_title(group, label)], figure.get_figwidth() - BESIDE_PANEL, loc="left")
    _note(lower, group)
    _say_unfinished(figure, group)
    name_scales(figure)
    return figure


def _ends_alone(group: Group, label: str) -> Figure:
    """The extreme eigenvalues by their order, with their errors: all that is known without a density."""
    figure = new_figure(column_width(), 2.2)
    axes = figure.subplots()
    most = 1
    for name, marker, colour in (("top", "^", BLUE), ("bottom", "v", RED)):
        if name in group:
            values, errors = np.asarray(group[name]), np.asarray(group[f"{name}_error"])
            most = max(most, len(values))
            words = {"top": "largest", "bottom": "smallest"}[name]
            axes.errorbar(values, np.arange(1, len(values) + 1), xerr=errors, fmt=marker, color=colour, label=words,
                          markersize=4, elinewidth=0.8, capsize=1.5, markerfacecolor="none")  # fmt: skip
    _scale(axes, _linear([group]), [group])
    axes.set_ylim(most + 0.5, 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("order, from its end")
    axes.set_xlabel(_axis(group))
    axes.legend()
    without = "" if MISSING in group.attributes else "; no density was computed"
    set_titles([axes], [f"{_title(group, label)}{without}"], figure.get_figwidth() - BESIDE_PANEL, loc="left")
    _say_unfinished(figure, group)
    name_scales(figure)
    return figure


def draw_l2_path(group: Group) -> Figure:
    """The extreme eigenvalues against the strength of an L2 term: at fixed weights, and of retrained models.

    group  of a file: strength (p,), largest and smallest (p,), and where there are any retrained_largest and _smallest
    """
    strength = np.asarray(group["strength"], dtype=float)
    positive = strength[strength > 0]
    with style_context():
        figure = new_figure(column_width(), 3.2)
        panels = figure.subplots(2, 1, sharex=True)
        for axes, name, colour in zip(panels, ("largest", "smallest"), (BLUE, RED), strict=True):
            axes.plot(strength, group[name], "o-", color=colour, markersize=3, label="at fixed weights")
            if f"retrained_{name}" in group:
                axes.plot(strength, group[f"retrained_{name}"], "s--", color=colour, markersize=3, label="retrained",
                          markerfacecolor="none")  # fmt: skip
                axes.legend()
            axes.set_ylabel(f"{name} eigenvalue" + _in_unit(group, 20))
        panels[1].axhline(0.0, color=DARK, linewidth=0.6)
        if len(positive) > 1 and positive.max() > 20 * positive.min():
            panels[1].set_xscale("asinh", linear_width=float(positive.min()))
            asinh_ticks(panels[1], float(positive.min()), [0.0, float(positive.max())], count=4)
        panels[1].set_xlabel(r"strength of the L2 term strength/2 $\|\theta\|^2$" + _in_unit(group, 40))
        panels[0].set_title("L2 path", loc="left")
        name_scales(figure)
    return figure


def draw_comparison(source: Source) -> Figure:
    """Several spectra: cumulative densities with their bands on one axis, and the extreme eigenvalues beside.

    What none of them holds has no panel. Raises ValueError where nothing of them can be drawn.
    """
    spectra = {label: g for label, g in checked(spectra_in(source), "spectrum", source).items() if is_drawable(g)}
    if not spectra:
        raise ValueError("none of these spectra holds eigenvalues or a density: there is nothing to compare")
    with_density = {label: g for label, g in spectra.items() if "tick" in g}
    with_ends = {label: g for label, g in spectra.items() if "top" in g or "bottom" in g}
    with style_context():
        both = bool(with_density) and bool(with_ends)
        figure = new_figure(page_width() if both else column_width(), 2.6)
        panels = figure.subplots(1, 2, width_ratios=(1.5, 1)) if both else [figure.subplots()] * 2
        letters = min(NAME_LETTERS, 72 * SHARE_OF_NAME * figure.get_figwidth() / (NAME_LETTER * type_size(7)))
        names = {label: broken_name(label, letters) for label in spectra}
        is_long = any(len(label) > SHORT_NAME for label in spectra) or len(spectra) > MAX_NAMES
        if with_density:
            _cumulatives(panels[0], spectra, with_legend=not is_long)
        if with_ends:
            _extremes(panels[1], {names[label]: group for label, group in with_ends.items()})
            tallest = max(name.count("\n") + 1 for name in names.values())
            figure.set_figheight(max(figure.get_figheight(), 1.0 + 7 * len(with_ends) * (1.3 * tallest + 1) / 72))
        if with_density and is_long:
            handles, _ = panels[0].get_legend_handles_labels()
            for handle in handles:
                handle.set_label(broken_name(str(handle.get_label()), 2 * LEGEND_LETTERS))
            add_legend_and_notes(figure, handles, [])
        _name_unfinished(figure, spectra)
        name_scales(figure)
    return figure


def _cumulatives(axes: Axes, spectra: dict[str, Group], with_legend: bool = True) -> None:
    """The cumulative densities of those spectra that have one; the others are named."""
    groups = [g for g in spectra.values() if "tick" in g]
    for i, (label, group) in enumerate(spectra.items()):
        _cumulative(axes, group, COLOURS[i % len(COLOURS)], label, dashes(i))
    _scale(axes, _linear(groups), groups)
    axes.set_xlabel(_axis_of_all(groups))
    axes.set_ylabel("share of eigenvalues below")
    if with_legend:
        axes.legend(loc="lower right")  # a distribution function leaves that corner free
    without = [label for label, group in spectra.items() if "tick" not in group]
    if without:
        words = broken_name(f"no density of {', '.join(without)}", 2 * LEGEND_LETTERS)
        axes.set_title(words, loc="right", fontsize=7)


def draw_train_against_test(train: Group, test: Group) -> Figure:
    """The spectrum of the training samples against that of the test samples, of one model.

    Cumulative densities with their bands, where both have one; beside them the extreme eigenvalues of the test samples
    over those of the training samples, of equal order: on the diagonal both are the same.

    Raises ValueError where both hold neither.
    """
    densities = "tick" in train and "tick" in test
    ends = [name for name in ("top", "bottom") if name in train and name in test]
    if not densities and not ends:
        raise ValueError("training and test samples have neither ends nor densities of spectra in common")
    with style_context():
        both = densities and bool(ends)
        figure = new_figure(page_width() if both else column_width(), 2.8)
        panels = figure.subplots(1, 2, width_ratios=(1.4, 1)) if both else [figure.subplots()] * 2
        if densities:
            _cumulatives(panels[0], {"training samples": train, "test samples": test})
        if ends:
            _against(panels[1], train, test, ends)
        _name_unfinished(figure, {"training samples": train, "test samples": test})
        name_scales(figure)
    return figure


def _against(axes: Axes, train: Group, test: Group, ends: list[str]) -> None:
    """The eigenvalues of two spectra against each other, those of one order as one mark."""
    every: list[float] = []
    for name, marker, colour in (("top", "^", BLUE), ("bottom", "v", RED)):
        if name not in ends:
            continue
        m = min(len(train[name]), len(test[name]))
        x, y = np.asarray(train[name])[:m], np.asarray(test[name])[:m]
        axes.errorbar(x, y, xerr=train[f"{name}_error"][:m], yerr=test[f"{name}_error"][:m], fmt=marker, color=colour,
                      markersize=4, elinewidth=0.8, capsize=1.5, markerfacecolor="none",
                      label={"top": "largest", "bottom": "smallest"}[name])  # fmt: skip
        every += [*x.tolist(), *y.tolist()]
    low, high = min(*every, 0.0), max(*every, 0.0)
    linear = max(abs(low), abs(high)) * 1e-3 or 1.0
    axes.plot([1.6 * low, 1.6 * high], [1.6 * low, 1.6 * high], color=DARK, linewidth=0.6, zorder=0.5)
    axes.set_xscale("asinh", linear_width=linear)
    axes.set_yscale("asinh", linear_width=linear)
    asinh_ticks(axes, linear, [low, high], count=2)
    axes.set_yticks(axes.get_xticks(), [t.get_text() for t in axes.get_xticklabels()])
    axes.minorticks_off()
    axes.set_ylim(axes.get_xlim())
    axes.set_xlabel("eigenvalue,\ntraining samples" + _in_unit(train, 24))
    axes.set_ylabel("eigenvalue,\ntest samples" + _in_unit(test, 24))
    axes.legend()


def draw_layers(source: Source, label: str | None = None) -> Figure:
    """All blocks on one sheet: every eigenvalue of each on a common axis, and what each holds beside it.

    label  which of the file's readings; the first, if left out. Raises ValueError for a label that is not there.
    """
    readings = checked(layers_in(source), "layers", source)
    if label is None:
        label = next(iter(readings))
    if label not in readings:
        raise ValueError(f"there are no layers {label!r}; there are {', '.join(readings)}")
    group = readings[label]
    names = [str(n) for n in group["block"]]
    with style_context():
        words = [f"{n} ({int(s):,})" for n, s in zip(names, group["size"], strict=True)]
        words, tall, panel = names_of_rows(words, page_width(), 0.27)
        figure = new_figure(page_width(), 0.9 + tall * len(names))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
        floor = float(np.max(group["floor"], initial=0.0))
        reach = float(np.max(np.abs([group["largest"], group["smallest"]])))
        linear = max(floor, reach * 1e-4, 1e-300)
        for row, key in enumerate(names_in_file(names).values()):
            _block(left, group, key, row, linear)
        left.axvline(0.0, color=DARK, linewidth=0.6)
        left.set_xscale("asinh", linear_width=linear)
        asinh_ticks(left, linear, [float(np.min(group["smallest"])), float(np.max(group["largest"]))],
                    count=4 if panel > WIDE_LAYERS else 2)  # fmt: skip
        left.set_yticks(range(len(names)), words)
        left.set_ylim(len(names) - 0.4, -0.6)
        unit = unit_behind([group], 60)
        left.set_xlabel(label_of_layers(f"eigenvalues of the block{unit}", linear, panel))
        grow_by_label(figure, left)
        title = "Layer by layer" if label == "layers" else f"Layer by layer: {label}"
        set_titles([left], [title], panel, loc="left")
        add_legend_and_notes(figure, _signs(right, group), [])
    return figure


def names_of_rows(names: list[str], width: float, tall: float) -> tuple[list[str], float, float]:
    """Names of rows, which take a share of a figure's width at most, in lines; the rows' height; what is left beside.

    width  of the figure, and tall: of a row with a name of one line; inches
    """
    size = type_size(7)
    room = max(SHARE_OF_NAMES * width, 1.0)
    broken = [broken_name(name, 72 * room / (NAME_LETTER * size)) for name in names]
    lines = [line for name in broken for line in name.split("\n")]
    most = max((name.count("\n") for name in broken), default=0)
    taken = NAME_LETTER * size * max(map(len, lines), default=0) / 72
    return broken, max(tall, (1.25 * size * (most + 1) + 4) / 72), width - taken - 0.3


def label_of_layers(words: str, linear: float, inches: float) -> str:
    """The label of an axis of layers' eigenvalues with its scale, as wide as about two thirds of both panels."""
    letters = int(72 * 0.72 * inches / (NAME_LETTER * type_size(8)))
    text = f"{words}\n(asinh scale, linear up to about {linear:.0e})"
    return "\n".join(fill(line, letters, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))


def grow_by_label(figure: Figure, axes: Axes) -> None:
    """Make a figure of layers taller by the lines that the label below it has beyond two."""
    more = max(0, axes.get_xlabel().count("\n") - 1)
    figure.set_figheight(figure.get_figheight() + 1.25 * type_size(8) * more / 72)


def _block(axes: Axes, group: Group, key: str, row: int, linear: float) -> None:
    """One block's eigenvalues: a tick each, or the nodes of its density, darker where more weight is."""
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


def _signs(axes: Axes, group: Group) -> list[Any]:
    """The shares of negative, zero and positive eigenvalues of each block: solid what is certain, hatched what is not.

    Each count is known as an interval. Its lower end is solid; what lies between the lower ends and all eigenvalues is
    undecided, and stands between the signs that it may belong to. Returns the handles for the legend.
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
        ("negative", low["negative"], {"color": PALE_RED}),
        ("undecided", below, open_bar),
        ("zero", low["zero"], {"color": "0.8"}),
        ("_undecided", undecided - below, open_bar),
        ("positive", low["positive"], {"color": BLUE}),
    ):
        if name in ends or undecided.any():
            axes.barh(rows, width, left=start, height=0.55, label=name, **look)
        start = start + width
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of\neigenvalues, %")
    axes.tick_params(axis="y", left=False)
    handles, _ = axes.get_legend_handles_labels()
    return list(handles)


def _density(axes: Axes, group: Group, linear: float, colour: str, label: str) -> None:
    """The density smoothed in the coordinate of the picture, per unit of it, so that areas are shares of eigenvalues.

    It ends where no eigenvalue lies beyond, and has a band where that of the cumulative holds at all t together.
    """
    u, curve, low, high = smoothed_density(group, linear)
    x = _unbent(u, linear)
    if np.isfinite(low).all():
        axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0, label=f"{label}, band")
    else:
        axes.fill_between(x, curve, 0.0, where=list(x >= 0), color=colour, alpha=0.35, linewidth=0)
        axes.fill_between(x, curve, 0.0, where=list(x <= 0), color=RED, alpha=0.35, linewidth=0)
    axes.plot(x, curve, color=colour, label=label)
    axes.set_yscale("log")
    top = float(np.fmax(2 * curve.max(), np.nanmin([1.5 * float(np.fmax(high, curve).max()), 100 * curve.max()])))
    axes.set_ylim(max(float(curve.max()) * 1e-4, 1e-12), top)


def smoothed_density(group: Group, linear: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of the picture, and there the smoothed density with its lower and upper limit, (800,) each.

    A node stands for all that lies nearer to it than to the probe's next one, and is smoothed as wide as that. What
    would be smoothed beyond the limits of the spectrum is reflected at them, so that no share is lost. The smoothed
    density is linear in the distribution F, so that limits of F at all t together give it limits, too: with g the
    share of the density at u that an eigenvalue at s gives, the density is g(end) - sum F dg. NaN where there are none.
    """
    nodes, weights = np.asarray(group["node"]), np.asarray(group["weight"])
    low, high = (float(end) for end in _bent(np.array(_limits_of(group, nodes)), linear))
    if high - low < 1e-9:  # a single value: as narrow as can be seen
        low, high = low - 1e-3, high + 1e-3
    position = np.clip(_bent(nodes, linear), low, high)
    width = _widths(position, int(group.attributes.get("density_probes", 0)), max(0.015 * (high - low), 1e-6))
    u = np.linspace(low, high, 800)
    curve = _kernel(u, position, width, low, high) @ weights
    if group.attributes.get("density_band") != "simultaneous" or not int(group.attributes.get("density_probes", 0)):
        return u, curve, np.full_like(u, np.nan), np.full_like(u, np.nan)
    tick = _bent(np.asarray(group["tick"]), linear)
    s = np.unique(np.concatenate([np.linspace(low, high, 1000), tick[(tick > low) & (tick < high)]]))
    change = np.diff(_kernel(u, s, np.interp(s, position, width), low, high), axis=1)
    last = _kernel(u, s[-1:], np.interp(s[-1:], position, width), low, high)[:, 0]
    # F never falls: within a cell it is no less than at the tick before, and no more than at the tick behind.
    before = np.searchsorted(tick, s[:-1], side="right")
    behind = np.searchsorted(tick, s[1:], side="left")
    lower = np.concatenate([[0.0], group["cumulative_low"]])[before]
    upper = np.concatenate([group["cumulative_high"], [1.0]])[behind]
    rising, falling = np.maximum(change, 0.0), np.minimum(change, 0.0)
    most = last - rising @ lower - falling @ upper
    least = last - rising @ upper - falling @ lower
    least = np.maximum(least, 0.0)
    # Of the ends the band knows single eigenvalues, where the nodes of a few probes only estimate their weight.
    return u, np.clip(curve, least, most), least, most


def _limits_of(group: Group, nodes: np.ndarray) -> tuple[float, float]:
    """Beyond which no eigenvalue lies: as stated for the ends, else as far as the ticks reach, which allow for that."""
    ticks = np.asarray(group.arrays.get("tick", nodes))
    low, high = (float(group.attributes.get(name, np.nan)) for name in ("lower_limit", "upper_limit"))
    if not np.isfinite(low):
        low = float(ticks.min())
    if not np.isfinite(high):
        high = float(ticks.max())
    return low, high


def _kernel(u: np.ndarray, s: np.ndarray, width: np.ndarray, low: float, high: float) -> np.ndarray:
    """The share of the density at u that an eigenvalue at s gives, reflected at both limits; (u, s)."""
    total = np.zeros((len(u), len(s)))
    for image in (s, 2 * low - s, 2 * high - s):
        z = (u[:, None] - image) / width
        total += np.exp(-0.5 * z * z)
    result: np.ndarray = total / (width * np.sqrt(2 * np.pi))
    return result


def _widths(position: np.ndarray, probes: int, smallest: float) -> np.ndarray:
    """A standard deviation for each node: half-way to the neighbours of its probe, not below `smallest`; (nodes,)."""
    if probes == 0 or len(position) <= 2 * probes:
        return np.full(len(position), smallest)
    i = np.arange(len(position))
    distance = position[np.minimum(i + probes, len(position) - 1)] - position[np.maximum(i - probes, 0)]
    result: np.ndarray = np.maximum(distance / 4.0, smallest)
    return result


def _cumulative(axes: Axes, group: Group, colour: str, label: str, style: Any = "-") -> None:
    """The share of eigenvalues below each value, with its band where it is an estimate."""
    if "tick" not in group and "node" in group:  # of a spectrum that is not complete
        axes.step(group["node"], np.cumsum(group["weight"]), where="post", color=colour, linestyle=style, label=label)
        axes.set_ylim(-0.03, 1.03)
    if "tick" not in group:
        return
    tick = np.asarray(group["tick"])
    if int(group.attributes.get("density_probes", 0)) == 0:  # all eigenvalues are known: the staircase itself
        nodes = np.asarray(group["node"])
        axes.step([tick[0], *nodes, tick[-1]], [0.0, *np.cumsum(group["weight"]), 1.0], where="post", color=colour,
                  linestyle=style, label=label)  # fmt: skip
    else:
        low, high = group["cumulative_low"], group["cumulative_high"]
        axes.fill_between(tick, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(tick, group["cumulative"], color=colour, linestyle=style, label=label)
    axes.set_ylim(-0.03, 1.03)


def _ends(axes: Axes, group: Group) -> None:
    """The extreme eigenvalues as ticks along the bottom, and dotted the limits beyond which none lies."""
    for name in ("lower_limit", "upper_limit"):
        limit = float(group.attributes.get(name, np.nan))
        if np.isfinite(limit):
            axes.axvline(limit, color=DARK, linewidth=0.7, linestyle=":", zorder=0.6)
    for name, colour in (("top", BLUE), ("bottom", RED)):
        if name in group:
            values = np.asarray(group[name])
            axes.plot(
                values, np.full(len(values), 0.03), "|", color=colour, markersize=6, clip_on=False,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _stems(axes: Axes, group: Group) -> None:
    """A stem for each extreme eigenvalue, one for those that are equal within their errors, with their number.

    Its height has no meaning: the share of one eigenvalue is far below the density.
    """
    for name, colour in (("top", BLUE), ("bottom", RED)):
        if name not in group:
            continue
        for value, count in multiplicities(np.asarray(group[name]), np.asarray(group[f"{name}_error"])):
            transform = axes.get_xaxis_transform()
            axes.plot([value, value], [0.0, STEM], color=colour, linewidth=0.8, transform=transform)
            axes.plot([value], [STEM], "o", color=colour, markersize=2, transform=transform)
            if count > 1:
                axes.text(value, STEM + 0.03, f"\N{MULTIPLICATION SIGN}{count}", color=colour, fontsize=6, ha="center",
                          va="bottom", transform=transform)  # fmt: skip


def multiplicities(values: np.ndarray, errors: np.ndarray) -> list[tuple[float, int]]:
    """Eigenvalues that are equal within their errors as one: their mean, and how many; ascending.

    values, errors  (k,); neighbours are equal where they differ by no more than both errors together
    """
    order = np.argsort(values)
    values, errors = values[order], errors[order]
    cuts = np.flatnonzero(np.diff(values) > errors[1:] + errors[:-1]) + 1
    return [(float(run.mean()), len(run)) for run in np.split(values, cuts) if len(run)]


def _extremes(axes: Axes, spectra: dict[str, Group]) -> None:
    """Largest and smallest eigenvalues of each, with error bars."""
    labels = list(spectra)
    ends = [float(v) for g in spectra.values() for n in ("top", "bottom") if n in g for v in g[n]]
    reach = float(np.nanmax(np.abs(ends)))
    linear = max(1e-3 * reach, 1e-300)
    for i, group in enumerate(spectra.values()):
        for name, marker in (("top", "^"), ("bottom", "v")):
            if name in group:
                values, errors = np.asarray(group[name]), np.asarray(group[f"{name}_error"])
                axes.errorbar(
                    values, np.full(len(values), i), xerr=errors, fmt=marker, color=COLOURS[i % len(COLOURS)],
                    markersize=4, elinewidth=0.8, capsize=1.5, markerfacecolor="none", markeredgewidth=0.8,
                )  # fmt: skip
        if "top" not in group:
            continue
        first = float(group["top"][0])
        axes.annotate(
            f"{first:.3g}", (first, i), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7,
            color=COLOURS[i % len(COLOURS)],
        )  # fmt: skip
    axes.axvline(0.0, color=DARK, linewidth=0.6)
    axes.set_xscale("asinh", linear_width=linear)
    asinh_ticks(axes, linear, [min(ends), max(ends)], count=2, margin=4.0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("extreme eigenvalues" + unit_behind(list(spectra.values()), 20))


def _linear(groups: list[Group]) -> float:
    """Within which the axis is linear: a thousandth of the largest absolute node."""
    reach = [float(np.abs(g["node"]).max()) for g in groups if "node" in g]
    reach += [float(np.abs(g["top"]).max()) for g in groups if "top" in g and len(g["top"])]
    return max([r * 1e-3 for r in reach], default=1.0) or 1.0


def _scale(axes: Axes, linear: float, groups: list[Group]) -> None:
    axes.set_xscale("asinh", linear_width=linear)
    axes.axvline(0.0, color=DARK, linewidth=0.5, zorder=0.5)
    ends = [float(v) for g in groups for n in ("node", "top", "bottom") if n in g for v in (g[n].min(), g[n].max())]
    asinh_ticks(axes, linear, ends or [0.0, 1.0])


def _bent(x: np.ndarray, linear: float) -> np.ndarray:
    """The coordinate of the picture: linear near zero, logarithmic beyond."""
    result: np.ndarray = np.arcsinh(x / linear)
    return result


def _unbent(u: np.ndarray, linear: float) -> np.ndarray:
    result: np.ndarray = linear * np.sinh(u)
    return result


def _axis(group: Group) -> str:
    """The label of an axis of eigenvalues, with their unit."""
    return _axis_of_all([group])


def _matrix(group: Group) -> str:
    """What a matrix is called."""
    names = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton", "fisher": "empirical Fisher",
        "mc-fisher": "Monte-Carlo Fisher", "preconditioned": "preconditioned Hessian",
    }  # fmt: skip
    return names.get(str(group.attributes.get("matrix")), "matrix")


def _axis_of_all(groups: list[Group]) -> str:
    """The label of an axis of the eigenvalues of one matrix or several, with their unit."""
    names = list(dict.fromkeys(_matrix(group) for group in groups))
    label = f"eigenvalue of the {' or '.join(names)}"
    if names == ["matrix"]:  # of any matrix nothing is known
        return label
    return label + unit_behind(groups, 40)


def unit_behind(groups: list[Group], width: int) -> str:
    """The unit behind a name, or all where they differ, which a common axis then shows as numbers alone."""
    units = list(dict.fromkeys(_in_unit(group, width) for group in groups))
    return units[0] if len(units) == 1 else "\n(units differ)"


def _in_unit(group: Group, width: int) -> str:
    """The unit of its eigenvalues behind a name, in lines of so many characters; nothing where it is not known."""
    if "unit" not in group.attributes:
        return ""
    unit, matrix = str(group.attributes["unit"]), str(group.attributes.get("matrix", ""))
    return in_brackets(curvature_unit(unit, matrix), width)


def _title(group: Group, label: str) -> str:
    size = int(group.attributes.get("size", 0))
    return f"{label}: {size:,} parameters" if size else label


def _say_unfinished(figure: Figure, group: Group) -> None:
    """Above the figure of a spectrum that is not complete: what is not there yet, and the trace where it is."""
    attributes: Any = group.attributes
    if MISSING not in attributes:
        return
    lines = [f"unfinished, still to come: {attributes[MISSING]}"]
    if "trace" in attributes:
        trace = value_with_error(float(attributes["trace"]), float(attributes.get("trace_error", 0.0)))
        lines.append(f"trace {trace.replace('+-', '±')}")
    figure.suptitle("\n".join("\n".join(wrap(line, 52)) for line in lines), fontsize=7, color=RED)


def _name_unfinished(figure: Figure, spectra: dict[str, Group]) -> None:
    """Above a figure of several spectra which of them are not complete."""
    names = [label for label, group in spectra.items() if MISSING in group.attributes]
    if names:
        words = broken_name(f"unfinished: {', '.join(names)}", 72 * figure.get_figwidth() / (NAME_LETTER * 7))
        figure.suptitle(words, fontsize=7, color=RED)


def _note(axes: Axes, group: Group) -> None:
    """What the band is."""
    attributes: Any = group.attributes
    if "density_confidence" not in attributes:
        return
    text = "exact"
    if int(attributes["density_probes"]):
        kind = attributes.get("density_band", "pointwise")  # as of files of version 0.1
        text = f"band: {100 * float(attributes['density_confidence']):g} %, {kind}"
    sure = float(attributes.get("top_confidence", np.nan))
    if np.isfinite(sure) and "upper_limit" in attributes:
        text += "\ndotted: none beyond" + f", {100 * sure:g} %" * (sure < 1.0)
    axes.text(0.93, 0.14, text, transform=axes.transAxes, ha="right", fontsize=7, color=DARK)
