"""The worker's side of a survey: receive points from the dispatcher, evaluate one at a time, send the answers back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from lossmap.parallel.messages import (
    END,
    HALT,
    HALTED,
    HELLO,
    LOST,
    POINTS,
    STOP_REQUEST,
    Channel,
    Message,
    WorkerLost,
)
from lossmap.parallel.shutdown import Stop


class Worker:
    """Takes points from the dispatcher and evaluates one per `step`.

    channel          to the dispatcher
    evaluate_point   (index, state) -> an answer (DONE, index, reading, seconds), (FAILED, index, text) or
                     (INTERRUPTED, index, state); it raises nothing but `WorkerLost`, where the team has lost a rank
                     or a GPU
    stop             no point is begun once it has been requested
    survey_id        number of the survey; messages of other surveys are ignored
    host             this machine's name, for messages
    dispatcher_rank  where answers go
    """

    def __init__(
        self,
        channel: Channel,
        evaluate_point: Callable[[int, Any], Message],
        *,
        stop: Stop,
        survey_id: int = 0,
        host: str = "",
        dispatcher_rank: int = 0,
    ) -> None:
        self.channel, self.evaluate_point, self.stop = channel, evaluate_point, stop
        self.survey_id, self.dispatcher_rank = survey_id, dispatcher_rank
        self.pending: deque[tuple[int, Any]] = deque()
        self.end: Message | None = None  # content of the END message, once it has arrived
        self.halted = False  # the dispatcher has said HALT
        self.stop_reported = False
        self.broken = False  # a rank of the team has died, or lost its GPU
        self.send(HELLO, host)

    def send(self, *message: Any) -> None:
        """Send a message to the dispatcher."""
        self.channel.send((self.survey_id, *message), self.dispatcher_rank)

    def listen(self) -> bool:
        """Handle the messages that have arrived; whether there were any. Measures call it inside a point, by `stop`."""
        received = False
        while self.end is None and (arrived := self.channel.receive()) is not None:
            survey_id, kind, *content = arrived[1]
            if survey_id != self.survey_id:  # from a survey that ended before: a rank may be late
                continue
            received = True
            if kind == POINTS and not self.halted and not self.broken:
                self.pending.extend(content[0])
            elif kind == HALT:
                self._halt(urgent=content[0])
            elif kind == END:
                self.end = tuple(content)
        if self.stop.reason is not None and not self.stop_reported:
            self.stop_reported = True
            self.send(STOP_REQUEST, self.stop.reason, self.stop.urgent)
        return received

    def _halt(self, urgent: bool) -> None:
        # the request came from the dispatcher: it need not be reported back to it
        self.halted = self.stop_reported = True
        self.pending.clear()
        self.stop.request("rank 0", urgent=urgent)

    def step(self) -> bool:
        """Listen, and evaluate one point where there is one; whether anything was done."""
        halted_before = self.halted
        progressed = self.listen()
        if self.halted and not halted_before:
            self.send(HALTED)
        if self.pending and self.end is None and self.stop.reason is None:
            progressed = True
            self._evaluate(*self.pending.popleft())
        return progressed

    def _evaluate(self, index: int, state: Any) -> None:
        halted_before = self.halted
        try:
            self.send(*self.evaluate_point(index, state))
        except WorkerLost as error:
            self.broken = True
            self.pending.clear()
            self.send(LOST, str(error), error.at_point)
        # HALT may have arrived within the point; HALTED follows the answer, so that rank 0 has it when it closes
        if self.halted and not halted_before:
            self.send(HALTED)
