"""What a launcher has started: how many ranks, and how they are arranged in teams."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# what tells a rank that a launcher started it, and among how many
_SIZES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI
    "PMI_SIZE",  # MPICH, Intel MPI, Cray
    "MV2_COMM_WORLD_SIZE",  # MVAPICH
    "SLURM_STEP_NUM_TASKS",  # srun
    "MPI_WORLD_SIZE",
)


def launched(environ: Mapping[str, str]) -> int:
    """How many ranks the launcher says it started; 1 without a launcher."""
    for name in _SIZES:
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


def check_size(size: int, environ: Mapping[str, str]) -> None:
    """Raises ValueError where SLURM started several tasks, each of which sees itself alone."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if size == 1 and tasks.isdigit() and int(tasks) > 1 and "OMPI_COMM_WORLD_SIZE" not in environ:
        raise ValueError(
            f"srun started {tasks} tasks, but MPI sees one rank: this MPI library wants another "
            "srun --mpi=... (see srun --mpi=list; Open MPI: pmix), or mpirun"
        )


def arranged(size: int, team: int = 1, rank_0: str = "auto") -> list[tuple[int, ...]]:
    """The ranks of each team, its leader first, among so many ranks.

    rank_0  `computes` too, or only `deals`; `auto`: computes with up to 32 ranks, where the teams come out even

    Raises ValueError where the computing ranks cannot be divided so, with the nearest numbers that can.
    """
    if rank_0 not in ("auto", "computes", "deals"):
        raise ValueError(f"--rank-0 is computes, deals or auto; got {rank_0!r}")
    if team < 1:
        raise ValueError(f"a team wants at least one rank; got {team}")
    if size == 1 and rank_0 == "deals":
        raise ValueError("rank 0 cannot only deal where it is the only rank")
    first = {"computes": 0, "deals": 1, "auto": int(size > 32)}[rank_0]
    if rank_0 == "auto" and (size - first) % team and size - 1 + first >= team and (size - 1 + first) % team == 0:
        first = 1 - first
    computing = size - first
    if computing % team or computing == 0:
        low, high = computing // team * team + first, -(-max(computing, 1) // team) * team + first
        near = f"{low} or {high}" if low > first else f"{high}"
        raise ValueError(
            f"teams of {team} do not divide {computing} computing ranks"
            f"{' (rank 0 only deals)' if first else ''}; start {near} ranks in all"
        )
    return [tuple(range(start, start + team)) for start in range(first, size, team)]


@contextmanager
def meeting(environ: Mapping[str, str]) -> Iterator[None]:
    """Around the start of MPI, in which ranks wait for each other: no rank stays there for ever.

    Where a launcher that tolerates deaths goes on after one in MPI_Init, the others would wait for the dead inside it,
    where Python is not heard. After LOSSMAP_MPI_START seconds (600) a watchdog then prints where this rank stands, and
    ends it with 1. Every rank dies with its launcher.
    """
    if launched(environ) > 1:
        _die_with_parent()
    if environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("1", "true"):
        yield
        return
    faulthandler.dump_traceback_later(float(environ.get("LOSSMAP_MPI_START", 600)), exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _die_with_parent() -> None:
    """Ask the kernel to kill this rank when its launcher dies (Linux; elsewhere launchers see to it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
