"""Planes and surfaces in the format of the original tool, so that its scripts go on with them; `io.legacy` reads it.

directions   groups `xdirection`, `ydirection` with datasets 0..n, in the order of the parameters, or of the state dict
surface      `dir_file`, `xcoordinates`, `ycoordinates`, and those of its fields that there are, in its odd order: of
             the shape (x, y), filled in the flat order of (y, x), -1 (smallest eigenvalue: 1) for what is not known
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from lossmap.io.disk import PathLike
from lossmap.io.surface import Surface

FIELDS = ("train_loss", "train_acc", "test_loss", "test_acc", "max_eig", "min_eig")
UNKNOWN = {"min_eig": 1.0}  # of all others -1


def write_directions(path: PathLike, axes: Mapping[str, Sequence[np.ndarray]]) -> None:
    """A direction file: by axis, x or y, its tensors in their order.

    Raises FileExistsError, and OSError.
    """

    def fill(file: h5py.File) -> None:
        for axis, tensors in axes.items():
            group = file.create_group(f"{axis}direction")
            for i, tensor in enumerate(tensors):
                group.create_dataset(str(i), data=np.asarray(tensor, np.float32))

    _write(path, fill)


def write_surface(path: PathLike, surface: Surface, directions: PathLike) -> None:
    """A surface file with the fields that the tool has.

    directions  the file of its plane

    Raises FileExistsError, and OSError.
    """

    def fill(file: h5py.File) -> None:
        file["dir_file"] = str(directions)
        grid = surface.grid
        file["xcoordinates"] = grid.x
        if grid.y is not None:
            file["ycoordinates"] = grid.y
        for name in FIELDS:
            if name in surface.fields:
                values = np.nan_to_num(surface[name], nan=UNKNOWN.get(name, -1.0), posinf=np.inf, neginf=-np.inf)
                file[name] = values.reshape(grid.x.size, -1) if grid.y is not None else values

    _write(path, fill)


def _write(path: PathLike, fill: Callable[[h5py.File], None]) -> None:
    """A new file that appears whole or not at all."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    beside = path.with_name(f".{path.name}.part")
    try:
        with h5py.File(beside, "w") as file:
            fill(file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
