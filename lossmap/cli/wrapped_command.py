"""What stands behind the two dashes of `estimate` and `submit`: a command, its settings, and the file it will write."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from lossmap.cli import DOORS
from lossmap.cli.output_path import result_path
from lossmap.cli.settings import Settings, UsageError, parse
from lossmap.parallel.shards import Shard

MEASURES = {"surface": "loss", "eigenmap": "eigen"}  # the doors that leave a survey behind, and what they measure


@dataclass(frozen=True)
class Asked:
    """A command to be run.

    words     the command and its flags; those of a survey name its result
    command   its first word
    result    the file that it will write; None for a command that leaves no survey behind
    measure   what of the result it measures; None: all there is
    settings  of a survey; None for other commands
    """

    words: tuple[str, ...]
    result: Path | None = None
    measure: str | None = None
    settings: Settings | None = None

    @property
    def command(self) -> str:
        """The first of the words."""
        return self.words[0]

    @property
    def overwrites(self) -> bool:
        """Whether it would begin anew each time it is started."""
        return self.settings is not None and bool(self.settings.run.overwrite)


def room_of(command: str) -> ModuleType:
    """The room of a door that surveys."""
    return import_module(f"lossmap.cli.{command}")


def split(argv: Sequence[str] | None, example: str) -> tuple[list[str], list[str]]:
    """The words before the two dashes, and those behind them."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--" not in words:
        if {"-h", "--help"} & set(words):
            return words, []
        raise UsageError(f"what is to be run stands behind two dashes: {example}")
    at = words.index("--")
    behind = words[at + 1 :]
    if behind and behind[0] == "lossmap":
        behind = behind[1:]
    if not behind:
        raise UsageError(f"nothing stands behind the two dashes; for example: {example}")
    return words[:at], behind


def asked(words: Sequence[str]) -> Asked:
    """The command behind the dashes, checked as it will check itself. Raises Usage with one sentence."""
    command = words[0]
    if command == "resume":
        files = [word for word in words[1:] if not word.startswith("-")]
        if not files:
            raise UsageError("resume wants the result to go on with: resume FILE")
        return Asked(tuple(words), Path(files[0]))
    if command not in DOORS:
        near = difflib.get_close_matches(command, DOORS, 2, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see lossmap --help"
        raise UsageError(f"unknown command {command!r}{hint}")
    if command not in MEASURES:
        return Asked(tuple(words))
    room = room_of(command)
    read = getattr(room, "parsed", None) or functools.partial(
        parse, room.GROUPS, prog=f"lossmap {command}", about=room.__doc__ or ""
    )
    settings: Settings = read(list(words[1:]))
    if settings.run.shard:
        raise UsageError("--shard is set by submit itself: ask for --array N")
    result = result_path(settings)
    more = () if settings.run.surf_file else ("--surf-file", str(result))
    return Asked((*words, *more), result, MEASURES[command], settings)


def unsharded(path: Path) -> tuple[Path, Shard | None]:
    """The result that a shard belongs to, and which shard it is; the path itself and None for a whole result."""
    found = re.fullmatch(r"(.+)\.shard-(\d+)-of-(\d+)", path.stem)
    if not found:
        return path, None
    return path.with_name(found[1] + path.suffix), Shard(int(found[2]), int(found[3]))
