"""`lossmap submit [flags] -- COMMAND ...`: run a command on SLURM, by one readable batch script beside the result.

What is to be run stands after two dashes: `lossmap submit --nodes 2 --time 2:00:00 -- surface --model ...`. What is
peculiar to a cluster (partition, modules, launcher, container) stands in a site file.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lossmap.cli.settings import UsageError, guarded, parse, setting
from lossmap.cli.wrapped_command import Asked, asked, split
from lossmap.parallel import slurm
from lossmap.parallel.shards import Shard
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_site import Site, read_site


@dataclass(frozen=True)
class SubmitSettings:
    """How much of a cluster, and how."""

    nodes: int = setting(1, "nodes of a job", metavar="NODES")
    ranks_per_node: int | None = setting(None, "MPI ranks on a node; by default one, or one for each GPU", metavar="N")
    gpus_per_node: int = setting(0, "GPUs on a node, one rank each", metavar="GPUS")
    ranks_per_gpu: int = setting(1, "ranks that share a GPU", metavar="RANKS")
    cpus_per_rank: int | None = setting(None, "cores of a rank; by default what the partition gives", metavar="CORES")
    memory: str | None = setting(None, "memory of a node, as SLURM's --mem", metavar="SIZE")
    time: str | None = setting(None, "time limit: M, H:M:S or D-H:M:S", metavar="TIME")
    array: int = setting(1, "so many independent shards, for `lossmap merge`", metavar="N")
    chain: int = setting(1, "so many jobs in a row, each going on where the one before ended", metavar="N")
    requeue: bool = setting(False, "back into the queue while there is more to do and something got done")
    site: str | None = setting(None, "the cluster's site file; by default $LOSSMAP_SITE", metavar="TOML")
    name: str = setting("lossmap", "name of the job", metavar="NAME")
    dry_run: bool = setting(False, "show the script, and do nothing")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door: 0 submitted, or shown by --dry-run."""
    own, words = split(argv, "lossmap submit --nodes 2 -- surface --model resnet20-w8 ...")
    told = parse((SubmitSettings,), own, prog="lossmap submit", about=__doc__ or "").submit
    site, job = site_of(told.site), job_of(told, asked(words))
    text = slurm.batch_script(job, site)
    if told.dry_run:
        print(text, end="")
        return 0
    most = slurm.largest_array() if job.array > 1 else None
    if most is not None and job.array > most:
        raise UsageError(f"this cluster's arrays end at {most} (MaxArraySize); got --array {job.array}")
    path = slurm.write_script(job, text)
    sent = slurm.submit(path, job.chain)
    print(f"submitted as {' '.join(sent.jobs)} by {path}")
    print(f"to cancel:  {sent.cancel}")
    if job.result is not None:
        files = [Shard(1, job.array).file(job.result)] if job.array > 1 else [job.result]
        print(f"to look at: lossmap status {shlex.quote(str(files[0]))}")
    if job.array > 1:
        print(f"at the end: lossmap merge {shlex.quote(str(job.result))}")
    return 0


def site_of(named: str | None) -> Site:
    """The site file that was named, or the environment's, or none."""
    path = named or os.environ.get("LOSSMAP_SITE")
    return read_site(path) if path else Site()


def job_of(told: SubmitSettings, work: Asked) -> Job:
    """The job that was asked for. Raises Usage where that makes no sense."""
    for flag in ("gpus_per_node", "ranks_per_gpu", "cpus_per_rank"):
        value = getattr(told, flag)
        if value is not None and value < (0 if flag == "gpus_per_node" else 1):
            raise UsageError(f"--{flag.replace('_', '-')} wants 1 or more; got {value}")
    ranks = told.ranks_per_node or max(1, told.gpus_per_node * told.ranks_per_gpu)
    words = list(work.words)
    if told.gpus_per_node:
        most = told.gpus_per_node * told.ranks_per_gpu
        if ranks > most:
            needed = -(-ranks // told.gpus_per_node)
            raise UsageError(
                f"{ranks} ranks on {told.gpus_per_node} GPUs of a node: some would share a GPU; "
                f"if that is meant, add --ranks-per-gpu {needed}"
            )
        if told.ranks_per_gpu > 1:
            words += ["--ranks-per-gpu", str(told.ranks_per_gpu)]
    if work.overwrites:
        raise UsageError(f"--overwrite would begin anew at each restart: remove {work.result} first, and leave it out")
    job = Job(
        tuple(words),
        work.result,
        Path.cwd(),
        name=told.name,
        nodes=told.nodes,
        ranks_per_node=ranks,
        cpus_per_rank=told.cpus_per_rank,
        gpus_per_node=told.gpus_per_node,
        minutes=None if told.time is None else slurm.minutes_of(told.time),
        memory=told.memory,
        array=told.array,
        chain=told.chain,
        requeue=told.requeue,
        measure=work.measure,
    )
    return replace(job, result=job.result and Path(os.path.abspath(job.result)))
