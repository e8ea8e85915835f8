"""`lossmap merge FILE`: join the shards of an array into the file that one job would have written.

It needs neither torch nor MPI. Shards that do not belong together are refused, naming what differs; missing points are
named. Without --output, named shards go into the result that they belong to. The exit code is that of the merged file:
0 complete, 3 some points failed, 75 some are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import EXIT_CODES, guarded
from lossmap.cli.settings import UsageError, setting
from lossmap.io.merge import merge, missing
from lossmap.io.read import read
from lossmap.parallel.shards import absent_shards, sibling_shards, unsharded


@dataclass(frozen=True)
class MergeSettings:
    """Merge options."""

    files: tuple[str, ...] = setting(
        (), "result whose shards lie beside it, or its shards", metavar="FILE", positional=True
    )
    output: str | None = setting(None, "merged file; by default the result that the shards belong to", metavar="FILE")
    overwrite: bool = setting(False, "replacement of a merged file that exists")


COMMAND = Command(
    "merge",
    __doc__ or "",
    (MergeSettings,),
    (
        "lossmap merge surface.h5",
        "lossmap merge surface.shard-1-of-2.h5 surface.shard-2-of-2.h5",
        "lossmap merge one.h5 other.h5 --output both.h5",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 some points failed, 75 some points are missing."""
    options = COMMAND.parse(argv).merge
    shards, output = shards_and_output(options.files, options.output)
    surface = merge(shards, output, overwrite=options.overwrite)
    print(f"merged {len(shards)} shards into {output}: {surface.outcome}")
    if "merge_note" in surface.attributes:
        print(surface.attributes["merge_note"])
    for line in missing(surface):
        print(line)
    if surface.outcome == "unfinished":
        absent = [path for path in absent_shards(shards) if not path.exists()]
        if absent:
            print(f"missing files: {', '.join(map(str, absent))}")
        if any(read(path).outcome == "unfinished" for path in shards):
            print("`lossmap resume` on an unfinished shard completes it, then merge again with --overwrite")
        print(f"`lossmap resume {output}` computes all missing points")
    return EXIT_CODES[surface.outcome]


def shards_and_output(files: Sequence[str], output: str | None) -> tuple[list[Path], Path]:
    """The shards and the file that they make. Raises UsageError where the names do not determine it."""
    paths = [Path(f) for f in files]
    if not paths:
        raise UsageError("name the result whose shards are to be merged, or the shards: lossmap merge surface.h5")
    if output is not None:
        return paths, Path(output)
    wholes = {unsharded(path)[0] for path in paths}
    if len(wholes) > 1:
        raise UsageError(
            f"these are shards of {', '.join(sorted(map(str, wholes)))}; name the merged file with --output FILE"
        )
    whole = wholes.pop()
    if paths != [whole]:
        return paths, whole
    shards = sibling_shards(whole)
    if not shards:
        raise UsageError(f"no shards of {whole} lie beside it, such as {whole.stem}.shard-1-of-3{whole.suffix}")
    return shards, whole
