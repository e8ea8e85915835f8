"""The walk: deal the points that are not yet done, measure them, write them down.

    survey(measure, grid) -> Surface           in one process, or over all ranks that a launcher started

A measure is point -> reading, a dict of numbers or small arrays by field. Rank 0 deals the points along a
serpentine over the grid, so that a rank's next point is a neighbour of its last one; each reading is written down as it
comes. A point that raises is tried once more, elsewhere where there is another rank, and is then a failure with
its reason. What a survey costs beside its measure: benchmarks/farm.py.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from lossmap import namesake
from lossmap.farm.dealer import (
    ASKED,
    DONE,
    END,
    FAILED,
    HALTED,
    NOTE,
    UNFINISHED,
    Broken,
    Dealer,
    Dealing,
    Loop,
    Lost,
    Nap,
    Place,
)
from lossmap.farm.stop import Stop
from lossmap.farm.team import Fallen, Team, World
from lossmap.space.grid import Field, Grid, Point, Unfinished
from lossmap.store.ledger import Ledger
from lossmap.store.values import Failure, Surface

logger = logging.getLogger("lossmap")

FINE, RAISED, LEFT, MEMORY = range(4)  # what a team settles about a point; the largest counts


class Measure(Protocol):
    """What is read at each point.

    name      prefix of its status, seconds and rank in the file
    fields    what a reading holds
    settings  what it was told, and what its probe chose

    May have `resume(point, state)`, which goes on at a point that it left by raising Unfinished(state), and
    `smaller()`, which makes it need less memory and says how, or returns None where it cannot.
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
    Raises ValueError where the teams do not fit the ranks, and what the store raises, such as OSError on a full disk.
    """
    if point_timeout is not None and point_timeout <= 0:
        raise ValueError(f"--point-timeout wants seconds, more than 0; got {point_timeout:g}")
    world = World.start() if world is None else world
    team = Team.alone() if team is None else team
    places = team.places or world.places(rank_0=rank_0)
    world.surveys += 1
    stop = _as_stop(stop)
    watchdog = 3 * point_timeout if point_timeout is not None and world.tolerant and world.rank != 0 else None
    attempt = Attempt(measure, grid, team, watchdog)
    if world.rank != 0:
        return cast(Surface, _work(world, attempt, stop))
    wanted = None if points is None else np.unique(np.fromiter(points, dtype=np.int64))
    if wanted is not None and wanted.size and not 0 <= wanted[0] <= wanted[-1] < len(grid):
        raise ValueError(f"points want flat indices from 0 to {len(grid) - 1}; got {wanted[0]} to {wanted[-1]}")
    if store is None:
        store = Ledger(grid)
        store.declare(measure.name, measure.fields, measure.settings, wanted)
    book = Book(store, measure.name, grid, progress, len(places), wanted, retry_failed)
    _lead(world, list(places), book, attempt, stop, point_timeout)
    return store.surface()


def walk(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """The indices along a serpentine over the grid: each next point is a neighbour of the last."""
    r, c = np.divmod(np.asarray(indices, dtype=np.int64), grid.x.size)
    return np.asarray(indices, dtype=np.int64)[np.argsort(r * grid.x.size + np.where(r % 2, grid.x.size - 1 - c, c))]


class Attempt:
    """One try at a point, by the whole team; what comes of it is a message to the dealer, and never an exception.

    patience  seconds after which the kernel ends this rank, since it answers no more; None: never
    """

    def __init__(self, measure: Measure, grid: Grid, team: Team, patience: float | None = None) -> None:
        self.measure, self.grid, self.team, self.patience = measure, grid, team, patience
        self.note: Callable[[str], None] = logger.warning
        self.sizes = {f.name: f.extra[1] if f.extra else 1 for f in measure.fields}

    def __call__(self, index: int, state: Any) -> tuple[Any, ...]:
        """Try the point; members of the team follow."""
        self.team.broadcast((index, state))
        return self.once(index, state)

    def follow(self) -> tuple[Any, ...]:
        """A member's part: try what the leader tries, until it says how the survey ended."""
        while True:
            index, told = self.team.broadcast()
            if index is None:
                return cast(tuple[Any, ...], told)
            self.once(index, told)

    def release(self, end: tuple[Any, ...]) -> None:
        """Tell the members how the survey ended."""
        self.team.broadcast((None, end))

    def once(self, index: int, state: Any) -> tuple[Any, ...]:
        """Try the point, again where memory ran out and the measure can do with less."""
        while True:
            began = time.perf_counter()
            code, value = self._measured(index, state)
            if code == FINE:
                return DONE, index, value, time.perf_counter() - began
            values = [value for value in self.team.gather(value) if value is not None]
            if code == LEFT:
                return UNFINISHED, index, next((v for v in values if isinstance(v, dict)), {})
            text = next((v for v in values if isinstance(v, str)), "no rank of the team says why")
            if code == RAISED or not self._smaller(value is not None, text):
                return FAILED, index, text

    def _measured(self, index: int, state: Any) -> tuple[int, Any]:
        """(what the team settled, this rank's part of it: the reading, the state, or the error as text)."""
        value: Any = None
        try:
            with _watched(self.patience):
                point = self.grid.point(index)
                resume = getattr(self.measure, "resume", None) if state is not None else None
                value = self._checked(self.measure(point) if resume is None else resume(point, state))
            code = FINE
        except Fallen as fallen:  # settled already
            return fallen.code, fallen.why
        except Unfinished as left:
            code, value = LEFT, left.state
        except Exception as error:
            code = MEMORY if out_of_memory(error) and hasattr(self.measure, "smaller") else RAISED
            place = "" if self.team.size == 1 else f"on rank {self.team.rank} of the team:\n"
            value = place + traceback.format_exc()
        try:
            settled = self.team.settle(code)
        except Fallen as fallen:
            return fallen.code, fallen.why
        return settled, value if settled == code else None

    def _smaller(self, mine: bool, text: str) -> bool:
        """After memory ran out, here where `mine`: make do with less, if all of the team can."""
        said = self.measure.smaller() if mine else ""  # type: ignore[attr-defined]
        if self.team.settle(FINE if said is not None else RAISED) != FINE:
            return False
        gc.collect()
        if said:
            self.note(f"memory ran out ({text.strip().splitlines()[-1]}); {said}")
        return True

    def _checked(self, reading: Mapping[str, Any]) -> dict[str, Any]:
        """The reading as numbers and arrays, with just the fields that were announced."""
        if set(reading) != set(self.sizes):
            raise ValueError(
                f"the measure {self.measure.name!r} announced the fields {', '.join(sorted(self.sizes))} and returned "
                f"{', '.join(sorted(reading)) or 'none'}"
            )
        checked: dict[str, Any] = {}
        for name, size in self.sizes.items():
            values = np.asarray(reading[name], dtype=np.float64)
            if values.size != size:
                raise ValueError(f"the field {name!r} takes {size} numbers a point; the measure returned {values.size}")
            checked[name] = float(values) if values.ndim == 0 else values
        return checked


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator said no: CUDA's, the CPU's, or Python's own. Known by name, without torch."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or (
        isinstance(error, RuntimeError) and any(words in text for words in said)
    )


