"""The pictures that lie beside a result: PDF and PNG, a surface in 3-D, a page, a file for ParaView, as set."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from lossmap.io.read import Group, read
from lossmap.plotting.figures import draw, fitting_kind, save
from lossmap.plotting.options_taken import used_options
from lossmap.plotting.quantities import best_field, is_line


class DrawOptions(Protocol):
    """What to draw, and how; lossmap.cli.setting_groups.DrawSettings is one."""

    @property
    def page(self) -> bool: ...
    @property
    def vtk(self) -> bool: ...
    @property
    def show(self) -> bool: ...
    @property
    def log(self) -> bool: ...
    @property
    def linear(self) -> bool: ...
    @property
    def loss_max(self) -> float | None: ...
    @property
    def vmax(self) -> float | None: ...
    @property
    def vmin(self) -> float | None: ...
    @property
    def vlevel(self) -> float | None: ...


def draw_next_to(result: Path, options: DrawOptions, trajectory: Group | None = None) -> list[Path]:
    """Draw a result into files beside it, named after it; returns their paths.

    surface.h5 becomes surface.pdf and surface.png; of a plane of losses also surface_3d.pdf and surface_3d.png, of one
    with extreme eigenvalues surface_eigen.pdf and surface_eigen.png; with --page surface.html; with --vtk surface.vts.
    With --show the PNG opens on the screen. Options that one of these figures does not take are left to the others.
    """
    surface = read(result)
    stem = result.with_suffix("")
    log = log_choice(options)
    chosen = {
        "vmin": options.vmin, "vmax": options.vmax, "vlevel": options.vlevel, "log": log, "loss_max": options.loss_max,
        "trajectory": trajectory,
    }  # fmt: skip
    kind = fitting_kind([surface], None)
    figure = draw(surface, kind, **used_options([surface], kind, None, chosen))
    paths = save_next_to(result, {"": figure})
    png = paths[-1]
    plane = not is_line(surface)
    if kind == "convexity":
        paths += save_next_to(
            result, {"_eigen": draw(surface, "eigen", **used_options([surface], "eigen", None, chosen))}
        )
    if plane and best_field(surface).endswith("_loss"):
        figure = draw(surface, "3d", **used_options([surface], "3d", None, chosen))
        paths += save_next_to(result, {"_3d": figure})
    if options.page:
        from lossmap.plotting.html import page

        taken = used_options([surface], "page", None, chosen)
        paths.append(page(surface, Path(f"{stem}.html"), title=result.name, **taken))
    if options.vtk and plane:
        from lossmap.plotting.vtk import vtk

        paths += vtk(surface, Path(f"{stem}.vts"), **used_options([surface], "vtk", None, chosen))
    if options.show:
        show(png)
    return paths


def log_choice(options: DrawOptions) -> bool | None:
    """Whether the scale is logarithmic: True by --log, False by --linear, None for what fits the values.

    Raises ValueError where both are set.
    """
    if options.log and options.linear:
        raise ValueError("--log and --linear exclude each other: give one of them")
    if options.linear:
        return False
    return options.log or None


def save_next_to(result: Path, figures: Mapping[str, Figure], dpi: int = 300) -> list[Path]:
    """Save figures beside a result, as PDF and PNG; each is named after the result and its key."""
    stem = result.with_suffix("")
    return [save(figure, Path(f"{stem}{key}{end}"), dpi) for key, figure in figures.items() for end in (".pdf", ".png")]


def show(picture: Path) -> bool:
    """Open a picture with the machine's own viewer; False where there is none."""
    return webbrowser.open(picture.resolve().as_uri())
