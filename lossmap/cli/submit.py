"""`lossmap submit [flags] -- COMMAND ...`: run a command on SLURM, by one readable batch script beside the result.

The command to run stands behind two dashes. What is peculiar to a cluster (partition, modules, launcher, container)
stands in a site file.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.resume import trusted_words
from lossmap.cli.settings import UsageError, setting
from lossmap.cli.wrapped_command import WrappedCommand, split_at_dashes, wrapped_command
from lossmap.parallel import slurm
from lossmap.parallel.shards import Shard
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_site import Site, read_site

EXAMPLE = "lossmap submit --nodes 2 --time 2:00:00 -- surface --model resnet20-w8 --x=-1:1:51 --y=-1:1:51"


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
    array: int = setting(1, "number of independent shards, for `lossmap merge`", metavar="N")
    chain: int = setting(1, "number of jobs in a row, each of which resumes the one before", metavar="N")
    requeue: bool = setting(False, "return to the queue while points are left and some were computed")
    site: str | None = setting(None, "site file of the cluster; by default $LOSSMAP_SITE", metavar="TOML")
    name: str = setting("lossmap", "name of the job", metavar="NAME")
    dry_run: bool = setting(False, "the script, without submitting it")


COMMAND = Command(
    "submit",
    __doc__ or "",
    (SubmitSettings,),
    (
        EXAMPLE,
        "lossmap submit --gpus-per-node 4 --array 8 --time 1:00:00 -- eigenmap --like surface.h5",
        "lossmap submit --dry-run -- dynamics run --model resnet20-w8",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 submitted, or shown by --dry-run; 2 usage error."""
    own, words = split_at_dashes(argv, EXAMPLE)
    options = COMMAND.parse(own).submit
    if words[:1] == ["resume"] and len(words) > 1:  # a job has no terminal: it is asked now
        words = ["resume", *trusted_words(words[1:])]
    site, job = site_of(options.site), job_of(options, wrapped_command(words))
    text = slurm.batch_script(job, site)
    if options.dry_run:
        print(text, end="")
        return 0
    limit = slurm.largest_array() if job.array > 1 else None
    if limit is not None and job.array > limit:
        raise UsageError(f"--array must be <= {limit} on this cluster (MaxArraySize); got {job.array}")
    path = slurm.write_script(job, text)
    submission = slurm.submit(path, job.chain)
    print(f"submitted as {' '.join(submission.jobs)} by {path}")
    print(f"to cancel:  {submission.cancel}")
    if job.result is not None:
        first = Shard(1, job.array).file(job.result) if job.array > 1 else job.result
        print(f"to look at: lossmap status {shlex.quote(str(first))}")
    if job.array > 1:
        print(f"at the end: lossmap merge {shlex.quote(str(job.result))}")
    return 0


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
        array=options.array,
        chain=options.chain,
        requeue=options.requeue,
        measure=work.measure,
    )
