"""Pictures of a training run: its eigenvectors' principal components, cosines and overlaps, its eigenvalues, curvature.

Each is drawn from group `evolution/results` of a result file alone. Levels of chance stand in the pictures as dashed
lines, where a number would mean nothing without them. `classic` writes the four of the classic experiment by its names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossmap.geometry.grid import curvature_unit
from lossmap.io.eigenvector_store import RESULTS, results_of
from lossmap.io.group_layout import check_group
from lossmap.io.surface import Group
from lossmap.plotting import lines, maps
from lossmap.plotting.contour_levels import suits_log
from lossmap.plotting.plane_figures import decades
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.round_ticks import number_few_decades
from lossmap.plotting.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    PURPLE,
    RED,
    column_width,
    name_scales,
    new_figure,
    page_width,
    save,
    style_context,
)  # fmt: skip

Source = str | os.PathLike[str] | Group
CHARACTERS_PER_INCH, LINE_HEIGHT = 19, 0.1  # of the answers in words, inches
PANEL = 1.62  # height of a row of panels, inches
MAX_COMPONENTS = 20  # that are drawn; of tracks three times as many


def _group(source: Source) -> Group:
    """The group. Raises Damaged where it does not hold what it must."""
    group = source if isinstance(source, Group) else results_of(source)
    check_group(RESULTS, group, "evolution", "" if isinstance(source, Group) else os.fspath(source))
    return group


def _number(group: Group, question: str, name: str) -> float:
    answers: dict[str, Any] = json.loads(str(group.attributes["answers"]))
    return float(answers.get(question, {}).get("numbers", {}).get(name, np.nan))


def pca_variance(axes: Axes, group: Group) -> None:
    """Shares of the variance, and what the first would have by chance."""
    shares = group["explained"][:MAX_COMPONENTS]
    axes.bar(np.arange(1, len(shares) + 1), 100 * shares, color=BLUE, width=0.75)
    chance = _number(group, "dimension", "first_by_chance")
    if np.isfinite(chance):
        axes.axhline(100 * chance, color=DARK, ls="--", lw=0.8, label=f"first by chance, {100 * chance:.2g} %")
        axes.legend()
    axes.set(xlabel="component", ylabel="explained variance, %")


def pca_cumulative_variance(axes: Axes, group: Group) -> None:
    """Cumulative shares, with the components that 90 % take."""
    cumulative = 100 * np.cumsum(group["explained"])
    needed = int(np.searchsorted(cumulative, 90 - 1e-10)) + 1
    shown = min(len(cumulative), max(MAX_COMPONENTS, needed + 2))
    axes.plot(np.arange(1, shown + 1), cumulative[:shown], color=BLUE, marker="o", ms=2.5)
    axes.axhline(90, color=DARK, ls="--", lw=0.8)
    axes.axvline(needed, color=DARK, ls="--", lw=0.8, label=f"90 % take {needed}")
    axes.set(xlabel="components", ylabel="cumulative variance, %", ylim=(0, 104))
    axes.legend(loc="lower right")


def pca_projection(axes: Axes, group: Group) -> None:
    """Eigenvectors in the plane of the first two components, coloured by step; lines follow the first three tracks."""
    coordinates, owner, steps = group["projection"], group["owner"], group["step"]
    if coordinates.shape[1] < 2:
        coordinates = np.column_stack([coordinates, np.zeros(len(coordinates))])
    tracks = group["track"][group["track"] >= 0]
    for k in range(3):
        mine = tracks == k
        if mine.sum() > 1:
            axes.plot(coordinates[mine, 0], coordinates[mine, 1], color=DARK, lw=0.5, zorder=1)
    dots = axes.scatter(coordinates[:, 0], coordinates[:, 1], c=steps[owner], cmap="viridis", s=9, lw=0, zorder=2)
    _bar(axes, dots, "step")
    shares = 100 * group["explained"]
    second = np.append(shares, 0.0)[1]
    axes.set(xlabel=f"first component ({shares[0]:.0f} %)", ylabel=f"second component ({second:.0f} %)")
    axes.margins(0.08)


def cosine_similarity(axes: Axes, group: Group) -> None:
    """|cosine| of all pairs of eigenvectors, snapshot by snapshot."""
    table = np.abs(group["cosine"])
    picture = axes.imshow(table, cmap="viridis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    limit = float(group.attributes["chance_cosine"])
    _bar(axes, picture, f"|cosine| (chance: below {limit:.2g})")
    _by_step(axes, group)
    axes.set(xlabel="eigenvector, by step", ylabel="eigenvector, by step")


def overlaps(axes: Axes, group: Group) -> None:
    """Overlaps of all pairs of snapshots."""
    picture = axes.imshow(group["overlap"], cmap="viridis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    chance = _number(group, "related", "chance")
    _bar(axes, picture, f"overlap (chance {chance:.2g})")
    steps = group["step"]
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 5)).astype(int))
    names = [f"{steps[i]:g}" for i in ticks]
    axes.set(xlabel="step", ylabel="step", xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)


def successive(axes: Axes, group: Group) -> None:
    """Overlaps with the snapshot before, the first and the last; in grey the first of these, angle by angle."""
    steps, table = group["step"], group["overlap"]
    for i, column in enumerate((group["principal_cosine"] ** 2).T):
        axes.plot(steps[1:], column, color="0.75", lw=0.5, zorder=0, label="" if i else "by angle")
    axes.plot(steps[1:], np.diag(table, 1), color=BLUE, linestyle=lines.dashes(0), label="the one before")
    axes.plot(steps, table[0], color=RED, linestyle=lines.dashes(1), label="the first")
    axes.plot(steps, table[-1], color=GREEN, linestyle=lines.dashes(3), label="the last")
    chance = _number(group, "related", "chance")
    if np.isfinite(chance):
        axes.axhline(chance, color=DARK, ls="--", lw=0.8, label="chance")
    if "null_step" in group:
        axes.plot(group["null_step"], group["null_halves"], color=PURPLE, marker="D", ms=3, ls="none",
                  label="two halves")  # fmt: skip
        if "null_divisions" in group:  # each by itself, beside their mean
            axes.plot(group["null_step"], group["null_divisions"], color=PURPLE, marker="_", ms=6, ls="none")
    if "null_seed" in group:
        axes.plot(steps, group["null_seed"], color="C1", ls=":", lw=1.1, label="another seed")
    axes.set(xlabel="step", ylabel="overlap with", ylim=(-0.03, 1.05))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, columnspacing=0.7, handlelength=1.6)


def tracks(axes: Axes, group: Group) -> None:
    """Eigenvalues, followed through their crossings."""
    steps = group["step"]
    for k, line in enumerate(group["track_value"][: 3 * MAX_COMPONENTS]):
        axes.plot(steps, line, lw=0.9, marker="o", ms=1.6, color=f"C{k % 10}")
    values = group["eigenvalue"][np.isfinite(group["eigenvalue"])]
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="eigenvalues, along tracks" + _in_curvature_unit(group))


def heat_map(axes: Axes, group: Group) -> None:
    """The eigenvalues measured, a column for each snapshot, from the largest to the smallest; grey where there is none.

    White is 0 where there are eigenvalues of both signs; on a log scale where all are positive and span much.
    """
    steps, values = group["step"], -np.sort(-group["eigenvalue"], axis=1)  # NaN comes last
    known = values[np.isfinite(values)]
    norm: Normalize = Normalize()
    cmap, scale = "viridis", ""
    if known.size and known.min() < 0 < known.max():
        norm, cmap = CenteredNorm(0.0), "RdBu"
    elif suits_log([known]):
        norm, scale = LogNorm(), ",\nlog scale"
    axes.set_facecolor(GREY)
    rows = np.arange(values.shape[1] + 1) + 0.5
    picture = axes.pcolormesh(
        maps.edges(steps), rows, np.ma.masked_invalid(values.T), norm=norm, cmap=cmap, rasterized=True
    )
    _bar(axes, picture, "eigenvalue" + _in_curvature_unit(group) + scale)
    axes.set(xlabel="step", ylabel="eigenvalue, from the largest", ylim=(rows[-1], rows[0]))
    if len(steps) > 1:  # the outer columns end at their steps: there was none before the first
        axes.set_xlim(steps[0], steps[-1])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def participation(axes: Axes, group: Group) -> None:
    """How many weights each eigenvector moves, as a share of all: its participation ratio, along tracks."""
    steps, member, owner = group["step"], group["track"], group["owner"]
    followed = member[member >= 0]
    for k in range(min(int(followed.max()) + 1, 3 * MAX_COMPONENTS)):
        mine = followed == k
        axes.plot(steps[owner[mine]], group["spread"][mine], lw=0.9, marker="o", ms=1.6, color=f"C{k % 10}")
    n = int(group.attributes["theta"])
    axes.axhline((n + 2) / (3 * n), color=DARK, ls="--", lw=0.8, label="a random vector's, 1/3")
    axes.set(xlabel="step", ylabel="participation ratio / n", yscale="log")
    number_few_decades(axes.yaxis)  # labels at every tick would touch
    axes.legend()


def curvature(axes: Axes, group: Group) -> None:
    """The loss, and the smallest eigenvalue beside it."""
    steps = group["step"]
    if "loss" in group:
        axes.plot(steps, group["loss"], color=BLUE)
    axes.set_xlabel("step")
    axes.set_ylabel("loss" + in_brackets(str(group.attributes.get("unit", ""))), color=BLUE)
    other: Axes = axes.twinx()
    lines.curve(other, steps, group["curvature_lambda_min"], colour=RED, label="", squares=True)
    other.axhline(0, color=RED, lw=0.5, ls=":")
    other.set_ylabel(lines.on_right("smallest eigenvalue" + _in_curvature_unit(group)), color=RED)


def volume(axes: Axes, group: Group) -> None:
    """Effective rank and sum of logarithms of the eigenvalues measured."""
    steps = group["step"]
    axes.plot(steps, group["curvature_effective_rank"], color=GREEN)
    axes.set_xlabel("step")
    axes.set_ylabel("effective rank", color=GREEN)
    other: Axes = axes.twinx()
    logs = group["curvature_log_volume"]
    lines.curve(other, steps, logs, colour=PURPLE, label="", squares=True)
    r = int(np.isfinite(group["eigenvalue"]).sum(axis=1).max())
    other.set_ylabel(lines.on_right(rf"$\sum \log|\lambda|$ of {r}"), color=PURPLE)


def density(axes: Axes, group: Group) -> None:
    """All eigenvalues by quantiles, where they were measured (--whole)."""
    if "quantiles" not in group:
        axes.text(
            0.5,
            0.5,
            "not measured: see --whole",
            ha="center",
            va="center",
            color=DARK,
            transform=axes.transAxes,
        )
        axes.set(xlabel="step", ylabel="all eigenvalues", xticks=(), yticks=())
        return
    steps, table = group["step"], group["quantiles"]
    shares = [float(share) for share in json.loads(str(group.attributes["shares"]))]
    half = len(shares) // 2
    for i in range(half):
        label = f"{100 * shares[i]:g} to {100 * shares[-1 - i]:g} %"
        axes.fill_between(steps, table[:, i], table[:, -1 - i], color=PURPLE, alpha=0.25, lw=0, label=label)
    axes.plot(steps, table[:, half], color=PURPLE, label="median")
    reach = max(float(np.nanmax(np.abs(table))), 1e-298)
    axes.set_yscale("symlog", linthresh=reach * 1e-2)
    ticks = decades(reach * 1e-2, reach)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="step", ylabel="all eigenvalues" + _in_curvature_unit(group))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, columnspacing=0.7, handlelength=1.6)


def negative(axes: Axes, group: Group) -> None:
    """The negative part of curvature: of what was measured, and where known of the whole spectrum with its bounds."""
    steps = group["step"]
    axes.plot(steps, group["curvature_negative_mass"], color=RED, linestyle="--", label="ends measured")
    if "negative_share" in group:
        axes.fill_between(steps, group["negative_share_low"], group["negative_share_high"], color=BLUE, alpha=0.2, lw=0)
        axes.plot(steps, group["negative_share"], color=BLUE, label="share of all, 95 %")
    axes.set(xlabel="step", ylabel="negative mass")
    axes.set_ylim(bottom=0)
    axes.legend()


def _in_curvature_unit(group: Group) -> str:
    """The unit of eigenvalues behind their name; nothing where the file does not say the loss's."""
    if "unit" not in group.attributes:
        return ""
    return in_brackets(curvature_unit(str(group.attributes["unit"])), 20)


