"""Shards: a survey cut into parts that know nothing of each other, one job of an array each. NumPy alone.

Shard i of n, counted from 1, takes every n-th row of a plane, beginning with row i, so that the dear regions are
shared out and a point still finds its neighbours in the same row; of a line, or of a plane with fewer rows than
shards, every n-th point. Each writes a file of its own, which holds the whole grid; `lossmap merge` joins them.
"""

from __future__ import annotations

import re
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
        """A shard from `I/N`, as `--shard` takes it."""
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard wants I/N with I from 1 to N, such as --shard 1/3; got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def points(self, shape: tuple[int, ...]) -> np.ndarray:
        """Its flat indices in a grid of this shape, ascending; none where there are more shards than points."""
        indices = np.arange(int(np.prod(shape)))
        if len(shape) == 2 and shape[0] >= self.count:
            return indices.reshape(shape)[self.index - 1 :: self.count].reshape(-1)
        return indices[self.index - 1 :: self.count]

    def file(self, result: str | Path) -> Path:
        """Where it writes: surface.h5 becomes surface.shard-1-of-3.h5."""
        path = Path(result)
        return path.with_name(f"{path.stem}.shard-{self.index}-of-{self.count}{path.suffix}")


def sibling_shards(result: str | Path) -> list[Path]:
    """The shards of this result that lie in its folder, in order.

    Raises ValueError where shards of different counts lie there: nobody can know which ones are meant.
    """
    path = Path(result)
    form = re.compile(re.escape(path.stem) + r"\.shard-(\d+)-of-(\d+)" + re.escape(path.suffix))
    found: dict[int, dict[int, Path]] = {}
    for candidate in path.parent.iterdir() if path.parent.is_dir() else ():
        match = form.fullmatch(candidate.name.removesuffix(".journal"))
        if match:
            own = candidate.with_name(candidate.name.removesuffix(".journal"))
            found.setdefault(int(match[2]), {})[int(match[1])] = own
    if len(found) > 1:
        counts = " and ".join(str(n) for n in sorted(found))
        raise ValueError(f"beside {path} lie shards of {counts}: name the ones to merge")
    return [own for parts in found.values() for _, own in sorted(parts.items())]
