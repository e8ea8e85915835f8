"""What is said of a job once it is in the queue: what sbatch noted, and why it waits."""

from __future__ import annotations

import time

from lossmap.parallel import slurm_queue
from lossmap.parallel.slurm_queue import QueuedJob, Submission

REASON_LOOKS, REASON_PAUSE = 5, 0.2  # looks at a new job until SLURM says why it waits, and seconds between two


def report_queue(submission: Submission) -> None:
    """Print what sbatch has noted, and why the first of the jobs waits."""
    for note in submission.notes:
        print(f"sbatch says: {note}")
    job = _first_job(submission.jobs[0])
    if job is not None and job.state == "PENDING" and job.reason != "None":
        print(f"in the queue: {job.sentence}")


def _first_job(number: str) -> QueuedJob | None:
    """The job in the queue, when SLURM has said why it waits, which takes it a moment."""
    job = None
    for look in range(REASON_LOOKS):
        if look:
            time.sleep(REASON_PAUSE)
        job = next((job for job in slurm_queue.queued_jobs() if job.number == number), None)
        if job is None or job.state != "PENDING" or job.reason != "None":
            break
    return job
