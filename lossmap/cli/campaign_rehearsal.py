"""The cost of one member, from a few of its points: what `lossmap estimate` measures of a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from lossmap.campaign.member import Member
from lossmap.cli.settings import UsageError
from lossmap.cli.work_of_member import CommandWork
from lossmap.cli.wrapped_command import SURVEYS, WrappedCommand, module_of
from lossmap.parallel.world import World


def rehearsed(member: Member) -> dict[str, float]:
    """The estimate of a member: rank-seconds of all, its points, seconds of one. Raises UsageError under a launcher.

    Of an examination nothing is estimated but that it is one: 0 seconds, which no sum counts.
    """
    work = cast(CommandWork, member.build)
    if work.command not in (*SURVEYS, "spectrum", "sharpness", "connect"):
        return {"seconds": 0.0, "points": 1, "point": 0.0}
    world = World.start()
    if world.size > 1:
        raise UsageError(f"a rehearsal is made by one process; this one was started with {world.size} ranks")
    before = Path.cwd()
    os.chdir(work.folder)
    try:
        settings = module_of(work.command).COMMAND.parse([], dict(work.values))
        command = WrappedCommand((work.command,), Path("rehearsed.h5"), member.measure, settings)
        estimate = module_of("estimate").make_estimate(command, settings, 1, world)
    finally:
        os.chdir(before)
    return {
        "seconds": estimate.rank_seconds + estimate.setup + estimate.beside,
        "points": estimate.points,
        "point": estimate.seconds,
    }
