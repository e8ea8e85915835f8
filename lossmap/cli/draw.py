"""`lossmap draw FILE ...`, `lossmap watch FILE`: figures of result files.

A surface, a map of eigenvalues, a training path, a spectrum, the layers, sharpness, the line between two networks, the
dynamics of a run or a report of health is drawn as what it is; `watch` draws a surface, or a training that
`lossmap.callbacks` measures, again and again while it grows, and waits for a file that is not there yet.
Files of the original tool are drawn too. Torch is not needed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import EXIT_CODES, guarded
from lossmap.cli.setting_groups import DrawSettings
from lossmap.cli.settings import Settings, UsageError, decode_settings, setting
from lossmap.cli.whole_result import is_there, queue_sentences, read_whole
from lossmap.geometry.grid import Grid
from lossmap.io.read import Group, NotASurface, Surface, is_of_another_plane, training_path
from lossmap.io.surface import ON_PLANE, TRAINING_PROCESS
from lossmap.plotting.dispatch import figures_of
from lossmap.plotting.figures import KINDS, draw, fitting_kind, save
from lossmap.plotting.interpolation import checked_interp
from lossmap.plotting.options_taken import TAKEN, refuse_unused, used_options
from lossmap.plotting.quantities import PARTS, holds_points, other_kinds
from lossmap.plotting.save_next_to import log_choice, save_next_to, show
from lossmap.plotting.style import style_context
from lossmap.plotting.titles import distinct_names
from lossmap.plotting.unfinished_spectra import missing_parts, with_unfinished

PAGE_ENDINGS, VTK_ENDINGS = (".html", ".htm"), (".vts", ".vtp")


@dataclass(frozen=True)
class PictureSettings:
    """Figure options."""

    files: tuple[str, ...] = setting(
        (), "result files; several are drawn side by side", metavar="FILE", positional=True
    )
    output: tuple[str, ...] = setting(
        (),
        "files to write: pdf, png, svg, html, vts, vtp; by default FILE.pdf and FILE.png",
        metavar="FILE",
        names=("-o",),
    )
    kind: str = setting("auto", "kind of figure", choices=KINDS)
    field: tuple[str, ...] = setting(
        (),
        "quantity, such as test_loss, train_acc, max_eig, ratio, gap (test minus training loss); of spectra and layers "
        "the label; several make a sheet with a row for each and a column for each file",
        metavar="NAME",
    )
    titles: tuple[str, ...] = setting((), "title of each file", metavar="TITLE")
    proj_file: str | None = setting(
        None, "training path over the map: another result, or a file of the original tool", metavar="FILE"
    )
    dir_file: str | None = setting(None, "its directions, in the original tool's format", metavar="FILE")
    no_trajectory: bool = setting(False, "figure without the training path")
    width: float | None = setting(None, "width in inches; by default 3.3, or 6.75 for several maps", metavar="INCHES")
    interp: str | None = setting(
        None,
        "points to an interval between the measured ones of a plane, along a cubic spline, or `none`; by default "
        "enough for smooth lines, and in .vts and .vtp the measured ones alone",
        metavar="N",
    )
    points: bool = setting(False, "marks at the measured points of a plane")
    style: str | None = setting(
        None, "widths, fonts and type sizes: neurips, icml, ieee, nature, or a FILE.mplstyle", metavar="STYLE"
    )
    cmap: str | None = setting(None, "colour map of matplotlib, such as magma", metavar="NAME")
    levels: tuple[str, ...] = setting((), "the levels themselves, ascending", metavar="LOSS")
    labels: tuple[str, ...] = setting((), "labels of x, y and the colour bar", metavar="TEXT")
    crop: str | None = setting(None, "percentile at which the colours end, such as p99", metavar="pN")
    camera: str | None = setting(
        None, "elevation and azimuth of a relief in degrees, such as 32,-58", metavar="ELEV,AZIM"
    )
    caption: bool = setting(
        False, "prints a caption: model, samples, directions, grid, accuracy; it is in each PDF, PNG and SVG as well"
    )
    dpi: int = setting(300, "dots per inch of raster figures", metavar="DPI")


@dataclass(frozen=True)
class WatchSettings:
    """Watch options."""

    interval: float = setting(
        5.0, "seconds between two readings of the file", metavar="SECONDS", former=("--every",), above=0
    )


COMMAND = Command(
    "draw",
    __doc__ or "",
    (PictureSettings, DrawSettings),
    (
        "lossmap draw surface.h5 --page --vtk",
        "lossmap draw a.h5 b.h5 --titles with without --output pair.pdf pair.html",
        "lossmap draw surface.h5 --kind 3d --interp 4 --points --output relief.png",
    ),
)
WATCH = Command(
    "watch",
    __doc__ or "",
    (PictureSettings, DrawSettings, WatchSettings),
    ("lossmap watch surface.h5 --page", "lossmap watch surface.h5 --interval 30 --output live.png"),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the files: 0 drawn, 2 usage error."""
    settings = _sorted_files(COMMAND.parse(argv))
    files = [Path(f) for f in settings.picture.files]
    if not files:
        raise UsageError("draw needs a result file, such as lossmap draw surface.h5")
    surfaces = [without_other_path(read_any(f), f) for f in files]
    proj_file = settings.picture.proj_file
    if proj_file and is_other_path(proj_file, surfaces[0], files[0]) and not settings.picture.no_trajectory:
        settings = settings.changed("picture", proj_file=None, dir_file=None, no_trajectory=True)
    for path in _draw(settings, files, surfaces):
        print(f"picture: {path}")
    for file, surface in zip(files, surfaces, strict=True):
        for label, missing in missing_parts(surface).items():
            print(f"{file} is unfinished: of {label} still to come: {missing}; lossmap resume {file} computes it")
    others = [kind for kind in other_kinds(surfaces[0]) if kind not in ("path", "connection")]
    if others and settings.picture.kind == "auto" and holds_points(surfaces[0]):
        print(f"{files[0]} holds {' and '.join(others)} too: --kind {others[0]} draws that")
    return 0