class Book:
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

    def broke(self, lost: Lost, final: bool) -> None:
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

    def moved(self, dealing: Dealing) -> None:
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
    book: Book,
    attempt: Attempt,
    stop: Stop,
    patience: float | None,
) -> None:
    """Rank 0's part: deal, and measure too where it leads a place."""
    order = book.order
    wire = world if world.size > 1 else None
    stuck: set[int] = set()
    whole = places[0][0] == 0  # whether this rank has a team that waits for word
    try:
        while True:
            loop, dealing = Loop(wire), Dealing(order, len(places))
            dealer = Dealer(
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
            world.send((world.surveys, END, *end), rank)


def _round(world: World, loop: Loop, dealer: Dealer, measures: bool, attempt: Attempt, stop: Stop) -> bool:
    """Deal until it is over; where rank 0 measures too, beside it or, where MPI allows no threads, between points.

    Returns whether rank 0's own team is whole.
    """
    if not measures:
        _until(lambda: dealer.over, dealer.step)
        return False
    place = Place(loop.end(), attempt, stop=stop, serial=dealer.serial, host=world.host)
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
    nap = Nap()
    while not over():
        nap.after(step())


def _work(world: World, attempt: Attempt, stop: Stop) -> Elsewhere:
    """The part of every other rank: measure what is dealt, or follow the leader of one's team."""
    team, serial = attempt.team, world.surveys
    if team.leads:
        place = Place(world, attempt, stop=stop, serial=serial, host=world.host)
        attempt.note = lambda text: place.tell(NOTE, text)
        silent = stop.listen(place.listen)
        _until(lambda: place.end is not None, place.step)
        silent()
        end = cast(tuple[Any, ...], place.end)
        if not place.broken:
            attempt.release(end)
    else:
        end = _follow(world, attempt, stop)
    outcome, world.gone, world.stuck = end
    return Elsewhere(outcome)


def _follow(world: World, attempt: Attempt, stop: Stop) -> tuple[Any, ...]:
    """A team member's part. Where the team has died, wait for the end of the survey."""
    told = False

    def tell() -> None:
        nonlocal told
        if stop.asked is not None and not told:
            told = True
            world.send((world.surveys, ASKED, stop.asked, stop.urgent), 0)

    world.meanwhile = tell
    attempt.note = lambda text: world.send((world.surveys, NOTE, text), 0)
    try:
        return attempt.follow()
    except Broken:
        nap = Nap()
        while (came := world.receive()) is None or came[1][:2] != (world.surveys, END):
            nap.after(came is not None)
        return came[1][2:]
    finally:
        world.meanwhile = None


def _as_stop(stop: Stop | Callable[[], bool] | None) -> Stop:
    """A stop that asks the function, where there is one."""
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


@contextmanager
def _watched(seconds: float | None) -> Iterator[None]:
    """The kernel ends this process where the block takes so long, even inside a call that never returns."""
    if seconds is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


namesake(__name__)  # lossmap.survey(...) is the function, whatever was imported before
