"""Pictures of studies: from the labels and numbers of their nets alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from lossmap.plotting.round_ticks import number_few_decades
from lossmap.plotting.style import (
    BLUE,
    DARK,
    GREEN,
    PURPLE,
    RED,
    name_scales,
    new_figure,
    page_width,
    style_context,
)  # fmt: skip

Nets = Sequence[Mapping[str, Any]]
COLOURS = (BLUE, RED, GREEN, PURPLE)
MARKERS = ("o", "s", "^", "D")
MAX_LAYERS, MAX_NEURONS = 9, 64  # that are drawn
MAX_NUMBERED = {"x": 30.0, "y": 1000.0}  # largest relative to smallest number: beyond, decades are ticks enough


class Paths(Protocol):
    """What is drawn of one layer's neurons, see `studies.neurons`."""

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> np.ndarray: ...
    @property
    def paths(self) -> np.ndarray: ...
    @property
    def shares(self) -> np.ndarray: ...


FLAT = (
    ("largest", "largest eigenvalue"), ("trace", "trace"), ("worst_absolute", "worst rise, absolute ball, nats"),
    ("average_filter", "average rise, filter ball, nats"), ("worst_filter", "worst rise, filter ball, nats"),
    ("worst_adaptive", "worst rise, adaptive ball, nats"),
)  # fmt: skip


def _column(nets: Nets, name: str) -> np.ndarray:
    return np.array([float(net[name]) for net in nets])


def _log_where_positive(axes: Axes, values: np.ndarray, axis: str) -> None:
    finite = values[np.isfinite(values)]
    if len(finite) and (finite > 0).all() and finite.max() > 10 * finite.min():
        getattr(axes, f"set_{axis}scale")("log")
        if finite.max() < MAX_NUMBERED[axis] * finite.min():
            number_few_decades(getattr(axes, f"{axis}axis"))
        getattr(axes, f"{axis}axis").set_minor_formatter(NullFormatter())


def flatness(figure: Figure, nets: Nets) -> None:
    """One panel a number: each net a dot, the arms side by side; above raw numbers, below normalised ones."""
    arms = sorted({(net["batch"], net["decay"]) for net in nets})
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, FLAT, strict=True):
        for i, arm in enumerate(arms):
            own = [net for net in nets if (net["batch"], net["decay"]) == arm]
            values = _column(own, name)
            offsets = np.linspace(-0.2, 0.2, len(own)) if len(own) > 1 else np.zeros(1)
            axes.plot(i + offsets, values, ls="none", marker=MARKERS[i % 4], ms=3, color=COLOURS[i % 4])
            axes.plot([i - 0.3, i + 0.3], [np.nanmedian(values)] * 2, color=DARK, lw=0.8)
        _log_where_positive(axes, _column(nets, name), "y")
        labels = [f"{batch}\n{'decay' if decay else 'no decay'}" for batch, decay in arms]
        axes.set(xticks=range(len(arms)), xticklabels=labels, title=title, xlim=(-0.6, len(arms) - 0.4))
        axes.tick_params(axis="x", labelsize=5.5)
    figure.supxlabel("batch size", fontsize=7)


def generalisation(figure: Figure, nets: Nets) -> None:
    """One panel a number: the gap over it, a dot each net."""
    gap = _column(nets, "test_loss") - _column(nets, "train_loss")
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, FLAT, strict=True):
        for i, batch in enumerate(sorted({net["batch"] for net in nets})):
            mine = np.array([net["batch"] == batch for net in nets])
            axes.plot(_column(nets, name)[mine], gap[mine], ls="none", marker=MARKERS[i % 4], ms=3,
                      color=COLOURS[i % 4], label=f"batch {batch}")  # fmt: skip
        _log_where_positive(axes, _column(nets, name), "x")
        axes.set(xlabel=title)
    figure.supylabel("test loss - training loss, nats", fontsize=7)
    figure.axes[0].legend()