def _sorted_files(settings: Settings) -> Settings:
    """The settings with what stands behind `--field NAME` among the files where it is one: `--field max_eig a.h5`."""
    picture = settings.picture
    first = next((i for i, word in enumerate(picture.field) if i and Path(word).suffix), len(picture.field))
    if first == len(picture.field):
        return settings
    return settings.changed("picture", field=picture.field[:first], files=(*picture.files, *picture.field[first:]))


def _field(picture: PictureSettings) -> str | tuple[str, ...] | None:
    """The field as `draw` takes it."""
    return picture.field if len(picture.field) > 1 else _one_field(picture)


def _one_field(picture: PictureSettings) -> str | None:
    """The first field, for what shows one alone; None for the best one."""
    return picture.field[0] if picture.field else None


def read_any(file: Path) -> Surface:
    """The content of a file; of the original tool also a training path alone."""
    try:
        return with_unfinished(read_whole(file).surface)
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
    """Draw a result again and again while it grows: 0 complete, 2 usage error, 3 failed points, 75 not written now.

    Ctrl-C ends it with the code of what was read last.
    """
    settings = _sorted_files(WATCH.parse(argv))
    if len(settings.picture.files) != 1:
        raise UsageError(f"watch needs one result file; got {len(settings.picture.files)}")
    path, state = Path(settings.picture.files[0]), WatchState()
    try:
        _wait_for(path, settings.watch.interval)
        while (code := _watch_once(settings, path, state)) is None:
            time.sleep(settings.watch.interval)
    except KeyboardInterrupt:
        return EXIT_CODES[state.outcome]
    return code


@dataclass
class WatchState:
    """What was seen and drawn last."""

    drawn: int = -1
    is_named: bool = False
    is_growing: bool = False
    outcome: str = "unfinished"


def _wait_for(path: Path, interval: float) -> None:
    """Wait for a file that is not there yet, in a folder that is; without the folder, reading the file says so."""
    if is_there(path) or not path.parent.is_dir():
        return
    print(f"waiting for {path}; Ctrl-C ends", flush=True)
    while not is_there(path):
        time.sleep(interval)


