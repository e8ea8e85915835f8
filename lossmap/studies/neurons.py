"""Each layer's neurons as trajectories along a training run, projected by principal components.

A neuron is a row of its layer's weight: what it takes in, (fan_in,). The rows of all checkpoints of a layer, (s k,
fan_in), are projected on their two leading principal components about their mean, so that each neuron draws one path.

After Gabella et al., Topology of learning in artificial neural networks (2019, arXiv:1902.08160).
Price: reading the checkpoints, and one SVD a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from lossmap.data.checkpoints import load_into
from lossmap.geometry.parameter_vector import selected
from lossmap.landscape.checkpoint_steps import find_checkpoints
from lossmap.sums import in_float64

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class NeuronPaths:
    """The neurons of one layer along a run.

    name    of the layer's weight
    steps   (s,)
    paths   (s, k, 2) positions of the k neurons on the two leading components, in units of the weights
    shares  (2,) of the variance that these components hold
    moved   (k,) length of each neuron's path in all its dimensions
    apart   (k,) distance between its ends there
    """

    name: str
    steps: Array
    paths: Array
    shares: Array
    moved: Array
    apart: Array

    def __str__(self) -> str:
        straight = np.divide(self.apart, self.moved, out=np.full_like(self.moved, np.nan), where=self.moved > 0)
        text = "none moved"
        if np.isfinite(straight).any():
            text = f"paths are {np.nanmedian(1 / straight):.3g} times as long as straight ones (median)"
        return (
            f"{self.name}: {self.paths.shape[1]} neurons, {len(self.steps)} checkpoints, two components hold "
            f"{100 * self.shares.sum():.0f} % of the variance; {text}"
        )


def neuron_paths(checkpoints: Iterable[str | Path], model: nn.Module) -> list[NeuronPaths]:
    """The paths of all layers' neurons. The model is left with the weights of the last checkpoint.

    Raises ValueError for a single checkpoint, and for files that are not of this model.
    """
    files = find_checkpoints(checkpoints)
    if len(files) < 2:
        raise ValueError(f"a path needs two checkpoints at least; got {len(files)}")
    rows: dict[str, list[Array]] = {}
    for file in files.values():
        load_into(model, file)
        for name, tensor in selected(model, "weights").items():
            rows.setdefault(name, []).append(in_float64(tensor.detach()).cpu().numpy().reshape(len(tensor), -1))
    return [projected(name, np.array(list(files)), np.stack(layer)) for name, layer in rows.items()]


def projected(name: str, steps: Array, rows: Array) -> NeuronPaths:
    """The paths of one layer: rows (s, k, fan_in). Raises ValueError where a weight is not finite."""
    s, k, width = rows.shape
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} holds values that are not finite")
    flat = rows.reshape(s * k, width)
    left, sizes, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    kept = np.zeros((s * k, 2))
    count = min(2, len(sizes))
    kept[:, :count] = left[:, :count] * sizes[:count]
    total = float(np.square(sizes).sum())
    shares = np.zeros(2)
    if total > 0:
        shares[:count] = np.square(sizes[:count]) / total
    steps_taken = np.linalg.norm(np.diff(rows, axis=0), axis=2)
    return NeuronPaths(
        name, steps, kept.reshape(s, k, 2), shares, steps_taken.sum(axis=0), np.linalg.norm(rows[-1] - rows[0], axis=1)
    )
