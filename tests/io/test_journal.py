"""The journal: whatever happens to its end or its middle, the sound records come back."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmap.io import journal as log
from lossmap.io.journal import MARK, Busy, Journal, Record, packed, parse, runs

RECORDS = st.lists(
    st.tuples(st.sampled_from([b"O", b"M", b"P", b"F", b"N"]), st.binary(max_size=40) | st.just(MARK + b"P\0" + MARK)),
    max_size=8,
)


def written(records):
    return b"".join(packed(kind, payload) for kind, payload in records)


@given(RECORDS)
def test_what_was_appended_is_read_back(records):
    found = parse(written(records))
    assert [(r.kind, r.payload) for r in found.records] == records
    assert (found.torn, found.damaged) == (0, 0)


@given(RECORDS, st.data())
def test_torn_at_any_byte_the_whole_records_before_remain(records, data):
    whole = written(records)
    cut = data.draw(st.integers(0, len(whole)))
    found = parse(whole[:cut])
    lengths = [len(packed(*r)) for r in records]
    complete = next(i for i in range(len(lengths), -1, -1) if sum(lengths[:i]) <= cut)
    assert [(r.kind, r.payload) for r in found.records] == records[:complete]
    assert found.end == sum(lengths[:complete])
    assert found.torn == cut - found.end


@given(RECORDS.filter(bool), st.data())
def test_a_damaged_byte_costs_no_more_than_its_record(records, data):
    whole = bytearray(written(records))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found = [(r.kind, r.payload) for r in parse(bytes(whole)).records]
    begins = [sum(len(packed(*r)) for r in records[:i]) for i in range(len(records))]
    hurt = max(i for i, begin in enumerate(begins) if begin <= at)
    if found != records:  # a changed spare byte hurts nothing
        others = records[:hurt] + records[hurt + 1 :]
        # A payload may itself hold something that looks like a record; nothing else may appear or vanish.
        assert found[:hurt] == records[:hurt]
        assert found[len(found) - len(records[hurt + 1 :]) :] == records[hurt + 1 :] or not records[hurt + 1 :]
        assert len(found) >= len(others)


@given(st.binary(max_size=200))
def test_any_bytes_at_all_can_be_read(data):
    assert parse(data).end <= len(data)


def test_a_torn_end_is_cut_off_when_a_writer_opens_the_file(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(packed(b"N", b"one") + packed(b"N", b"two")[:-1])
    journal = Journal(path)
    journal.append(b"N", b"three")
    journal.close()
    assert [r.payload for r in log.read(path).records] == [b"one", b"three"]
    assert log.read(path).damaged == 0


def test_a_damaged_stretch_is_stepped_over_and_counted(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(packed(b"N", b"one") + b"\0" * 37 + packed(b"N", b"two"))
    assert [r.payload for r in log.read(path).records] == [b"one", b"two"]
    assert log.read(path).damaged == 37


def test_a_second_writer_is_turned_away_and_a_reader_is_not(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append(b"N", b"one")
    assert log.is_locked(path)
    with pytest.raises(Busy, match="another process is writing"):
        Journal(path)
    assert [r.payload for r in log.read(path).records] == [b"one"]
    journal.close()
    assert not log.is_locked(path)
    journal.close()


def test_a_journal_removed_by_its_last_writer_is_made_anew(tmp_path):
    path = tmp_path / "j"
    first = Journal(path)
    first.close(remove=True)
    assert not path.exists() and not log.is_locked(path)
    assert log.read(path).records == []
    second = Journal(path)
    second.append(b"N", b"x")
    second.close()
    assert path.exists()


def test_the_lock_is_requested_again_where_the_file_vanished_meanwhile(tmp_path, monkeypatch):
    path, real, calls = tmp_path / "j", log.fcntl.flock, []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:  # the former writer removes its journal just now
            path.unlink()
        return real(file, how)

    monkeypatch.setattr(log.fcntl, "flock", flock)
    journal = Journal(path)
    assert len(calls) == 2 and path.exists()
    journal.close()


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(log.fcntl, "flock", flock)
    journal = Journal(tmp_path / "j")
    assert journal.unlocked == "No locks available"
    journal.append(b"N", b"one")
    journal.close()
    assert not log.is_locked(tmp_path / "j")


def test_another_failure_of_the_lock_is_an_error(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(log.fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        Journal(tmp_path / "j")


def test_a_full_disk_leaves_the_records_before_as_they_were(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    journal.append(b"N", b"one")
    real = os.write

    def write(file, data):
        if len(data) > 5:
            return real(file, data[:5])  # a short write, and then a full disk
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        journal.append(b"N", b"two, which does not fit")
    monkeypatch.setattr(os, "write", real)
    journal.append(b"N", b"three")
    journal.close()
    found = log.read(tmp_path / "j")
    assert [r.payload for r in found.records] == [b"one", b"three"]
    assert (found.damaged, found.torn) == (0, 0)


def test_records_reach_the_disk_in_groups(tmp_path, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(1), real(file)))
    journal = Journal(tmp_path / "j")
    for _ in range(1000):
        journal.append(b"N", b"x")
        if journal.due:
            journal.sync()
    assert len(synced) < 100
    journal.sync()
    before = len(synced)
    journal.sync()
    assert len(synced) == before  # nothing new
    journal.close()


def test_clearing_forgets_everything(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(b"N", b"x" * 100)
    journal.clear()
    assert journal.size == 0
    journal.append(b"N", b"y")
    journal.close()
    assert [r.payload for r in log.read(tmp_path / "j").records] == [b"y"]


def test_runs_draw_records_of_a_kind_together():
    records = [Record(b"P", b"1"), Record(b"P", b"2"), Record(b"F", b"3"), Record(b"P", b"4")]
    assert list(runs(records)) == [(b"P", [b"1", b"2"]), (b"F", [b"3"]), (b"P", [b"4"])]
