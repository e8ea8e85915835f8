"""A result as a whole: of an array of jobs that are not merged yet, what their shards hold together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lossmap.io.merge import merged
from lossmap.io.read import is_being_written, journal_of, read
from lossmap.io.surface import Surface
from lossmap.parallel import slurm_queue
from lossmap.parallel.shards import absent_shards, sibling_shards, unsharded


@dataclass(frozen=True)
class ShardState:
    """A shard of an array: its number, its points, and whether a process writes it; None where it is not begun."""

    index: int
    done: int | None
    total: int | None
    is_running: bool


@dataclass(frozen=True)
class WholeResult:
    """A surface, the states of the shards that it was put together from, and whether a process writes any of it."""

    surface: Surface
    shards: tuple[ShardState, ...]
    is_running: bool


def is_there(file: str | Path) -> bool:
    """Whether there is anything of a result: the file, its journal, or shards of it."""
    path = Path(file)
    return path.exists() or journal_of(path).exists() or bool(sibling_shards(path))


def read_whole(file: str | Path) -> WholeResult:
    """The result in a file or, where there is none, in the shards beside it, of which some may not be begun.

    Raises as `read`, and Refused where the shards do not belong together.
    """
    path = Path(file)
    files = [] if path.exists() or journal_of(path).exists() else sibling_shards(path)
    if not files:
        is_running = is_being_written(path)  # before the reading: whoever stops after that has written what is read
        return WholeResult(read(path), (), is_running)
    running = [is_being_written(shard) for shard in files]
    surfaces = [read(shard) for shard in files]
    states = [_state(f, s, r) for f, s, r in zip(files, surfaces, running, strict=True)]
    states += [ShardState(number_of(absent), None, None, False) for absent in absent_shards(files)]
    whole = merged(surfaces, [f.name for f in files], path.name)
    names = dict.fromkeys(name for surface in surfaces for name in surface.recent)
    recent = {name: np.sort(np.concatenate([s.recent[name] for s in surfaces if name in s.recent])) for name in names}
    by_number = tuple(sorted(states, key=lambda state: state.index))
    return WholeResult(replace(whole, recent=recent), by_number, any(running))


def _state(file: Path, surface: Surface, is_running: bool) -> ShardState:
    counts = [surface.counts(name) for name in surface.status]
    done = sum(c["done"] + c["failed"] for c in counts)
    return ShardState(number_of(file), done, done + sum(c["left"] for c in counts), is_running)


def number_of(shard: Path) -> int:
    """Which shard of its array a file is, from 1; 0 for a file that is none."""
    part = unsharded(shard)[1]
    return part.index if part is not None else 0


def queue_sentences(file: str | Path) -> list[str]:
    """The jobs of a result, or of a shard of one, that are in SLURM's queue, each with why it waits."""
    whole, _ = unsharded(Path(file).absolute())
    return [job.sentence for job in slurm_queue.jobs_of(Path(f"{whole}.sbatch"))]


def shard_line(states: tuple[ShardState, ...]) -> str:
    """The states of the shards in one line."""
    texts = []
    for state in states:
        text = "not begun" if state.done is None else f"{state.done:,} of {state.total:,}"
        running = ", running" if state.is_running else ""
        texts.append(f"{state.index} {text}{running}")
    return f"{len(states)} shards, by points done: {'; '.join(texts)}"
