"""Evaluate a measure at every pending grid point, in one process or over MPI, and record the results.

    survey(measure, grid) -> Surface           over all ranks that a launcher started, and on each of them

A measure is point -> reading, a dict of numbers or small arrays by field. Rank 0 dispatches the points along a
serpentine over the grid, so that a worker's next point is a neighbour of its last one; each reading is recorded as it
arrives. A point that raises is tried once more, elsewhere where there is another worker, and is then a failure with its
reason. Price: what a survey costs beside its measure is in benchmarks/dispatch.py.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn, Protocol, cast

import numpy as np

from lossmap.geometry.grid import Field, Grid, Point
from lossmap.io.memory_store import MemoryStore, Store
from lossmap.io.surface import Surface
from lossmap.landscape.survey_recorder import Progress, Recorder
from lossmap.parallel.dispatcher import Dispatcher
from lossmap.parallel.evaluate import PointEvaluator
from lossmap.parallel.messages import (
    END,
    HALTED,
    NOTE,
    STOP_REQUEST,
    Channel,
    LocalChannel,
    Message,
    PollBackoff,
    WorkerLost,
)
from lossmap.parallel.mpi_channel import MpiChannel
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.parallel.work_queue import WorkQueue
from lossmap.parallel.worker import Worker
from lossmap.parallel.world import World

WATCHDOG_FACTOR = 3  # times the point timeout, after which the kernel ends a stuck rank where that ends no job


class Measure(Protocol):
    """What is evaluated at each point.

    name      prefix of its status, seconds and rank in the file
    fields    what a reading holds; beside them, or alone, it may hold groups: {group name: {array name: array}}, of
              any shapes, written as they arrive
    settings  what it was made with, and under "chosen" what a probe has chosen

    May have `resume(point, state)`, which goes on at a point that it left by raising Interrupted(state), and
    `smaller()`, which makes it need less memory and says how, or returns None where it cannot; where memory runs out
    on one rank of a team, all its ranks call it.
    """

    @property
    def name(self) -> str: ...
    @property
    def fields(self) -> tuple[Field, ...]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def __call__(self, point: Point) -> Mapping[str, Any]: ...


def survey(
    measure: Measure,
    grid: Grid,
    *,
    store: Store | None = None,
    world: World | None = None,
    stop: Stop | Callable[[], bool] | None = None,
    progress: Callable[[Progress], None] | None = None,
    points: Iterable[int] | None = None,
    retry_failed: bool = False,
    rank_0: str = "auto",
    team: Team | None = None,
    point_timeout: float | None = None,
    share_values: bool = True,
) -> Surface:
    """Evaluate the measure at every point of the grid that the store does not know yet; all ranks call it alike.

    store          where points are recorded, on rank 0: a SurfaceFile; None: in memory
    world          the ranks; None: those that a launcher started
    stop           a `Stop`, or a function that returns whether to stop; the survey can be resumed from its store
    progress       called on rank 0 a few times a second
    points         the flat indices to evaluate; None: all
    retry_failed   whether failed points are evaluated again
    rank_0         `computes` too, only `deals`, or `auto`: computes with up to 32 ranks
    team           this rank's team (`world.team`), where several ranks share a point
    point_timeout  seconds after which a rank that does not answer is reported and its point dispatched again
    share_values   whether ranks other than 0 get the fields and groups too, or only statuses and settings. Price: one
                   broadcast of 8 bytes a value, and that memory on every rank

    Returns the surface, on every rank; its `outcome` is complete, failed (complete but for failed points) or
    unfinished. A rank that was given up as stuck, and one that rank 0's surface cannot reach since another has died
    meanwhile, leaves the program with a sentence.

    Raises ValueError where grid and plane differ in their number of axes, for flat indices beyond the grid, and where
    the teams do not fit the ranks; and, on every rank, what the store raises, such as OSError on a full disk.
    """
    if point_timeout is not None and point_timeout <= 0:
        raise ValueError(f"--point-timeout must be > 0 seconds; got {point_timeout:g}")
    plane = getattr(measure, "plane", None)
    if plane is not None and len(plane.axes) != grid.axes:
        raise ValueError(
            f"the grid has {grid.axes} and the plane {len(plane.axes)} axes; a line is Grid.line with axes=1, "
            "a plane Grid.square with axes=2"
        )
    world = world or World.start()
    team = team or Team.alone()
    all_teams = team.all_teams or world.team_ranks(rank_0=rank_0)
    world.surveys += 1  # on every rank alike: a late message of an earlier survey is known by it
    stop = as_stop(stop)
    # where a death ends the job, a stuck rank is left alone until rank 0 has closed its file
    watchdog = None
    if point_timeout is not None and world.tolerant and world.rank != 0:
        watchdog = WATCHDOG_FACTOR * point_timeout
    sizes = {field.name: field.extra[1] if field.extra else 1 for field in measure.fields}
    evaluate = PointEvaluator(measure, grid.point, sizes, team, watchdog)
    if world.rank != 0:
        return _work(world, evaluate, stop)
    indices = _checked_indices(points, grid)
    if store is None:
        store = MemoryStore(grid)
        store.declare(measure.name, measure.fields, measure.settings, indices)
    recorder = Recorder(store, measure.name, grid, progress, len(all_teams), indices, retry_failed)
    _lead(world, list(all_teams), recorder, evaluate, stop, point_timeout)
    surface = store.surface()
    shared = surface
    if not share_values:
        shared = replace(surface, fields={}, about={}, groups={})
    _send_surface(world, shared)
    return surface


def _checked_indices(points: Iterable[int] | None, grid: Grid) -> np.ndarray | None:
    if points is None:
        return None
    indices = np.unique(np.fromiter(points, dtype=np.int64))
    if indices.size and not 0 <= indices[0] <= indices[-1] < len(grid):
        raise ValueError(f"points must be flat indices from 0 to {len(grid) - 1}; got {indices[0]} to {indices[-1]}")
    return indices


# ---- rank 0


def _lead(
    world: World,
    teams: list[tuple[int, ...]],
    recorder: Recorder,
    evaluate: PointEvaluator,
    stop: Stop,
    point_timeout: float | None,
) -> None:
    """Rank 0's part: dispatch, and evaluate too where it leads a worker; at the end, however it comes, send END."""
    order = recorder.order
    channel: Channel | None = world.channel
    stuck: set[int] = set()
    computes = team_is_whole = teams[0][0] == 0
    failure: BaseException | None = None
    try:
        while True:
            local, queue = LocalChannel(channel), WorkQueue(order, len(teams))
            dispatcher = Dispatcher(
                local, queue, teams, recorder, stop=stop, survey_id=world.surveys, saved_state=recorder.saved_state,
                point_timeout=point_timeout,
            )  # fmt: skip
            team_is_whole = _run_round(world, local, dispatcher, computes, evaluate, stop) and team_is_whole
            stuck |= set(dispatcher.stuck_ranks) - {0}
            # nobody is left to evaluate, and points are: rank 0 can, unless it was one of a team
            if queue.finished or stop.reason is not None or teams == [(0,)] or evaluate.team.all_teams:
                break
            recorder.note("no other rank is left; rank 0 goes on alone")
            # without the channel: a message that comes from a stuck rank after all is no longer read
            order = np.array([i for i in order if int(i) not in queue.status])
            teams, channel, computes = [(0,)], None, True
    except BaseException as error:  # such as a full disk: the others must not wait for a surface
        failure = error
        raise
    finally:
        # from here on all survivors agree on who is left, by this one message
        world.dead_ranks, world.stuck_ranks = world.dead(), frozenset(stuck)
        end = (world.dead_ranks, world.stuck_ranks, _portable(failure))
        if team_is_whole:
            evaluate.release(end)
        if world.channel is not None:
            for rank in set(range(1, world.size)) - world.dead_ranks:
                world.channel.send((world.surveys, END, *end), rank)


