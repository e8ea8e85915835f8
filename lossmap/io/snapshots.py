"""Snapshots of what a writer knows: the whole file written anew now and then, its large groups copied, not held."""

from __future__ import annotations

import time
from pathlib import Path

from lossmap.io.netcdf_write import LARGE, write_result
from lossmap.io.surface import Group, Surface

EVERY = 30.0  # seconds
MAX_SHARE = 1 / 20  # of the time that goes into snapshots


class Snapshots:
    """When the file is written anew, and what it takes over from the snapshot before.

    earlier  the file whose large groups the next snapshot takes over; None where it begins from nothing
    every    seconds from one to the next, at least
    """

    def __init__(self, path: Path, earlier: Path | None) -> None:
        self.path = path
        self.earlier = earlier
        self.every = EVERY
        self._cost = 0.0  # seconds that the last one took
        self._ended = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time again. A large file takes longer to write, and is written more seldom."""
        return time.monotonic() - self._ended >= max(self.every, self._cost / MAX_SHARE)

    def write(self, surface: Surface) -> None:
        """Write the file beside its place and rename it over. Raises OSError where that fails."""
        begin = time.monotonic()
        try:
            write_result(self.path, surface, self.earlier)
        finally:
            # A failed attempt counts: on a full disk the next one comes no sooner.
            self._ended = time.monotonic()
            self._cost = self._ended - begin
        self.earlier = self.path


def without_large(groups: dict[str, Group]) -> dict[str, Group]:
    """The groups as they are held once a snapshot has them: of the large ones the attributes alone.

    Directions and eigenvectors may be as large as the model or larger; HDF5 copies them from snapshot to snapshot.
    """
    return {name: Group({}, g.attributes) if name.startswith(LARGE) else g for name, g in groups.items()}
