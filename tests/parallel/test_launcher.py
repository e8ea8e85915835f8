"""Which MPI library a launcher fits."""

import pytest

from lossmap.parallel.launcher import check_library, library_name

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
