"""A job's settings, from the command line to a `Job`: shared by `submit` and `campaign FILE submit`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lossmap.cli.settings import UsageError, setting
from lossmap.cli.wrapped_command import WrappedCommand
from lossmap.parallel import slurm
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_site import Site, read_site


@dataclass(frozen=True)
class SubmitSettings:
    """Job options."""

    nodes: int = setting(1, "number of nodes of a job", metavar="NODES")
    ranks_per_node: int | None = setting(
        None, "number of MPI ranks on a node; by default one, or one for each GPU", metavar="N", minimum=1
    )
    gpus_per_node: int = setting(0, "number of GPUs on a node, one rank each", metavar="GPUS", minimum=0)
    ranks_per_gpu: int = setting(1, "number of ranks that share a GPU", metavar="RANKS", minimum=1)
    cpus_per_rank: int | None = setting(
        None, "number of cores of a rank; by default what the partition gives", metavar="CORES", minimum=1
    )
    memory: str | None = setting(None, "memory of a node, as SLURM's --mem", metavar="SIZE")
    time: str | None = setting(None, "time limit: M, H:M:S or D-H:M:S", metavar="TIME")
    array: str = setting(
        "1", "number of independent shards, for `lossmap merge`; 200%20 runs 20 of 200 at a time", metavar="N"
    )
    each: str | None = setting(
        None, "pattern of files: a campaign of the command with each in the place of {}", metavar="PATTERN"
    )
    chain: int = setting(1, "number of jobs in a row, each of which resumes the one before", metavar="N")
    requeue: bool = setting(False, "return to the queue while points are left and some were computed")
    site: str | None = setting(None, "site file of the cluster; by default $LOSSMAP_SITE", metavar="TOML")
    name: str = setting("lossmap", "name of the job", metavar="NAME")
    dry_run: bool = setting(False, "the script, without submitting it")


def site_of(path: str | None) -> Site:
    """The site file that is named, or the environment's, or none."""
    path = path or os.environ.get("LOSSMAP_SITE")
    if not path:
        return Site()
    return read_site(path)


def job_of(options: SubmitSettings, work: WrappedCommand) -> Job:
    """The job of the settings. Raises UsageError for an invalid combination."""
    words = list(work.words)
    limit = options.gpus_per_node * options.ranks_per_gpu
    ranks = options.ranks_per_node or max(1, limit)
    if options.gpus_per_node and ranks > limit:
        needed = -(-ranks // options.gpus_per_node)
        raise UsageError(
            f"{ranks} ranks on {options.gpus_per_node} GPUs of a node: some would share a GPU; "
            f"if that is meant, add --ranks-per-gpu {needed}"
        )
    if options.gpus_per_node and options.ranks_per_gpu > 1:
        words += ["--ranks-per-gpu", str(options.ranks_per_gpu)]
    if work.overwrites:
        raise UsageError(f"--overwrite would start anew at each restart: remove {work.result} first, and leave it out")
    array, throttle = array_of(options.array)
    return Job(
        tuple(words),
        None if work.result is None else Path(os.path.abspath(work.result)),
        Path.cwd(),
        name=options.name,
        nodes=options.nodes,
        ranks_per_node=ranks,
        cpus_per_rank=options.cpus_per_rank,
        gpus_per_node=options.gpus_per_node,
        minutes=None if options.time is None else slurm.minutes_of(options.time),
        memory=options.memory,
        array=array,
        throttle=throttle,
        chain=options.chain,
        requeue=options.requeue,
        measure=work.measure,
    )


def array_of(text: str) -> tuple[int, int | None]:
    """Jobs of an array, and how many of them run at a time, of `200` or `200%20`. Raises UsageError."""
    match = re.fullmatch(r"(\d+)(?:%(\d+))?", text.strip())
    if match is None or int(match[1]) < 1 or match[2] in ("0", "00"):
        raise UsageError(f"--array must be a number of jobs >= 1, such as 200, or 200%20; got {text!r}")
    return int(match[1]), int(match[2]) if match[2] else None


def check_array(job: Job) -> None:
    """Raise UsageError where the array is larger than the cluster takes."""
    limit = slurm.largest_array() if job.array > 1 else None
    if limit is not None and job.array > limit:
        raise UsageError(f"--array must be <= {limit} on this cluster (MaxArraySize); got {job.array}")
