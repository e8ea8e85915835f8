"""The wire: messages between ranks, and waiting for collectives, by asking and sleeping. MPI is handed in.

Nothing here blocks inside MPI, so that signals are heard, deaths are seen, and waiting costs 2 % of a core. Where the
library tolerates faults (Open MPI 5: `mpirun --with-ft ulfm`), errors that say that a rank has died are news.

    LEFT = 70    the exit code of a rank that has lost rank 0
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossmap.parallel.dispatcher import PollBackoff, TeamBroken

LEFT = 70
TALK, BYE = 1, 2  # tags
_EAGER = 2048  # bytes: a longer message needs both sides, and rank 0 must not wait for a rank that measures
_PIECE = 1 << 28  # bytes in one message of a broadcast: counts are 32-bit in many an MPI


class Channel:
    """What joins the ranks of a world.

    mpi        the module mpi4py.MPI
    tolerant   whether dead ranks are news
    meanwhile  called now and then by whoever waits
    """

    def __init__(self, mpi: Any, host: str) -> None:
        self.mpi, self.host, self.comm = mpi, host, mpi.COMM_WORLD
        self.comm.Set_errhandler(mpi.ERRORS_RETURN)
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.meanwhile: Callable[[], None] | None = None
        self._news = {
            getattr(mpi, name)
            for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")
            if hasattr(mpi, name)
        }
        self.tolerant = _tolerant(self.comm, os.environ)
        self._talk = self.copy()
        self._sending: list[tuple[Any, bytes]] = []
        self._dead: frozenset[int] = frozenset()
        self._looked = 0.0

    def copy(self) -> Any:
        """A communicator of all ranks of its own. All ranks call it."""
        comm = self.comm.Dup()
        comm.Set_errhandler(self.mpi.ERRORS_RETURN)
        return comm

    def split(self, colour: int) -> Any:
        """A communicator of the ranks of one colour. All ranks call it."""
        comm = self.comm.Split(colour, self.rank)
        comm.Set_errhandler(self.mpi.ERRORS_RETURN)
        return comm

    def node(self) -> Any:
        """A communicator of the ranks of this node. All ranks call it."""
        comm = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED, self.rank)
        comm.Set_errhandler(self.mpi.ERRORS_RETURN)
        return comm

    def send(self, message: tuple[Any, ...], rank: int, tag: int = TALK) -> None:
        """Send without waiting. A message to a dead rank is lost without a word."""
        self._sending = [(request, kept) for request, kept in self._sending if not self._passed(request)]
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        request = self._news_or(lambda: self._talk.Isend([data, self.mpi.BYTE], dest=rank, tag=tag))
        if request is not None:
            self._sending.append((request, data))
        if self.rank != 0 and len(data) > _EAGER:
            self.flush()

    def receive(self, tag: int = TALK) -> tuple[int, tuple[Any, ...]] | None:
        """The next message that has come and the rank it came from, or None."""
        status = self.mpi.Status()
        found = self._news_or(lambda: self._talk.Iprobe(source=self.mpi.ANY_SOURCE, tag=tag, status=status))
        if not found:
            self._leave_an_orphan()
            return None
        data = bytearray(status.Get_count(self.mpi.BYTE))
        source = status.source
        if self._news_or(lambda: self._talk.Recv([data, self.mpi.BYTE], source=source, tag=tag) or True) is None:
            return None
        return source, pickle.loads(data)

    def flush(self, seconds: float = 60.0) -> None:
        """Wait until everything that was sent has been taken."""
        nap, until = PollBackoff(), time.monotonic() + seconds
        while self._sending and time.monotonic() < until:
            self._sending = [(request, kept) for request, kept in self._sending if not self._passed(request)]
            if self._sending:
                nap.after(False)
                self._leave_an_orphan()

    def dead(self) -> frozenset[int]:
        """The ranks that are known to have died."""
        now = time.monotonic()
        if self.tolerant and now - self._looked > 2e-3:
            self._looked = now
            group = self.comm.Get_failed()
            if group.size > len(self._dead):
                for comm in (self.comm, self._talk):
                    self._news_or(comm.Ack_failed)
                places = self.mpi.Group.Translate_ranks(group, list(range(group.size)), self.comm.group)
                self._dead = frozenset(places)
        return self._dead

    def _passed(self, request: Any) -> bool:
        return bool(self._news_or(request.Test, True))

    def _news_or(self, call: Callable[[], Any], news: Any = None) -> Any:
        """What the call returns, or `news` where it says that a rank has died."""
        try:
            return call()
        except self.mpi.Exception as error:
            if error.Get_error_class() not in self._news:
                raise
            return news

    def _leave_an_orphan(self) -> None:
        """A worker without rank 0 has nothing left to do."""
        if self.rank != 0 and 0 in self.dead():
            print(f"rank {self.rank} on {self.host}: rank 0 has died; leaving", file=sys.stderr, flush=True)
            os._exit(LEFT)

    def wait(self, request: Any, ranks: Sequence[int] | None = None) -> None:
        """Wait for a collective by asking and sleeping. Raises Broken where one of its ranks dies meanwhile."""
        nap = PollBackoff(shortest=5e-6)
        concerned = set(range(self.size) if ranks is None else ranks)
        while True:
            try:
                if request.Test():
                    return
            except self.mpi.Exception as error:
                if error.Get_error_class() not in self._news:
                    raise
                self._looked = 0.0
                lost = sorted(self.dead() & concerned)
                raise TeamBroken(f"rank {', '.join(map(str, lost)) or '?'} has died") from None
            self._leave_an_orphan()
            if self.meanwhile is not None:
                self.meanwhile()
            lost = sorted(self.dead() & concerned)
            if lost:
                raise TeamBroken(f"rank {', '.join(map(str, lost))} has died")
            nap.after(False)

    def gather(self, comm: Any, value: Any, ranks: Sequence[int]) -> list[Any]:
        """Every rank's value, on every rank of the communicator."""
        data = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        sizes = np.empty(comm.size, dtype=np.int64)
        self.wait(comm.Iallgather(np.array([data.size], dtype=np.int64), sizes), ranks)
        every = np.empty(int(sizes.sum()), dtype=np.uint8)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.wait(comm.Iallgatherv(data, [every, sizes.tolist(), starts.tolist(), self.mpi.BYTE]), ranks)
        return [pickle.loads(every[s : s + n].tobytes()) for s, n in zip(starts, sizes, strict=True)]

    def broadcast(self, comm: Any, value: Any, ranks: Sequence[int]) -> Any:
        """The value of the communicator's rank 0, on all of its ranks, in pieces."""
        lead = comm.rank == 0
        data = bytearray(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)) if lead else bytearray()
        size = np.array([len(data)], dtype=np.int64)
        self.wait(comm.Ibcast(size, root=0), ranks)
        if not lead:
            data = bytearray(int(size[0]))
        view = memoryview(data)
        for start in range(0, int(size[0]), _PIECE):
            piece = view[start : start + _PIECE]
            self.wait(comm.Ibcast([piece, self.mpi.BYTE], root=0), ranks)
        return value if lead else pickle.loads(data)


def _tolerant(comm: Any, environ: Mapping[str, str]) -> bool:
    """Whether a dead rank is news rather than the end. Open MPI answers the calls even where it is not told to be."""
    if "OMPI_COMM_WORLD_SIZE" in environ or "OMPI_MCA_mpi_ft_enable" in environ:
        return environ.get("OMPI_MCA_mpi_ft_enable", "0") in ("1", "true")
    try:
        comm.Get_failed()
    except Exception:
        return False
    return True
