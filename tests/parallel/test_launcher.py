"""The start of MPI: which library a launcher fits, and what becomes of ranks that wait for a dead one."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

from lossmap.parallel.launcher import check_library, library_name, start_watchdog

MPICH = "MPICH Version:      5.0.2\nMPICH Release date: Fri Sep 25 20:45:26 UTC 2026\nMPICH ABI:          18:2:6\n"
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11\0"
UNDER_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}


def test_libraries_by_name_and_version():
    assert library_name(MPICH) == "MPICH 5.0.2"
    assert library_name(OPEN_MPI) == "Open MPI v5.0.11"


@pytest.mark.parametrize("library", [MPICH, "Intel(R) MPI Library 2021.16 for Linux* OS\n", "MVAPICH Version: 4.0\n"])
def test_a_library_that_the_mpirun_of_open_mpi_would_end_is_not_started(library):
    with pytest.raises(
        ValueError, match=r"^the mpirun of Open MPI started 3 ranks, but mpi4py uses .* here; start the"
    ):
        check_library(library, UNDER_OPEN_MPI)
    check_library(OPEN_MPI, UNDER_OPEN_MPI)
    check_library(library, {"PMI_SIZE": "3"})
    check_library(library, {**UNDER_OPEN_MPI, "PMI_SIZE": "3"})  # its own mpirun within a job of the other


# as MPI_Init does: a call of C that never ends, and lets no other thread of Python run
WAITING = """
import ctypes, os
from lossmap.parallel.launcher import start_watchdog
with start_watchdog(os.environ):
    ctypes.PyDLL(None).sleep(30)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
def test_ranks_that_wait_for_a_dead_one_end_with_one_sentence_for_all():
    environ = {**os.environ, **UNDER_OPEN_MPI, "OMPI_MCA_mpi_ft_enable": "1", "LOSSMAP_MPI_START": "0.7"}
    launcher = 'OMPI_COMM_WORLD_RANK=1 "$0" -c "$1" & "$0" -c "$1"; second=$?; wait $!; exit $(($? * 10 + second))'
    ended = subprocess.run(
        ["sh", "-c", launcher, sys.executable, WAITING], env=environ, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 11 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert "MPI has not started within 0.7 s" in line and "LOSSMAP_MPI_START" in line
    assert line.startswith(("lossmap: rank 1 on ", "lossmap: rank 2 on ")), line


def test_a_start_in_time_leaves_nothing_behind(capfd):
    with start_watchdog({"OMPI_MCA_mpi_ft_enable": "1", "LOSSMAP_MPI_START": "0.2"}):
        pass
    with contextlib.suppress(ChildProcessError):
        pytest.fail(f"a child is left: {os.waitpid(-1, os.WNOHANG)}")
    time.sleep(0.6)  # neither a sentence nor the end of this process
    assert capfd.readouterr() == ("", "")
