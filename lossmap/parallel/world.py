"""The world: all ranks of the program, what they do together, and the teams they form.

    world = World.start()                 on every rank; alone where no launcher started the program
    world.team(2)                         this rank's team of two, which shares each point
    sys.exit(world.leave(code))           the last call

MPI is imported when a world of several ranks starts, and never in a single process. Where the MPI library tolerates
faults (ULFM, Open MPI 5: `mpirun --with-ft ulfm`), the others go on after the death of a rank; elsewhere a death ends
the job, and the survey is resumed from its file.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np

from lossmap.interrupt import is_error_of_user_code
from lossmap.parallel import survivors, world_exit
from lossmap.parallel.end_mark import mark_end
from lossmap.parallel.host_arrays import like, to_host_array
from lossmap.parallel.idle_watch import not_watched
from lossmap.parallel.launcher import arrange_teams, check_size, launched, library_name
from lossmap.parallel.mpi_channel import EXIT_LOST, MpiChannel
from lossmap.parallel.mpi_library import load_mpi
from lossmap.parallel.team import Team
from lossmap.parallel.watchdog import start_watchdog

T = TypeVar("T")


class World:
    """All ranks of the program.

    rank, size            this rank, and how many there are
    node_rank, node_size  the same among the ranks of this machine
    host                  this machine's name
    threads               whether two threads may call MPI at a time
    channel               what joins the ranks; None in a single process
    dead_ranks            ranks that all survivors agree to be dead: as of the end of the last survey
    stuck_ranks           ranks that answer no more, as all others agree
    surveys               how many surveys were begun, which numbers their messages
    crowding              how many times longer a rank computes while all do; None where it was not measured
    writes                whether rank 0 opens result files: not so where another process has them open
    """

    writes = True

    def __init__(self, mpi: Any = None) -> None:
        self.host = socket.gethostname()
        self.rank, self.size, self.threads = 0, 1, True
        self.node_rank, self.node_size = 0, 1
        self.dead_ranks: frozenset[int] = frozenset()
        self.stuck_ranks: frozenset[int] = frozenset()
        self.surveys = 0
        self.crowding: float | None = None
        self.channel: MpiChannel | None = None
        self._has_left = False
        if mpi is not None:
            self._join(mpi)

    @classmethod
    def start(cls, mpi: bool | None = None, environ: Mapping[str, str] | None = None) -> World:
        """The world of this process, made on the first call.

        mpi      whether to use MPI; None: where a launcher's variables say so
        environ  the process's variables, if not os.environ

        Raises ValueError where several tasks were started but MPI sees one, and ImportError where mpi4py is missing
        under a launcher.
        """
        global _world
        if _world is None:
            if environ is None:
                environ = os.environ
            use_mpi = mpi or (mpi is None and launched(environ) > 1)
            try:
                with start_watchdog(environ), not_watched():
                    _world = cls(load_mpi(environ)) if use_mpi else cls()
            except ConnectionError as error:  # where another has died by now, MPI_Finalize would wait for ever
                print(f"{error}; leaving", file=sys.stderr, flush=True)
                os._exit(EXIT_LOST)
            if _world.channel is not None:
                check_size(_world.size, environ, library_name(_world.channel.mpi.Get_library_version()))
        return _world

    def _join(self, mpi: Any) -> None:
        try:
            channel = self.channel = MpiChannel(mpi, self.host)
            self.rank, self.size = channel.rank, channel.size
            self.threads = mpi.Query_thread() == mpi.THREAD_MULTIPLE
            # communicators of their own, so that collectives and messages cannot meet
            self._all, self._node = channel.copy(), channel.node()
            self.node_rank, self.node_size = self._node.rank, self._node.size
        except mpi.Exception as error:
            raise ConnectionError(f"on {self.host}: the ranks could not connect: {error}") from error
        if self.size > 1:
            sys.excepthook = self._abort_on_error  # Python would end this rank alone
            atexit.register(self.leave)  # before mpi4py's MPI_Finalize, for programs that do not call it

    # ---- who is there

    @property
    def tolerant(self) -> bool:
        """Whether the others go on after the death of a rank."""
        return self.channel is not None and self.channel.tolerant

    @property
    def is_whole(self) -> bool:
        """Whether no rank is dead or stuck, as far as all of them agree."""
        return not (self.dead_ranks or self.stuck_ranks)

    def dead(self) -> frozenset[int]:
        """The ranks that this rank knows to have died."""
        return frozenset() if self.channel is None else self.channel.dead()

    def _others(self) -> set[int]:
        """The ranks beside 0 that are left, as all of them know."""
        return set(range(1, self.size)) - self.dead_ranks - self.stuck_ranks

    def go_on_alone(self) -> None:
        """On rank 0, after a collective in which a rank has died: all others leave, so nothing is awaited of them."""
        self.dead_ranks = self.dead()
        self.stuck_ranks = frozenset(range(1, self.size)) - self.dead_ranks

    # ---- collectives: every rank calls them alike

    def sum(self, value: Any) -> Any:
        """The sum over all ranks of a tensor, an array or a number. Raises WorkerLost where a rank dies meanwhile."""
        if self.channel is None or self.size == 1:
            return value
        array = to_host_array(value)
        if not self.is_whole:  # MPI's own collectives would fail for ever: see survivors
            return like(value, np.sum([part for part in self.gather(array) if part is not None], axis=0))
        result = np.array(array, order="C")
        self.channel.wait(self._all.Iallreduce(self.channel.mpi.IN_PLACE, result))
        return like(value, result)

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank. Raises WorkerLost where a rank dies meanwhile."""
        if self.channel is None or self.size == 1:
            return value
        if self.is_whole:
            return self.channel.broadcast(self._all, value, range(self.size))
        return survivors.broadcast(self.channel, self._others(), value)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in the order of the ranks; None for the dead.

        Raises WorkerLost where a rank dies meanwhile.
        """
        if self.channel is None or self.size == 1:
            return [value]
        if self.is_whole:
            return self.channel.gather(self._all, value, range(self.size))
        return survivors.gather(self.channel, self._others(), value)

    def together(self, make: Callable[[], T]) -> T:
        """What `make` returns on this rank; where it raises on any rank, all raise as one.

        A rank whose own call raised, and is the first to do so, raises just that; the others raise ValueError with
        its text, which names rank and host unless it is rank 0's.
        """
        error: BaseException | None = None
        value: T | None = None
        try:
            value = make()
        except BaseException as raised:
            if not is_error_of_user_code(raised):
                raise
            error = raised
        if self.size > 1:
            report = None
            if error is not None:
                report = (type(error).__name__, str(error), self.host)
            # every rank gathers, whether it raised or not: the collective in which none waits in vain
            reports = self.gather(report)
            first = next((rank for rank, other in enumerate(reports) if other is not None), None)
            if first is not None and first != self.rank:
                kind, text, host = reports[first]
                if first != 0:
                    text = f"rank {first} on {host}: {kind}: {text}"
                raise ValueError(text) from error
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def once(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, which alone calls it, on every rank; where it raises, all raise."""
        value: T = self.broadcast(self.together(lambda: make() if self.rank == 0 else None))
        return value

    def once_per_node(self, make: Callable[[], T]) -> T:
        """What `make` returns, called by one rank of each node and sent to the others there.

        For what is read from disk. Where it raises on any node, all ranks raise.
        """

        def on_this_node() -> T:
            result: tuple[T | None, BaseException | None] = (None, None)
            share = self.is_whole and self.node_size > 1  # after a death everyone reads for itself
            if self.node_rank == 0 or not share:
                try:
                    result = (make(), None)
                except BaseException as error:  # sent to the others there, so that none waits for the value
                    if not is_error_of_user_code(error):
                        raise
                    result = (None, error)
            if self.channel is not None and share:
                result = self.channel.broadcast(self._node, result, range(self.size))
            value, failure = result
            if failure is not None:
                raise failure
            return value  # type: ignore[return-value]

        return self.together(on_this_node)

    def check_same(
        self,
        digest: str,
        what: str = "the directions",
        advice: str = "all nodes must have the same versions of lossmap, torch and the model file",
    ) -> None:
        """Compare a digest over all ranks; `what` it is made of, and `advice`, are for the message.

        Raises ValueError on every rank where the ranks hold different things.
        """
        reports = {rank: report for rank, report in enumerate(self.gather((digest, self.host))) if report is not None}
        expected = reports[0][0]
        others = [rank for rank, (other, _) in reports.items() if other != expected]
        if others:
            rank = others[0]
            other, host = reports[rank]
            more = ""
            if len(others) > 1:
                more = f" and {len(others) - 1} more"
            raise ValueError(
                f"{what} differ between the ranks: {expected[:12]} on rank 0, {other[:12]} on rank {rank} "
                f"({host}){more}; {advice}"
            )

    # ---- teams

    def team_ranks(self, size: int = 1, rank_0: str = "auto") -> list[tuple[int, ...]]:
        """The ranks of each team of this size, leader first. Raises ValueError as `arrange_teams`."""
        return arrange_teams(self.size, size, rank_0)

    def computes(self, rank_0: str = "auto", team_size: int = 1) -> bool:
        """Whether this rank evaluates points, in teams of this size. Raises ValueError as `arrange_teams`."""
        return any(self.rank in ranks for ranks in self.team_ranks(team_size, rank_0))

    def team(self, size: int, rank_0: str = "auto") -> Team:
        """The team of `size` ranks that this rank is in; rank 0, where it only dispatches, gets one of its own.

        All ranks call it.

        Raises ValueError where the computing ranks cannot be divided so.
        """
        all_teams = self.team_ranks(size, rank_0)
        if self.channel is None or size == 1:
            return Team()
        # a number of its own for a rank 0 that only dispatches: all ranks of the world must split together
        mine = next((number for number, ranks in enumerate(all_teams) if self.rank in ranks), len(all_teams))
        comm = self.channel.split(mine)
        if mine == len(all_teams):
            return Team(all_teams=all_teams)
        return Team(self.channel, comm, all_teams[mine], all_teams)

    # ---- the end

    def leave(self, code: int = 0) -> int:
        """The last call of a program: returns the exit code where MPI can end as usual, see `world_exit`.

        The ranks wait for each other and then end MPI together, which a rank that dies in that very moment holds up
        for ten seconds at most. After a death, or with a rank stuck, it does not return: rank 0 waits at most five
        seconds for the others' goodbye, and everyone leaves without MPI_Finalize.
        """
        channel = self.channel
        if channel is None or self.size == 1 or self._has_left:
            return code
        self._has_left = True  # atexit calls it again
        if self.rank == 0:
            mark_end(code)
        channel.flush(world_exit.FLUSH_SECONDS)
        if self.is_whole and not self.dead() and world_exit.all_at_end(channel):
            world_exit.finalize(channel, code)
        else:
            world_exit.exit_without_finalize(channel, self.stuck_ranks, code)
        return code

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.leave(0)

    def _abort_on_error(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An error that nobody caught would leave the other ranks waiting: it ends them all."""
        text = "".join(traceback.format_exception(kind, error, trace))
        print(f"rank {self.rank} on {self.host}:\n{text}", file=sys.stderr, flush=True)
        if self.channel is not None:
            world_exit.abort(self.channel, 1)


_world: World | None = None  # MPI can be started once in a process


def end_world() -> NoReturn:
    """End all ranks, from any thread of one; what it has printed before is all that is said."""
    world = _world
    if world is not None and world.channel is not None and world.threads:
        world_exit.mpi_abort(world.channel, EXIT_LOST)
    os._exit(EXIT_LOST)  # by which the launcher ends the others


def abort_world(sentence: str) -> int:
    """End all ranks that are left after the death of one, with a sentence of the first; for collectives cannot go on.

    Returns an exit code where there is no world to end.
    """
    world = _world
    if world is None or world.channel is None:
        print(sentence, file=sys.stderr, flush=True)
        return EXIT_LOST
    if world.rank == min(set(range(world.size)) - world.channel.dead()):
        print(sentence, file=sys.stderr, flush=True)
        world_exit.abort(world.channel, EXIT_LOST)
    time.sleep(world_exit.GOODBYE_SECONDS)  # the first one ends this rank too
    os._exit(EXIT_LOST)
