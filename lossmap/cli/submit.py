"""`lossmap submit [flags] -- COMMAND ...`: run a command on SLURM, by one readable batch script beside the result.

The command to run stands behind two dashes. What is peculiar to a cluster (partition, modules, launcher, container)
stands in a site file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lossmap.cli.command_line import Command
from lossmap.cli.each import submit_each
from lossmap.cli.entry_point import guarded
from lossmap.cli.job import SubmitSettings, check_array, job_of, site_of
from lossmap.cli.resume import trusted_words
from lossmap.cli.wrapped_command import split_at_dashes, wrapped_command
from lossmap.parallel import slurm
from lossmap.parallel.shards import Shard

EXAMPLE = "lossmap submit --nodes 2 --time 2:00:00 -- surface --model resnet20-w8 --x=-1:1:51 --y=-1:1:51"


COMMAND = Command(
    "submit",
    __doc__ or "",
    (SubmitSettings,),
    (
        EXAMPLE,
        "lossmap submit --gpus-per-node 4 --array 8 --time 1:00:00 -- eigenmap --like surface.h5",
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
    site, job = site_of(options.site), job_of(options, wrapped_command(words))
    text = slurm.batch_script(job, site)
    if options.dry_run:
        print(text, end="")
        return 0
    check_array(job)
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
