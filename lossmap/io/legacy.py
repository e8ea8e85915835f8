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

import numpy as np

from lossmap.io.checked import CheckedFile, open_checked
from lossmap.io.netcdf_read import NotASurface, read_grid
from lossmap.io.netcdf_write import X
from lossmap.io.surface import DONE, TO_DO, UNPROTECTED, Group, Surface

PAIRS = (("train_loss", "train_acc"), ("test_loss", "test_acc"))


def surface_of(source: CheckedFile) -> Surface:
    """The surface in an open file of the original tool.

    Raises NotASurface where it is none, Damaged where its arrays are not what the tool writes.
    """
    names = [name for pair in PAIRS for name in pair if name in source]
    names += [name for name in ("max_eig", "min_eig") if name in source]
    if X not in source:
        kind = "directions of the original tool" if "xdirection" in source else "something else"
        if "proj_xcoord" in source:
            kind = "a training trajectory of the original tool"
        raise NotASurface(f"{source.path} is an HDF5 file, but no surface: it has no {X}; it holds {kind}")
    grid = read_grid(source)
    fields, status, measures = {}, {}, {}
    for name in names:
        values = numbers(source, name)
        if values.size != len(grid):
            raise NotASurface(f"{source.path} is no surface: {name} has {values.size} values for {len(grid)} points")
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
    if "dir_file" in source:
        attributes["dir_file"] = str(source.array("dir_file").reshape(-1)[0])
    return Surface(grid, fields, status=status, measures=measures, attributes=attributes, integrity=UNPROTECTED)


def numbers(source: CheckedFile, name: str) -> np.ndarray:
    """An array of numbers as float64. Raises Damaged where it holds anything else."""
    values = source.array(name)
    if values.dtype.kind not in "fiu":
        raise source.damaged(f"{name} must hold numbers; its type is {values.dtype}")
    return values.astype(np.float64)


def directions(path: str | os.PathLike[str]) -> dict[str, list[np.ndarray]]:
    """The directions in a file of the original tool: {"x": [...], "y": [...]}, arrays in the order of the tool.

    Raises NotASurface where the file holds none; otherwise as `lossmap.io.read.read`.
    """
    with open_checked(Path(path)) as source:
        directions = {}
        for axis in ("x", "y"):
            group = f"{axis}direction"
            if group in source and source.is_group(group):
                with source.explained(group):
                    keys = sorted(source.names(group), key=int)
                directions[axis] = [source.array(f"{group}/{key}") for key in keys]
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
    with open_checked(Path(path)) as source:
        if "proj_xcoord" not in source:
            raise NotASurface(f"{path} holds no trajectory: proj_xcoord is not there")
        x = numbers(source, "proj_xcoord")
        arrays = {"x": x, "y": np.zeros_like(x), "step": np.arange(x.size)}
        if "proj_ycoord" in source:
            arrays["y"] = numbers(source, "proj_ycoord")
        if any(a.ndim != 1 or a.shape != x.shape for a in arrays.values()):
            raise source.damaged("proj_xcoord and proj_ycoord must be rows of equal length")
    if directions_file is not None:
        with open_checked(Path(directions_file)) as source:
            if "explained_variance_ratio_" in source:
                arrays["explained_variance_ratio"] = numbers(source, "explained_variance_ratio_")
    return Group(arrays)
