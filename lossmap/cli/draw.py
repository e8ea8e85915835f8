"""Draw what a result file holds: contours, reliefs, lines, eigenvalue maps; several files side by side.

A training path, a spectrum, the layers, the evolution of a run or a report of health is drawn as what it is.

    lossmap draw surface.h5                                  surface.pdf and surface.png
    lossmap draw a.h5 b.h5 --titles with without --output pair.pdf
    lossmap draw surface.h5 --kind 3d --output relief.png
    lossmap draw surface.h5 --page --vtk                     also surface.html, surface.vts
    lossmap draw spectrum.h5                                 every spectrum, and the layers
    lossmap watch surface.h5                                 draws it again while it grows

Files of the original tool are drawn too. Torch is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossmap.cli.setting_groups import DrawSettings
from lossmap.cli.settings import Settings, UsageError, guarded, parse, setting
from lossmap.geometry.grid import Grid
from lossmap.io.read import Group, NotASurface, Surface, is_being_written, read, training_path
from lossmap.plotting.dispatch import figures_of
from lossmap.plotting.figures import KINDS, draw, save
from lossmap.plotting.quantities import PARTS, holds_points, other_kinds
from lossmap.plotting.save_next_to import save_next_to, show

EXIT = {"complete": 0, "failed": 3, "unfinished": 75}


@dataclass(frozen=True)
class PictureSettings:
    """The picture."""

    files: tuple[str, ...] = setting(
        (), "result files; several are drawn side by side", metavar="FILE", positional=True
    )
    output: tuple[str, ...] = setting(
        (),
        "files to write: pdf, png, svg, html, vts, vtp (default: FILE.pdf and FILE.png)",
        metavar="FILE",
        names=("-o",),
    )
    kind: str = setting("auto", "kind of picture", choices=KINDS)
    field: str | None = setting(
        None, "what to show, such as test_loss, train_acc, max_eig, ratio; of spectra and layers the label",
        metavar="NAME",
    )  # fmt: skip
    titles: tuple[str, ...] = setting((), "a title for each file", metavar="TITLE")
    proj_file: str | None = setting(
        None, "training path to draw over the map: another result, or a file of the original tool", metavar="FILE"
    )
    dir_file: str | None = setting(None, "its directions, in the original tool's form", metavar="FILE")
    no_trajectory: bool = setting(False, "leave the training path out")
    width: float | None = setting(None, "width in inches (default: 3.3, or 6.75 for several maps)", metavar="INCHES")
    dpi: int = setting(300, "dots per inch of pictures made of dots", metavar="DPI")


@dataclass(frozen=True)
class WatchSettings:
    """Watching."""

    every: float = setting(5.0, "seconds between two looks", metavar="SECONDS")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the files; returns the exit code."""
    settings = parse((PictureSettings, DrawSettings), argv, prog="lossmap draw", about=__doc__ or "")
    files = [Path(f) for f in settings.picture.files]
    if not files:
        raise UsageError("draw wants a result file, such as lossmap draw surface.h5")
    surfaces = [held_in(f) for f in files]
    if settings.picture.proj_file and _elsewhere(settings.picture.proj_file, surfaces[0]):
        print(f"{settings.picture.proj_file} was projected onto another plane than that of {files[0]}")
    for path in _drawn(settings, files, surfaces):
        print(f"picture: {path}")
    more = [kind for kind in other_kinds(surfaces[0]) if kind != "path"]
    if more and settings.picture.kind == "auto" and holds_points(surfaces[0]):
        print(f"{files[0]} holds {' and '.join(more)} too: --kind {more[0]} draws that")
    return 0


def held_in(file: Path) -> Surface:
    """What a file holds; of the original tool also a training path alone."""
    try:
        return read(file)
    except NotASurface:
        try:
            path = training_path(file)
        except ValueError:
            path = None
        if path is None:
            raise
        return Surface(Grid(np.zeros(1)), {}, groups={"trajectory": path})


@guarded
def watch(argv: Sequence[str] | None = None) -> int:
    """Draw a result again and again while it grows; ends with it, by the exit codes of `lossmap status`."""
    settings = parse((PictureSettings, DrawSettings, WatchSettings), argv, prog="lossmap watch", about=__doc__ or "")
    if len(settings.picture.files) != 1:
        raise UsageError(f"watch wants one result file; got {len(settings.picture.files)}")
    if settings.watch.every <= 0:
        raise UsageError(f"--every wants seconds, more than 0; got {settings.watch.every:g}")
    path, known, named = Path(settings.picture.files[0]), -1, False
    while True:
        written = is_being_written(path)  # asked first: who stops after that has written what we read now
        surface = read(path)
        done = sum(surface.counts(measure)["done"] for measure in surface.status)
        if done != known:
            print(line(surface), flush=True)
        if done > max(known, 0):
            made = _drawn(settings, [path], [surface])
            if not named:
                print(f"picture: {', '.join(str(p) for p in made)}", flush=True)
            named = True
        known = done
        if surface.outcome != "unfinished":
            return EXIT[surface.outcome]
        if not written:
            print(f"nobody is writing {path} now; the command that made it goes on with it", flush=True)
            return EXIT["unfinished"]
        time.sleep(settings.watch.every)