def _bar(axes: Axes, picture: Any, label: str) -> None:
    """A colour bar that stands close to its picture."""
    axes.figure.colorbar(picture, cax=axes.inset_axes((1.03, 0.0, 0.045, 1.0)), label=label)


def _by_step(axes: Axes, group: Group) -> None:
    """Ticks in the middle of each snapshot's rows."""
    owner, steps = group["owner"], group["step"]
    middle = np.array([np.nonzero(owner == t)[0].mean() for t in range(len(steps))])
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 5)).astype(int))
    names = [f"{steps[i]:g}" for i in shown]
    axes.set(xticks=middle[shown], yticks=middle[shown], xticklabels=names, yticklabels=names)


CLASSIC: dict[str, Callable[[Axes, Group], None]] = {
    "pca_variance": pca_variance,
    "pca_cumulative_variance": pca_cumulative_variance,
    "pca_projection": pca_projection,
    "cosine_similarity": cosine_similarity,
}
PANELS: dict[str, Callable[[Axes, Group], None]] = CLASSIC | {
    "overlaps": overlaps,
    "successive": successive,
    "tracks": tracks,
    "heat_map": heat_map,
    "participation": participation,
    "curvature": curvature,
    "volume": volume,
    "negative": negative,
    "density": density,
}


def draw_panel(source: Source, panel: str) -> Figure:
    """One picture alone, by its name in `PANELS`. Raises ValueError for a name that is not there."""
    if panel not in PANELS:
        raise ValueError(f"there is no picture {panel!r} of a run; there are {', '.join(PANELS)}")
    with style_context():
        figure = new_figure(column_width(), 2.6)
        PANELS[panel](figure.subplots(), _group(source))
        name_scales(figure)
    return figure


