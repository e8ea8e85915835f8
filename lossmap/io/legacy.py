"""Files of the original tool (Li et al. 2018, github.com/tomgoldstein/loss-landscape), read only.

direction file   groups `xdirection`, `ydirection` with datasets 0..n in the order of the parameters (dir_type
                 weights) or of the state dict (states); of a PCA also `explained_variance_ratio_`
surface file     `xcoordinates`, `ycoordinates`, `train_loss`, `train_acc`, `test_...`, `min_eig`, `max_eig`
trajectory       `proj_xcoord`, `proj_ycoord`

Its surfaces have the shape (x, y), but are filled in the flat order of (y, x): on grids that are not square the rows
are scrambled, and reading the flat order back as (y, x) puts every value at its point again. Not yet computed is
-1 (loss, accuracy, largest eigenvalue) and +1 (smallest); under MPI its NaN became -1 too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from lossmap.geometry.grid import Grid
from lossmap.io.netcdf_read import NotASurface, open_hdf5
from lossmap.io.netcdf_write import X, Y
from lossmap.io.surface import DONE, TO_DO, Group, Surface

PAIRS = (("train_loss", "train_acc"), ("test_loss", "test_acc"))


def surface_of(file: h5py.File, path: Path) -> Surface:
    """The surface in an open file of the original tool. Raises NotASurface where it is none."""
    names = [name for pair in PAIRS for name in pair if name in file] + [n for n in ("max_eig", "min_eig") if n in file]
    if X not in file or not isinstance(file[X], h5py.Dataset):
        kind = "directions of the original tool" if "xdirection" in file else "something else"
        if "proj_xcoord" in file:
            kind = "a training trajectory of the original tool"
        raise NotASurface(f"{path} is an HDF5 file, but no surface: it has no {X}; it holds {kind}")
    grid = Grid(file[X][()], file[Y][()] if Y in file else None)
    fields, status, measures = {}, {}, {}
    for name in names:
        values = np.asarray(file[name][()], dtype=np.float64)
        if values.size != len(grid):
            raise NotASurface(f"{path} is no surface: {name} has {values.size} values for {len(grid)} points")
        fields[name] = values.reshape(grid.shape)
    losses = tuple(name for pair in PAIRS for name in pair if name in fields)
    if losses:
        known = np.zeros(grid.shape, dtype=bool)
        for loss, accuracy in PAIRS:
            missing = [name for name in (loss, accuracy) if name in fields]
            if missing:
                here = np.logical_or.reduce([fields[name] != -1 for name in missing])
                known |= here
                for name in missing:
                    fields[name] = np.where(fields[name] == -1, np.nan, fields[name])
        status["loss"], measures["loss"] = np.where(known, DONE, TO_DO), losses
    ends = tuple(name for name in ("max_eig", "min_eig") if name in fields)
    if ends:
        # A largest eigenvalue of exactly -1, or a smallest of exactly 1, is no value of a real Hessian.
        absent = np.logical_and.reduce([fields[n] == (-1 if n == "max_eig" else 1) for n in ends])
        for name in ends:
            fields[name] = np.where(absent, np.nan, fields[name])
        status["eigen"], measures["eigen"] = np.where(absent, TO_DO, DONE), ends
    attributes: dict[str, object] = {"format": "original tool"}
    if "dir_file" in file:
        named = file["dir_file"][()]
        attributes["dir_file"] = named.decode() if isinstance(named, bytes) else str(named)
    return Surface(grid, fields, status=status, measures=measures, attributes=attributes)


def directions(path: str | os.PathLike[str]) -> dict[str, list[np.ndarray]]:
    """The directions in a file of the original tool: {"x": [...], "y": [...]}, arrays in the order of the tool.

    Raises NotASurface where the file holds none; otherwise as `lossmap.io.read.read`.
    """
    with open_hdf5(Path(path)) as file:
        directions = {}
        for axis in ("x", "y"):
            group = file.get(f"{axis}direction")
            if isinstance(group, h5py.Group):
                directions[axis] = [np.asarray(group[key][()]) for key in sorted(group, key=int)]
        if not directions:
            raise NotASurface(f"{path} holds no directions: neither xdirection nor ydirection is there")
        return directions


def matched(
    arrays: Sequence[np.ndarray],
    parameters: Mapping[str, Sequence[int]],
    states: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
    """A direction of the original tool by the names of a model, whose parameters and states have these shapes.

    The number of arrays says whether it is over parameters or states (of old versions of torch, without the
    counters of batch norm). Raises ValueError naming the first tensor that does not fit.
    """
    uncounted = {name: shape for name, shape in states.items() if not name.endswith("num_batches_tracked")}
    shapes = next((s for s in (parameters, states, uncounted) if len(s) == len(arrays)), None)
    if shapes is None:
        raise ValueError(
            f"the direction has {len(arrays)} tensors; this model has {len(parameters)} parameters and "
            f"{len(states)} entries in its state dict: the direction belongs to another model"
        )
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        if tuple(array.shape) != tuple(shape):
            raise ValueError(
                f"the direction's tensor for {name!r} has shape {tuple(array.shape)}; the model's has "
                f"{tuple(shape)}: the direction belongs to another model"
            )
    return dict(zip(shapes, arrays, strict=True))


def trajectory(path: str | os.PathLike[str], directions_file: str | os.PathLike[str] | None = None) -> Group:
    """A training path of the original tool: arrays x, y, step; with the directions of its PCA the shares explained.

    Raises NotASurface where the file holds none.
    """
    with open_hdf5(Path(path)) as file:
        if "proj_xcoord" not in file:
            raise NotASurface(f"{path} holds no trajectory: proj_xcoord is not there")
        x = np.asarray(file["proj_xcoord"][()], dtype=np.float64)
        arrays = {"x": x, "y": np.zeros_like(x), "step": np.arange(x.size)}
        if "proj_ycoord" in file:
            arrays["y"] = np.asarray(file["proj_ycoord"][()], dtype=np.float64)
    if directions_file is not None:
        with open_hdf5(Path(directions_file)) as file:
            if "explained_variance_ratio_" in file:
                arrays["explained_variance_ratio"] = np.asarray(file["explained_variance_ratio_"][()])
    return Group(arrays)
