"""Where a result comes from: versions, machine and job, for the root attributes of its file."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PYTHON = "lossmap.survey"  # the `command` of a file that a program wrote
LIBRARIES = ("torch", "numpy", "h5py", "mpi4py")
JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID")


def provenance(device: str, ranks: int) -> dict[str, Any]:
    """Versions, machine and job.

    device  the names of the devices of all ranks
    ranks   the number of ranks
    """
    record: dict[str, Any] = {
        "lossmap_version": sys.modules["lossmap"].__version__,
        "python_version": platform.python_version(),
        "device": device,
        "ranks": ranks,
        "nodes": nodes_of(os.environ, ranks),
        "command_line": " ".join(sys.argv),
    }
    record |= {f"{name}_version": _version(name) for name in LIBRARIES}
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda:
        record["cuda_version"] = str(torch.version.cuda)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None:
        record["mpi_library"] = mpi.Get_library_version().split("\n")[0].strip("\0 ")
    record |= {k.lower(): v for k, v in os.environ.items() if k in JOB_VARIABLES}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        record |= checkout_of(root)
    return record


def nodes_of(environment: Mapping[str, str], ranks: int) -> int:
    """The number of nodes of a job, by what its launcher says; 1 where it says nothing."""
    known = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_JOB_NUM_NODES") or ""
    if known.isdigit():
        return int(known)
    local = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environment.get("MPI_LOCALNRANKS") or ""
    if local.isdigit() and int(local):
        return -(-ranks // int(local))
    return 1


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache  # what is imported stays as it is: many results of one process need one look
def checkout_of(folder: Path) -> dict[str, Any]:
    """The commit of a git checkout, and whether tracked files differ from it; empty without git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        try:  # in one call; git before 2.11 does not know it
            lines = git("status", "--porcelain=v2", "--branch", "-uno").splitlines()
        except subprocess.CalledProcessError:
            changed = bool(git("status", "--porcelain", "-uno"))
            return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": int(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}
    head = "# branch.oid "
    commit = next((line[len(head) :] for line in lines if line.startswith(head)), "")
    if len(commit) < 40:  # nothing is committed yet
        return {}
    return {"git_commit": commit, "git_dirty": int(any(not line.startswith("# ") for line in lines))}
