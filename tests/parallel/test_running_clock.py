"""The clock that stands while its process is stopped."""

import time

from lossmap.parallel.running_clock import MAX_STEP, TICK, RunningClock, running_clock


def test_a_pause_counts_as_one_step_and_seconds_never_run_backwards():
    times = iter([10.0, 10.2, 10.25, 10.3, 5000.0, 5000.0, 5000.1])
    clock = RunningClock(lambda: next(times))
    assert round(clock(), 6) == 0.2
    clock.look()  # at 10.25
    assert round(clock(), 6) == 0.3
    assert round(clock(), 6) == 0.25 + MAX_STEP  # it was stopped for long
    clock.look()
    assert round(clock(), 6) == 0.25 + MAX_STEP + 0.1


def test_a_process_that_runs_has_the_seconds_of_a_watch():
    with running_clock() as clock:
        began, own = time.monotonic(), clock()
        time.sleep(4 * TICK)
        assert 3 * TICK < clock() - own <= time.monotonic() - began + 0.01
