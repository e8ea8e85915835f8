"""Signals and the clock, in this process and in a child of its own where a signal ends it."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest

from lossmap.parallel import shutdown
from lossmap.parallel.shutdown import ORDERLY_SIGNALS, URGENT_SIGNALS, WRAP_UP_SECONDS, Stop, job_end


@pytest.fixture
def stop():
    stop = Stop()
    with stop:
        yield stop
    stop.close()


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.001)


@pytest.mark.parametrize("number", ORDERLY_SIGNALS)
def test_usr1_usr2_and_hup_ask_for_no_new_points_and_let_the_others_end(stop, number):
    for _ in range(3):
        os.kill(os.getpid(), number)
    until(lambda: stop.reason)
    assert stop.reason == signal.Signals(number).name and not stop() and not stop.allows(0)


@pytest.mark.parametrize("number", URGENT_SIGNALS)
def test_int_and_term_ask_to_leave_the_points_in_progress(stop, number):
    os.kill(os.getpid(), number)
    until(lambda: stop.reason)
    assert stop() and stop.urgent


def test_a_signal_is_noted_while_the_main_thread_sits_in_one_long_call(stop):
    seen = []

    def watch():
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: stop.reason)
        seen.append(time.monotonic())

    thread = threading.Thread(target=watch)
    began = time.monotonic()
    thread.start()
    sum(range(10_000_000))
    sleeping = time.monotonic() - began
    thread.join()
    assert seen[0] - began < max(1.0, sleeping)


def test_points_in_progress_have_a_limited_time_to_end():
    stop = Stop(grace=0.05)
    stop.request("USR1")
    assert not stop()
    time.sleep(0.06)
    assert stop()


def test_the_clock_lets_begin_what_can_end_in_time():
    stop = Stop(after=10)
    assert stop.allows(9) and stop.reason is None
    assert not stop.allows(11) and stop.reason == "the time limit"
    assert not stop() and Stop(after=0)()


def test_the_earlier_of_two_ends_counts_and_a_jobs_end_leaves_time_to_close_the_file():
    assert Stop(after=1000, until=time.time() + 100).seconds_left() == pytest.approx(100 - WRAP_UP_SECONDS, abs=1)
    assert Stop(after=10, until=time.time() + 100).seconds_left() == pytest.approx(10, abs=1)
    assert Stop().seconds_left() == float("inf")


def test_seconds_below_zero_are_refused():
    with pytest.raises(ValueError, match="--stop-after must be >= 0 seconds; got -1"):
        Stop(after=-1)


def test_listeners_are_polled_whenever_the_stop_is():
    stop = Stop()
    silent = stop.add_listener(lambda: stop.request("somebody else", urgent=True))
    assert stop() and stop.reason == "somebody else"
    silent()
    assert stop._listeners == []


def test_signal_handlers_are_restored_where_no_stop_was_requested():
    before = [signal.getsignal(number) for number in (*URGENT_SIGNALS, *ORDERLY_SIGNALS)]
    with Stop():
        assert signal.getsignal(signal.SIGUSR1) is not before[2]
    assert [signal.getsignal(number) for number in (*URGENT_SIGNALS, *ORDERLY_SIGNALS)] == before


def test_signals_are_kept_after_a_stop_until_the_next_one_takes_them():
    before = signal.getsignal(signal.SIGUSR1)
    with Stop() as first:
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: first.reason)
    os.kill(os.getpid(), signal.SIGUSR1)  # would end the process
    with Stop() as second:
        os.kill(os.getpid(), signal.SIGUSR2)
        until(lambda: second.reason)
    second.close()
    assert (first.reason, second.reason) == ("SIGUSR1", "SIGUSR2")
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_stop_within_another_leaves_it_the_signals(stop):
    with Stop() as inner:
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: stop.reason)
    assert inner.reason is None


def test_a_thread_other_than_the_main_one_takes_no_signals():
    with_threads = []
    thread = threading.Thread(target=lambda: with_threads.append(Stop().__enter__()))
    thread.start()
    thread.join()
    assert shutdown._installed is None


CHILD = """
import os, signal, sys, time
signal.signal(2, signal.default_int_handler)  # a shell ignores it in what runs in the background
from lossmap.parallel.shutdown import Stop
with Stop() as stop:
    {}
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os.kill(os.getpid(), 2); time.sleep(1.1); os.kill(os.getpid(), 2); time.sleep(30)", 130),
        ("os.kill(os.getpid(), 2); time.sleep(1.1); os.kill(os.getpid(), 15); time.sleep(30)", 143),
        ("os.kill(os.getpid(), 15); os.kill(os.getpid(), 15); time.sleep(.3)", 0),
        ("os.kill(os.getpid(), 10); time.sleep(1.1); os.kill(os.getpid(), 10); time.sleep(.3)", 0),
        ("os.kill(os.getpid(), 12)\n    time.sleep(.1)\nos.kill(os.getpid(), 12)", 0),
        # a forked child dies of a TERM, and its parent does not take the signal for its own
        (
            "child = os.fork()\n    if not child: time.sleep(60)\n    time.sleep(.3); os.kill(child, 15)\n"
            "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) + 100 + bool(stop.reason))",
            85,
        ),
    ],
)
def test_how_a_process_ends(body, code):
    ended = subprocess.run([sys.executable, "-c", CHILD.format(body)], timeout=20, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr


KEEPING = """
import os, signal, sys, time
signal.signal(2, signal.default_int_handler)  # a shell ignores it in what runs in the background
from lossmap.parallel.shutdown import Stop, keep_signals
keep_signals()
{}
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        # kept for the Stop that comes after the imports, the one in the end too
        ("os.kill(os.getpid(), 10)\nwith Stop() as stop: sys.exit(stop.reason != 'SIGUSR1' or stop())", 0),
        ("os.kill(os.getpid(), 15)\nwith Stop() as stop: sys.exit(stop.reason != 'SIGTERM' or not stop())", 0),
        ("os.kill(os.getpid(), 2); time.sleep(1.1); os.kill(os.getpid(), 2); time.sleep(30)", 130),
        ("with Stop(): pass\nos.kill(os.getpid(), 15); time.sleep(30)", -15),  # as before once nobody keeps it
        ("signal.signal(10, signal.SIG_IGN); keep_signals(); print(signal.getsignal(10) == signal.SIG_IGN or 1/0)", 0),
    ],
)
def test_signals_before_there_is_a_stop_are_kept(body, code):
    program = KEEPING.format(body)
    ended = subprocess.run([sys.executable, "-c", program], timeout=20, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr


def test_the_end_of_the_job_comes_from_slurms_variable_or_from_scontrol():
    assert job_end({}) is None
    assert job_end({"SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    asked = []

    def scontrol(command):
        asked.append(command)
        return "JobId=7 JobName=x\n   StartTime=2030-01-01T00:00:00 EndTime=2030-01-01T01:00:00 Deadline=N/A\n"

    assert job_end({"SLURM_JOB_ID": "7"}, scontrol) == datetime(2030, 1, 1, 1).timestamp()
    assert asked == [["scontrol", "show", "job", "7"]]


@pytest.mark.parametrize("said", ["EndTime=Unknown", "nothing of the kind"])
def test_a_job_without_an_end_has_no_clock(said):
    assert job_end({"SLURM_JOB_ID": "7"}, lambda command: said) is None


def test_without_scontrol_there_is_no_clock(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert job_end({"SLURM_JOB_ID": "7"}) is None


def test_only_the_first_rank_asks_scontrol():
    def scontrol(command):
        raise AssertionError("asked")

    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    assert job_end({**step, "SLURM_PROCID": "3"}, scontrol) is None
    assert job_end({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "2"}, scontrol) is None
