"""All of a result compared with its digests: the file, its journal, and what lies beside it while it is computed.

Price: one pass of SHA-256 over everything; arrays that are larger than memory are read in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lossmap.io import journal as log
from lossmap.io import legacy, netcdf_read
from lossmap.io.checked import CheckedFile, open_checked
from lossmap.io.disk import PathLike
from lossmap.io.journal_replay import journal_of
from lossmap.io.netcdf_read import Damaged


@dataclass(frozen=True)
class Verification:
    """What became of the comparison.

    objects      how many arrays and groups fit their digests
    damage       one line for each that does not
    unprotected  whether the file has no digests: of version 0.1, or of the original tool
    """

    objects: int = 0
    damage: tuple[str, ...] = ()
    unprotected: bool = False

    def __str__(self) -> str:
        lines = [f"damaged: {line.replace(' is damaged: ', ': ', 1)}" for line in self.damage]
        if self.unprotected:
            lines.append(
                "unprotected: the file has no digests (version 0.1 and the original tool wrote none), so that a "
                "changed number cannot be noticed"
            )
        elif not self.damage:
            lines.append(f"verified: all {self.objects:,} arrays and groups fit their digests (SHA-256)")
        return "\n".join(lines)


def verify(path: PathLike) -> Verification:
    """Compare everything in a result with its digests. Reads only.

    Raises FileNotFoundError, IsADirectoryError, PermissionError or NotASurface where there is no result at all.
    """
    path = Path(path)
    journal = log.read(journal_of(path))
    damage: list[str] = []
    if journal.damaged:
        damage.append(
            f"{journal_of(path)}: {journal.damaged:,} bytes; points that were recorded in them are computed again"
        )
    if journal.records and not path.exists():
        return Verification(len(journal.records), tuple(damage))
    objects, unprotected = 0, False
    try:
        with open_checked(path) as source:
            unprotected = not source.is_protected
            if not netcdf_read.is_ours(source):
                legacy.surface_of(source)
            else:
                netcdf_read.read_surface(source)
            objects = len(source.table or ())
            damage += _damaged_objects(source)
    except Damaged as error:
        damage.append(str(error))
        damage += _damage_anyway(path, str(error))
    return Verification(objects, tuple(damage), unprotected)


def _damage_anyway(path: Path, known: str) -> list[str]:
    """What else is damaged in a file of which something is, as far as it can be read."""
    try:
        with open_checked(path) as source:
            return [line for line in _damaged_objects(source) if line != known]
    except Damaged:
        return []


def _damaged_objects(source: CheckedFile) -> Iterator[str]:
    for name in sorted(source.table or ()):
        try:
            if name.endswith("/"):
                source.attributes(name[:-1])
                source.check_names(name[:-1])
            else:
                source.check(name)
        except Damaged as error:
            yield str(error)
