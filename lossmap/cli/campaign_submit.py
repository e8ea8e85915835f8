"""A campaign on SLURM: one job over MPI, jobs in a row, or an array of jobs, each with members of its own.

Which members a job of an array computes stands in a file, `submissions/NUMBER.json`, so that it stays the same whatever
is added to the campaign meanwhile. A job is requeued while members of its own are left and it made progress.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.member import Member
from lossmap.cli.job import SubmitSettings, array_of, check_array, job_of, site_of, with_flags
from lossmap.cli.report_queue import report_queue
from lossmap.cli.settings import UsageError
from lossmap.cli.wrapped_command import WrappedCommand
from lossmap.parallel import slurm, slurm_queue
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_queue import QueuedJob
from lossmap.special_files import plain_text


def submit_campaign(
    file: Path, folder: CampaignFolder, members: Sequence[Member], options: SubmitSettings, one_job_each: bool = False
) -> int:
    """Write the batch script and submit it; with --dry-run print it alone.

    members       those that are left
    one_job_each  whether it is an array with a job for each member, as far as the cluster takes such a large one

    Raises UsageError where nothing is left, and for an invalid combination of flags.
    """
    digests = list(dict.fromkeys(member.digest for member in members))
    if not digests:
        raise UsageError(f"{file.name} is complete: nothing is left to submit; retry computes failures again")
    if not (options.dry_run or options.dependency):
        digests = without_queued(file, folder, digests)
    if one_job_each:
        options = replace(options, array=str(min(len(digests), slurm_queue.largest_array() or len(digests))))
    jobs, throttle = array_of(options.array)
    if jobs > len(digests):  # a job without a member would wait in the queue for nothing
        jobs = len(digests)
        options = replace(options, array=f"{jobs}%{throttle}" if throttle else str(jobs))
    batch = _batch_file(folder)
    job = _job(file, batch, options, jobs)
    text = slurm.batch_script(job, with_flags(site_of(options.site), options))
    if options.dry_run:
        print(text, end="")
        return 0
    check_array(job)
    batch.parent.mkdir(parents=True, exist_ok=True)
    batch.write_text(json.dumps({"members": digests}))
    try:
        submission = slurm_queue.submit_script(job, text, options.dependency or "")
    except (RuntimeError, OSError):
        batch.unlink()
        raise
    share = f", {-(-len(digests) // jobs)} a job at most" if jobs > 1 else ""
    print(f"submitted {len(digests):,} members as {' '.join(submission.jobs)} by {job.script}{share}")
    print(f"to cancel:  {submission.cancel}")
    print(f"to look at: lossmap campaign {shlex.quote(str(file))} status")
    print(f"at the end: lossmap campaign {shlex.quote(str(file))} collect")
    report_queue(submission)
    return 0


def _job(file: Path, batch: Path, options: SubmitSettings, jobs: int) -> Job:
    """The job: the campaign's own run; of several jobs, each of its members in the batch file."""
    own = ("--batch", str(batch)) if jobs > 1 else ()
    job = job_of(options, WrappedCommand(("campaign", file.name, "run", *own), batch.with_suffix("")))
    return replace(
        job, folder=file.parent, shards_by="--part",
        status=("campaign", file.name, "status", *own),
        progress=("campaign", file.name, "status", "--fingerprint", *own),
    )  # fmt: skip


def without_queued(file: Path, folder: CampaignFolder, digests: Sequence[str]) -> list[str]:
    """The members that no job in the queue has. Raises UsageError where all are in it, naming the jobs."""
    queued = [(job, members & set(digests)) for job, members in jobs_of_campaign(folder)]
    left = set(digests).difference(*(members for _, members in queued))
    if not left:
        jobs = [job for job, members in queued if members]
        text, numbers = "; ".join(job.sentence for job in jobs), [job.number for job in jobs]
        raise UsageError(
            f"all members of {file.name} that are left are in the queue already: {text}; scancel "
            f"{' '.join(numbers)} ends that, --dependency afterany:{':'.join(numbers)} waits for it"
        )
    return [digest for digest in digests if digest in left]


def jobs_of_campaign(folder: CampaignFolder) -> list[tuple[QueuedJob, set[str]]]:
    """The jobs in the queue that were submitted for a campaign, and the digests of the members that each has."""
    submissions, jobs = os.path.realpath(folder.path / "submissions"), []
    for job in slurm_queue.queued_jobs() if os.path.isdir(submissions) else ():
        script = Path(os.path.realpath(job.script or "-"))
        if str(script.parent) != submissions:
            continue
        try:
            members = {str(digest) for digest in json.loads(plain_text(script.with_suffix(".json")))["members"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        jobs.append((job, members))
    return jobs


def queue_sentences(folder: CampaignFolder) -> list[str]:
    """A sentence for each job of a campaign that is in the queue."""
    return [job.sentence for job, _ in jobs_of_campaign(folder)]


def _batch_file(folder: CampaignFolder) -> Path:
    """The first file of its kind that is not there."""
    number = 1
    while (path := folder.path / "submissions" / f"{number}.json").exists():
        number += 1
    return path
