"""What a launcher has started: how many ranks, and how they are arranged in teams."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

MAX_RANKS_WITH_COMPUTING_RANK_0 = 32  # with more, the dispatcher is busy enough

# variables by which a launcher says how many ranks it has started
_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI
    "PMI_SIZE",  # MPICH, Intel MPI, Cray
    "MV2_COMM_WORLD_SIZE",  # MVAPICH
    "SLURM_STEP_NUM_TASKS",  # srun
    "MPI_WORLD_SIZE",
)
_MPIRUNS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
    "PMI_SIZE": "MPICH (or Intel MPI, Cray MPI)",
}
_MPICH_KIND = ("MPICH", "Intel", "MVAPICH")  # as they call themselves


def launched(environ: Mapping[str, str]) -> int:
    """How many ranks the launcher has started, by its variables; 1 without a launcher."""
    for name in _SIZE_VARIABLES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return 1


def rank_in(environ: Mapping[str, str]) -> int:
    """Which of them this process is, before any MPI is started; 0 without a launcher."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    in_step = "SLURM_STEP_ID" in environ and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    return int(environ["SLURM_PROCID"]) if in_step and environ.get("SLURM_PROCID", "").isdigit() else 0


@contextmanager
def claimed(what: str, launcher: int | None = None) -> Iterator[bool]:
    """A context that one process at a time holds of those that a launcher started on this machine; whether this one.

    what      that is claimed, so that not every rank says the same
    launcher  its process; None: the parent of this one
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        is_first = True
        if sys.platform == "linux":  # a name without a file, which is free again when this process ends
            try:
                claim.bind(f"\0lossmap-{what}-{os.getppid() if launcher is None else launcher}")
            except OSError:
                is_first = False
        yield is_first


def check_size(size: int, environ: Mapping[str, str], library: str = "another MPI") -> None:
    """Raises ValueError where a launcher started several ranks, each of which sees itself alone.

    library  the MPI that mpi4py uses
    """
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if size == 1 and tasks.isdigit() and int(tasks) > 1 and "OMPI_COMM_WORLD_SIZE" not in environ:
        raise ValueError(
            f"srun started {tasks} tasks, but MPI sees one rank: this MPI library needs another "
            "srun --mpi=... (see srun --mpi=list; Open MPI: pmix), or mpirun"
        )
    for name, launcher in _MPIRUNS.items():
        if size == 1 and environ.get(name, "").isdigit() and int(environ[name]) > 1:
            raise ValueError(
                f"the mpirun of {launcher} started {environ[name]} ranks, but MPI sees one: mpi4py uses {library} "
                "here; start the ranks with the mpirun of that library"
            )


def check_library(library: str, environ: Mapping[str, str]) -> None:
    """Raises ValueError where Open MPI's mpirun started ranks with MPICH's kind of library, which would end them.

    library  what the MPI of mpi4py says of itself
    """
    ranks = environ.get("OMPI_COMM_WORLD_SIZE", "")
    if ranks.isdigit() and "PMI_SIZE" not in environ and any(name in library for name in _MPICH_KIND):
        raise ValueError(
            f"the mpirun of Open MPI started {ranks} ranks, but mpi4py uses {library_name(library)} here; start the "
            "ranks with the mpirun of that library"
        )


def library_name(library: str) -> str:
    """Name and version of an MPI, from the many lines that it says of itself."""
    first = library.strip("\0 ").split("\n")[0].split(",")[0]
    return " ".join(first.replace("Version:", " ").split())


def arrange_teams(size: int, team_size: int = 1, rank_0: str = "auto") -> list[tuple[int, ...]]:
    """The ranks of each team, leader first.

    size       ranks in all
    team_size  ranks that share a point
    rank_0     `computes` too, or only `deals` (dispatches); `auto`: computes with up to 32 ranks, unless the teams come
               out even only the other way

    Raises ValueError where the computing ranks cannot be divided so, with the nearest numbers that can.
    """
    if rank_0 not in ("auto", "computes", "deals"):
        raise ValueError(f"--rank-0 must be computes, deals or auto; got {rank_0!r}")
    if team_size < 1:
        raise ValueError(f"a team must have at least one rank; got {team_size}")
    if size == 1 and rank_0 == "deals":
        raise ValueError("--rank-0 deals needs a second rank to compute; there is one rank")
    first = _first_computing_rank(size, team_size, rank_0)
    computing = size - first
    if computing % team_size or computing == 0:
        low = computing // team_size * team_size + first
        high = -(-max(computing, 1) // team_size) * team_size + first
        possible = f"{low} or {high}" if low > first else f"{high}"
        reason = " (rank 0 only dispatches)" if first else ""
        raise ValueError(
            f"teams of {team_size} do not divide {computing} computing ranks{reason}; start {possible} ranks in all"
        )
    return [tuple(range(start, start + team_size)) for start in range(first, size, team_size)]


def _first_computing_rank(size: int, team_size: int, rank_0: str) -> int:
    """0 where rank 0 computes, 1 where it only dispatches."""
    if rank_0 != "auto":
        return int(rank_0 == "deals")
    first = int(size > MAX_RANKS_WITH_COMPUTING_RANK_0)
    other = 1 - first
    if (size - first) % team_size and size - other >= team_size and (size - other) % team_size == 0:
        return other
    return first
