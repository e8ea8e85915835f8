"""The path of a training run through parameter space: its principal axes, and its shadow on a plane.

With T checkpoints theta_t, (n,), and the last one as origin, the axes are the first right singular vectors of the
matrix of theta_t - theta_T, (T, n) (Li et al. 2018, arXiv:1712.09913, section 7). They are had from the (T, T) Gram
matrix, one tensor at a time, so that memory holds the checkpoints once, and no n x n matrix ever.
A random walk, too, has most of its variance in its first components (Antognini and Sohl-Dickstein 2018,
arXiv:1806.08805): 62 % in the first is what chance gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lossmap.geometry.directions import Named, Plane, difference, projected


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """The principal axes of a path.

    axes       k mappings of tensors, each of Euclidean length 1
    explained  (k,) share of the sum of squares about the origin that each axis carries
    """

    axes: tuple[dict[str, Tensor], ...]
    explained: tuple[float, ...]


def principal_axes(origin: Named, path: Sequence[Named], count: int = 2) -> PrincipalAxes:
    """The first principal axes of path - origin. Raises ValueError where the path has not so many."""
    away = [difference(origin, state) for state in path]
    gram = torch.zeros(len(away), len(away), dtype=torch.float64)
    for name in origin:
        rows = torch.stack([d[name].reshape(-1).double().cpu() for d in away])
        gram += rows @ rows.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values > 1e-12 * values[0].clamp_min(1e-300)).sum()) if len(away) else 0
    if rank < count:
        raise ValueError(
            f"the path has {len(away)} checkpoints that span {rank} dimensions about its end; {count} axes want more"
        )
    axes = []
    for i in range(count):
        weights = vectors[:, i] / values[i].sqrt()
        if weights.sum() > 0:  # an arbitrary sign, fixed: the start of the path lies on the negative side
            weights = -weights
        axes.append(
            {
                name: sum((float(c) * d[name].double() for c, d in zip(weights, away, strict=True)), torch.zeros(()))
                .to(w.dtype)
                .view(w.shape)
                for name, w in origin.items()
            }
        )
    return PrincipalAxes(tuple(axes), tuple((values[:count] / values.sum()).tolist()))


def trajectory(plane: Plane, path: Iterable[Named], steps: Sequence[float] | None = None) -> Mapping[str, np.ndarray]:
    """Where the checkpoints of a path fall on a plane: arrays (T,) `x`, `y`, `step`, `residual`.

    residual  the distance from the checkpoint to its point in the plane, in units of theta: what is not seen
    """
    found = [projected(plane, state) for state in path]
    coordinates = np.array([c for c, _ in found], dtype=np.float64).reshape(len(found), len(plane.axes))
    arrays = {"x": coordinates[:, 0], "residual": np.array([r for _, r in found], dtype=np.float64)}
    if len(plane.axes) == 2:
        arrays["y"] = coordinates[:, 1]
    arrays["step"] = np.arange(len(found), dtype=np.float64) if steps is None else np.asarray(steps, np.float64)
    return arrays
