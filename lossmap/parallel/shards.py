"""Shards: a survey cut into independent parts, one job of an array each. NumPy alone.

Shard i of n, counted from 1, takes every n-th row of a plane, beginning with row i, so that the expensive regions are
shared out and a point still finds its neighbours in the same row; of a line, or of a plane with fewer rows than
shards, every n-th point. Each writes a file of its own, which holds the whole grid; `lossmap merge` joins them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard from `I/N`, as `--shard` takes it. Raises ValueError where the text is not of that form."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--shard must be I/N with I from 1 to N, e.g. 1/3; got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def points(self, shape: tuple[int, ...]) -> np.ndarray:
        """Its flat indices in a grid of this shape, (p,), ascending; none where there are more shards than points."""
        indices = np.arange(int(np.prod(shape)))
        if len(shape) == 2 and shape[0] >= self.count:
            return indices.reshape(shape)[self.index - 1 :: self.count].reshape(-1)
        return indices[self.index - 1 :: self.count]

    def file(self, result: str | Path) -> Path:
        """The file that it writes: surface.h5 becomes surface.shard-1-of-3.h5."""
        path = Path(result)
        return path.with_name(f"{path.stem}.shard-{self.index}-of-{self.count}{path.suffix}")


def sibling_shards(result: str | Path) -> list[Path]:
    """The shards of this result that lie in its folder, in order; one that has only a journal counts.

    Raises ValueError where shards of different counts lie there, since it is not known which ones are meant.
    """
    path = Path(result)
    form = re.compile(re.escape(path.stem) + r"\.shard-(\d+)-of-(\d+)" + re.escape(path.suffix))
    by_count: dict[int, dict[int, Path]] = {}
    for candidate in path.parent.iterdir() if path.parent.is_dir() else ():
        name = candidate.name.removesuffix(".journal")
        match = form.fullmatch(name)
        if match:
            by_count.setdefault(int(match[2]), {})[int(match[1])] = candidate.with_name(name)
    if len(by_count) > 1:
        counts = " and ".join(str(n) for n in sorted(by_count))
        raise ValueError(f"shards of {counts} lie beside {path}; name the files to merge")
    return [shard for shards in by_count.values() for _, shard in sorted(shards.items())]


def unsharded(path: Path) -> tuple[Path, Shard | None]:
    """The result that a shard belongs to, and which shard it is; the path itself and None for a whole result."""
    match = re.fullmatch(r"(.+)\.shard-(\d+)-of-(\d+)", path.stem)
    if not match:
        return path, None
    return path.with_name(match[1] + path.suffix), Shard(int(match[2]), int(match[3]))


def absent_shards(shards: Sequence[Path]) -> list[Path]:
    """The shards of the same arrays that do not exist."""
    expected = {
        type(shard)(i, shard.count).file(whole)
        for whole, shard in map(unsharded, shards)
        if shard
        for i in range(1, shard.count + 1)
    }
    return sorted(expected - set(shards))