def _watch_once(settings: Settings, path: Path, state: WatchState) -> int | None:
    """Read the file, and draw it where there is more than before; the exit code, or None while it grows."""
    result = read_whole(path)
    surface = with_unfinished(result.surface)
    is_training = _is_training(surface)
    is_written = is_training or result.is_running or (bool(result.shards) and bool(queue_sentences(path)))
    done = sum(surface.counts(measure)["done"] for measure in surface.status)
    if done != state.drawn:
        print(status_line(surface), flush=True)
    grows = is_written and (is_training or surface.outcome == "unfinished")
    if done > max(state.drawn, 0) or (state.is_growing and not grows):  # the last page reads itself no more
        pictures = _draw(settings, [path], [surface], settings.watch.interval if grows else None)
        if not state.is_named:
            print(f"picture: {', '.join(str(p) for p in pictures)}", flush=True)
        state.is_named, state.is_growing = True, grows
    state.drawn, state.outcome = done, surface.outcome
    if is_training:
        return None
    if surface.outcome != "unfinished":
        return EXIT_CODES[surface.outcome]
    if not is_written:
        print(f"no process is writing {path} now; the command that made it resumes it", flush=True)
        return EXIT_CODES["unfinished"]
    return None


def _is_training(surface: Surface) -> bool:
    """Whether the training that writes the file goes on: of another host that is what the file says."""
    host, _, process = str(surface.attributes.get(TRAINING_PROCESS, "")).rpartition(" ")
    if not host or host != socket.gethostname():
        return bool(host)
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def status_line(surface: Surface) -> str:
    """The progress of a survey, in one line."""
    return "; ".join(_measure_status(surface, measure) for measure in surface.status)


def _measure_status(surface: Surface, measure: str) -> str:
    counts = surface.counts(measure)
    text = f"{measure}: {counts['done']:,} of {sum(counts.values()):,} points"
    if counts["failed"]:
        text += f", {counts['failed']:,} failed"
    times = surface.recent.get(measure, np.zeros(0))
    if counts["left"] and times.size > 1 and np.ptp(times) > 0:
        rate = (times.size - 1) / float(np.ptp(times))
        text += f", {rate:.3g} points/s, {counts['left'] / rate:,.0f} s left"
    if measure not in PARTS:
        for name in surface.measures.get(measure, ())[:1]:
            smallest = surface.minimum(name)
            if smallest is not None:
                point = ", ".join(f"{c:g}" for c in smallest[1])
                text += f", smallest {name} {smallest[0]:.4g} at ({point})"
    return text


def _draw(
    settings: Settings, files: Sequence[Path], surfaces: Sequence[Surface], reload: float | None = None
) -> list[Path]:
    """Draw the files into the outputs of the settings; the files that were written.

    reload  seconds after which a page reads itself again; None for what does not grow

    Raises ValueError where what a file holds does not fit together, as in a damaged one without digests.
    """
    try:
        return _drawn(settings, files, surfaces, reload)
    except (LookupError, TypeError, AttributeError) as error:
        if isinstance(error, KeyError) and " " in str(error.args[0]):  # a sentence, such as of an unknown field
            raise
        names = ", ".join(map(str, files))
        raise ValueError(
            f"{names} cannot be drawn: what it holds does not fit together; `lossmap status FILE --verify` may say why"
        ) from error


def _drawn(settings: Settings, files: Sequence[Path], surfaces: Sequence[Surface], reload: float | None) -> list[Path]:
    picture = settings.picture
    _check_path_flags(picture)
    if len(surfaces) == 1 and not picture.output and _is_no_surface(settings, surfaces[0]):
        for kind in other_kinds(surfaces[0]):
            refuse_unused(surfaces, kind, None, _options(settings))
        _check_titles(picture, surfaces)
        with style_context(picture.style):
            figures = figures_of(surfaces[0], picture.titles, picture.width)
        written = save_next_to(files[0], figures, picture.dpi)
        _print_captions(picture, figures.values())
    else:
        written = []
        outputs = dict.fromkeys(_outputs(settings, files[0]))
        images = [o for o in outputs if o.suffix not in PAGE_ENDINGS + VTK_ENDINGS]
        others = [o for o in outputs if o not in images]
        if others and len(picture.field) > 1:
            raise UsageError(
                f"{others[0]} shows one field; got {' '.join(picture.field)}: leave out all but one --field"
            )
        if images:
            written += _draw_images(settings, files, surfaces, images)
        else:
            _refuse_unused_by(settings, surfaces, others)
        for output in others:
            written += _draw_surface(settings, files, surfaces, output, reload)
    _show(settings, written)
    return written


