"""Streamed batches are copied beside the work on those before: in the right order, and not too far ahead."""

import pytest
import torch

from lossmap.data import batches, copy_stream
from lossmap.data.batches import Streamed


class Card:
    """A device that does nothing until it is waited for: a kernel that is launched too early reads what is not there.

    Work is a list of (stream, what) in the order in which the host asked for it; `run` does it as CUDA may: as late as
    what is waited for allows.
    """

    def __init__(self):
        self.computing, self.copying, self.now = Stream(self, "computing"), None, None
        self.log = []

    def Stream(self, device):
        assert self.copying is None  # one for the whole process
        self.copying = Stream(self, "copying")
        return self.copying

    def current_stream(self, device=None):
        return self.now or self.computing

    def stream(self, stream):
        return Within(self, stream)

    def Event(self):
        return Event(self)


class Stream:
    def __init__(self, card, name):
        self.card, self.name = card, name

    def wait_stream(self, other):
        self.card.log.append(("waits", self.name, other.name))


class Event:
    def __init__(self, card):
        self.card, self.number = card, None

    def record(self, stream):
        self.number = sum(entry[0] == "event" for entry in self.card.log)
        self.card.log.append(("event", stream.name))

    def synchronize(self):
        self.card.log.append(("host waits", self.number))


class Within:
    def __init__(self, card, stream):
        self.card, self.stream = card, stream

    def __enter__(self):
        self.card.now = self.stream

    def __exit__(self, *_):
        self.card.now = None


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch, "meta", card, raising=False)
    monkeypatch.setattr(copy_stream, "_streams", {})
    monkeypatch.setattr(copy_stream, "_unpinned", [])

    def pin(tensor):
        card.log.append(("pinned", int(tensor[0, 0])))
        return tensor.clone()

    def move(batch, device, dtype):
        card.log.append(("copied", card.current_stream().name, int(batch[0][0, 0])))
        return tuple(t.to("meta") for t in batch)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: card.log.append(("recorded", s.name)))
    monkeypatch.setattr(batches, "move_batch", move)
    return card


def data(device=None):
    x = torch.arange(10.0).view(10, 1)
    return Streamed(lambda rows: (x[list(rows)],), range(10), 2, device=device)


def test_a_batch_is_pinned_copied_on_its_stream_and_waited_for_before_it_is_used(card):
    read = 0
    for k, batch in enumerate(data("meta")):
        read += len(batch[0])
        expected = [("pinned", 2 * k), ("copied", "copying", 2 * k), ("waits", "computing", "copying")]
        assert card.log[-4:] == [*expected, ("recorded", "computing")]
        card.log.append(("work", k))
    assert read == 10 and card.now is None
    list(data("meta"))  # with the same stream again


def test_the_host_runs_two_batches_ahead_and_waits_for_the_work_of_the_one_before(card):
    for k, _ in enumerate(data("meta")):
        card.log.append(("work", k))
    waits = {entry[1]: i for i, entry in enumerate(card.log) if entry[0] == "host waits"}
    assert list(waits) == [0, 1, 2]
    events = [i for i, entry in enumerate(card.log) if entry[0] == "event"]
    for number, place in waits.items():
        assert card.log[events[number] - 1] == ("work", number)  # the event stands behind that batch's work
        assert card.log.index(("work", number + 1)) < place < card.log.index(("pinned", 2 * (number + 2)))


def test_memory_that_cannot_be_pinned_is_copied_as_it_is_and_said_once(card, monkeypatch, caplog):
    def refuses(tensor):
        raise RuntimeError("cannot pin\nmore")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuses)
    with caplog.at_level("INFO", "lossmap"):
        assert len(list(data("meta"))) == 5
    assert [r.getMessage() for r in caplog.records] == ["samples are copied from memory that is not pinned: cannot pin"]
    assert [entry[2] for entry in card.log if entry[0] == "copied"] == [0, 2, 4, 6, 8]


def test_on_a_device_without_streams_a_batch_is_moved_as_it_is_read():
    assert copy_stream.streams_of("cpu") is None and copy_stream.streams_of(None) is None
    for device in (None, "cpu"):
        read = list(data(device))
        assert torch.equal(torch.cat([x for (x,) in read]), torch.arange(10.0).view(10, 1))
    assert [x.device.type for (x,) in data("meta")] == ["meta"] * 5
    assert copy_stream.streams_of("cuda") is torch.cuda
