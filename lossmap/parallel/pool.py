"""The ranks of a pool at work: rank 0 dispatches, and evaluates too where it leads a worker; the others evaluate.

    lead(...)   on rank 0, until every point is settled, the stop is requested, or nobody is left
    work(...)   on every other rank, until rank 0 sends END

Knows neither measures nor files: of a point only its index, and of what is recorded only the `Recorder`.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, Protocol, cast

from lossmap.parallel.dispatcher import Dispatcher, PointFailure, Recorder
from lossmap.parallel.end_mark import mark_end
from lossmap.parallel.idle_watch import not_watched
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
from lossmap.parallel.running_clock import running_clock
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.parallel.work_queue import WorkQueue
from lossmap.parallel.worker import Worker
from lossmap.parallel.world import World

EXIT_UNFINISHED = 75  # the exit code of a program that is to be run again
OWN_LOOK_SECONDS = 0.1  # between looks at a point of rank 0's own, where nobody else can tell how long it takes
RETURN_SECONDS = 5.0  # at least, for rank 0 to come back from a point that others have settled


class Evaluator(Protocol):
    """What a rank evaluates points with: see `PointEvaluator`."""

    team: Team
    note: Callable[[str], None]

    def __call__(self, index: int, state: Any) -> Message: ...
    def follow(self) -> Message: ...
    def release(self, end: Message) -> None: ...


class PoolRecorder(Recorder, Protocol):
    """A recorder that makes the queue too."""

    def queue(self, workers: int, settled: Collection[int] = ()) -> WorkQueue:
        """The points to do but for those that are settled, for this number of workers."""

    def saved_state(self, index: int) -> Any:
        """What a worker is sent with a point."""


# ---- rank 0


def lead(
    world: World,
    teams: list[tuple[int, ...]],
    recorder: PoolRecorder,
    evaluate: Evaluator,
    stop: Stop,
    point_timeout: float | None,
    by_pace: bool = False,
) -> None:
    """Rank 0's part: dispatch, and evaluate too where it leads a worker; at the end, however it comes, send END.

    point_timeout, by_pace  when a worker counts as stuck, as in `Dispatcher`
    """
    settled: Collection[int] = ()
    channel: Channel | None = world.channel
    stuck = set(world.stuck_ranks)  # since an earlier survey: such a rank leaves as soon as it answers
    computes = team_is_whole = teams[0][0] == 0
    failure: BaseException | None = None
    clocks = ExitStack()
    clock: Callable[[], float] = time.monotonic
    if point_timeout is not None or by_pace:
        clock = clocks.enter_context(running_clock())  # a job that was suspended has no ranks that are stuck
    try:
        while True:
            local, queue = LocalChannel(channel), recorder.queue(len(teams), settled)
            dispatcher = Dispatcher(
                local, queue, teams, recorder, stop=stop, survey_id=world.surveys, saved_state=recorder.saved_state,
                point_timeout=point_timeout, by_pace=by_pace, gone=world.dead_ranks | world.stuck_ranks,
                clock=clock,
            )  # fmt: skip
            team_is_whole = _run_round(world, local, dispatcher, computes, evaluate, stop) and team_is_whole
            stuck |= set(dispatcher.stuck_ranks) - {0}
            if team_is_whole:  # rank 0 has come back, and its team with it
                stuck -= set(evaluate.team.ranks)
            # nobody is left to evaluate, and points are: rank 0 can, unless it was one of a team
            if queue.finished or stop.reason is not None or teams == [(0,)] or evaluate.team.all_teams:
                break
            recorder.note("no other rank is left; rank 0 goes on alone")
            # without the channel: a message that comes from a stuck rank after all is no longer read
            settled = queue.status
            teams, channel, computes = [(0,)], None, True
            if queue.is_uniform:
                point_timeout = dispatcher.timeout()  # for rank 0 too: what the others are stuck at may be a point
    except BaseException as error:  # such as a full disk: the others must not wait for a surface
        failure = error
        raise
    finally:
        clocks.close()
        end = _agree(world, stuck, failure)
        if team_is_whole:
            evaluate.release(end)
        _send_end(world, end)


def _agree(world: World, stuck: Collection[int], failure: BaseException | None) -> Message:
    """The content of the END message, by which from here on all survivors agree on who is left."""
    world.dead_ranks, world.stuck_ranks = world.dead(), frozenset(stuck)
    return (world.dead_ranks, world.stuck_ranks, _portable(failure))


def _send_end(world: World, end: Message) -> None:
    if world.channel is not None:
        for rank in set(range(1, world.size)) - world.dead_ranks:
            world.channel.send((world.surveys, END, *end), rank)


def _run_round(
    world: World, channel: LocalChannel, dispatcher: Dispatcher, computes: bool, evaluate: Evaluator, stop: Stop
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
        with _own_points_watched(world, dispatcher, worker):
            # `|` and not `or`: both step each time
            _repeat(lambda: dispatcher.step() | worker.step(), until=lambda: dispatcher.is_over)
    else:
        _run_threaded(world, channel, dispatcher, worker, stop)
    return not worker.broken


@contextmanager
def _own_points_watched(world: World, dispatcher: Dispatcher, worker: Worker) -> Iterator[None]:
    """A context in which a point of rank 0's own, between which it dispatches, ends the program after its timeout.

    Nobody else can tell: so a thread looks, without any call of MPI, and the point has failed by that.
    """
    if dispatcher.point_timeout is None and not dispatcher.by_pace:
        yield
        return
    evaluate, lock, is_over = worker.evaluate_point, threading.Lock(), threading.Event()
    current: list[tuple[int, float]] = []  # the point that is evaluated, and since when

    def timed(index: int, state: Any) -> Message:
        current.append((index, dispatcher.clock()))
        try:
            return evaluate(index, state)
        finally:
            with lock:  # which the thread holds while it ends the program
                current.clear()

    def look() -> None:
        while not is_over.wait(OWN_LOOK_SECONDS):
            with lock:
                for index, since in current:
                    limit = dispatcher.timeout_at(index)
                    if limit is not None and dispatcher.clock() - since > limit:
                        _fail_own_point(world, dispatcher, index, limit)

    worker.evaluate_point = timed
    threading.Thread(target=look, name="lossmap-own-points", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _fail_own_point(world: World, dispatcher: Dispatcher, index: int, limit: float) -> NoReturn:
    where = dispatcher.queue.where(index)
    text = f"rank {world.rank} on {world.host} has not answered for {limit:.3g} s {where} (--point-timeout)"
    what = "a point" if where.startswith("at point") else "a member's preparation or end"
    sentence = (
        f"lossmap: {what} has not ended within {limit:g} s (--point-timeout), and has failed by that; what has been "
        "measured is safe: run the same command again to go on without it"
    )
    try:
        dispatcher.recorder.fail(PointFailure(index, world.rank, world.host, text), True)
        print(sentence, file=sys.stderr, flush=True)
        mark_end(EXIT_UNFINISHED)
        sys.stdout.flush()
    finally:  # such as on a full disk
        os._exit(EXIT_UNFINISHED)


def _run_threaded(world: World, channel: LocalChannel, dispatcher: Dispatcher, worker: Worker, stop: Stop) -> None:
    """The dispatcher in a thread, so that others need not wait for rank 0's own points; errors of both are raised.

    Where rank 0 does not come back from a point of its own, though all others are settled, the thread ends the program.
    """
    errors: list[BaseException] = []
    is_back = threading.Event()

    def dispatch() -> None:
        try:
            _repeat(dispatcher.step, until=lambda: dispatcher.is_over)
        except BaseException as error:
            errors.append(error)
            stop.request("an error on rank 0", urgent=True)  # its own point may take hours
        finally:
            channel.send((dispatcher.survey_id, END), 0)  # to rank 0's own worker, which waits for it
        if not errors and 0 in dispatcher.stuck_ranks:
            stop.request("rank 0 does not answer", urgent=True)
            if not is_back.wait(max(RETURN_SECONDS, (dispatcher.timeout() or 0) / 10)):
                _leave_without_rank_0(world, dispatcher)

    thread = threading.Thread(target=dispatch, name="lossmap-dispatcher")
    thread.start()
    try:
        _repeat(worker.step, until=lambda: worker.end is not None)
    except BaseException:
        stop.request("an error on rank 0", urgent=True)
        worker.send(HALTED)  # it will answer no more: the thread must not wait for that
        raise
    finally:
        is_back.set()
        thread.join()
    if errors:
        raise errors[0]


def _leave_without_rank_0(world: World, dispatcher: Dispatcher) -> NoReturn:
    """End the program, whose main thread on rank 0 is held by a point; called in another one."""
    stuck = dispatcher.stuck_ranks
    _send_end(world, _agree(world, {*world.stuck_ranks, *stuck}, None))
    team = dispatcher.workers[dispatcher.worker_of_rank[0]].ranks
    who = "rank 0" if len(team) == 1 else f"the team of rank 0 (ranks {', '.join(map(str, team))})"
    left = dispatcher.queue.remaining
    state = f"{left} point{'s are' if left > 1 else ' is'} left" if left else "all points are settled by now"
    print(
        f"lossmap: {who} on {world.host} does not come back from its point, and {state}; what has been measured is "
        "safe: run the same command again to go on",
        file=sys.stderr,
        flush=True,
    )
    world.leave(EXIT_UNFINISHED)
    raise SystemExit(EXIT_UNFINISHED)  # pragma: no cover, since that call does not return


def _repeat(step: Callable[[], bool], until: Callable[[], bool]) -> None:
    """Call `step`, with pauses while it has nothing to do."""
    backoff = PollBackoff()
    while not until():
        backoff.after(step())


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or where it cannot be pickled one that says as much."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} on rank 0: {error}")
    return error


# ---- the other ranks


def work(world: World, evaluate: Evaluator, stop: Stop) -> None:
    """The part of every other rank: evaluate what is dispatched, or follow the leader of its team.

    Raises what rank 0 raised; a rank that the others have given up as stuck leaves the program.
    """
    survey_id, channel = world.surveys, cast(MpiChannel, world.channel)
    if evaluate.team.leads:
        worker = Worker(channel, evaluate, stop=stop, survey_id=survey_id, host=world.host)
        evaluate.note = lambda text: worker.send(NOTE, text)
        remove_listener = stop.add_listener(worker.listen)  # by which a measure hears of a HALT within a point
        with not_watched():
            _repeat(worker.step, until=lambda: worker.end is not None)
        remove_listener()
        end = cast(Message, worker.end)
        if not worker.broken:  # else the members wait for END themselves
            evaluate.release(end)
    else:
        with not_watched():
            end = _follow(channel, survey_id, evaluate, stop)
    world.dead_ranks, world.stuck_ranks, failure = end
    if 0 in world.stuck_ranks:  # which has said so
        raise SystemExit(world.leave(EXIT_UNFINISHED))
    if world.rank in world.stuck_ranks:  # the others have agreed to go on without this rank
        leave(world, "it did not answer in time, and the survey has ended without it")
    if failure is not None:
        raise failure


def _follow(channel: MpiChannel, survey_id: int, evaluate: Evaluator, stop: Stop) -> Message:
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


def leave(world: World, reason: str) -> NoReturn:
    """Leave the program with a sentence."""
    # with 0, since rank 0's exit code is to be the program's
    print(f"rank {world.rank} on {world.host}: {reason}; leaving", file=sys.stderr, flush=True)
    raise SystemExit(world.leave(0))
