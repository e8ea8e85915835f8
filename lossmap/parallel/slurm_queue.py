"""SLURM's queue: hand it a batch script, ask it for the jobs of a result and why they wait. Standard library alone.

    submit(path)            sbatch
    jobs_of(script)         squeue: the jobs that were made by this script
    QueuedJob.sentence      a job and why it is pending, for a person

Jobs are known by their script, which is named after the result. Source: slurm.schedmd.com/job_reason_codes.html.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lossmap.parallel.slurm import Job
from lossmap.special_files import plain_text

Run = Callable[[list[str]], str]
QUEUE_FORMAT = "%F %T %r %o"  # number (of the whole array), state, reason, script; the latter may hold anything
# why a job is pending, by the beginning of SLURM's reason
REASONS = {
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs to run now",
    "PartitionNodeLimit": "the job needs more nodes than the partition gives a job",
    "PartitionTimeLimit": "--time is above the limit of the partition",
    "PartitionConfig": "the job exceeds a limit of the partition",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "NodeDown": "nodes that it needs are down",
    "Nodes_required_for_job_are_DOWN": "nodes that it needs are down, drained or reserved",
    "BadConstraints": "no node fits what the job needs",
    "InvalidAccount": "the account is not valid",
    "InvalidQOS": "the QOS is not valid",
    "QOS": "a limit of the QOS is reached",
    "Assoc": "a limit of the account is reached",
    "MaxCpuPerAccount": "a limit of the account is reached",
    "JobHeld": "the job is held; scontrol release lets it go",
    "JobArrayTaskLimit": "as many jobs of the array run as it allows",
    "Licenses": "licenses are in use",
    "Reservation": "it waits for its reservation",
    "DependencyNeverSatisfied": "the job that it waits for has ended otherwise than it asks for: it never runs",
    "Dependency": "it waits for another job",
    "BeginTime": "its time to begin has not come, such as shortly after it was requeued",
    "Priority": "jobs of higher priority are before it",
    "Resources": "it waits for nodes",
}
PASSING = ("None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit")  # nothing to do but wait


@dataclass(frozen=True)
class Submission:
    """The jobs of a submission.

    jobs   their numbers, in order
    notes  lines that sbatch printed beside them, such as warnings
    """

    jobs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def cancel(self) -> str:
        """The command that cancels all of them."""
        return f"scancel {' '.join(self.jobs)}"


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: its number, SLURM's words for its state and for why it is pending, and its script."""

    number: str
    state: str
    reason: str
    script: str

    @property
    def sentence(self) -> str:
        """Number and state, and where it is pending why."""
        if self.state != "PENDING" or self.reason == "None":
            return f"job {self.number} is {self.state.lower()}"
        meaning = next((text for start, text in REASONS.items() if self.reason.startswith(start)), "")
        return f"job {self.number} is pending ({self.reason}){': ' if meaning else ''}{meaning}"

    @property
    def needs_attention(self) -> bool:
        """Whether it waits for something that does not pass by itself."""
        return self.state == "PENDING" and not any(self.reason == word for word in PASSING)


def submit(
    path: Path, chain: int = 1, run: Run | None = None, *, dependency: str = "", after: str = "any"
) -> Submission:
    """Hand a batch script to sbatch, `chain` times in a row, each to begin when the one before has ended.

    path        the script
    run         runs a command and returns what it prints
    dependency  of the first job, as sbatch's --dependency
    after       how the one before must have ended: any, or notok

    Raises RuntimeError with sbatch's message where it refuses, and names the jobs that are in the queue by then.
    """
    run = run or _output_of
    jobs: list[str] = []
    notes: list[str] = []
    for _ in range(chain):
        options = [f"--dependency={dependency}"] if dependency else []
        if jobs:
            options = [f"--dependency=after{after}:{jobs[-1]}"]
            if after != "any":  # else a job that is not needed would stay in the queue for good
                options.append("--kill-on-invalid-dep=yes")
        try:
            text = run(["sbatch", "--parsable", *options, str(path)])
        except FileNotFoundError:
            raise RuntimeError("there is no sbatch here: submit on a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            said = [line.strip() for line in (error.stderr or "no message").splitlines() if line.strip()]
            if jobs:
                said.append(f"already in the queue: {' '.join(jobs)}")
            lines = "".join(f"\n  {line}" for line in said)
            raise RuntimeError(f"sbatch refused {path}; it says:{lines}") from None
        *before, number = text.strip().splitlines() or [""]
        notes += before
        jobs.append(number.split(";")[0])
    return Submission(tuple(jobs), tuple(dict.fromkeys(notes)))


def submit_script(job: Job, text: str, dependency: str = "", run: Run | None = None) -> Submission:
    """Write the batch script of a job and submit it. Where sbatch refuses, what was there before is there again.

    Raises as `submit`, and OSError where the folder cannot be written to.
    """
    earlier = plain_text(job.script) if job.script.exists() else None
    path = write_script(job, text)
    try:
        after = "any" if job.result is not None else "notok"
        return submit(path, job.chain, run, dependency=dependency, after=after)
    except RuntimeError as error:
        if "already in the queue" not in str(error):
            if earlier is None:
                path.unlink()
            else:
                path.write_text(earlier)
        raise


def write_script(job: Job, text: str) -> Path:
    """Write the batch script beside the result, by a rename so that it appears whole. Returns its path.

    Raises OSError where the folder cannot be written to.
    """
    part = job.script.with_name(job.script.name + ".part")
    part.write_text(text)
    part.replace(job.script)
    return job.script


def queued_jobs(run: Run | None = None) -> list[QueuedJob]:
    """The jobs of this user in the queue, each array once; none where there is no SLURM, or it does not answer."""
    try:
        text = (run or _output_of)(["squeue", "--noheader", f"--user={os.getuid()}", f"--format={QUEUE_FORMAT}"])
    except (OSError, subprocess.SubprocessError):
        return []
    jobs: dict[str, QueuedJob] = {}
    for line in text.splitlines():
        # a reason may hold words of its own, in parentheses or behind commas: the script begins with a slash
        match = re.match(r"(\S+) (\S+) (.*?)(?: (/.*))?$", line.strip())
        if match:
            job = QueuedJob(match[1], match[2], match[3].strip("() "), match[4] or "")
            if job.number not in jobs or job.state == "RUNNING":
                jobs[job.number] = job
    return list(jobs.values())


def jobs_of(script: Path, run: Run | None = None) -> list[QueuedJob]:
    """Those jobs in the queue that were made by this script."""
    own = os.path.realpath(script)
    return [job for job in queued_jobs(run) if job.script and os.path.realpath(job.script) == own]


def largest_array(run: Run | None = None) -> int | None:
    """The largest index that a job array may have on this cluster; None where it is not known.

    run  runs a command and returns what it prints
    """
    with suppress(OSError, subprocess.SubprocessError):
        text = (run or _output_of)(["scontrol", "show", "config"])
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
        return int(match[1]) - 1 if match else None
    return None


def _output_of(command: Sequence[str]) -> str:
    """What the command prints; of sbatch its warnings too, before it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr + done.stdout if command[0] == "sbatch" else done.stdout
