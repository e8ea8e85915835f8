"""The evaluation of one point, by all ranks of a team together; whatever comes of it is a message.

Where a rank of a team raises, the others would wait in their sum for ever: so each sum, and each end of a point, first
settles whether anybody has raised (`Team.settle`), and all leave the point as one. Lack of memory is no failure where
the measure can make do with less.
"""

from __future__ import annotations

import gc
import logging
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from lossmap.device_errors import gpu_lost_by, loses_gpu, out_of_memory
from lossmap.interrupt import Interrupted, is_error_of_user_code
from lossmap.parallel.messages import DONE, FAILED, INTERRUPTED, Message, WorkerLost
from lossmap.parallel.team import PeerFailed, Team
from lossmap.report.text import raised_error

logger = logging.getLogger("lossmap")

OK, RAISED, LEFT, NO_MEMORY, GPU_LOST = range(5)  # what the ranks of a team settle about a point; the largest counts


class PointEvaluator:
    """Evaluates points with the whole team; what comes of it is a message for the dispatcher, never an exception.

    measure        point -> reading
    point          flat index -> the coordinates of the point
    field_sizes    how many numbers each field of a reading has
    team           the ranks that share a point
    point_timeout  seconds after which the kernel ends this rank, since it answers no more; None: never

    `note` is called with texts for the log; it may be replaced.
    """

    def __init__(
        self,
        measure: Callable[[Any], Mapping[str, Any]],
        point: Callable[[int], Any],
        field_sizes: Mapping[str, int],
        team: Team,
        point_timeout: float | None = None,
    ) -> None:
        self.measure, self.point, self.field_sizes = measure, point, dict(field_sizes)
        self.team, self.point_timeout = team, point_timeout
        self.note: Callable[[str], None] = logger.warning

    def __call__(self, index: int, state: Any) -> Message:
        """The leader's part: evaluate the point, from an earlier run's state where that is not None.

        Returns (DONE, index, reading, seconds), (FAILED, index, text) or (INTERRUPTED, index, state). Raises
        WorkerLost where a GPU of the team computes no more: the point is not to blame for what comes after it.
        """
        self.team.broadcast((index, state))
        return self.evaluate(index, state)

    def follow(self) -> Message:
        """A member's part: evaluate what the leader evaluates, until it hands on the END message's content."""
        while True:
            index, content = self.team.broadcast()
            if index is None:
                return cast(Message, content)
            self.evaluate(index, content)

    def release(self, end: Message) -> None:
        """Hand the content of the END message to the members."""
        self.team.broadcast((None, end))

    def evaluate(self, index: int, state: Any) -> Message:
        """Evaluate the point, again where memory ran out and the measure can do with less."""
        while True:
            began = time.perf_counter()
            code, value = self._attempt(index, state)
            if code == GPU_LOST:
                known = [text for text in self.team.gather(value) if text is not None]
                raise WorkerLost(known[0][0], known[0][1])
            if code == OK:
                seconds = time.perf_counter() - began
                self._remark(index, value)
                return DONE, index, value, seconds
            values = [value for value in self.team.gather(value) if value is not None]
            if code == LEFT:
                return INTERRUPTED, index, next((v for v in values if isinstance(v, dict)), {})
            text = next((v for v in values if isinstance(v, str)), "no rank of the team says why")
            if code == RAISED or not self._shrink(value is not None, text):
                return FAILED, index, text

    def _attempt(self, index: int, state: Any) -> tuple[int, Any]:
        """(the team's code, this rank's part of it: the reading, the state, or the error as text)."""
        value: Any = None
        was_lost = gpu_lost_by() is not None
        try:
            if was_lost:
                raise RuntimeError("the GPU was lost before")
            with watchdog(self.point_timeout):
                value = self._checked(self._reading(index, state))
            code = OK
        except PeerFailed as failed:  # settled already
            return failed.code, failed.reason
        except Interrupted as left:
            code, value = LEFT, left.state
        except BaseException as error:
            if not is_error_of_user_code(error):
                raise
            code = RAISED
            if out_of_memory(error) and hasattr(self.measure, "smaller"):
                code = NO_MEMORY
            value = traceback.format_exc()
            if loses_gpu(error):
                rank = self.team.ranks[self.team.rank]
                code, value = GPU_LOST, (f"rank {rank} has lost its GPU: {gpu_lost_by()}", not was_lost)
            elif self.team.size > 1:
                value = f"on rank {self.team.rank} of the team:\n{value}"
        try:
            settled = self.team.settle(code)
        except PeerFailed as failed:
            return failed.code, failed.reason
        return settled, value if settled == code else None

    def _remark(self, index: int, reading: Mapping[str, Any]) -> None:
        """Hand on what the measure has to say of a reading, if anything; the leader of a team alone asks it."""
        if not self.team.leads or not hasattr(self.measure, "remark"):
            return
        remark = self.measure.remark(self.point(index), reading)
        if remark is not None:
            self.note(remark)

    def _reading(self, index: int, state: Any) -> Mapping[str, Any]:
        point = self.point(index)
        if state is not None and hasattr(self.measure, "resume"):
            resumed: Mapping[str, Any] = self.measure.resume(point, state)
            return resumed
        return self.measure(point)

    def _shrink(self, failed_here: bool, text: str) -> bool:
        """After memory ran out, on this rank where `failed_here`: make do with less on all ranks of the team, or none.

        On all, since a measure may keep something from point to point that must be the same on each of them.
        """
        gc.collect()  # what the failed attempt left in reference cycles, before memory is allocated anew
        change: str | None = None
        try:
            change = self.measure.smaller()  # type: ignore[attr-defined]
        except Exception as error:  # there may not even be room to change anything
            logger.warning("after memory ran out: %s", error)
        if self.team.settle(RAISED if change is None else OK) != OK:
            return False
        if failed_here:
            self.note(f"memory ran out ({raised_error(text)}); {change}")
        return True

    def _checked(self, reading: Mapping[str, Any]) -> dict[str, Any]:
        """The reading as numbers and arrays, with just the fields that were declared, and its groups of arrays."""
        groups = {name: _named_arrays(name, value) for name, value in reading.items() if isinstance(value, dict)}
        reading = {name: value for name, value in reading.items() if name not in groups}
        if set(reading) != set(self.field_sizes):
            raise ValueError(
                f"the measure declared the fields {', '.join(sorted(self.field_sizes))} and returned "
                f"{', '.join(sorted(reading)) or 'none'}"
            )
        checked: dict[str, Any] = dict(groups)
        for name, size in self.field_sizes.items():
            values = np.asarray(reading[name], dtype=np.float64)
            if values.size != size:
                raise ValueError(f"the field {name!r} takes {size} numbers a point; the measure returned {values.size}")
            checked[name] = float(values) if values.ndim == 0 else values
        return checked


def _named_arrays(group: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a group in a reading: numbers or text, of any shape."""
    checked = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in checked.items():
        if array.dtype.kind not in "biufU":
            raise ValueError(f"{group}/{name} must be an array of numbers or text; got {array.dtype}")
    return checked


@contextmanager
def watchdog(seconds: float | None) -> Iterator[None]:
    """The kernel ends this process where the block takes longer, even inside a call that never returns."""
    if seconds is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
