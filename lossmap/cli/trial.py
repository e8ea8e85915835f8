"""A command tried before it is queued: what `--dry-run` refuses is refused now, not after hours in the queue.

The trial runs in this process, on the CPU of the login node, with one rank: model, data, plane and the result that may
be there are read, nothing is computed over the grid and nothing is written. Price: that of a start of the command.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from lossmap.cli.settings import UsageError
from lossmap.cli.wrapped_command import SURVEYS, TASKS, WrappedCommand, module_of
from lossmap.parallel.launcher import arrange_teams
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_site import Site

TRIED = ("resume", "health", *SURVEYS, *TASKS)


def try_command(work: WrappedCommand, job: Job, site: Site) -> None:
    """Run the command with --dry-run. Raises UsageError with what it refuses; says so where it cannot be tried."""
    if work.command not in TRIED:
        return
    reason = obstacle(work, site)
    if reason:
        print(f"not tried before it is queued: {reason}")
        return
    words = [*work.words[1:], "--dry-run", "--device", "cpu"]
    if work.settings is not None:
        run = work.settings.run
        arrange_teams(job.ranks, run.team, run.rank_0)  # for the ranks of the job; the trial has one
        if run.team > 1:
            words += ["--team", "1"]
        if run.rank_0 != "auto":
            words += ["--rank-0", "auto"]
    if job.array > 1:  # the last shard is the first to be without a point
        words += [job.shards_by, f"{job.array}/{job.array}"]
    text = io.StringIO()
    with _undone(), redirect_stdout(io.StringIO()), redirect_stderr(text):
        code = module_of(work.command).main(words)
    if code == 2:
        refusal = text.getvalue().strip().rpartition("lossmap: ")[2]
        raise UsageError(refusal or f"{work.command} --dry-run is refused, without a reason")


def obstacle(work: WrappedCommand, site: Site) -> str | None:
    """Why the command cannot be tried here; None where it can."""
    if site.container or site.python:
        return "it runs in the site's container or by its Python"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed here"
    if work.settings is not None and work.settings.run.precision == "tf32":
        return "--precision tf32 needs a GPU"
    return None


@contextmanager
def _undone() -> Iterator[None]:
    """A context after which the current folder, the search path and the debugging switch are as before."""
    folder, path, debug = os.getcwd(), list(sys.path), os.environ.pop("LOSSMAP_DEBUG", None)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        if debug is not None:
            os.environ["LOSSMAP_DEBUG"] = debug