def depth(figure: Figure, nets: Nets) -> None:
    """For each net: not convex, minima, and accuracy from a good and from a bad start."""
    names = list(dict.fromkeys(str(net["net"]) for net in nets))
    places = np.array([names.index(str(net["net"])) for net in nets])
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for place, net in zip(places, nets, strict=True):
        high, low = np.asarray(net["max_eig"], float), np.asarray(net["min_eig"], float)
        ratios = np.maximum(-low, 0.0) / high
        left.plot(ratios, np.full(len(ratios), place), ls="none", marker=".", ms=4, color=BLUE, alpha=0.6)
    left.set(xlabel="|smallest| / largest eigenvalue", yticks=range(len(names)), yticklabels=names)
    middle.plot(_column(nets, "minima"), places, ls="none", marker="o", ms=3, color=BLUE)
    middle.set(xlabel="minima of the plane")
    middle.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    right.plot(_column(nets, "train_acc"), places - 0.12, ls="none", marker="o", ms=3, color=BLUE, label="fresh start")
    right.plot(_column(nets, "retrained_acc"), places + 0.12, ls="none", marker="s", ms=3, color=RED, label="bad start")
    right.set(xlabel="training accuracy, %")
    right.legend()
    left.invert_yaxis()


def planes(figure: Figure, nets: Nets) -> None:
    """For each net: the curvature that planes show, beside both ends of the spectrum and trace/n."""
    axes = figure.subplots()
    for i, net in enumerate(nets):
        ends = [float(net["smallest"]), float(net["largest"])]
        axes.plot(ends, [i] * 2, color="0.8", lw=5, solid_capstyle="butt", label="" if i else "all eigenvalues")
        axes.plot([float(net["trace"]) / float(net["parameters"])], [i], marker="|", ms=14, color=DARK, ls="none",
                  label="" if i else "trace/n")  # fmt: skip
        for kind, colour, offset in (("gaussian", BLUE, -0.15), ("filter", RED, 0.15)):
            seen = np.concatenate([np.asarray(net[f"{kind}_low"]), np.asarray(net[f"{kind}_high"])])
            axes.plot(seen, np.full(len(seen), i + offset), ls="none", marker=".", ms=3, color=colour,
                      label="" if i else f"{kind} random planes")  # fmt: skip
    every = np.concatenate([np.abs([float(n["smallest"]), float(n["largest"])]) for n in nets])
    axes.set_xscale("symlog", linthresh=max(float(every.max()) * 1e-4, 1e-12), linscale=2.0)
    axes.set(xlabel="curvature, nats per squared unit of theta", yticks=range(len(nets)),
             yticklabels=[str(net["name"]) for net in nets], ylim=(-0.6, len(nets) - 0.4))  # fmt: skip
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=4)


PICTURES: dict[str, tuple[Callable[[Figure, Nets], None], float]] = {
    "flatness": (flatness, 3.6),
    "generalisation": (generalisation, 3.6),
    "depth": (depth, 2.6),
    "plane-curvature": (planes, 2.4),
}


def draw_study(kind: str, nets: Nets) -> Figure:
    """The picture of a study. Raises ValueError for a study without one, and without nets."""
    if kind not in PICTURES or not nets:
        raise ValueError(f"there is no picture of {kind!r} with {len(nets)} nets; there are {', '.join(PICTURES)}")
    draw, height = PICTURES[kind]
    with style_context():
        figure = new_figure(page_width(), height)
        draw(figure, nets)
        name_scales(figure)
    return figure


def draw_neurons(layers: Sequence[Paths]) -> Figure:
    """One panel a layer: each neuron's path, from a dot at its start, coloured by step."""
    shown = layers[:MAX_LAYERS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with style_context():
        figure = new_figure(page_width(), 2.1 * rows)
        panels = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
        for axes, layer in zip(panels, shown, strict=False):
            picture = None
            for k in range(min(layer.paths.shape[1], MAX_NEURONS)):
                path = layer.paths[:, k]
                axes.plot(path[:, 0], path[:, 1], color="0.7", lw=0.4, zorder=1)
                picture = axes.scatter(path[:, 0], path[:, 1], c=layer.steps, cmap="viridis", s=3, lw=0, zorder=2)
            if picture is not None:
                figure.colorbar(picture, ax=axes, label="step")
            more = f", {MAX_NEURONS} of {layer.paths.shape[1]} drawn" * (layer.paths.shape[1] > MAX_NEURONS)
            axes.set(title=f"{layer.name}{more}", xlabel=f"first component ({100 * layer.shares[0]:.0f} %)",
                     ylabel=f"second component ({100 * layer.shares[1]:.0f} %)")  # fmt: skip
        for axes in panels[len(shown) :]:
            axes.remove()
        if len(layers) > len(shown):
            figure.supxlabel(f"{len(shown)} of {len(layers)} layers are drawn", fontsize=7)
    return figure