def draw_evolution(source: Source) -> Figure:
    """A run on one sheet: the answers in words, and the pictures that they rest on."""
    group = _group(source)
    with style_context():
        words = _words(group, int(CHARACTERS_PER_INCH * page_width()))
        head = LINE_HEIGHT * (len(words) + 1)
        figure = new_figure(page_width(), head + 6 * PANEL)
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0.0, 0.0, 1.0, 6 * PANEL / (head + 6 * PANEL)))  # below the words
        grid = figure.add_gridspec(6, 2)
        text = figure.text(0.01, 0.995, "\n".join(words), va="top", ha="left", fontsize=6, family="monospace")
        text.set_in_layout(False)  # else the panels make room for it beside the labels of their axes
        order = ("tracks", "successive", "pca_variance", "pca_projection", "overlaps", "cosine_similarity",
                 "participation", "negative", "curvature", "volume")  # fmt: skip
        for i, name in enumerate(order):
            PANELS[name](figure.add_subplot(grid[i // 2, i % 2]), group)
        whole = "quantiles" in group
        PANELS["heat_map"](figure.add_subplot(grid[5, 0] if whole else grid[5, :]), group)
        if whole:
            PANELS["density"](figure.add_subplot(grid[5, 1]), group)
        name_scales(figure)
    return figure


def _words(group: Group, width: int) -> list[str]:
    """The answers in words, in lines of so many characters."""
    return [row for line in str(group.attributes["verdict"]).splitlines() for row in _wrapped(line, width)]


def _wrapped(line: str, width: int) -> list[str]:
    lines, rest = [], line
    while len(rest) > width:
        cut = rest.rfind(" ", 0, width)
        lines.append(rest[:cut])
        rest = " " * 12 + rest[cut + 1 :]
    return [*lines, rest]


def classic(source: Source, folder: str | os.PathLike[str], *, panels: tuple[str, ...] = tuple(PANELS)) -> list[Path]:
    """Write each picture under its name into a folder, as PNG, and return the paths.

    source  a result file, or its group `evolution/results`
    panels  names in `PANELS`; all, with the four of the classic experiment, if left out

    Raises ValueError for a name that is not there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    group = _group(source)
    return [save(draw_panel(group, name), folder / f"{name}.png", dpi=200) for name in panels]
