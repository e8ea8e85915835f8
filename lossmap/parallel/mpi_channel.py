"""The channel over MPI: messages between ranks, and collectives, both by polling. The MPI module is passed in.

Nothing here blocks inside MPI, so that signals are handled, deaths are seen, and waiting costs 2 % of a core. Where the
library tolerates faults (ULFM; Open MPI 5: `mpirun --with-ft ulfm`), an error that reports a dead rank is handled, and
the others go on; elsewhere a death ends the job.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossmap.parallel.messages import PollBackoff, WorkerLost

EXIT_LOST = 70  # the exit code of a rank that has lost rank 0
TALK, BYE = 1, 2  # message tags
_MAX_EAGER_BYTES = 2048  # a longer message needs both sides, and rank 0 must not wait for a rank that evaluates
_MAX_PIECE_BYTES = 1 << 28  # in one message of a broadcast: counts are 32-bit in many MPI libraries


class MpiChannel:
    """What joins the ranks of a world. It is a `messages.Channel` too.

    mpi         the module mpi4py.MPI
    host        this machine's name, for messages
    rank, size  this rank, and how many there are
    tolerant    whether the others go on after the death of a rank
    meanwhile   called now and then while this rank waits in a collective; None: nothing
    """

    def __init__(self, mpi: Any, host: str) -> None:
        self.mpi, self.host, self.comm = mpi, host, mpi.COMM_WORLD
        self.comm.Set_errhandler(mpi.ERRORS_RETURN)
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.meanwhile: Callable[[], None] | None = None
        self._failure_classes = {
            getattr(mpi, name)
            for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")
            if hasattr(mpi, name)
        }
        self.tolerant = _tolerant(self.comm, os.environ)
        self._talk = self.copy()
        self._sending: list[tuple[Any, bytes]] = []
        self._dead: frozenset[int] = frozenset()
        self._last_check = 0.0
        self.collectives = 0  # that this rank has begun with the survivors of a death, see `survivors`

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
        """Send without waiting; a message to a dead rank is dropped silently."""
        self._sending = [(request, buffer) for request, buffer in self._sending if not self._is_sent(request)]
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        request = self._tolerate(lambda: self._talk.Isend([data, self.mpi.BYTE], dest=rank, tag=tag))
        if request is not None:
            self._sending.append((request, data))  # MPI reads the buffer until the request is done
        if self.rank != 0 and len(data) > _MAX_EAGER_BYTES:
            self.flush()

    def receive(self, tag: int = TALK) -> tuple[int, tuple[Any, ...]] | None:
        """The sender's rank and the next message that has arrived, or None."""
        status = self.mpi.Status()
        is_waiting = self._tolerate(lambda: self._talk.Iprobe(source=self.mpi.ANY_SOURCE, tag=tag, status=status))
        if not is_waiting:
            self._exit_if_orphaned()
            return None
        data = bytearray(status.Get_count(self.mpi.BYTE))
        source = status.source
        if self._tolerate(lambda: self._talk.Recv([data, self.mpi.BYTE], source=source, tag=tag) or True) is None:
            return None
        return source, pickle.loads(data)

    def flush(self, seconds: float = 60.0) -> None:
        """Wait until everything that was sent has been received, for so many seconds at most."""
        backoff, until = PollBackoff(), time.monotonic() + seconds
        while self._sending and time.monotonic() < until:
            self._sending = [(request, buffer) for request, buffer in self._sending if not self._is_sent(request)]
            if self._sending:
                backoff.after(False)
                self._exit_if_orphaned()

    def dead(self) -> frozenset[int]:
        """The ranks that are known to have died."""
        now = time.monotonic()
        if self.tolerant and now - self._last_check > 2e-3:
            self._last_check = now
            group = self.comm.Get_failed()
            if group.size > len(self._dead):
                # until a death is acknowledged, receives from any source fail because of it
                for comm in (self.comm, self._talk):
                    self._tolerate(comm.Ack_failed)
                ranks = self.mpi.Group.Translate_ranks(group, list(range(group.size)), self.comm.group)
                self._dead = frozenset(ranks)
        return self._dead

    def dead_now(self) -> frozenset[int]:
        """The same where nothing is received meanwhile: MPI hears of a death only while it is called.

        No message goes over this communicator: a probe that finds one returns before MPI looks for anything else.
        """
        self._tolerate(self.comm.Iprobe)
        self._last_check = 0.0
        return self.dead()

    def _is_sent(self, request: Any) -> bool:
        return bool(self._tolerate(request.Test, True))

    def _tolerate(self, call: Callable[[], Any], default: Any = None) -> Any:
        """What the call returns, or the default where it reports that a rank has died."""
        try:
            return call()
        except self.mpi.Exception as error:
            if error.Get_error_class() not in self._failure_classes:
                raise
            return default

    def _exit_if_orphaned(self) -> None:
        """A worker without rank 0 has nothing left to do."""
        if self.rank != 0 and 0 in self.dead():
            print(f"rank {self.rank} on {self.host}: rank 0 has died; leaving", file=sys.stderr, flush=True)
            os._exit(EXIT_LOST)

    def wait(self, request: Any, ranks: Sequence[int] | None = None) -> None:
        """Wait for a collective by polling. Raises WorkerLost where one of its ranks dies meanwhile."""
        backoff = PollBackoff(shortest=5e-6)
        members = set(range(self.size) if ranks is None else ranks)
        while True:
            try:
                if request.Test():
                    return
            except self.mpi.Exception as error:
                if error.Get_error_class() not in self._failure_classes:
                    raise
                self._last_check = 0.0
                lost = sorted(self.dead() & members)
                raise WorkerLost(f"rank {', '.join(map(str, lost)) or '?'} has died") from None
            self._exit_if_orphaned()
            if self.meanwhile is not None:
                self.meanwhile()
            lost = sorted(self.dead() & members)
            if lost:
                raise WorkerLost(f"rank {', '.join(map(str, lost))} has died")
            backoff.after(False)

    def gather(self, comm: Any, value: Any, ranks: Sequence[int]) -> list[Any]:
        """Every rank's value, on every rank of the communicator, in order. `ranks`: its members, for deaths."""
        data = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        sizes = np.empty(comm.size, dtype=np.int64)
        self.wait(comm.Iallgather(np.array([data.size], dtype=np.int64), sizes), ranks)
        every = np.empty(int(sizes.sum()), dtype=np.uint8)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.wait(comm.Iallgatherv(data, [every, sizes.tolist(), starts.tolist(), self.mpi.BYTE]), ranks)
        return [pickle.loads(every[s : s + n].tobytes()) for s, n in zip(starts, sizes, strict=True)]

    def broadcast(self, comm: Any, value: Any, ranks: Sequence[int]) -> Any:
        """The value of the communicator's rank 0, on all of its ranks. `ranks`: its members, for deaths."""
        is_root = comm.rank == 0
        data = bytearray(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)) if is_root else bytearray()
        size = np.array([len(data)], dtype=np.int64)
        self.wait(comm.Ibcast(size, root=0), ranks)
        if not is_root:
            data = bytearray(int(size[0]))
        view = memoryview(data)
        for start in range(0, int(size[0]), _MAX_PIECE_BYTES):
            piece = view[start : start + _MAX_PIECE_BYTES]
            self.wait(comm.Ibcast([piece, self.mpi.BYTE], root=0), ranks)
        return value if is_root else pickle.loads(data)


def _tolerant(comm: Any, environ: Mapping[str, str]) -> bool:
    """Whether the others go on after a death. Open MPI answers ULFM's calls even where it was started without it."""
    if "OMPI_COMM_WORLD_SIZE" in environ or "OMPI_MCA_mpi_ft_enable" in environ:
        return environ.get("OMPI_MCA_mpi_ft_enable", "0") in ("1", "true")
    try:
        comm.Get_failed()
    except Exception:
        return False
    return True