def _run_round(
    world: World, channel: LocalChannel, dispatcher: Dispatcher, computes: bool, evaluate: PointEvaluator, stop: Stop
) -> bool:
    """Dispatch until it is over; where rank 0 evaluates too, beside that or, where MPI allows no threads, in turns.

    Returns whether rank 0 leads a team and has lost none of it.
    """
    if not computes:
        _repeat(dispatcher.step, until=lambda: dispatcher.is_over)
        return False
    worker = Worker(channel.worker_end(), evaluate, stop=stop, survey_id=dispatcher.survey_id, host=world.host)
    evaluate.note = lambda text: worker.send(NOTE, text)
    if world.size == 1 or not world.threads:
        # `|` and not `or`: both step each time
        _repeat(lambda: dispatcher.step() | worker.step(), until=lambda: dispatcher.is_over)
    else:
        _run_threaded(channel, dispatcher, worker, stop)
    return not worker.broken


def _run_threaded(channel: LocalChannel, dispatcher: Dispatcher, worker: Worker, stop: Stop) -> None:
    """The dispatcher in a thread, so that others need not wait for rank 0's own points; errors of both are raised."""
    errors: list[BaseException] = []

    def dispatch() -> None:
        try:
            _repeat(dispatcher.step, until=lambda: dispatcher.is_over)
        except BaseException as error:
            errors.append(error)
        finally:
            channel.send((dispatcher.survey_id, END), 0)  # to rank 0's own worker, which waits for it

    thread = threading.Thread(target=dispatch, name="lossmap-dispatcher")
    thread.start()
    try:
        _repeat(worker.step, until=lambda: worker.end is not None)
    except BaseException:
        stop.request("an error on rank 0", urgent=True)
        worker.send(HALTED)  # it will answer no more: the thread must not wait for that
        raise
    finally:
        thread.join()
    if errors:
        raise errors[0]


