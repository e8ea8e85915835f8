"""What a result file holds beside a surface, or instead of one, and the picture of each.

    evolution   the eigenvectors of a run, on one sheet
    spectrum    one spectrum, or several compared
    layers      the Hessian layer by layer, of several files side by side by name
    sharpness   how sharp the loss is at one checkpoint, or at several side by side
    connection  the line between two networks, its barrier marked
    topology    the minima of a surface: basins, persistence, merge tree
    health      the sheet of health measurements and findings
    path        a training path on its plane; loss there and at the checkpoints, and distance from the plane, along it

The files that `lossmap spectrum`, `sharpness`, `connect`, `health` and `plane` leave behind are drawn so by `lossmap
draw FILE`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lossmap.io.group_layout import check_groups
from lossmap.io.hdf5_open import Damaged
from lossmap.io.read import Surface
from lossmap.io.surface import Group
from lossmap.plotting import lines, maps
from lossmap.plotting.caption import caption_of
from lossmap.plotting.connection import draw_connection
from lossmap.plotting.dynamics import draw_evolution
from lossmap.plotting.health import draw_health
from lossmap.plotting.layer_comparison import draw_layers_compared
from lossmap.plotting.lines import suits_log_axis
from lossmap.plotting.panels import add_legend_and_notes
from lossmap.plotting.quantities import axis_labels, contents_of, on_scale, other_kinds
from lossmap.plotting.round_ticks import set_round_ticks
from lossmap.plotting.sharpness import draw_sharpness
from lossmap.plotting.spectra import (
    draw_comparison,
    draw_l2_path,
    draw_layers,
    draw_spectrum,
    draw_train_against_test,
    is_drawable,
    is_l2_path,
)
from lossmap.plotting.style import BLUE, DARK, RED, column_width, new_figure, page_width, style_context, width_context
from lossmap.plotting.titles import entitle, numbered
from lossmap.plotting.topology import draw_topology
from lossmap.report.path import drops_of
from lossmap.report.stored import kept_apart

KINDS = ("spectrum", "layers", "sharpness", "connection", "topology", "evolution", "health", "path")
LEAST_WIDTHS = {1: 2.7, 2: 5.0}  # inches, by the columns of panels, two or more
SMALLEST_LINE = 1.5  # inches across, of the line between two networks
MARGIN = 0.08  # of the path's extent, around it
FLAT = 1e-3  # of the path's extent, that the axis of the distance from the plane spans at least
ALONG = {"loss": (BLUE, "loss at the checkpoint"), "residual": (RED, "distance from the plane")}  # colour, label


def draw_content(
    surfaces: Sequence[Surface],
    kind: str,
    label: str | None,
    titles: Sequence[str] | None,
    width: float | None = None,
    log: bool | None = None,
) -> Figure:
    """The picture of one kind of content.

    label   which of several spectra, checkpoints or layer readings; if left out, spectra and checkpoints are compared,
            and of layers the first is drawn
    titles  of one file, above its figure; of several files, whose spectra or layers are compared, in the legend
    width   inches, of spectra, layers, lines and paths; what fits if left out
    log     of the line between two networks, whether its axis is logarithmic; by what the losses span if left out

    Raises ValueError where it is not there, or where it cannot be drawn of several files; Damaged where it does not
    hold what it must.
    """
    for surface in surfaces:
        if kind not in other_kinds(surface):
            raise ValueError(f"this file holds no {kind}; it holds: {', '.join(contents_of(surface)) or 'nothing'}")
        check_groups(surface, kind)
    if len(surfaces) > 1 and kind not in ("spectrum", "layers"):
        raise ValueError(f"a picture of the kind {kind} shows one file; got {len(surfaces)}")
    with style_context(), width_context(width):
        if len(surfaces) == 1:
            with misfits_named(surfaces[0], kind):
                figure = _draw_one(surfaces[0], kind, label, width, log)
            entitle(figure, titles)
        elif kind == "spectrum":
            figure = draw_comparison(_merged([_of_label(spectra_of(s), label) for s in surfaces], titles))
        else:
            groups = [_of_label(labelled(s, "layers"), label, "layers") for s in surfaces]
            figure = draw_layers_compared(_merged(groups, titles))
    _check_width(figure, kind, width)
    return figure


@contextmanager
def misfits_named(surface: Surface, kind: str) -> Iterator[None]:
    """Turn what Python, NumPy and matplotlib raise of parts that do not fit into Damaged; sentences pass."""
    try:
        yield
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        is_sentence = isinstance(error, (KeyError, ValueError)) and _is_of_lossmap(error)
        if is_sentence and (isinstance(error, ValueError) or " " in str(error.args[0])):
            raise
        raise Damaged(
            f"{surface.source or 'what is to be drawn'} is damaged: what it holds of the kind {kind} does not fit "
            "together, and cannot be drawn"
        ) from error


def _is_of_lossmap(error: BaseException) -> bool:
    """Whether an error was raised by lossmap itself, in words of its own."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__", "")).startswith("lossmap.")


