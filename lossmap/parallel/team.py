"""A team: the ranks that share one point, each with a part of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lossmap.parallel.host_arrays import like, to_host_array
from lossmap.parallel.mpi_channel import MpiChannel

# Every sum begins with an exchange of heads, (code, number of values, the values where they fit): a rank that has
# raised says so there, and small sums need no second message.
_HEAD_SIZE = 32
_SMALL_SUM = _HEAD_SIZE - 2
_FINISHED = -1.0  # in place of the number of values: this rank is at the end of the point


class Team:
    """The ranks that share one point, each with a part of the samples. `Team()` is one rank alone, without MPI.

    channel     what joins the ranks of the world
    comm        the team's MPI communicator
    ranks       the world's ranks in the team, leader first
    all_teams   the ranks of every team of the world
    rank, size  this rank's number within the team, and how many ranks it has; rank 0 leads
    """

    def __init__(
        self,
        channel: MpiChannel | None = None,
        comm: Any = None,
        ranks: Sequence[int] = (0,),
        all_teams: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self.channel, self.comm, self.ranks, self.all_teams = channel, comm, tuple(ranks), tuple(all_teams)
        self.rank: int = 0 if comm is None else comm.rank
        self.size: int = 1 if comm is None else comm.size

    @classmethod
    def alone(cls) -> Team:
        """One rank, which holds all of the samples."""
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this rank is the team's first."""
        return self.rank == 0

    def sum(self, value: Any) -> Any:
        """The sum over the team of a tensor, an array or a number: the same bits on every rank.

        One Allgather for up to 30 float64 values, and an Allreduce for more. Tensors on a GPU go through the host.

        Raises `PeerFailed` on all other ranks where one has raised instead of coming here, and `WorkerLost` where one
        has died.
        """
        if self.size == 1:
            return value
        return like(value, self._reduce(to_host_array(value)))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank of the team: such as a stop, which all must follow or none."""
        if self.size == 1:
            return bool(flag)
        return bool(self.sum(float(flag)) > 0)

    def agreed(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """A measure's stop, asked of the whole team, so that all its ranks get one answer."""
        return stop if self.size == 1 else lambda: self.any(stop())

    def settle(self, code: int) -> int:
        """The largest of the ranks' codes; other than 0, it makes ranks that still sum raise `PeerFailed`.

        Raises `PeerFailed` where the ranks disagree about whether the point is at its end.
        """
        if self.size == 1:
            return code
        head = np.zeros(_HEAD_SIZE)
        head[0], head[1] = max(code, 0), _FINISHED
        heads = self._exchange(head)
        largest = int(heads[:, 0].max())
        if largest == 0 and (heads[:, 1] != _FINISHED).any():
            raise PeerFailed(1, "the ranks of a team disagree about what comes next: one sums, another has finished")
        return largest

    def broadcast(self, value: Any = None) -> Any:
        """The leader's value, on every rank of the team."""
        if self.comm is None or self.size == 1:
            return value
        return self._channel.broadcast(self.comm, value, self.ranks)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank of the team, in the order of the ranks."""
        if self.size == 1:
            return [value]
        return self._channel.gather(self.comm, value, self.ranks)

    @property
    def _channel(self) -> MpiChannel:
        if self.channel is None:
            raise ValueError("a team of several ranks needs the channel of its world: make it by World.team")
        return self.channel

    def _exchange(self, head: np.ndarray) -> np.ndarray:
        """The heads of all ranks, (size, 32)."""
        heads = np.empty((self.size, _HEAD_SIZE))
        self._channel.wait(self.comm.Iallgather(head, heads), self.ranks)
        return heads

    def _reduce(self, array: np.ndarray) -> np.ndarray:
        head = np.zeros(_HEAD_SIZE)
        head[1] = array.size
        is_small = array.size <= _SMALL_SUM and array.dtype == np.float64
        if is_small:
            head[2 : 2 + array.size] = array.reshape(-1)
        heads = self._exchange(head)
        code, sizes = int(heads[:, 0].max()), heads[:, 1]
        if code:
            raise PeerFailed(code)
        if (sizes != array.size).any():  # unequal Allreduces would hang, or add up the wrong numbers
            raise PeerFailed(1, f"the ranks of a team sum different things, of {sizes.astype(int).tolist()} numbers")
        if is_small:  # added in the order of the ranks, by every rank: the same bits everywhere
            total: np.ndarray = heads[:, 2 : 2 + array.size].sum(axis=0)
            return total.reshape(array.shape)
        result = np.array(array, order="C")
        self._channel.wait(self.comm.Iallreduce(self._channel.mpi.IN_PLACE, result), self.ranks)
        return result


class PeerFailed(BaseException):
    """Another rank of the team has raised at this point. No Exception, so that a measure does not catch it.

    code    the largest of the ranks' codes: see `Team.settle`
    reason  what is wrong, where it is no single rank's fault
    """

    def __init__(self, code: int, reason: str | None = None) -> None:
        super().__init__(reason or "another rank of the team could not go on with this point")
        self.code, self.reason = code, reason
