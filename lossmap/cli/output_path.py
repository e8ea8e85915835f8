"""The name of a result: what `--surf-file` says, else one made of model, directions and grid.

Made of the settings alone, so that `submit` knows the file that a job will write before a plane is there.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from lossmap.cli.settings import Settings
from lossmap.geometry.grid import Grid

ENDINGS = (".h5", ".hdf5", ".nc")
LONGEST = 200  # characters of a name, which file systems limit to 255 with what is added


def result_path(settings: Settings) -> Path:
    """Where the result goes: .h5 is added where no ending says HDF5; in a folder it takes its own name."""
    named = settings.run.surf_file
    path = Path(named or "")
    if path.is_dir():
        return path / default_name(settings)
    return path if path.suffix in ENDINGS else path.with_name(path.name + ".h5")


def default_name(settings: Settings) -> str:
    """A name made of model, directions and grid, with no character that a shell would mind.

    A checkpoint is named with its folder, as people call those of several runs alike (model_300.t7).
    """
    model, plane = settings.model, settings.plane
    subject = _called(model.model_file) if model.model_file else settings.data.problem or model.model
    kinds = [_kind(plane.xdir, model.model_file2, plane.xnorm)]
    if plane.y is not None:
        kinds.append(_kind(plane.ydir, model.model_file3, plane.ynorm))
    if plane.dir_file:
        kinds = [Path(plane.dir_file).stem]
    if plane.dir_type == "states":
        kinds.append("states")
    grid = Grid.parse(plane.x, plane.y)
    spans = [f"{t[0]:g}to{t[-1]:g}x{t.size}" for t in (grid.x, grid.y) if t is not None]
    seed = f"s{plane.seed}" + (f".{plane.idx}" if plane.idx else "")
    name = re.sub(r"[^\w.+-]+", "-", f"{subject}_{'-'.join(dict.fromkeys(kinds))}_{seed}_{'_'.join(spans)}")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name + ".h5"


def _called(file: str) -> str:
    path = Path(file)
    return f"{path.parent.name}_{path.stem}" if path.parent.name else path.stem


def _kind(direction: str | None, file: str | None, norm: str | None) -> str:
    """A direction in a few words; of its normalisation what is not the usual one."""
    if direction is None and file:
        return f"to-{_called(file)}"
    what, _, rest = (direction or "random").partition(":")
    told = f"{what}-{_called(rest) if what == 'to' else rest}" if rest else what
    usual = "filter" if what == "random" else "none"
    return f"{told}-{norm}" if norm not in (None, usual) else told
