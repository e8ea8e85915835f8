"""The picture of a training that a callback watched: curvature and stability over the steps, from the file alone.

Panels: the eigenvalue that limits the step with its threshold (of several trainings their ratio), both ends of the
Hessian, its trace, and the loss with the norm of its gradient. Error bars are shaded; a step whose reading failed is
marked as missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lossmap.io.surface import Surface
from lossmap.plotting import lines
from lossmap.plotting.line_figures import place_legend
from lossmap.plotting.panels import FigureOptions, add_legend_and_notes
from lossmap.plotting.quantities import in_brackets, quantity, values_of
from lossmap.plotting.style import BLUE, DARK, PURPLE, RED, name_scales, new_figure, page_width
from lossmap.plotting.titles import LEGEND_LETTERS, broken_name, entitle

THRESHOLD = "stability_threshold"  # the field by which such a file is known


def is_training(surface: Surface) -> bool:
    """Whether a surface is the readings of a training."""
    return THRESHOLD in surface and "preconditioned_max_eig" in surface


def draw_training(surfaces: Sequence[Surface], titles: Sequence[str] | None, options: FigureOptions) -> Figure:
    """Trainings on one sheet, in colours of their own where there are several.

    Raises ValueError where a surface is none of a training.
    """
    for surface in surfaces:
        if not is_training(surface):
            raise ValueError("this file holds no readings of a training (lossmap.callbacks writes them)")
    figure = new_figure(options.width or page_width(), 4.2)
    panels = figure.subplots(2, 2, sharex=True)
    alone = len(surfaces) == 1
    names = [broken_name(title, LEGEND_LETTERS) for title in titles or [""] * len(surfaces)]
    if alone:
        names = [""]  # the title stands above
    patches: list[Artist] = []
    for i, (surface, title) in enumerate(zip(surfaces, names, strict=True)):
        own, style = None if alone else lines.COLOURS[i % len(lines.COLOURS)], lines.dashes(i)
        if alone:
            patches += _draw_stability(panels[0, 0], surface, RED)
        else:  # thresholds of different optimizers are no numbers of one axis
            _draw_field(panels[0, 0], surface, "stability_ratio", title, own or RED, style)
        _draw_field(panels[0, 1], surface, "max_eig", title, own or RED, style)
        beside = lines.dashes(1) if alone else style
        _draw_field(panels[0, 1], surface, "min_eig", title, own or BLUE, beside, thin=not alone)
        _draw_field(panels[1, 0], surface, "trace", title, own or PURPLE, style)
        _draw_field(panels[1, 1], surface, "loss", title, own or BLUE, style)
    _label(panels, surfaces, alone)
    for i, surface in enumerate(surfaces):
        patches += lines.mark_below(
            panels[1, 1], surface.grid.x, surface["loss"], lines.COLOURS[i % len(lines.COLOURS)]
        )
    if not alone:
        patches = place_legend(panels[1, 1]) + patches
        if panels[1, 1].get_legend() is None:  # all panels' legends would be as long
            for axes in panels[0]:
                axes.get_legend().remove()
    every = np.concatenate([s.grid.x for s in surfaces])
    for axes in panels.flat:
        lines.frame(axes, every, "step" if axes in panels[1] else "", ())
    name_scales(figure)
    add_legend_and_notes(figure, patches, [])
    if alone:
        entitle(figure, titles)
    return figure


def _label(panels: Any, surfaces: Sequence[Surface], alone: bool) -> None:
    """The axes' words, and the scale of the loss; of one training the gradient's norm beside the loss."""
    first = surfaces[0]
    in_unit = in_brackets(first.about["max_eig"].unit, 20)
    panels[0, 0].set_ylabel("sharpness of the step")
    if not alone:
        panels[0, 0].set_ylabel("sharpness / threshold")
        panels[0, 0].axhline(1, color="0.6", linewidth=0.5)
    panels[0, 0].legend()
    panels[0, 1].axhline(0, color="0.6", linewidth=0.5)
    panels[0, 1].set_ylabel(("eigenvalues" if alone else "eigenvalues,\nsmallest thin") + in_unit)
    panels[0, 1].legend()
    panels[1, 0].set_ylabel("trace" + in_unit)
    panels[1, 1].set_ylabel(f"loss{in_brackets(first.about['loss'].unit)}")
    if lines.suits_log_axis([s["loss"] for s in surfaces]):
        panels[1, 1].set_yscale("log")
    if alone:
        panels[1, 1].yaxis.label.set_color(BLUE)
        other = panels[1, 1].twinx()
        lines.curve(other, first.grid.x, first["gradient_norm"], colour=DARK, label="", squares=True)
        other.set_ylabel(lines.on_right("norm of the gradient"), color=DARK)
        if lines.suits_log_axis([first["gradient_norm"]]):
            other.set_yscale("log")


def _draw_stability(axes: Any, surface: Surface, colour: str) -> list[Artist]:
    """The eigenvalue that limits the step, and its threshold; the legend's patches of missing steps."""
    x = surface.grid.x
    values, status = values_of(surface, "preconditioned_max_eig")
    name, error = r"$\lambda_\max(P^{-1}H)$", surface["preconditioned_max_eig_error"]
    if not np.isfinite(values).any():  # no threshold is known of this optimizer
        values, error, name = surface["max_eig"], surface["max_eig_error"], r"$\lambda_\max$"
    lines.curve(axes, x, values, colour=colour, label=name)
    lines.band(axes, x, values - error, values + error, colour)
    limit = surface[THRESHOLD]
    if np.isfinite(limit).any():
        axes.plot(x, np.where(np.isfinite(limit), limit, np.nan), ":", color=colour, label="threshold")
        known = np.concatenate([values[np.isfinite(values)], limit[np.isfinite(limit)]])
        if known.min() > 0 and known.max() > 20 * known.min():
            axes.set_yscale("log")
    return lines.mark_missing(axes, x, values, status)


def _draw_field(
    axes: Any, surface: Surface, name: str, title: str, colour: str, style: Any, thin: bool = False
) -> None:
    """One field over the steps, with its error where it has one."""
    x, values = surface.grid.x, surface[name]
    label = title
    if name.endswith("_eig"):
        label = f"{title} {quantity(surface, name).symbol}".strip()
    lines.curve(axes, x, values, colour=colour, label=label, style=style, thin=thin)
    if f"{name}_error" in surface:
        error = surface[f"{name}_error"]
        lines.band(axes, x, values - error, values + error, colour)