def _repeat(step: Callable[[], bool], until: Callable[[], bool]) -> None:
    """Call `step`, with pauses while it has nothing to do."""
    backoff = PollBackoff()
    while not until():
        backoff.after(step())


def _send_surface(world: World, surface: Surface) -> None:
    with suppress(WorkerLost):  # rank 0 has what it needs; the others leave: see _receive_surface
        world.broadcast(surface)


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or where it cannot be pickled one that says as much."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} on rank 0: {error}")
    return error


# ---- the other ranks


def _work(world: World, evaluate: PointEvaluator, stop: Stop) -> Surface:
    """The part of every other rank: evaluate what is dispatched, or follow the leader of its team."""
    survey_id, channel = world.surveys, cast(MpiChannel, world.channel)
    if evaluate.team.leads:
        worker = Worker(channel, evaluate, stop=stop, survey_id=survey_id, host=world.host)
        evaluate.note = lambda text: worker.send(NOTE, text)
        remove_listener = stop.add_listener(worker.listen)  # by which a measure hears of a HALT within a point
        _repeat(worker.step, until=lambda: worker.end is not None)
        remove_listener()
        end = cast(Message, worker.end)
        if not worker.broken:  # else the members wait for END themselves
            evaluate.release(end)
    else:
        end = _follow(channel, survey_id, evaluate, stop)
    world.dead_ranks, world.stuck_ranks, failure = end
    return _receive_surface(world, failure)


def _follow(channel: MpiChannel, survey_id: int, evaluate: PointEvaluator, stop: Stop) -> Message:
    """A team member's part. Where the team has lost a rank, wait for the end of the survey."""
    is_reported = False

    def report_stop() -> None:
        nonlocal is_reported
        if stop.reason is not None and not is_reported:
            is_reported = True
            channel.send((survey_id, STOP_REQUEST, stop.reason, stop.urgent), 0)

    channel.meanwhile = report_stop  # a member is always inside a collective of its team, and polls there
    evaluate.note = lambda text: channel.send((survey_id, NOTE, text), 0)
    try:
        return evaluate.follow()
    except WorkerLost:
        # members need no message but END; the leader, if it is left, has reported the loss
        backoff = PollBackoff()
        while (arrived := channel.receive()) is None or arrived[1][:2] != (survey_id, END):
            backoff.after(arrived is not None)
        return arrived[1][2:]
    finally:
        channel.meanwhile = None


def _receive_surface(world: World, failure: BaseException | None) -> Surface:
    if world.rank in world.stuck_ranks:  # the others have agreed to go on without this rank
        _leave(world, "it did not answer in time, and the survey has ended without it")
    if failure is not None:
        raise failure
    try:
        return cast(Surface, world.broadcast())
    except WorkerLost as error:
        _leave(world, f"{error} while the surface was sent")


def _leave(world: World, reason: str) -> NoReturn:
    # with 0, since rank 0's exit code is to be the program's
    print(f"rank {world.rank} on {world.host}: {reason}; leaving", file=sys.stderr, flush=True)
    raise SystemExit(world.leave(0))


def as_stop(stop: Stop | Callable[[], bool] | None) -> Stop:
    """A `Stop` that calls the function, where there is one: so that a measure asks it within a point too.

    stop  a `Stop`, which is returned as it is; a function that returns whether to stop; or None: never
    """
    if isinstance(stop, Stop):
        return stop
    wrapped = Stop()
    if stop is not None:
        requested = stop

        def listener() -> None:
            if requested():
                wrapped.request("the program requested it", urgent=True)

        # as a listener: the dispatcher asks between points and a measure within one, and both get its answer
        wrapped.add_listener(listener)
    return wrapped
