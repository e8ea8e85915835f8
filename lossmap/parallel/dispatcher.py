"""Who measures which point: the talk between rank 0 and the places, apart from MPI.

A *place* is a team that measures points, led by one rank; place 0's leader may be rank 0 itself. `Dispatcher` is rank
0's
side of the talk, one short `step` at a time, and `Worker` the other; both know the wire only as a `Link`. What travels
are tuples whose first entry says what they are, see the constants. No step waits, so that one thread can serve
thousands of places. A point costs rank 0 some tens of microseconds: benchmarks/farm.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from lossmap.parallel.shutdown import Stop
from lossmap.parallel.work_queue import DEATHS, WorkQueue

# from a place to the dealer
HELLO, DONE, FAILED, UNFINISHED, HALTED, ASKED, NOTE, LOST = range(8)
# from the dealer to a place
POINTS, HALT, END = range(8, 11)


class Link(Protocol):
    """One end of the talk between the dealer and the places."""

    def send(self, message: tuple[Any, ...], rank: int) -> None:
        """Send without waiting. A message to a dead rank is lost without a word."""

    def receive(self) -> tuple[int, tuple[Any, ...]] | None:
        """The next message that has come and the rank it came from, or None."""

    def dead(self) -> frozenset[int]:
        """The ranks that are known to have died."""


@dataclass(frozen=True)
class LostPoint:
    """A point that failed, and where."""

    index: int
    rank: int
    host: str
    text: str


class Book(Protocol):
    """Where rank 0 writes what comes in. Called by one thread at a time."""

    def read(self, index: int, reading: dict[str, Any], seconds: float, rank: int) -> None:
        """A point is read."""

    def broke(self, lost: LostPoint, final: bool) -> None:
        """A point failed; `final` where it is not dealt again."""

    def left(self, index: int, state: dict[str, Any]) -> None:
        """A point was left before its end."""

    def note(self, text: str) -> None:
        """Something that a person will want to know."""

    def moved(self, dealing: WorkQueue) -> None:
        """Called ten times a second, and at the end."""


@dataclass
class _Desk:
    """What the dealer knows of a place."""

    rank: int
    host: str = ""
    present: bool = False  # has said hello, and is neither lost nor dead
    halted: bool = False
    stuck_at: float = float("inf")  # when it was found stuck
    ranks: tuple[int, ...] = field(default=())


class Dispatcher:
    """Rank 0's side: deals, takes answers, notices deaths, stops in good order.

    link      the wire
    dealing   the bookkeeping
    places    the ranks of each place, its leader first
    book      where what comes in is written
    stop      asked before points are dealt
    serial    which survey of this program this is: answers to an earlier one are not taken for answers to it
    state     index -> what an earlier run left of a point, or None
    patience  seconds after which a place that does not answer is stuck; None: it may take its time
    """

    def __init__(
        self,
        link: Link,
        dealing: WorkQueue,
        places: Iterable[Sequence[int]],
        book: Book,
        *,
        stop: Stop,
        serial: int = 0,
        state: Callable[[int], Any] = lambda index: None,
        patience: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.link, self.dealing, self.book, self.stop = link, dealing, book, stop
        self.desks = [_Desk(ranks[0], ranks=tuple(ranks)) for ranks in places]
        self.by_rank = {rank: place for place, desk in enumerate(self.desks) for rank in desk.ranks}
        self.serial, self.state, self.patience, self.clock = serial, state, patience, clock
        self.buried: set[int] = set()
        self.hungry: set[int] = set()
        self.halting = 0  # 0 not, 1 no new points, 2 leave those in progress
        self.over = False
        self._looked = self._told = self._counted = float("-inf")

    def step(self) -> bool:
        """Do what can be done now; whether that was anything."""
        now = self.clock()
        moved = False
        for _ in range(256):
            came = self.link.receive()
            if came is None:
                break
            moved = True
            rank, (serial, *message) = came
            if serial == self.serial:
                self._take(rank, message, now)
        if moved or now - self._looked > 2e-3:
            self._looked = now
            self._bury(now)
            self._watch(now)
        if not self.halting:
            self._serve(now)
        if now - self._told > 0.1 or self.dealing.finished:
            self._told = now
            self.book.moved(self.dealing)
        self.over = self.dealing.finished or (self.halting > 0 and all(d.halted or not d.present for d in self.desks))
        self.over = self.over or not (self.halting or self._hopeful())
        return moved

    def _hopeful(self) -> bool:
        """Whether a place is there, or may still come."""
        late = float("-inf") if self.patience is None else self.clock() - 2 * self.patience
        return any(d.present or (d.stuck_at > late and not set(d.ranks) & self.buried) for d in self.desks)

    def _take(self, rank: int, message: list[Any], now: float) -> None:
        kind = message[0]
        place = self.by_rank.get(rank)
        if kind == ASKED:
            self.stop.ask(f"{message[1]} on rank {rank}", urgent=message[2])
            return
        if place is None or rank in self.buried:
            return
        desk = self.desks[place]
        if kind == HELLO:
            desk.host, desk.present = message[1], True
            self.dealing.alive.add(place)
            self.dealing.heard[place] = now
            if self.halting:
                self._send(place, HALT, self.halting > 1)
        elif kind == DONE:
            _, index, reading, seconds = message
            if self.dealing.done(place, index, seconds, now):
                self.book.read(index, reading, seconds, rank)
        elif kind == FAILED:
            _, index, text = message
            before = index in self.dealing.state
            final = self.dealing.failed(place, index, now)
            if not before:
                self.book.broke(LostPoint(index, rank, desk.host, text), final)
                self.hungry.update(self.dealing.alive)
        elif kind == UNFINISHED:
            _, index, state = message
            self.dealing.held[place].pop(index, None)
            if index not in self.dealing.state:
                self.book.left(index, state)
            if not self.halting:  # a measure may have a reason of its own, such as a memory that runs full
                self.stop.ask(f"a point was left on rank {rank}")
        elif kind == HALTED:
            desk.halted = True
        elif kind == NOTE:
            self.book.note(f"rank {rank} on {desk.host}: {message[1]}")
        elif kind == LOST:
            self._lose(place, message[1])
        if kind in (DONE, FAILED) and desk.stuck_at < float("inf"):
            desk.stuck_at, desk.present = float("inf"), True
            self.book.note(f"rank {rank} on {desk.host} answers again")
        if desk.present:
            self.hungry.add(place)

    def _serve(self, now: float) -> None:
        if not self.stop.fits(self.dealing.worst()):
            return
        while self.hungry:
            place = self.hungry.pop()
            if self.desks[place].present:
                dealt = self.dealing.deal(place, now)
                if dealt:
                    self._send(place, POINTS, [(index, self.state(index)) for index in dealt])

    def _bury(self, now: float) -> None:
        for rank in sorted(self.link.dead() - self.buried):
            self.buried.add(rank)
            place = self.by_rank.get(rank)
            host = f" on {self.desks[place].host}" if place is not None and self.desks[place].host else ""
            if place is None or not self.desks[place].present:
                self.book.note(f"rank {rank}{host} has died")
            else:
                self._lose(place, f"rank {rank}{host} has died")

    def _lose(self, place: int, why: str) -> None:
        desk = self.desks[place]
        if not desk.present:
            return
        desk.present = False
        again, broken = self.dealing.lost(place)
        self.book.note(f"{why}; points dealt again: {', '.join(map(str, again)) or 'none'}")
        if broken is not None:
            text = f"{DEATHS} ranks died while they measured this point, the last one: {why}"
            self.book.broke(LostPoint(broken, desk.rank, desk.host, text), True)
        self.hungry.update(self.dealing.alive)

    def _watch(self, now: float) -> None:
        """Look for stuck places, and at the stop."""
        if self.patience is not None and now - self._counted > self.patience / 20:  # it looks at every place
            self._counted = now
            for place, index in self.dealing.overdue(now, self.patience):
                desk = self.desks[place]
                desk.stuck_at, desk.present = now, False
                self.dealing.stuck(place)
                self.book.note(
                    f"rank {desk.rank} on {desk.host} has not answered for {self.patience:g} s at point {index}; "
                    "the point is dealt again"
                )
                self.hungry.update(self.dealing.alive)
        urgent = self.stop()  # asks its listeners too
        self.stop.fits(self.dealing.worst())
        wanted = 0 if self.stop.asked is None else 2 if urgent else 1
        if wanted > self.halting:
            self.halting = wanted
            for place, desk in enumerate(self.desks):
                if desk.present:
                    self._send(place, HALT, wanted > 1)

    def _send(self, place: int, *message: Any) -> None:
        self.link.send((self.serial, *message), self.desks[place].rank)

    @property
    def stuck(self) -> list[int]:
        """The ranks that were reported stuck and have not answered since."""
        return [desk.rank for desk in self.desks if desk.stuck_at < float("inf")]


class Worker:
    """The other side: takes points from the dealer and measures them, one a step.

    attempt  (index, state) -> an answer (DONE, index, reading, seconds), (FAILED, index, text) or
             (UNFINISHED, index, state); never raises, but `TeamBroken` where the place can measure no more
    """

    def __init__(
        self,
        link: Link,
        attempt: Callable[[int, Any], tuple[Any, ...]],
        *,
        stop: Stop,
        serial: int = 0,
        host: str = "",
        dealer: int = 0,
    ) -> None:
        self.link, self.attempt, self.stop, self.serial, self.dealer = link, attempt, stop, serial, dealer
        self.queue: deque[tuple[int, Any]] = deque()
        self.end: tuple[Any, ...] | None = None  # what the dealer said at the end
        self.halted = self.told = self.broken = False
        self.tell(HELLO, host)

    def tell(self, *message: Any) -> None:
        """Send something to the dealer."""
        self.link.send((self.serial, *message), self.dealer)

    def listen(self) -> bool:
        """Take what has come. Also called from inside a point, so that a measure hears of a stop."""
        heard = False
        while self.end is None and (came := self.link.receive()) is not None:
            serial, kind, *rest = came[1]
            if serial != self.serial:
                continue
            heard = True
            if kind == POINTS and not self.halted and not self.broken:
                self.queue.extend(rest[0])
            elif kind == HALT:
                self.halted = self.told = True
                self.queue.clear()
                self.stop.ask("rank 0", urgent=rest[0])
            elif kind == END:
                self.end = tuple(rest)
        if self.stop.asked is not None and not self.told:
            self.told = True
            self.tell(ASKED, self.stop.asked, self.stop.urgent)
        return heard

    def step(self) -> bool:
        """Listen, and measure one point where there is one; whether anything was done."""
        halted = self.halted
        moved = self.listen()
        if self.halted and not halted:
            self.tell(HALTED)
        if self.queue and self.end is None and self.stop.asked is None:
            moved = True
            index, state = self.queue.popleft()
            halted = self.halted
            try:
                self.tell(*self.attempt(index, state))
            except TeamBroken as error:
                self.broken = True
                self.queue.clear()
                self.tell(LOST, str(error))
            if self.halted and not halted:
                self.tell(HALTED)
        return moved


class TeamBroken(BaseException):
    """A place can measure no more: a member of its team has died. No Exception, so that a measure does not catch it."""


class LocalChannel:
    """Rank 0's own place beside the wire: what the dealer sends to rank 0 stays in the process.

    wire  the link to the other ranks, or None in a single process
    """

    def __init__(self, wire: Link | None = None, rank: int = 0) -> None:
        self.wire, self.rank = wire, rank
        self.inward: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.outward: SimpleQueue[tuple[Any, ...]] = SimpleQueue()

    def send(self, message: tuple[Any, ...], rank: int) -> None:
        if rank == self.rank:
            self.outward.put(message)
        elif self.wire is not None:
            self.wire.send(message, rank)

    def receive(self) -> tuple[int, tuple[Any, ...]] | None:
        try:
            return self.rank, self.inward.get_nowait()
        except Empty:
            return None if self.wire is None else self.wire.receive()

    def dead(self) -> frozenset[int]:
        return frozenset() if self.wire is None else self.wire.dead()

    def end(self) -> LoopEnd:
        """The place's end."""
        return LoopEnd(self)


@dataclass(frozen=True)
class LoopEnd:
    """The end of a `LocalChannel` that rank 0's own place holds."""

    loop: LocalChannel

    def send(self, message: tuple[Any, ...], rank: int) -> None:
        self.loop.inward.put(message)

    def receive(self) -> tuple[int, tuple[Any, ...]] | None:
        try:
            return self.loop.rank, self.loop.outward.get_nowait()
        except Empty:
            return None

    def dead(self) -> frozenset[int]:
        return frozenset()


class PollBackoff:
    """Sleeps between polls: .1 ms at first, growing to 2 ms while nothing comes. Waiting ranks use 2 % of a core."""

    def __init__(self, shortest: float = 1e-4, longest: float = 2e-3) -> None:
        self.shortest, self.longest, self.length = shortest, longest, shortest

    def after(self, moved: bool) -> None:
        """Sleep where nothing was done."""
        if moved:
            self.length = self.shortest
        else:
            time.sleep(self.length)
            self.length = min(2 * self.length, self.longest)
