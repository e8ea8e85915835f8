"""A job's settings, from the command line to a `Job`: shared by `submit` and `campaign FILE submit`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from lossmap.cli.settings import UsageError, setting
from lossmap.cli.wrapped_command import SURVEYS, WrappedCommand
from lossmap.parallel import slurm, slurm_queue
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
    gpus: str | None = setting(
        None, "number of GPUs of the job, with their type where it matters, such as a100:4", metavar="[TYPE:]N"
    )
    ranks_per_gpu: int = setting(1, "number of ranks that share a GPU", metavar="RANKS", minimum=1)
    cpus_per_rank: int | None = setting(
        None, "number of cores of a rank; by default what the partition gives", metavar="CORES", minimum=1
    )
    memory: str | None = setting(None, "memory of a node, as SLURM's --mem", metavar="SIZE")
    tmp: str | None = setting(None, "local disk of a node, as SLURM's --tmp", metavar="SIZE")
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
    partition: str | None = setting(None, "partition; by default that of the site file", metavar="NAME")
    account: str | None = setting(None, "account; by default that of the site file", metavar="NAME")
    qos: str | None = setting(None, "quality of service; by default that of the site file", metavar="NAME")
    exclude: str | None = setting(None, "nodes to avoid, such as node[3,7]", metavar="NODES")
    dependency: str | None = setting(None, "jobs to wait for, such as afterok:123", metavar="JOBS")
    mail_type: str | None = setting(None, "events to be mailed, such as END,FAIL", metavar="EVENTS")
    mail_user: str | None = setting(None, "address to mail to", metavar="ADDRESS")
    sbatch: tuple[str, ...] = setting(
        (), 'further options of sbatch, such as --sbatch "--exclusive --comment=grid"', metavar="OPTIONS"
    )
    check: bool = setting(True, "trial of the command with --dry-run before it is queued")
    dry_run: bool = setting(False, "the script, without submitting it")


def site_of(path: str | None) -> Site:
    """The site file that is named, or the environment's, or none."""
    path = path or os.environ.get("LOSSMAP_SITE")
    if not path:
        return Site()
    return read_site(path)


def with_flags(site: Site, options: SubmitSettings) -> Site:
    """The site, with what the command line says instead."""
    names = ("partition", "account", "qos")
    return replace(site, **{name: getattr(options, name) for name in names if getattr(options, name)})


def gpus_of(options: SubmitSettings) -> tuple[int, str | None]:
    """GPUs of a node, and their type where one is named. Raises UsageError where --gpus does not fit the nodes."""
    if options.gpus is None:
        return options.gpus_per_node, None
    match = re.fullmatch(r"(?:([\w.-]+):)?(\d+)", options.gpus)
    if match is None or int(match[2]) < 1:
        raise UsageError(f"--gpus must be a number >= 1, or TYPE:NUMBER such as a100:4; got {options.gpus!r}")
    if options.gpus_per_node:
        raise UsageError("--gpus is of the whole job, --gpus-per-node of a node: give one of them")
    number = int(match[2])
    if number % max(1, options.nodes):
        raise UsageError(f"--gpus {number} cannot be shared evenly by {options.nodes} nodes")
    return number // max(1, options.nodes), match[1]


def sbatch_lines(options: SubmitSettings) -> tuple[str, ...]:
    """The #SBATCH lines of the flags that are sbatch's own."""
    names = ("tmp", "exclude", "mail_type", "mail_user")
    values = {name: getattr(options, name) for name in names}
    own = [slurm.option(name.replace("_", "-"), value) for name, value in values.items() if value]
    return (*own, *options.sbatch)


def job_of(options: SubmitSettings, work: WrappedCommand) -> Job:
    """The job of the settings. Raises UsageError for an invalid combination."""
    words = list(work.words)
    gpus, gpu_type = gpus_of(options)
    limit = gpus * options.ranks_per_gpu
    ranks = options.ranks_per_node or max(1, limit)
    if gpus and ranks > limit:
        needed = -(-ranks // gpus)
        raise UsageError(
            f"{ranks} ranks on {gpus} GPUs of a node: some would share a GPU; "
            f"if that is meant, add --ranks-per-gpu {needed}"
        )
    if gpus and options.ranks_per_gpu > 1:
        words += ["--ranks-per-gpu", str(options.ranks_per_gpu)]
    if work.overwrites:
        raise UsageError(f"--overwrite would start anew at each restart: remove {work.result} first, and leave it out")
    array, throttle = array_of(options.array)
    if array > 1 and work.command not in (*SURVEYS, "campaign"):
        raise UsageError(
            f"--array is for surveys, which can be cut; {work.command} cannot: --nodes and --ranks-per-node start "
            "ranks that share its tasks, where it has several"
        )
    if array > 1 and getattr(getattr(work.settings, "refine", None), "refine", None) is not None:
        raise UsageError("--refine chooses its points from all values so far, which shards have not: leave --array out")
    if array > 1 and getattr(getattr(work.settings, "refine", None), "loss_error", None) is not None:
        raise UsageError("--loss-error judges the picture of all points, which shards have not: leave --array out")
    return Job(
        tuple(words),
        None if work.result is None else Path(os.path.abspath(work.result)),
        Path.cwd(),
        name=options.name,
        nodes=options.nodes,
        ranks_per_node=ranks,
        cpus_per_rank=options.cpus_per_rank,
        gpus_per_node=gpus,
        gpu_type=gpu_type,
        minutes=None if options.time is None else slurm.minutes_of(options.time),
        memory=options.memory,
        array=array,
        throttle=throttle,
        chain=options.chain,
        requeue=options.requeue,
        measure=work.measure,
        about=None if work.about is None else Path(os.path.abspath(work.about)),
        options=sbatch_lines(options),
    )


def array_of(text: str) -> tuple[int, int | None]:
    """Jobs of an array, and how many of them run at a time, of `200` or `200%20`. Raises UsageError."""
    match = re.fullmatch(r"(\d+)(?:%(\d+))?", text.strip())
    if match is None or int(match[1]) < 1 or match[2] in ("0", "00"):
        raise UsageError(f"--array must be a number of jobs >= 1, such as 200, or 200%20; got {text!r}")
    return int(match[1]), int(match[2]) if match[2] else None


def check_array(job: Job) -> None:
    """Raise UsageError where the array is larger than the cluster takes."""
    limit = slurm_queue.largest_array() if job.array > 1 else None
    if limit is not None and job.array > limit:
        raise UsageError(f"--array must be <= {limit} on this cluster (MaxArraySize); got {job.array}")