def _outputs(settings: Settings, first: Path) -> list[Path]:
    stem = first.with_suffix("")
    outputs = [Path(f) for f in settings.picture.output] or [Path(f"{stem}.pdf"), Path(f"{stem}.png")]
    if settings.draw.page:
        outputs.append(Path(f"{stem}.html"))
    if settings.draw.vtk:
        outputs.append(Path(f"{stem}.vts"))
    return outputs


def _logarithmic(settings: Settings) -> bool | None:
    """Whether levels are logarithmic, as --log or --linear says; None leaves it to the figure."""
    return log_choice(settings.draw)


def _options(settings: Settings) -> dict[str, Any]:
    """The options of a figure by their names in `draw`; None for one that is not set."""
    picture, levels = settings.picture, settings.draw
    return {
        "field": _field(picture),
        "titles": picture.titles or None,
        "vmin": levels.vmin,
        "vmax": levels.vmax,
        "vlevel": levels.vlevel,
        "log": _logarithmic(settings),
        "loss_max": levels.loss_max,
        "trajectory": _trajectory(settings),
        "width": picture.width,
        "interp": checked_interp(picture.interp),
        "points": picture.points or None,
        "style": picture.style,
        "cmap": picture.cmap,
        "levels": _numbers(picture.levels) or None,
        "labels": picture.labels or None,
        "crop": picture.crop,
        "camera": picture.camera,
    }


