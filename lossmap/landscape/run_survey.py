"""The walk: deal the points that are not yet done, measure them, write them down.

    survey(measure, grid) -> Surface           in one process, or over all ranks that a launcher started

A measure is point -> reading, a dict of numbers or small arrays by field. Rank 0 deals the points along a
serpentine over the grid, so that a rank's next point is a neighbour of its last one; each reading is written down as it
comes. A point that raises is tried once more, elsewhere where there is another rank, and is then a failure with
its reason. What a survey costs beside its measure: benchmarks/farm.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from lossmap.geometry.grid import Field, Grid, Point
from lossmap.interrupt import Interrupted
from lossmap.io.memory_store import MemoryStore
from lossmap.io.surface import Failure, Surface
from lossmap.parallel.dispatcher import (
    ASKED,
    END,
    HALTED,
    NOTE,
    Dispatcher,
    LocalChannel,
    LostPoint,
    PollBackoff,
    TeamBroken,
    Worker,
)
from lossmap.parallel.evaluate import PointEvaluator
from lossmap.parallel.mpi_messages import Channel
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.parallel.work_queue import WorkQueue
from lossmap.parallel.world import World

logger = logging.getLogger("lossmap")


class Measure(Protocol):
    """What is read at each point.

    name      prefix of its status, seconds and rank in the file
    fields    what a reading holds
    settings  what it was told, and what its probe chose

    May have `resume(point, state)`, which goes on at a point that it left by raising Unfinished(state), and
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


class Store(Protocol):
    """Where points are written down: a SurfaceFile, or in memory a Ledger."""

    def todo(self, measure: str, retry_failed: bool = False) -> np.ndarray: ...
    def record(self, measure: str, index: int, reading: Mapping[str, Any], seconds: float, rank: int = 0) -> None: ...
    def fail(self, measure: str, index: int, failure: Failure) -> None: ...
    def save_unfinished(self, measure: str, index: int, state: Mapping[str, Any]) -> None: ...
    def unfinished(self, measure: str) -> Mapping[int, dict[str, Any]]: ...
    def note(self, **attributes: Any) -> None: ...
    def tick(self) -> None: ...
    def surface(self) -> Surface: ...


@dataclass(frozen=True)
class Progress:
    """How a survey stands, as told to `progress` on rank 0."""

    measure: str
    done: int  # points read, those of earlier runs included
    failed: int
    total: int
    rate: float  # points a second, in this run; 0 before the first
    seconds: float  # since this run began
    ranks: int  # that measure
    note: str = ""  # something that happened: a death, a failure, a stuck rank

    @property
    def left(self) -> float:
        """Seconds still to go, infinite before the first point."""
        todo = self.total - self.done - self.failed
        return todo / self.rate if self.rate > 0 else 0.0 if todo == 0 else float("inf")


@dataclass(frozen=True)
class Elsewhere:
    """What `survey` returns on ranks other than 0, which hold no surface: how it ended.

    outcome  complete, failed (complete but for failed points) or unfinished, as on rank 0
    """

    outcome: str


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
) -> Surface:
    """Measure every point of the grid that the store does not know yet; every rank calls it alike.

    store          where points are written down, on rank 0: a SurfaceFile, or in memory where left out
    world          the ranks; those that a launcher started where left out
    stop           asked for a stop in good order: a `Stop`, or any function that says so
    progress       called on rank 0 a few times a second
    points         the flat indices to measure, instead of all
    retry_failed   measure failed points again
    rank_0         `computes` too, only `deals`, or `auto`
    team           this rank's team (`world.teams`), where several ranks share a point
    point_timeout  seconds after which a rank that does not answer is reported and its point dealt again

    Returns the surface, whose `outcome` is complete, failed or unfinished; on other ranks than 0 the outcome alone.
    Raises ValueError where grid and plane differ in axes, or the teams do not fit the ranks, and what the store
    raises, such as OSError on a full disk.
    """
    if point_timeout is not None and point_timeout <= 0:
        raise ValueError(f"--point-timeout wants seconds, more than 0; got {point_timeout:g}")
    plane = getattr(measure, "plane", None)
    if plane is not None and len(plane.axes) != grid.axes:
        raise ValueError(
            f"the grid has {grid.axes} and the plane {len(plane.axes)} axes; a line is Grid.line with axes=1, "
            "a plane Grid.square with axes=2"
        )
    world = World.start() if world is None else world
    team = Team.alone() if team is None else team
    places = team.places or world.places(rank_0=rank_0)
    world.surveys += 1
    stop = as_stop(stop)
    watchdog = 3 * point_timeout if point_timeout is not None and world.tolerant and world.rank != 0 else None
    sizes = {field.name: field.extra[1] if field.extra else 1 for field in measure.fields}
    attempt = PointEvaluator(measure, grid.point, sizes, team, Interrupted, watchdog)
    if world.rank != 0:
        return cast(Surface, _work(world, attempt, stop))
    wanted = None if points is None else np.unique(np.fromiter(points, dtype=np.int64))
    if wanted is not None and wanted.size and not 0 <= wanted[0] <= wanted[-1] < len(grid):
        raise ValueError(f"points want flat indices from 0 to {len(grid) - 1}; got {wanted[0]} to {wanted[-1]}")
    if store is None:
        store = MemoryStore(grid)
        store.declare(measure.name, measure.fields, measure.settings, wanted)
    book = Recorder(store, measure.name, grid, progress, len(places), wanted, retry_failed)
    _lead(world, list(places), book, attempt, stop, point_timeout)
    return store.surface()


