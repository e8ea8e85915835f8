"""Ranks that do nothing while the problem is set up: they end with a sentence, and no slow one does."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lossmap.cli.entry_point import guarded
from lossmap.parallel.idle_watch import IDLE_FACTOR, VARIABLE, Activity, Stillness, idle_watch, limit_in, not_watched

LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the kernel does not say here")
UNDER_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}
NOTHING = Activity(switches=5, cpu=1.0, other=100, waiting=False)


def looked(*activities, seconds=1.0):
    """(still, idle) after such looks, one each second."""
    stillness = Stillness(NOTHING)
    for activity in activities:
        stillness.look(activity, seconds)
    return stillness.still, stillness.idle


def test_a_rank_of_which_the_kernel_counts_nothing_is_still():
    assert looked(*[NOTHING] * 9) == (9, 9)


@pytest.mark.parametrize(
    "last",
    [
        Activity(5, 1.05, 100, False),  # computes, by any thread or child
        Activity(5, 0.90, 100, False),  # a child that has computed was counted, and has ended
        Activity(5, 1.0, 101, False),  # reads, writes, touches new memory, or waits for another rank
        Activity(5, 1.0, 100, True),  # waits for a disk
    ],
)
def test_one_that_does_anything_begins_anew(last):
    assert looked(*[NOTHING] * 9, last) == (0, 0)


def test_a_loop_that_sleeps_is_not_still_but_idle():
    assert looked(*[Activity(5 + n, 1.0 + 0.001 * n, 100, False) for n in range(1, 21)]) == (0, 20)


def test_little_by_little_is_work_where_it_is_more_than_a_thousandth():
    assert looked(*[Activity(5 + n, 1.0 + 0.004 * n, 100, False) for n in range(1, 21)])[1] < 20


# the ranks that hang, and those that take their time, side by side
PROGRAM = """
import os, subprocess, sys, threading, time
from lossmap.parallel.idle_watch import idle_watch, not_watched
from lossmap.parallel.messages import PollBackoff
def net(how):
    until = time.monotonic() + 3
    if how == "lock":
        threading.Event().wait(20)
    elif how == "point":
        with not_watched():
            time.sleep(3)
    elif how == "child":
        subprocess.run([sys.executable, "-c", "import time\\nwhile time.monotonic() < %r: pass" % until])
    while time.monotonic() < until:
        open(__file__).read() if how == "read" else PollBackoff().after(False)
        time.sleep(0.01)
def end():
    time.sleep(1)  # until MPI_Abort has ended all
    os._exit(70)
with idle_watch(os.environ, end):
    net(sys.argv[1])
print("done")
"""


@LINUX
def test_the_rank_that_hangs_is_named_once_and_slow_ones_are_left_alone(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(PROGRAM)
    ranks = [
        subprocess.Popen(
            [sys.executable, path, how], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **UNDER_OPEN_MPI, VARIABLE: "1"},
        )
        for how in ("lock", "lock", "point", "child", "read", "wait")
    ]  # fmt: skip
    ended = [(*rank.communicate(timeout=30), rank.returncode) for rank in ranks]
    assert [(out, err, code) for out, err, code in ended[2:]] == [("done\n", "", 0)] * 4
    assert [(out, code) for out, _, code in ended[:2]] == [("", 70)] * 2
    (sentence,) = [err for _, err, _ in ended[:2] if err]
    assert sentence.startswith("lossmap: rank 1 on ") and "at net.py, line 8, in net, while the other" in sentence
    assert sentence.count("\n") == 1 and f"({VARIABLE}=SECONDS waits longer)" in sentence


@LINUX
def test_nobody_is_watched_without_a_launcher_or_within_another_watch_or_where_never_is_asked_for():
    import threading

    def watches():
        return [thread for thread in threading.enumerate() if thread.name == "lossmap-idle"]

    for environ in ({}, {**UNDER_OPEN_MPI, VARIABLE: "inf"}):
        with idle_watch(environ, sys.exit), not_watched():
            assert not watches()
    with idle_watch(UNDER_OPEN_MPI, sys.exit), idle_watch(UNDER_OPEN_MPI, sys.exit):
        (thread,) = watches()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_time_that_is_none_is_one_sentence(text, monkeypatch, capsys):
    for name, value in {**UNDER_OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", VARIABLE: text}.items():
        monkeypatch.setenv(name, value)
    assert guarded(lambda: 0)() == 2
    said = capsys.readouterr().err
    assert said == f"lossmap: {VARIABLE} must be a number of seconds > 0, or inf for never; got {text!r}\n"


def test_the_times_are_long():
    assert limit_in({}) == limit_in({VARIABLE: ""}) == 1800 and limit_in({VARIABLE: "inf"}) == math.inf
    assert IDLE_FACTOR >= 4
