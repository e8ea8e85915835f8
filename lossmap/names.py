"""The name of a result: what `--surf-file` says, else one made of model, directions and grid.

Made of the settings alone, so that `submit` knows the file that a job will write before a plane is there.
"""

from __future__ import annotations

import re
from pathlib import Path

from lossmap.options import Settings
from lossmap.space.grid import Grid

ENDINGS = (".h5", ".hdf5", ".nc")


def result_path(settings: Settings) -> Path:
    """Where the result goes: .h5 is added where no ending says HDF5; in a folder it takes its own name."""
    named = settings.run.surf_file
    path = Path(named or "")
    if path.is_dir():
        return path / default_name(settings)
    return path if path.suffix in ENDINGS else path.with_name(path.name + ".h5")


def default_name(settings: Settings) -> str:
    """A name made of model, directions and grid, with no character that a shell would mind."""
    model, plane = settings.model, settings.plane
    subject = Path(model.model_file).stem if model.model_file else settings.data.problem or model.model
    kinds = [plane.xdir or ("to" if model.model_file2 else "random")]
    if plane.y is not None:
        kinds.append(plane.ydir or ("to" if model.model_file3 else "random"))
    if plane.dir_file:
        kinds = [Path(plane.dir_file).stem]
    grid = Grid.parse(plane.x, plane.y)
    spans = [f"{t[0]:g}to{t[-1]:g}x{t.size}" for t in (grid.x, grid.y) if t is not None]
    seed = f"s{plane.seed}" + (f".{plane.idx}" if plane.idx else "")
    return re.sub(r"[^\w.+-]+", "-", f"{subject}_{'-'.join(dict.fromkeys(kinds))}_{seed}_{'_'.join(spans)}") + ".h5"