def _numbers(texts: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise UsageError(f"--levels must be numbers; got {' '.join(texts)}") from error


def _check_path_flags(picture: PictureSettings) -> None:
    """Raise UsageError where one flag of the training path undoes another."""
    if picture.dir_file and not picture.proj_file:
        raise UsageError("--dir-file goes with --proj-file, the path of the original tool that was made with it")
    if picture.no_trajectory and picture.proj_file:
        raise UsageError("--no-trajectory and --proj-file exclude each other: give one of them")


def _check_titles(picture: PictureSettings, surfaces: Sequence[Surface]) -> None:
    if picture.titles and len(picture.titles) != len(surfaces):
        raise UsageError(f"titles must be one for each of {len(surfaces)} surfaces; got {len(picture.titles)}")


def _refuse_unused_by(settings: Settings, surfaces: Sequence[Surface], outputs: Sequence[Path]) -> None:
    """Raise UsageError where pages and files for ParaView alone are written, and none of them takes a flag."""
    picture = settings.picture
    _check_titles(picture, surfaces)
    kinds = {"page" if output.suffix in PAGE_ENDINGS else "vtk" for output in outputs}
    if picture.kind not in ("auto", *kinds):
        raise UsageError(
            f"--kind {picture.kind} changes nothing of {outputs[0]}: name a pdf, png or svg, or leave it out"
        )
    taken = frozenset().union(*(TAKEN[kind] for kind in kinds))
    for kind in kinds:
        own = {n: v for n, v in _options(settings).items() if n in TAKEN[kind] or n not in taken}
        refuse_unused(surfaces, kind, _one_field(picture), own)


def _draw_images(
    settings: Settings, files: Sequence[Path], surfaces: Sequence[Surface], images: Sequence[Path]
) -> list[Path]:
    picture, options = settings.picture, _options(settings)
    kind = picture.kind
    if kind == "auto":
        kind = "filled" if len(picture.field) > 1 else fitting_kind(surfaces, _one_field(picture))
    if len(picture.field) < 2:
        refuse_unused(surfaces, kind, _one_field(picture), options)
    if options["titles"] is None and len(files) > 1 and "titles" in TAKEN[kind]:
        options["titles"] = distinct_names(files)
    figure = draw(list(surfaces), kind, **options)
    _print_captions(picture, [figure])
    return [save(figure, image, dpi=picture.dpi) for image in images]


def _print_captions(picture: PictureSettings, figures: Iterable[Any]) -> None:
    if picture.caption:
        for figure in figures:
            print(f"caption: {figure.get_label()}")


def _draw_surface(
    settings: Settings, files: Sequence[Path], surfaces: Sequence[Surface], output: Path, reload: float | None
) -> list[Path]:
    """A page of all files, or a file for ParaView, which holds one surface; reload as `page` takes it."""
    picture = settings.picture
    if output.suffix in PAGE_ENDINGS:
        from lossmap.plotting.html import page

        titles = list(picture.titles) or distinct_names(files, ending=True)
        taken = _taken_by("page", settings, surfaces)
        return [page(list(surfaces), output, titles=titles, reload=reload, **taken)]
    if len(surfaces) > 1:
        raise UsageError(f"{output} holds one surface; got {len(surfaces)} files")
    from lossmap.plotting.vtk import vtk

    return vtk(surfaces[0], output, **_taken_by("vtk", settings, surfaces[:1]))


def _taken_by(kind: str, settings: Settings, surfaces: Sequence[Surface]) -> dict[str, Any]:
    """The options of a page or of a file for ParaView; those that it does not take are of the figures beside it."""
    options = {n: v for n, v in _options(settings).items() if n in TAKEN[kind] and n != "titles"}
    having = [surface for surface in surfaces if holds_points(surface)]
    return used_options(having, kind, _one_field(settings.picture), options) if having else {}


def _is_no_surface(settings: Settings, surface: Surface) -> bool:
    """Whether all that a file holds is to be drawn, and that is no surface."""
    is_default = settings.picture.kind == "auto" and not settings.picture.field
    needs_points = settings.draw.page or settings.draw.vtk
    return is_default and not needs_points and not holds_points(surface) and bool(other_kinds(surface))


def _show(settings: Settings, written: Sequence[Path]) -> None:
    pictures = [p for p in written if p.suffix in (".png", ".pdf", ".svg", ".html")]
    if settings.draw.show and pictures and not show(pictures[-1]):
        print(f"no viewer was found on this machine to show {pictures[-1]}")


def is_other_path(path: str | Path, surface: Surface, file: str | Path) -> bool:
    """Whether the training path in a file is of another plane than a surface, and is not drawn on it, which is said."""
    axis, own = (surface.groups.get(name) for name in ("directions/x", "trajectory"))
    if axis is None or not is_of_another_plane(path, digest := axis.attributes.get("digest")):
        return False
    if own is not None and own.attributes.get(ON_PLANE) == digest and _is_path(own, path):
        return False
    print(f"{path} was projected onto another plane than that of {file}: the path is not drawn")
    return True


def without_other_path(surface: Surface, file: str | Path) -> Surface:
    """The surface without a training path of another plane, as earlier versions stored it.

    It is known by the file that the path came from, where that is still there.
    """
    stored = surface.attributes.get("resolved_surface") or surface.attributes.get("resolved_eigenmap")
    own = surface.groups.get("trajectory")
    made = decode_settings(stored) if stored else {}
    if own is None or not made.get("settings", {}).get("proj_file"):
        return surface
    source = Path(made["folder"], made["settings"]["proj_file"])
    try:
        is_same = _is_path(own, source)
    except (OSError, ValueError):
        return surface
    if not is_same or not is_other_path(source, surface, file):
        return surface
    return replace(surface, groups={name: group for name, group in surface.groups.items() if name != "trajectory"})


def _is_path(own: Group, path: str | Path) -> bool:
    """Whether a stored training path is that in a file."""
    return np.array_equal(training_path(path)["x"], own["x"])


def _trajectory(settings: Settings) -> Group | bool | None:
    """The training path to draw: of the file that is named, of the result itself (None), or none (False)."""
    picture = settings.picture
    if picture.no_trajectory:
        return False
    if picture.proj_file is None:
        return None
    return training_path(picture.proj_file, picture.dir_file)