def _check_width(figure: Figure, kind: str, width: float | None) -> None:
    """Raise ValueError where the panels and their labels have no room in the width that was set."""
    places = [axes.get_subplotspec() for axes in figure.axes]
    columns = max((place.get_gridspec().ncols for place in places if place is not None), default=1)
    least = SMALLEST_LINE if kind == "connection" else LEAST_WIDTHS[min(columns, 2)]
    if width is not None and width < least:
        raise ValueError(f"--width must be at least {least:g} inches for the kind {kind}; got {width:g}")


def _of_label(groups: dict[str, Group], label: str | None, what: str = "spectrum") -> dict[str, Group]:
    """The groups of one label, or all. Raises ValueError with the labels that there are."""
    if label is None:
        return groups
    if label not in groups:
        raise ValueError(f"no {what} {label!r} here; there are: {', '.join(groups)}")
    return {label: groups[label]}


def _draw_one(
    surface: Surface, kind: str, label: str | None, width: float | None = None, log: bool | None = None
) -> Figure:
    """The picture of what one file holds; arguments as `draw_content`."""
    if kind == "spectrum":
        return _draw_spectra(surface, label)
    if kind == "layers":
        return draw_layers(labelled(surface, "layers"), label)
    if kind == "evolution":
        return draw_evolution(surface.groups["evolution/results"])
    if kind == "sharpness":
        return draw_sharpness(_of_label(labelled(surface, "sharpness"), label, "sharpness"))
    if kind == "connection":
        return draw_connection(surface, width, log)
    if kind == "topology":
        return draw_topology(surface.groups["topology"])
    if kind == "health":
        return draw_health(json.loads(str(surface.groups["health"].attributes["report"])))
    return draw_path(surface)


def _draw_spectra(surface: Surface, label: str | None) -> Figure:
    """The spectrum of a label; without one the only spectrum, training against test samples, or all compared."""
    spectra = spectra_of(surface)
    if label is not None:
        return draw_spectrum(spectra | _l2_paths(surface), label)
    pairs = train_and_test(spectra)
    if pairs and len(spectra) == 2:
        return draw_train_against_test(*pairs.popitem()[1])
    if len(spectra) > 1:
        return draw_comparison(spectra)
    return draw_spectrum(spectra)


def train_and_test(spectra: Mapping[str, Group]) -> dict[str, tuple[Group, Group]]:
    """The spectra of training and of test samples of one model and matrix, by the rest of their labels."""
    pairs = {}
    for label, group in spectra.items():
        words = label.split(" ")
        if "train" in words:
            at = len(words) - 1 - words[::-1].index("train")  # a model may be called so, too
            twin = " ".join([*words[:at], "test", *words[at + 1 :]])
            if twin in spectra:
                pairs[" ".join(words[:at] + words[at + 1 :])] = (group, spectra[twin])
    return pairs


def _l2_paths(surface: Surface) -> dict[str, Group]:
    return {label: g for label, g in labelled(surface, "spectrum").items() if is_l2_path(g)}


def figures_of(surface: Surface, titles: Sequence[str] | None = None, width: float | None = None) -> dict[str, Figure]:
    """All pictures of what a file holds beside its surface, by what is added to the file's name for each.

    titles, width  as `draw_content`
    """
    kinds = other_kinds(surface)
    for kind in kinds:
        check_groups(surface, kind)
    figures: dict[str, Figure] = {}
    with style_context(), width_context(width):
        if "spectrum" in kinds:
            spectra = spectra_of(surface)
            figures = {f"_{name}": draw_spectrum(spectra, label) for label, name in _file_names(spectra).items()}
            if len(spectra) > 1:
                figures["_compared"] = draw_comparison(spectra)
            for rest, pair in train_and_test(spectra).items():
                figures[f"_{_safe(f'train against test {rest}'.strip())}"] = draw_train_against_test(*pair)
        paths = _l2_paths(surface)
        figures |= {f"_{name}": draw_l2_path(paths[label]) for label, name in _file_names(paths).items()}
        if "layers" in kinds:
            layers = labelled(surface, "layers")
            figures |= {f"_layers_{name}": draw_layers(layers, label) for label, name in _file_names(layers).items()}
    for kind in ("sharpness", "connection", "topology", "evolution", "health", "path"):
        if kind in kinds:
            with style_context(), width_context(width):
                figures["" if len(kinds) == 1 else f"_{kind}"] = _draw_one(surface, kind, None, width)
    for figure in figures.values():
        entitle(figure, titles)
        _check_width(figure, kinds[0], width)
        figure.set_label(caption_of([surface], kinds[0], None))
    return figures


