"""`lossmap submit [flags] -- COMMAND ...`: run a command on SLURM, by one readable batch script beside the result.

The command to run stands behind two dashes. It is tried first, as by --dry-run, so that nothing is queued that would be
refused. What is peculiar to a cluster (partition, modules, launcher, container) stands in a site file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from lossmap.cli.command_line import Command
from lossmap.cli.each import submit_each
from lossmap.cli.entry_point import guarded
from lossmap.cli.job import SubmitSettings, check_array, job_of, site_of, with_flags
from lossmap.cli.report_queue import report_queue
from lossmap.cli.resume import trusted_words
from lossmap.cli.settings import UsageError
from lossmap.cli.trial import try_command
from lossmap.cli.wrapped_command import split_at_dashes, wrapped_command
from lossmap.io.read import is_being_written
from lossmap.parallel import slurm, slurm_queue
from lossmap.parallel.shards import Shard
from lossmap.parallel.slurm import Job

EXAMPLE = "lossmap submit --nodes 2 --time 2:00:00 -- surface --model resnet20-w8 --x=-1:1:51 --y=-1:1:51"


COMMAND = Command(
    "submit",
    __doc__ or "",
    (SubmitSettings,),
    (
        EXAMPLE,
        "lossmap submit --partition gpu --gpus a100:4 --array 8 --time 1:00:00 -- eigenmap --like surface.h5",
        "lossmap submit --each 'runs/*/epoch_*.pt' --array 200%20 -- surface --model resnet20-w8 --model-file {}",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 submitted, or shown by --dry-run; 2 usage error."""
    own, words = split_at_dashes(argv, EXAMPLE)
    settings = COMMAND.parse(own)
    options = settings.submit
    if options.each:
        return submit_each(options, words, settings.explicit)
    if words[:1] == ["resume"] and len(words) > 1:  # a job has no terminal: it is asked now
        words = ["resume", *trusted_words(words[1:])]
    site = with_flags(site_of(options.site), options)
    work = wrapped_command(words)
    job = job_of(options, work)
    text = slurm.batch_script(job, site)
    if options.dry_run:
        print(text, end="")
        return 0
    check_array(job)
    refuse_second(job, options.dependency)
    if options.check:
        try_command(work, job, site)
    submission = slurm_queue.submit_script(job, text, options.dependency or "")
    print(f"submitted as {' '.join(submission.jobs)} by {job.script}")
    print(f"to cancel:  {submission.cancel}")
    if job.result is not None:
        print(f"to look at: lossmap status {shlex.quote(str(job.result))}")
    if job.array > 1:
        print(f"at the end: lossmap merge {shlex.quote(str(job.result))}")
    report_queue(submission)
    return 0


def files_of(job: Job) -> list[Path]:
    """The results that a job writes."""
    if job.result is None:
        return []
    return [Shard(i, job.array).file(job.result) for i in range(1, job.array + 1)] if job.array > 1 else [job.result]


def refuse_second(job: Job, dependency: str | None) -> None:
    """Raise UsageError where the result is in the queue already, or is being written; not where it waits for that job.

    dependency  the jobs that are to be waited for
    """
    for other in slurm_queue.jobs_of(job.script):
        if other.number not in re.findall(r"\b\d+", dependency or ""):
            raise UsageError(
                f"{job.stem.name} is in the queue already: {other.sentence}; scancel {other.number} ends it, "
                f"--dependency afterany:{other.number} queues a job behind it"
            )
    for file in files_of(job):
        if not dependency and is_being_written(file):
            raise UsageError(f"a process is writing {file} now; wait for it, or end it")
