"""The ranks that share one point, each with a share of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lossmap.parallel.mpi_messages import Channel

_HEAD = 32  # numbers in the head of a team's sum; small sums travel in it


class Team:
    """The ranks that share one point, each with a share of the data. `Team()` is one rank alone, without MPI.

    rank, size  its place in the team; rank 0 leads
    places      the ranks of every team of the world
    """

    def __init__(
        self,
        wire: Channel | None = None,
        comm: Any = None,
        ranks: Sequence[int] = (0,),
        places: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self.wire, self.comm, self.ranks, self.places = wire, comm, tuple(ranks), tuple(places)
        self.rank: int = 0 if comm is None else comm.rank
        self.size: int = 1 if comm is None else comm.size

    @classmethod
    def alone(cls) -> Team:
        """One rank, which holds all of the data."""
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this rank is the team's first."""
        return self.rank == 0

    def sum(self, value: Any) -> Any:
        """The sum over the team of a tensor, an array or a number: the same bits on every rank.

        One Allreduce for small sums, two for larger ones. Tensors on a GPU go through the host. Raises
        `PeerFailed` on all other ranks where one has raised instead of coming here.
        """
        if self.size == 1:
            return value
        array = _array(value)
        return _like(value, self._reduce(array))

    def any(self, flag: bool) -> bool:
        """Whether any rank of the team says so: such as a stop, which all must follow or none."""
        return bool(flag) if self.size == 1 else bool(self.sum(float(flag)) > 0)

    def agreed(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """The same question asked of the whole team, so that all its ranks hear one answer: for a measure's stop."""
        return stop if self.size == 1 else lambda: self.any(stop())

    def settle(self, code: int) -> int:
        """The largest of the ranks' codes; other than 0, it makes ranks that still sum raise `PeerFailed`."""
        if self.size == 1:
            return code
        head = np.zeros(_HEAD)
        head[0], head[1] = max(code, 0), -1.0
        codes, sizes = self._head(head)
        if codes == 0 and (sizes != -1.0).any():
            raise PeerFailed(1, "the ranks of a team disagree about what comes next: one sums, another has finished")
        return int(codes)

    def broadcast(self, value: Any = None) -> Any:
        """The leader's value, on every rank of the team."""
        return value if self.comm is None or self.size == 1 else self._wire.broadcast(self.comm, value, self.ranks)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank of the team."""
        return [value] if self.size == 1 else self._wire.gather(self.comm, value, self.ranks)

    @property
    def _wire(self) -> Channel:
        if self.wire is None:
            raise ValueError("a team of several ranks wants the wire of its world")
        return self.wire

    def _head(self, head: np.ndarray) -> tuple[float, np.ndarray]:
        """Exchange heads: the largest code, and what each rank means to sum."""
        heads = np.empty((self.size, _HEAD))
        self._wire.wait(self.comm.Iallgather(head, heads), self.ranks)
        self._heads = heads
        return float(heads[:, 0].max()), heads[:, 1]

    def _reduce(self, array: np.ndarray) -> np.ndarray:
        head = np.zeros(_HEAD)
        small = array.size <= _HEAD - 2 and array.dtype == np.float64
        head[1] = array.size
        if small:
            head[2 : 2 + array.size] = array.reshape(-1)
        code, sizes = self._head(head)
        if code:
            raise PeerFailed(int(code))
        if (sizes != array.size).any():
            raise PeerFailed(1, f"the ranks of a team sum different things, of {sizes.astype(int).tolist()} numbers")
        if small:  # added in the order of the ranks, by every rank: the same bits everywhere
            total: np.ndarray = self._heads[:, 2 : 2 + array.size].sum(axis=0)
            return total.reshape(array.shape)
        result = np.array(array, order="C")
        self._wire.wait(self.comm.Iallreduce(self._wire.mpi.IN_PLACE, result), self.ranks)
        return result


class PeerFailed(BaseException):
    """Another rank of the team has raised at this point. No Exception, so that a measure does not catch it.

    code  the largest of the ranks' codes: see `Team.settle`
    why   what is wrong, where it is no single rank's fault
    """

    def __init__(self, code: int, why: str | None = None) -> None:
        super().__init__(why or "another rank of the team could not go on with this point")
        self.code, self.why = code, why


def _array(value: Any) -> np.ndarray:
    """A tensor, array or number as an array in the host's memory."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) in ("torch.bfloat16", "torch.float16"):  # MPI knows no half precision
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def _like(value: Any, array: np.ndarray) -> Any:
    """The array as the kind of thing that `value` is, where that is."""
    if hasattr(value, "detach"):
        return value.new_tensor(array).reshape(value.shape)
    if isinstance(value, np.ndarray):
        return array.reshape(value.shape)
    return type(value)(array)