def walk(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """The indices along a serpentine over the grid: each next point is a neighbour of the last."""
    r, c = np.divmod(np.asarray(indices, dtype=np.int64), grid.x.size)
    return np.asarray(indices, dtype=np.int64)[np.argsort(r * grid.x.size + np.where(r % 2, grid.x.size - 1 - c, c))]


class Recorder:
    """What rank 0 does with what comes in: the store, the log, the progress."""

    def __init__(
        self,
        store: Store,
        measure: str,
        grid: Grid,
        progress: Callable[[Progress], None] | None,
        ranks: int,
        points: np.ndarray | None,
        retry_failed: bool,
    ) -> None:
        self.store, self.measure, self.progress, self.ranks = store, measure, progress, ranks
        known = store.surface()
        wanted = known.wanted(measure) if points is None else points
        status = known.status[measure].reshape(-1)[wanted]
        self.order = walk(grid, np.intersect1d(store.todo(measure, retry_failed), wanted))
        self.total = wanted.size
        self.done = int((status == 1).sum())
        self.failed = 0 if retry_failed else int((status == 2).sum())
        self.states = store.unfinished(measure)
        self.begun = set(self.states)
        self.read_now = 0
        self.began = time.monotonic()
        self.notes: list[str] = []
        self._told = float("-inf")

    def state(self, index: int) -> Any:
        """What an earlier run left of a point, or None."""
        return self.states[index] if index in self.begun else None

    def read(self, index: int, reading: dict[str, Any], seconds: float, rank: int) -> None:
        self.store.record(self.measure, index, reading, seconds, rank)
        self.done += 1
        self.read_now += 1

    def broke(self, lost: LostPoint, final: bool) -> None:
        failure = Failure(lost.index, lost.rank, lost.host, lost.text, self.measure)
        place = f"point {lost.index} failed on rank {lost.rank} on {lost.host}"
        if final:
            self.failed += 1
            self.store.fail(self.measure, lost.index, failure)
        self.say(f"{place}{'' if final else '; it is tried once more'}: {failure.reason}")

    def left(self, index: int, state: dict[str, Any]) -> None:
        if state:
            self.store.save_unfinished(self.measure, index, state)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.store.note(**{f"{self.measure}_notes": "\n".join(self.notes[-100:])})
        self.say(text)

    def say(self, text: str) -> None:
        """To the person who watches, or to the log."""
        logger.log(logging.WARNING if self.progress is None else logging.INFO, text)
        self._tell(text)

    def moved(self, dealing: WorkQueue) -> None:
        self.store.tick()
        if time.monotonic() - self._told > 0.2 or dealing.finished:
            self._tell("")

    def _tell(self, note: str) -> None:
        self._told = time.monotonic()
        if self.progress is not None:
            seconds = self._told - self.began
            rate = self.read_now / seconds if seconds > 0 else 0.0
            args = (self.measure, self.done, self.failed, self.total, rate, seconds, self.ranks, note)
            self.progress(Progress(*args))

    def outcome(self) -> str:
        """How the points that were asked for stand."""
        if self.done + self.failed < self.total:
            return "unfinished"
        return "failed" if self.failed else "complete"


def _lead(
    world: World,
    places: list[tuple[int, ...]],
    book: Recorder,
    attempt: PointEvaluator,
    stop: Stop,
    patience: float | None,
) -> None:
    """Rank 0's part: deal, and measure too where it leads a place."""
    order = book.order
    wire = world.wire
    stuck: set[int] = set()
    whole = places[0][0] == 0  # whether this rank has a team that waits for word
    try:
        while True:
            loop, dealing = LocalChannel(wire), WorkQueue(order, len(places))
            dealer = Dispatcher(
                loop, dealing, places, book, stop=stop, serial=world.surveys, state=book.state, patience=patience
            )
            whole = _round(world, loop, dealer, places[0][0] == 0, attempt, stop) and whole
            stuck |= set(dealer.stuck) - {0}
            if dealing.finished or stop.asked is not None or places == [(0,)] or attempt.team.places:
                break
            book.note("no other rank is left; rank 0 goes on alone")
            order, places, wire = np.array([i for i in order if int(i) not in dealing.state]), [(0,)], None
    finally:
        world.gone, world.stuck = world.dead(), frozenset(stuck)
        end = (book.outcome(), world.gone, world.stuck)
        if whole:
            attempt.release(end)
        for rank in set(range(1, world.size)) - world.gone:
            if world.wire is not None:
                world.wire.send((world.surveys, END, *end), rank)


def _round(
    world: World, loop: LocalChannel, dealer: Dispatcher, measures: bool, attempt: PointEvaluator, stop: Stop
) -> bool:
    """Deal until it is over; where rank 0 measures too, beside it or, where MPI allows no threads, between points.

    Returns whether rank 0's own team is whole.
    """
    if not measures:
        _until(lambda: dealer.over, dealer.step)
        return False
    place = Worker(loop.end(), attempt, stop=stop, serial=dealer.serial, host=world.host)
    attempt.note = lambda text: place.tell(NOTE, text)
    if world.size == 1 or not world.threads:
        _until(lambda: dealer.over, lambda: dealer.step() | place.step())
    else:
        errors: list[BaseException] = []

        def deal() -> None:
            try:
                _until(lambda: dealer.over, dealer.step)
            except BaseException as error:
                errors.append(error)
            finally:
                loop.send((dealer.serial, END), 0)

        thread = threading.Thread(target=deal, name="lossmap-dealer")
        thread.start()
        try:
            _until(lambda: place.end is not None, place.step)
        except BaseException:
            stop.ask("an error on rank 0", urgent=True)
            place.tell(HALTED)
            raise
        finally:
            thread.join()
        if errors:
            raise errors[0]
    return not place.broken


def _until(over: Callable[[], bool], step: Callable[[], bool]) -> None:
    nap = PollBackoff()
    while not over():
        nap.after(step())


def _work(world: World, attempt: PointEvaluator, stop: Stop) -> Elsewhere:
    """The part of every other rank: measure what is dealt, or follow the leader of one's team."""
    team, serial, wire = attempt.team, world.surveys, cast(Channel, world.wire)
    if team.leads:
        place = Worker(wire, attempt, stop=stop, serial=serial, host=world.host)
        attempt.note = lambda text: place.tell(NOTE, text)
        silent = stop.listen(place.listen)
        _until(lambda: place.end is not None, place.step)
        silent()
        end = cast(tuple[Any, ...], place.end)
        if not place.broken:
            attempt.release(end)
    else:
        end = _follow(wire, serial, attempt, stop)
    outcome, world.gone, world.stuck = end
    return Elsewhere(outcome)


def _follow(wire: Channel, serial: int, attempt: PointEvaluator, stop: Stop) -> tuple[Any, ...]:
    """A team member's part. Where the team has died, wait for the end of the survey."""
    told = False

    def tell() -> None:
        nonlocal told
        if stop.asked is not None and not told:
            told = True
            wire.send((serial, ASKED, stop.asked, stop.urgent), 0)

    wire.meanwhile = tell
    attempt.note = lambda text: wire.send((serial, NOTE, text), 0)
    try:
        return attempt.follow()
    except TeamBroken:
        nap = PollBackoff()
        while (came := wire.receive()) is None or came[1][:2] != (serial, END):
            nap.after(came is not None)
        return came[1][2:]
    finally:
        wire.meanwhile = None


def as_stop(stop: Stop | Callable[[], bool] | None) -> Stop:
    """A stop that asks the function, where there is one: by it a measure can ask too, within a point."""
    if isinstance(stop, Stop):
        return stop
    wrapped = Stop()
    if stop is not None:
        asked = stop

        def listener() -> None:
            if asked():
                wrapped.ask("the program asked for it", urgent=True)

        wrapped.listen(listener)
    return wrapped
