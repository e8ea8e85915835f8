"""What a launcher has started: how many ranks, and how they are arranged in teams."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

MAX_RANKS_WITH_COMPUTING_RANK_0 = 32  # with more, the dispatcher is busy enough
START_TIMEOUT = 600  # seconds for the start of MPI, unless LOSSMAP_MPI_START says otherwise
LAST_WORDS_SECONDS = 0.3  # for the sentence, before the rank ends
MAX_GOODBYE_SECONDS = 60.0  # that a launcher may take to end the other ranks

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


@contextmanager
def start_watchdog(environ: Mapping[str, str]) -> Iterator[None]:
    """A context for the start of MPI, in which ranks wait for each other: no rank stays there for ever.

    Where a launcher that tolerates deaths goes on after one in MPI_Init, the others would wait for the dead inside it,
    where neither Python's threads nor its signal handlers run. After LOSSMAP_MPI_START seconds one of them (on each
    machine) says so in a sentence, and they end with 1, upon which the launcher ends the job. Every rank dies with its
    launcher.
    """
    if launched(environ) > 1:
        _die_with_parent()
    if environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("1", "true"):
        yield
        return
    limit = float(environ.get("LOSSMAP_MPI_START", START_TIMEOUT))
    sentence = (
        f"lossmap: rank {rank_in(environ)} on {socket.gethostname()}: MPI has not started within {limit:g} s, as where "
        "another rank has died meanwhile; nothing is lost: run the same command again "
        "(LOSSMAP_MPI_START=SECONDS waits longer)"
    )
    with _speaker(sentence, limit), open(os.devnull, "w") as nowhere:
        # its thread needs no interpreter; the stack that it prints says nothing to anybody
        faulthandler.dump_traceback_later(limit + LAST_WORDS_SECONDS, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def _speaker(sentence: str, seconds: float) -> Iterator[None]:
    """A context with a child process that prints a sentence when the context has lasted this many seconds.

    Another process, because MPI_Init holds the interpreter, so that no thread of this one could speak.
    """
    reading, writing = os.pipe()
    launcher = os.getppid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of threads: the child uses none
        child = os.fork()
    if child == 0:
        os.setsid()  # the launcher's signals are for the rank
        os.close(writing)
        if not select.select([reading], [], [], seconds)[0]:  # the pipe ends with the context, or with the rank
            _speak_for_all(sentence, launcher)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        with suppress(OSError):  # a program may have its children collected by the system
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _speak_for_all(sentence: str, launcher: int) -> None:
    """Print a sentence, unless another rank's child of this launcher has; return when the launcher has ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        if sys.platform == "linux":  # a name without a file, which is free again when this process ends
            try:
                claim.bind(f"\0lossmap-start-{launcher}")
            except OSError:
                return
        os.write(2, f"{sentence}\n".encode())
        os.closerange(0, 3)  # the launcher waits for their ends
        deadline = time.monotonic() + MAX_GOODBYE_SECONDS
        while time.monotonic() < deadline and os.path.exists(f"/proc/{launcher}"):
            time.sleep(0.1)


def _die_with_parent() -> None:
    """Ask the kernel to kill this rank when its launcher dies (Linux; elsewhere launchers see to it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
