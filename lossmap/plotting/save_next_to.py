"""The pictures that lie beside a result: PDF and PNG, a relief, a page, a file for ParaView, as asked for."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from lossmap.io.read import Group, read
from lossmap.plotting.figures import draw, save
from lossmap.plotting.quantities import best_field, is_line


class Asked(Protocol):
    """What is asked for; lossmap.cli.setting_groups.DrawSettings is one."""

    @property
    def page(self) -> bool: ...
    @property
    def vtk(self) -> bool: ...
    @property
    def show(self) -> bool: ...
    @property
    def log(self) -> bool: ...
    @property
    def loss_max(self) -> float | None: ...
    @property
    def vmax(self) -> float | None: ...
    @property
    def vmin(self) -> float | None: ...
    @property
    def vlevel(self) -> float | None: ...


def draw_next_to(result: Path, asked: Asked, trajectory: Group | None = None) -> list[Path]:
    """Draw a result into files beside it, named after it; returns them.

    surface.h5 becomes surface.pdf and surface.png; of a plane also surface_3d.pdf and surface_3d.png; with --page
    surface.html; with --vtk surface.vts. With --show the PNG opens on the screen.
    """
    surface = read(result)
    stem = result.with_suffix("")
    log = True if asked.log else None
    figure = draw(
        surface, vmin=asked.vmin, vmax=asked.vmax, vlevel=asked.vlevel, log=log, loss_max=asked.loss_max,
        trajectory=trajectory,
    )  # fmt: skip
    made = save_next_to(result, {"": figure})
    shown = made[-1]
    plane = not is_line(surface)
    if plane and best_field(surface).endswith("_loss"):
        figure = draw(surface, "3d", vmin=asked.vmin, vmax=asked.vmax, log=log)
        made += save_next_to(result, {"_3d": figure})
    if asked.page:
        from lossmap.plotting.html import page

        made.append(page(surface, Path(f"{stem}.html"), title=result.name))
    if asked.vtk and plane:
        from lossmap.plotting.vtk import vtk

        made += vtk(surface, Path(f"{stem}.vts"), log=log, vmax=asked.vmax)
    if asked.show:
        show(shown)
    return made


def save_next_to(result: Path, figures: Mapping[str, Figure], dpi: int = 300) -> list[Path]:
    """Save figures beside a result, as PDF and PNG; each is named after the result and its key."""
    stem = result.with_suffix("")
    return [save(figure, Path(f"{stem}{key}{end}"), dpi) for key, figure in figures.items() for end in (".pdf", ".png")]


def show(picture: Path) -> bool:
    """Open a picture with the machine's own viewer; False where there is none."""
    return webbrowser.open(picture.resolve().as_uri())