def labelled(surface: Surface, kind: str) -> dict[str, Group]:
    """The groups of one kind, by label."""
    return {n.partition("/")[2]: group for n, group in surface.groups.items() if n.startswith(f"{kind}/")}


def spectra_of(surface: Surface) -> dict[str, Group]:
    """The spectra by label, but for those of which nothing is known that can be drawn."""
    return {label: g for label, g in labelled(surface, "spectrum").items() if is_drawable(g)}


def _merged(spectra_by_file: Sequence[Mapping[str, Group]], titles: Sequence[str] | None) -> dict[str, Group]:
    """The spectra of several files, labelled by the files' titles, and by their own labels where a file has several."""
    merged: dict[str, Group] = {}
    names = numbered(titles or [chr(ord("a") + i) for i in range(len(spectra_by_file))])
    for name, spectra in zip(names, spectra_by_file, strict=True):
        for label, group in spectra.items():
            merged[f"{name} {label}" if len(spectra) > 1 else name] = group
    return merged


def _safe(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label)


def _file_names(labels: Iterable[str]) -> dict[str, str]:
    """By label its part of a picture's file name, no two alike, also where a disk does not tell `A` from `a`."""
    return kept_apart(labels, _safe, "-", str.casefold)


def draw_path(surface: Surface) -> Figure:
    """A training path on its plane, start open and end filled; beside it the loss, and how far outside the plane."""
    group = surface.groups["trajectory"]
    x = np.asarray(group["x"], dtype=np.float64)
    y = np.asarray(group.arrays.get("y", np.zeros_like(x)), dtype=np.float64)
    steps = np.asarray(group.arrays.get("step", np.arange(x.size)), dtype=np.float64)
    along = [name for name in ALONG if name in group and np.isfinite(group[name]).any()]
    with style_context():
        width, columns = (page_width(), 2) if along else (column_width(), 1)
        figure = new_figure(width, 2.6)
        panels = figure.subplots(1, columns, squeeze=False)[0]
        panels[0].set_xlim(*_around(x))
        panels[0].set_ylim(*_around(y))
        maps.path(panels[0], x, y)
        for axis, label in zip((panels[0].xaxis, panels[0].yaxis), axis_labels(surface), strict=True):
            axis.set_label_text(label)
        set_round_ticks(panels[0], 5)
        below: list[Artist] = []
        for i, name in enumerate(along):
            colour, words = ALONG[name]
            axes = panels[1] if i == 0 else panels[1].twinx()
            right = i > 0
            words = lines.on_right(words) if right else words
            lines.curve(axes, steps, np.asarray(group[name]), colour=colour, label="", squares=right)
            axes.set_ylabel(words, color=colour)
            axes.tick_params(axis="y", colors=colour)
            if name == "residual":  # below a thousandth of the path it is rounding
                least = FLAT * max(np.ptp(x), np.ptp(y))
                axes.set_ylim(0.0, 1.05 * max(float(np.nanmax(group[name])), least, np.finfo(float).tiny))
            if name == "loss":
                below += _draw_beside_loss(axes, group, steps)
            if name == "loss" and suits_log_axis([np.asarray(group[name])]):
                axes.set_yscale("log")
                axes.set_ylabel(on_scale(words, True), color=colour)
                below += lines.mark_below(axes, steps, np.asarray(group[name]), colour)
        if along:
            panels[1].set_xlabel("step")
            add_legend_and_notes(figure, below, [])
    return figure


def _draw_beside_loss(axes: Any, group: Group, steps: np.ndarray) -> list[Artist]:
    """The loss where the path is projected to, and where the learning rate drops; what stands in the legend."""
    shown: list[Artist] = []
    if "plane_loss" in group:
        shown += axes.plot(steps, group["plane_loss"], "--", color=BLUE, linewidth=0.8, label="loss in the plane")
    drops = [
        axes.axvline(
            (steps[place - 1] + steps[place]) / 2, color=DARK, linewidth=0.7, linestyle=":", label="learning rate drops"
        )
        for place in drops_of(group.arrays)
    ]
    return shown + drops[:1]


def _around(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis, with a margin around the values."""
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * (high - low or 1.0)
    return low - margin, high + margin
