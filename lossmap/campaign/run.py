"""Compute a campaign: one pool of ranks works through all members, and each result is a file of its own.

    run_campaign(members, "results") -> CampaignTable           over all ranks that a launcher started, and on each

Nothing is computed twice: members at their end are passed over, and a killed run repeats the points in flight alone.
Price beside the measures: each member's file is written three times; benchmarks/campaign.py measures it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

from lossmap.campaign.evaluate import MemberEvaluator
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.member import Member
from lossmap.campaign.recorder import CampaignRecorder
from lossmap.campaign.table import CampaignTable, collected
from lossmap.keywords import checked_keywords
from lossmap.landscape.progress import progress_display
from lossmap.landscape.run_survey import as_stop, gather_at_end, kernel_limit
from lossmap.landscape.survey_recorder import Progress
from lossmap.parallel.messages import WorkerLost
from lossmap.parallel.pool import lead, leave, work
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.world import World

logger = logging.getLogger("lossmap")


@checked_keywords
def run_campaign(
    members: Iterable[Member],
    folder: str | os.PathLike[str],
    *,
    progress: bool | Callable[[Progress], None] | None = None,
    retry_failed: bool = False,
    stop: Stop | Callable[[], bool] | None = None,
    world: World | None = None,
    rank_0: str = "auto",
    point_timeout: float | None = None,
    refresh: Callable[[], Sequence[Member]] | None = None,
    machine: Any = None,
) -> CampaignTable:
    """Compute all members of a campaign, in one process or over all ranks that a launcher started.

    Every rank calls it alike; the ranks share the points of all members, so that none idles at a member's end. A member
    that is in the folder already, by its digest, is not computed again; what was interrupted goes on where it was.

    Args:
        members: what is computed; of members with equal digests one is.
        folder: where the results go: `members/DIGEST.h5`. It is made where it is missing.
        progress: a bar in a terminal or notebook: None where there is one, True always, False never; or a function
            that is called on rank 0 a few times a second.
        retry_failed: whether failed points and members that could not be begun are tried again.
        stop: a function that returns whether to stop; the same call goes on.
        world: the ranks; None: those that a launcher started.
        rank_0: `computes` too, only `deals`, or `auto`: computes with up to 32 ranks.
        point_timeout: seconds after which a rank that does not answer is reported, and its task dispatched again;
            None: 20 times the slowest point of the same member so far, a minute at least (a member's preparation and
            first point, and the tasks of a spectrum, may take any time), with several ranks; infinity: never. In a
            process alone what does not end has failed by that, and the program ends with exit code 75.
        refresh: a function that rank 0 calls every ten seconds; members that it returns and that are new are added.
        machine: for the members' own work: what was chosen for this rank.

    Returns:
        The table with one row a member, on every rank.

    Raises:
        OSError: on every rank, where the folder cannot be written to.
        ValueError: for a `point_timeout` that is not positive.

    Example:
        >>> import functools, tempfile, torch, lossmap
        >>> def line(decay):
        ...     model = torch.nn.Linear(2, 1)
        ...     _ = torch.nn.init.constant_(model.weight, 1 - decay)
        ...     problem = lossmap.Problem.supervised(model, "mse", (torch.ones(4, 2), torch.zeros(4, 1)))
        ...     return lossmap.losses(problem, lossmap.random_plane(model, axes=1)), lossmap.Grid.line(-1, 1, 3)
        >>> members = [lossmap.Member(f"decay {d}", functools.partial(line, d), {"decay": d}) for d in (0.0, 0.1)]
        >>> table = lossmap.run_campaign(members, tempfile.mkdtemp(), progress=False)
        >>> table["outcome"], table["done"]
        (['complete', 'complete'], [3, 3])

    """
    if point_timeout is not None and point_timeout <= 0:
        raise ValueError(f"point_timeout must be > 0 seconds; got {point_timeout:g}")
    world, stop = world or World.start(), as_stop(stop)
    place, members = CampaignFolder(folder), list(members)
    to_do = world.once(lambda: _to_do(members, place, retry_failed))
    teams = list(world.team_ranks(1, rank_0))
    world.surveys += 1  # on every rank alike: a late message of an earlier survey is known by it
    evaluate = MemberEvaluator(stop, machine, kernel_limit(world, point_timeout))
    if world.rank != 0:
        work(world, evaluate, stop)
        gather_at_end(world, evaluate.changes())
        return _received(world)
    with progress_display(world, "campaign", progress, unit="member") as show:
        recorder = CampaignRecorder(to_do, place, show, len(teams), retry_failed, refresh)
        try:
            lead(world, teams, recorder, evaluate, stop, point_timeout, by_pace=True)
            recorder.note_changes(gather_at_end(world, evaluate.changes()))
        finally:
            recorder.close()
    every = {member.digest: member for member in members} | recorder.members
    known = {member.digest for member in members}
    table = collected([*members, *(m for digest, m in every.items() if digest not in known)], place)
    with suppress(WorkerLost):  # rank 0 has what it needs; the others leave
        world.broadcast(table)
    return table


@checked_keywords
def run_member(member: Member, folder: str | os.PathLike[str], *, progress: bool | None = False) -> dict[str, Any]:
    """Compute one member alone, in this process: for schedulers of one's own.

    `executor.submit(lossmap.run_member, member, "results")` works with `concurrent.futures`, submitit, Dask; members
    pickle. No two processes compute the same member: its file is locked.

    Args:
        member: what is computed.
        folder: of the campaign, as in `run_campaign`; a member that is at its end there is not computed again.
        progress: whether a bar is shown; None: on a terminal.

    Returns:
        The member's row of the campaign's table.

    Raises:
        OSError: where the folder cannot be written to.

    Example:
        >>> import tempfile, torch, lossmap
        >>> def line():
        ...     model = torch.nn.Linear(2, 1)
        ...     problem = lossmap.Problem.supervised(model, "mse", (torch.ones(4, 2), torch.zeros(4, 1)))
        ...     return lossmap.losses(problem, lossmap.random_plane(model, axes=1)), lossmap.Grid.line(-1, 1, 3)
        >>> lossmap.run_member(lossmap.Member("a line", line), tempfile.mkdtemp())["outcome"]
        'complete'

    """
    table = run_campaign([member], folder, progress=progress, world=World())
    return dict(table.rows[0])


def _to_do(members: Sequence[Member], folder: CampaignFolder, retry_failed: bool) -> list[Member]:
    """The members that are not at their end, each digest once, in their order."""
    folder.create()
    states = folder.states(members)
    to_do: dict[str, Member] = {}
    for member in members:
        state = states[member.digest]
        if retry_failed and state.outcome == "failed":
            folder.forget_failure(member.digest)
            if folder.discard_change(member.digest):
                logger.warning("%s begins anew: its loss changed while it was measured", member.name)
        elif state.at_end:
            continue
        to_do.setdefault(member.digest, member)
    return list(to_do.values())


def _received(world: World) -> CampaignTable:
    try:
        return cast(CampaignTable, world.broadcast())
    except WorkerLost as error:
        leave(world, f"{error} while the table was sent")