def line(surface: Surface) -> str:
    """How a survey stands, in one line."""
    parts = []
    for measure in surface.status:
        counts = surface.counts(measure)
        total = sum(counts.values())
        part = f"{measure}: {counts['done']:,} of {total:,} points"
        if counts["failed"]:
            part += f", {counts['failed']:,} failed"
        came = surface.recent.get(measure, np.zeros(0))
        if counts["left"] and came.size > 1 and np.ptp(came) > 0:
            rate = (came.size - 1) / float(np.ptp(came))
            part += f", {rate:.3g} points/s, {counts['left'] / rate:,.0f} s left"
        for name in surface.measures.get(measure, ())[: measure not in PARTS]:
            least = surface.minimum(name)
            if least is not None:
                part += f", least {name} {least[0]:.4g} at ({', '.join(f'{c:g}' for c in least[1])})"
        parts.append(part)
    return "; ".join(parts)


def _drawn(settings: Settings, files: Sequence[Path], surfaces: Sequence[Surface]) -> list[Path]:
    wanted, asked = settings.picture, settings.draw
    stem = files[0].with_suffix("")
    outputs = [Path(f) for f in wanted.output]
    log = True if asked.log else None
    if len(surfaces) == 1 and not outputs and _beside_a_surface(settings, surfaces[0]):
        outputs = save_next_to(files[0], figures_of(surfaces[0]), wanted.dpi)
        _shown(settings, outputs)
        return outputs
    outputs = outputs or [Path(f"{stem}.pdf"), Path(f"{stem}.png")]
    outputs += [Path(f"{stem}.html")] if asked.page else []
    outputs += [Path(f"{stem}.vts")] if asked.vtk else []
    made: list[Path] = []
    figure = None
    for output in dict.fromkeys(outputs):
        if output.suffix in (".html", ".htm", ".vts", ".vtp"):
            _one(surfaces, output)
        if output.suffix in (".html", ".htm"):
            from lossmap.plotting.html import page

            made.append(page(surfaces[0], output, title=wanted.titles[0] if wanted.titles else files[0].name))
        elif output.suffix in (".vts", ".vtp"):
            from lossmap.plotting.vtk import vtk

            made += vtk(surfaces[0], output, wanted.field, log=log, vmax=asked.vmax)
        else:
            if figure is None:
                figure = draw(
                    list(surfaces), wanted.kind, wanted.field, titles=wanted.titles or _titles(files),
                    vmin=asked.vmin, vmax=asked.vmax, vlevel=asked.vlevel, log=log, loss_max=asked.loss_max,
                    trajectory=_path(settings), width=wanted.width,
                )  # fmt: skip
            made.append(save(figure, output, dpi=wanted.dpi))
    _shown(settings, made)
    return made


def _beside_a_surface(settings: Settings, surface: Surface) -> bool:
    """Whether all that a file holds is to be drawn, and that is no surface."""
    plain = settings.picture.kind == "auto" and settings.picture.field is None
    wants_points = settings.draw.page or settings.draw.vtk
    return plain and not wants_points and not holds_points(surface) and bool(other_kinds(surface))


def _shown(settings: Settings, made: Sequence[Path]) -> None:
    pictures = [p for p in made if p.suffix in (".png", ".pdf", ".svg", ".html")]
    if settings.draw.show and pictures and not show(pictures[-1]):
        print(f"no viewer was found on this machine to show {pictures[-1]}")


def _one(surfaces: Sequence[Surface], output: Path) -> None:
    if len(surfaces) > 1:
        raise UsageError(f"{output} holds one surface; {len(surfaces)} files were given")


def _titles(files: Sequence[Path]) -> list[str] | None:
    return [f.stem for f in files] if len(files) > 1 else None


def _elsewhere(path: str, surface: Surface) -> bool:
    """Whether the training path in a file is known to belong to another plane."""
    try:
        groups = [held.groups.get("directions/x") for held in (read(path), surface)]
    except NotASurface:  # a path of the original tool does not say
        return False
    digests = {group.attributes["digest"] for group in groups if group is not None and "digest" in group.attributes}
    return len(digests) == 2


def _path(settings: Settings) -> Group | bool | None:
    """The training path to draw: of a file that was named, of the result itself (None), or none (False)."""
    wanted = settings.picture
    if wanted.no_trajectory:
        return False
    if wanted.proj_file is None:
        return None
    return training_path(wanted.proj_file, wanted.dir_file)
