"""The start of MPI: what becomes of ranks that wait there for a dead one, are killed, or crash."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lossmap.parallel.watchdog import start_watchdog

UNDER_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2", "OMPI_MCA_mpi_ft_enable": "1"}

# as MPI_Init does: a call of C that never ends, and lets no other thread of Python run
WAITING = """
import ctypes, os
from lossmap.parallel.watchdog import start_watchdog
with start_watchdog(os.environ):
    ctypes.PyDLL(None).sleep(30)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
def test_ranks_that_wait_for_a_dead_one_end_with_one_sentence_for_all():
    environ = {**os.environ, **UNDER_OPEN_MPI, "LOSSMAP_MPI_START": "0.7"}
    launcher = 'OMPI_COMM_WORLD_RANK=1 "$0" -c "$1" & "$0" -c "$1"; second=$?; wait $!; exit $(($? * 10 + second))'
    ended = subprocess.run(
        ["sh", "-c", launcher, sys.executable, WAITING], env=environ, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 11 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert "MPI has not started within 0.7 s" in line and "LOSSMAP_MPI_START" in line
    assert line.startswith(("lossmap: rank 1 on ", "lossmap: rank 2 on ")), line


def children():
    """The processes that this one has begun, those that have ended unnoticed too; other tests may have left some."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_start_in_time_leaves_nothing_behind(capfd):
    before = children()
    with start_watchdog({"OMPI_MCA_mpi_ft_enable": "1", "LOSSMAP_MPI_START": "0.2"}):
        assert len(children() - before) == 1
    assert not children() - before
    time.sleep(0.6)  # neither a sentence nor the end of this process
    assert capfd.readouterr() == ("", "")


CRASHING = """
import ctypes, os, sys
from lossmap.parallel.watchdog import start_watchdog
with start_watchdog(os.environ):
    if "within" in sys.argv:
        ctypes.string_at(0)
ctypes.string_at(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
@pytest.mark.parametrize("faulthandler", ["", "1"])
def test_a_crash_is_an_exit_code_during_the_start_and_a_stack_afterwards(faulthandler):
    environ = {**os.environ, **UNDER_OPEN_MPI, "PYTHONFAULTHANDLER": faulthandler}
    command = ["sh", "-c", '"$0" -c "$1" "$2"; exit $?', sys.executable, CRASHING]
    within = subprocess.run([*command, "within"], env=environ, capture_output=True, text=True, timeout=20)
    assert within.returncode == signal.SIGSEGV  # an exit code; for a death by a signal the shell adds 128
    assert within.stderr.startswith("lossmap: rank 2 on ") and len(within.stderr.splitlines()) == 1
    assert "was killed, or crashed, while MPI was starting" in within.stderr
    later = subprocess.run([*command, "later"], env=environ, capture_output=True, text=True, timeout=20)
    assert later.returncode == 128 + signal.SIGSEGV
    assert "Segmentation fault" in later.stderr and "string_at" in later.stderr and "lossmap:" not in later.stderr


def test_an_error_of_the_start_is_nobodys_death(capfd):
    with pytest.raises(ValueError, match="another library"), start_watchdog(UNDER_OPEN_MPI):
        raise ValueError("another library")
    assert capfd.readouterr() == ("", "")


def test_a_point_whose_code_ends_the_program_has_failed():
    import sys

    from lossmap.parallel.evaluate import PointEvaluator
    from lossmap.parallel.messages import FAILED
    from lossmap.parallel.team import Team

    kind, index, text = PointEvaluator(lambda point: sys.exit(0), lambda i: i, {"loss": 1}, Team())(3, None)
    assert (kind, index, text.splitlines()[-1]) == (FAILED, 3, "SystemExit: 0")
