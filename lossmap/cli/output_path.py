"""The name of a result: `--surf-file`, else one made of model, directions and grid.

It depends on the settings alone, so that `submit` knows the file that a job will write before a plane exists.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from lossmap.cli.grid_window import grid_in
from lossmap.cli.settings import Settings

ENDINGS = (".h5", ".hdf5", ".nc")
MAX_NAME_LENGTH = 200  # characters; file systems allow 255, and suffixes are added


def with_ending(path: Path) -> Path:
    """The path of an HDF5 file: .h5 is added where its ending is no other one of HDF5."""
    return path if path.suffix in ENDINGS else path.with_name(path.name + ".h5")


def result_path(settings: Settings) -> Path:
    """Where the result of a survey goes: .h5 is added where it is missing; a folder gets a file of the default name."""
    path = Path(settings.run.surf_file or "")
    return path / default_name(settings) if path.is_dir() else with_ending(path)


def default_name(settings: Settings) -> str:
    """A name made of model, directions and grid, without characters that are special in a shell.

    A checkpoint is named with its folder, as checkpoints of several runs often share a name (model_300.t7).
    """
    model, plane = settings.model, settings.plane
    subject = settings.data.problem or model.model
    if model.model_file:
        subject = _checkpoint_name(model.model_file)
    grid = grid_in(plane)
    spans = [f"{t[0]:g}to{t[-1]:g}x{t.size}" for t in (grid.x, grid.y) if t is not None]
    seed = f"s{plane.seed}.{plane.idx}" if plane.idx else f"s{plane.seed}"
    name = f"{subject}_{'-'.join(dict.fromkeys(_directions(settings)))}_{seed}_{'_'.join(spans)}"
    name = re.sub(r"[^\w.+-]+", "-", name).lstrip("-")  # which a command would take for a flag
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[: MAX_NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name + ".h5"


def _directions(settings: Settings) -> list[str]:
    model, plane = settings.model, settings.plane
    if plane.dir_file:
        names = [Path(plane.dir_file).stem]
    else:
        names = [_direction(plane.xdir, model.model_file2, plane.xnorm)]
        if plane.y is not None:
            names.append(_direction(plane.ydir, model.model_file3, plane.ynorm))
    if plane.dir_type == "states":
        names.append("states")
    return names


def _checkpoint_name(file: str) -> str:
    path = Path(file)
    return "_".join(part for part in (path.parent.name, path.stem) if part)


def _direction(direction: str | None, file: str | None, norm: str | None) -> str:
    """A short name of a direction, with its normalization where that is not the default."""
    if direction is None and file:
        return f"to-{_checkpoint_name(file)}"
    kind, _, rest = (direction or "random").partition(":")
    if kind == "to":
        rest = _checkpoint_name(rest)
    name = "-".join(part for part in (kind, rest) if part)
    default = "filter" if kind == "random" else "none"
    if norm in (None, default):
        return name
    return f"{name}-{norm}"
