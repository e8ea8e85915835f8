"""Informed nulls: how near the leading eigenspaces of a run would lie to each other without any training between them.

Against random directions every run looks related, by thousands of standard deviations: the eigenvectors of any net of
this architecture share layers and scales. Two comparisons know more than chance does:

    halves  the same weights, the samples drawn into two disjoint halves: what the choice of samples alone moves. Halves
            are noisier than the whole, so that the overlap of two sets as large as the whole would be higher. Several
            random divisions have a mean, with a 95 % interval by Student's t over divisions of these samples
    seed    a net of the same architecture from another seed, over the same samples: what eigenvectors share that have
            no weights in common

Price: the eigenpairs of two halves at the first and at the last checkpoint, as much as two more checkpoints of the run
for each division; of another seed one more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from scipy.special import stdtrit

from lossmap.data.batches import Resident, Streamed
from lossmap.data.loaders import RowsOf
from lossmap.data.problem import Problem
from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
from lossmap.dynamics.snapshots import Snapshots
from lossmap.interrupt import Interrupted
from lossmap.io.eigenvector_store import VectorFolder
from lossmap.linalg import subspaces
from lossmap.parallel.world import World
from lossmap.seeding import generator

log = logging.getLogger("lossmap")
Array = np.ndarray
MIN_SAMPLES = 4  # that are divided into halves
OTHER = 0.0  # the place of the net of another seed in the folder; halves stand behind it, from 1 on
DIVISIONS = 3  # of the samples into halves
CONFIDENCE = 0.95  # of the interval of their mean overlap


@dataclass(frozen=True, eq=False)
class InformedNull:
    """Overlaps that a run is compared with beside chance.

    steps   (k,) the checkpoints, first and last, at which halves were compared; none where that was not possible
    halves  (k, d) overlap of the eigenspaces over two disjoint halves of the samples, of each of d divisions
    seed    (s,) overlap of each snapshot with a net of another seed; empty without one
    """

    steps: Array
    halves: Array
    seed: Array

    @property
    def mean(self) -> Array:
        """(k,) the mean overlap of halves."""
        return np.asarray(self.halves.mean(axis=1))

    @property
    def half_width(self) -> Array:
        """(k,) of the interval of the mean; infinite of one division."""
        divisions = self.halves.shape[1]
        if divisions < 2:
            return np.full(len(self.steps), np.inf)
        quantile = float(stdtrit(divisions - 1.0, 0.5 + 0.5 * CONFIDENCE))
        return np.asarray(quantile * self.halves.std(axis=1, ddof=1) / sqrt(divisions))


def halves_of(problem: Problem, seed: int, division: int = 0) -> tuple[Problem, Problem] | None:
    """The problem over two random disjoint halves of its samples; None where its batches are not cut."""
    data, total = problem.data, problem.data.samples
    if not isinstance(data, (Resident, Streamed)) or total < MIN_SAMPLES:
        return None
    purpose = ("informed null", seed, division) if division else ("informed null", seed)
    order = torch.randperm(total, generator=generator(*purpose))
    first, second = (_over(problem, sorted(order[part::2].tolist())) for part in range(2))
    return first, second


def _over(problem: Problem, rows: list[int]) -> Problem:
    data = problem.data
    if isinstance(data, Streamed):
        return problem.over_part(replace(data, indices=[data.indices[i] for i in rows]))
    if not isinstance(data, Resident):
        raise TypeError(f"batches of {type(data).__name__} are not cut")
    return problem.over_part(Resident(RowsOf(data.tensors)(rows), min(data.batch_size, len(rows))))


@dataclass(frozen=True)
class NullMeasure:
    """What is measured beside a run: eigenpairs, into a folder of its own that goes when they are compared.

    measure_of  (problem, files by number, folder) -> the run's own measure over other samples or checkpoints
    """

    problem: Problem
    path: Path
    measure_of: Callable[[Problem, dict[float, Path], VectorFolder], CheckpointCurvature]
    seed: int
    halves: bool
    other_seed: Path | None

    @property
    def folder(self) -> VectorFolder:
        """Where its eigenvectors lie until they are compared."""
        return VectorFolder(Path(f"{self.path}.null.vectors"))

    def shares(self, checkpoints: int) -> tuple[float, ...]:
        """The share of the samples over which each of its searches is, of a run of so many checkpoints."""
        return null_shares(self.problem, checkpoints, self.halves, self.other_seed is not None)

    def measure(self, files: dict[float, Path], world: World) -> tuple[float, ...]:
        """Every rank measures its share. Returns the steps, first and last, at which halves were measured.

        files  the checkpoints that were measured, by step, in their order
        """
        parts = [halves_of(self.problem, self.seed, d) for d in range(DIVISIONS)] if self.halves and files else []
        divided = [halves for halves in parts if halves is not None]
        if not divided and self.halves and world.rank == 0:
            log.warning("no informed null: these samples cannot be divided into two halves")
        steps = tuple(dict.fromkeys((next(iter(files)), list(files)[-1]))) if divided else ()
        tasks: list[tuple[Problem, dict[float, Path]]] = []
        for d, halves in enumerate(divided):
            for k, half in enumerate(halves):  # prepared once for both checkpoints
                tasks.append((half, {place_of(i, d) + k: files[step] for i, step in enumerate(steps)}))
        if self.other_seed is not None:
            tasks.append((self.problem, {OTHER: self.other_seed}))
        mine = tasks[world.rank :: world.size]

        def measure_mine() -> bool:
            try:
                for problem, named in mine:
                    measure = self.measure_of(problem, named, self.folder)
                    for number in named:
                        measure((number,))
            except Interrupted:
                return False
            return True

        if not all(world.gather(world.together(measure_mine))):  # what one rank is asked, all do
            raise Interrupted()
        return steps

    def compare(self, steps: Sequence[float], run: Snapshots) -> InformedNull:
        """The overlaps, of what all ranks measured."""
        halves = [
            [_overlap_of_halves(self.folder, place_of(i, d), place_of(i, d) + 1) for d in range(DIVISIONS)]
            for i in range(len(steps))
        ]
        seed: Array = np.zeros(0)
        if self.other_seed is not None:
            seed = overlaps_with(run, self.folder.snapshot(OTHER))
        return InformedNull(np.array(steps, dtype=float), np.array(halves, dtype=float).reshape(-1, DIVISIONS), seed)


def null_shares(problem: Problem, checkpoints: int, halves: bool, other_seed: bool) -> tuple[float, ...]:
    """The share of the samples over which each search for the null is, at the first and the last of the checkpoints."""
    divided = halves and halves_of(problem, 0) is not None
    return (0.5,) * (divided * 2 * DIVISIONS * min(2, checkpoints)) + (1.0,) * other_seed


def place_of(step: int, division: int) -> float:
    """The place in the folder of the first of two halves."""
    return OTHER + 1.0 + 2.0 * (step * DIVISIONS + division)


def _overlap_of_halves(folder: VectorFolder, one: float, other: float) -> float:
    """The overlap of two snapshots in a folder."""
    p, q = folder.shape(one)[0], folder.shape(other)[0]
    gram = _gram(folder.blocks([one, other])(), p + q)
    return subspaces.overlap_of(subspaces.principal_cosines(gram[:p, :p], gram[:p, p:], gram[p:, p:]))


def _gram(blocks: Iterable[Array], rows: int) -> Array:
    gram = np.zeros((rows, rows))
    for block in blocks:
        gram += block @ block.T
    return gram


def overlaps_with(run: Snapshots, other: Array) -> Array:
    """(s,) the overlap of each snapshot of a run with the space of the rows `other`, (q, n)."""
    q, start = len(other), 0
    cross, own = np.zeros((run.count, q)), np.zeros((run.count, run.count))
    for block in run.blocks():
        part = other[:, start : start + block.shape[1]]
        cross += block @ part.T
        own += block @ block.T
        start += block.shape[1]
    within = np.asarray(other @ other.T, dtype=float)
    result = []
    for t in range(len(run.steps)):
        rows = np.nonzero(run.owner == t)[0]
        cosines = subspaces.principal_cosines(own[np.ix_(rows, rows)], cross[rows], within)
        result.append(subspaces.overlap_of(cosines))
    return np.array(result)
