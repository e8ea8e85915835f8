"""`lossmap merge FILE`: join the shards of an array into the file that one job would have written.

    lossmap merge surface.h5                            the shards that lie beside it
    lossmap merge surface.shard-*-of-3.h5               these, into surface.h5
    lossmap merge one.h5 other.h5 --output both.h5      any results of one survey

It needs neither torch nor MPI. Shards that do not belong together are refused, naming what differs; points that are
missing are named. The exit code is that of the merged file: 0 complete, 3 some points failed, 75 some are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lossmap.cli.settings import EXIT, UsageError, guarded, parse, setting
from lossmap.cli.wrapped_command import unsharded
from lossmap.io.merge import merge, missing
from lossmap.parallel.shards import sibling_shards


@dataclass(frozen=True)
class MergeSettings:
    """What to join."""

    files: tuple[str, ...] = setting((), "the result, or its shards", metavar="FILE", positional=True)
    output: str | None = setting(None, "where to; by default the result that the shards belong to", metavar="FILE")
    overwrite: bool = setting(False, "replace a merged file that is there")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door."""
    told = parse((MergeSettings,), argv, prog="lossmap merge", about=__doc__ or "").merge
    shards, output = meant(told.files, told.output)
    surface = merge(shards, output, overwrite=told.overwrite)
    print(f"merged {len(shards)} shards into {output}: {surface.outcome}")
    if "merge_note" in surface.attributes:
        print(surface.attributes["merge_note"])
    for line in missing(surface):
        print(line)
    if surface.outcome == "unfinished":
        absent = absent_of(shards)
        if absent:
            print(f"no file there: {', '.join(map(str, absent))}")
        print(f"`lossmap resume` on a shard goes on with it, then merge again with --overwrite; on {output}, with all")
    return EXIT[surface.outcome]


def meant(files: Sequence[str], output: str | None) -> tuple[list[Path], Path]:
    """The shards and the file that they make. Raises Usage where the names do not say."""
    paths = [Path(f) for f in files]
    if not paths:
        raise UsageError("name the result whose shards are to be merged, or the shards: lossmap merge surface.h5")
    if output is not None:
        return paths, Path(output)
    wholes = {unsharded(path)[0] for path in paths}
    if len(wholes) > 1:
        raise UsageError(f"these are shards of {', '.join(sorted(map(str, wholes)))}: say --output FILE")
    whole = wholes.pop()
    if paths != [whole]:
        return paths, whole
    found = sibling_shards(whole)
    if not found:
        raise UsageError(f"no shards of {whole} lie beside it, such as {whole.stem}.shard-1-of-3{whole.suffix}")
    return found, whole


def absent_of(shards: Sequence[Path]) -> list[Path]:
    """The shards that should be there and are not."""
    known = [unsharded(path) for path in shards]
    wanted = {
        type(shard)(i, shard.count).file(whole) for whole, shard in known if shard for i in range(1, shard.count + 1)
    }
    return sorted(wanted - set(shards))
