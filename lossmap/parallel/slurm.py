"""SLURM: one readable batch script, and its submission. Standard library alone; no accounting database is needed.

A `Job` is what to run and on how much of a cluster, a `Site` what is peculiar to the cluster; `batch_script` makes the
text of the script from both and from the template `job.sbatch` beside this module; `submit` hands it to sbatch. How a
job ends is read from the result file alone (`lossmap status`), since launchers do not hand on the ranks' exit codes.
The survey stops on USR1, which SLURM sends `warning` seconds before the limit, and can be resumed.
Source: slurm.schedmd.com/sbatch.html.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossmap.parallel.shards import Shard
from lossmap.parallel.slurm_site import Site

TEMPLATE = Path(__file__).with_name("job.sbatch")
WARNING_SECONDS = 120  # before the limit; SLURM may send the signal up to 60 s early


@dataclass(frozen=True)
class Job:
    """What is to run, and on how much of a cluster.

    work      the words behind `lossmap`: a command and its flags
    result    the file that it writes; None: a command without one, whose state cannot be read
    folder    where it runs; relative paths in `work` start here
    minutes   the time limit; None: the partition's
    array     independent shards; 1: one job
    throttle  how many of them run at a time; None: no limit
    shards_by the flag of the work that takes I/N
    status    the words behind `lossmap` that report the work's state, where that is no result file's
    chain     jobs in a row, each after the one before, all on the same result
    requeue   whether a job goes back into the queue where there is more to do and it got something done
    measure   the measure of the result whose completion counts; None: all

    Raises ValueError for numbers below 1, and for shards, chains or requeueing of a command without a survey.
    """

    work: tuple[str, ...]
    result: Path | None
    folder: Path
    name: str = "lossmap"
    nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_rank: int | None = None
    gpus_per_node: int = 0
    minutes: float | None = None
    memory: str | None = None
    array: int = 1
    chain: int = 1
    requeue: bool = False
    measure: str | None = None
    throttle: int | None = None
    shards_by: str = "--shard"
    status: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag in ("nodes", "ranks_per_node", "array", "chain"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} must be >= 1; got {getattr(self, flag)}")
        if self.result is None and (self.array > 1 or self.chain > 1 or self.requeue):
            raise ValueError(f"--array, --chain and --requeue are for surveys; {self.work[0]} writes none")

    @property
    def ranks(self) -> int:
        """Ranks of one job."""
        return self.nodes * self.ranks_per_node

    @property
    def stem(self) -> Path:
        """The start of the names of the script and the log."""
        return self.result or self.folder / self.name


def minutes_of(text: str) -> float:
    """Minutes of a time limit in one of SLURM's spellings: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises ValueError for any other text, and for no time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(f"--time must be M, M:S, H:M:S or D-H:M:S, e.g. 2:00:00; got {text!r}")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    total = int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60
    if total <= 0:
        raise ValueError(f"--time must be > 0; got {text!r}")
    return total


def time_text(minutes: float) -> str:
    """Minutes as SLURM writes a limit: [D-]HH:MM:SS."""
    seconds = round(minutes * 60)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    if days:
        return f"{days}-{clock}"
    return clock


def batch_script(job: Job, site: Site) -> str:
    """The text of the batch script.

    Raises ValueError for several ranks where the site has no launcher, and for paths that sbatch does not take.
    """
    launcher = "none" if job.ranks == 1 else site.launcher
    if launcher == "none" and job.ranks > 1:
        raise ValueError(
            f"the site's launcher is none, which runs one rank a job; {job.ranks} ranks need srun, mpirun or wheel"
        )
    work, result, part = _in_lines(job.work), shlex.quote(str(job.result or "")), ""
    if job.array > 1:
        head, tail = _around_index(job)
        result = f'{shlex.quote(head)}"$SLURM_ARRAY_TASK_ID"{shlex.quote(tail)}'
        part = f'{job.shards_by} "$SLURM_ARRAY_TASK_ID/{job.array}"'
        work += f"\n    {part}"
    status = 'status "$result"'
    if job.status:
        status = f"{shlex.join(job.status)} {part}".rstrip()
    texts = {
        "about": _about(job),
        "status": status,
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(job, site)),
        "setup": "\n".join(_setup(job, site)),
        "program": shlex.join(program(site)),
        "result": result,
        "work": work,
        "launch": shlex.join(_launch(site, launcher)).replace("'$SLURM_NTASKS'", '"$SLURM_NTASKS"'),
        "limit": str(int((job.minutes or 1e7) * 60) - 5),
        "measure": "",
        "requeue": ("no", "yes")[job.requeue],
    }
    if job.measure:
        texts["measure"] = f" --measure {job.measure}"
    text = re.sub(r"@([a-z]+)@( ?)", lambda m: texts[m[1]] + m[2] * bool(texts[m[1]]), TEMPLATE.read_text())
    return re.sub(r"\n{3,}", "\n\n", text)


def directives(job: Job, site: Site) -> list[str]:
    """The options of the #SBATCH lines. Raises ValueError for a path with a backslash or a line break."""
    head, tail = _around_index(job)
    # in the name of a log, sbatch reads % as the start of a pattern
    plain, head, tail = (text.replace("%", "%%") for text in (str(job.stem), head, tail))
    log = f"{plain}.log"
    if job.array > 1:
        log = f"{head}%a{tail}.log"  # %a: the index in the array
    for path in (str(job.folder), log):
        if "\\" in path or "\n" in path:
            raise ValueError(f"sbatch takes no path with a backslash or a line break in it; got {path!r}")
    lines = [
        f"--job-name={_quoted(job.name)}",
        f"--chdir={_quoted(str(job.folder))}",
        f"--output={_quoted(log)} --open-mode=append",
        f"--nodes={job.nodes} --ntasks-per-node={job.ranks_per_node}",
    ]
    if job.cpus_per_rank:
        lines.append(f"--cpus-per-task={job.cpus_per_rank}")
    if job.gpus_per_node:
        lines.append(f"--gpus-per-node={job.gpus_per_node}")
    if job.memory:
        lines.append(f"--mem={_quoted(job.memory)}")
    if job.minutes is not None:
        lines.append(f"--time={time_text(job.minutes)}")
    lines.append(f"--signal=B:USR1@{warning(job, site)}")
    if job.array > 1:
        throttle = f"%{job.throttle}" if job.throttle else ""
        lines.append(f"--array=1-{job.array}{throttle}")
    lines.append("--requeue" if job.requeue else "--no-requeue")
    for name in ("partition", "account", "qos", "constraint"):
        if getattr(site, name):
            lines.append(f"--{name}={_quoted(getattr(site, name))}")
    return lines + list(site.options)


def warning(job: Job, site: Site) -> int:
    """Seconds before the limit at which SLURM sends USR1: at most a third of the time there is."""
    return min(site.warning or WARNING_SECONDS, int((job.minutes or 1e7) * 60 / 3))


def program(site: Site) -> list[str]:
    """The words that start lossmap: in its container, by the site's interpreter, or as it was started here."""
    own = Path(sys.executable).with_name("lossmap")
    if site.container:
        words = ["lossmap"]
        if site.python:
            words = [site.python, "-m", "lossmap.cli"]
        return ["apptainer", "exec", *site.container_options, site.container, *words]
    if site.python is None and own.exists():
        return [str(own)]
    return [site.python or sys.executable, "-m", "lossmap.cli"]


@dataclass(frozen=True)
class Submission:
    """The jobs of a submission.

    jobs  their numbers, in order
    """

    jobs: tuple[str, ...]

    @property
    def cancel(self) -> str:
        """The command that cancels all of them."""
        return f"scancel {' '.join(self.jobs)}"


def submit(path: Path, chain: int = 1, run: Callable[[list[str]], str] | None = None) -> Submission:
    """Hand a batch script to sbatch, `chain` times in a row, each to begin when the one before has ended.

    path  the script
    run   runs a command and returns what it prints

    Raises RuntimeError with sbatch's message where it refuses, and names the jobs that are in the queue by then.
    """
    run = run or _output_of
    jobs: list[str] = []
    for _ in range(chain):
        after = [f"--dependency=afterany:{job}" for job in jobs[-1:]]
        try:
            text = run(["sbatch", "--parsable", *after, str(path)])
        except FileNotFoundError:
            raise RuntimeError("there is no sbatch here: submit on a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            message = " ".join((error.stderr or "no message").split())
            if jobs:
                message += f"; already in the queue: {' '.join(jobs)}"
            raise RuntimeError(f"sbatch refused {path}: {message}") from None
        jobs.append(text.strip().split(";")[0])
    return Submission(tuple(jobs))


def largest_array(run: Callable[[list[str]], str] | None = None) -> int | None:
    """The largest index that a job array may have on this cluster; None where it is not known.

    run  runs a command and returns what it prints
    """
    try:
        text = (run or _output_of)(["scontrol", "show", "config"])
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return int(match[1]) - 1 if match else None


def _output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _quoted(text: str) -> str:
    """A word for a #SBATCH line: sbatch knows double quotes, and backslashes within them."""
    if re.fullmatch(r"[\w./+:,=%-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _in_lines(words: Sequence[str]) -> str:
    """Words for a bash array, each flag on a line of its own."""
    lines: list[str] = []
    for word in words:
        if not lines or word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return "\n    ".join(lines)


def _around_index(job: Job) -> tuple[str, str]:
    """The parts before and behind the index in the name of a shard."""
    mark = f".shard-1-of-{job.array}"
    head, _, tail = str(Shard(1, job.array).file(job.stem)).rpartition(mark)
    return f"{head}.shard-", f"-of-{job.array}{tail}"


def _about(job: Job) -> str:
    parts = [f"lossmap {job.work[0]}, {_count(job.ranks, 'rank')} on {_count(job.nodes, 'node')}"]
    if job.array > 1:
        parts.append(f"{job.array} independent shards")
    if job.result is not None:
        parts.append(f"for {' '.join(job.result.name.split())}")
    return ", ".join(parts)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}"


def _setup(job: Job, site: Site) -> list[str]:
    lines = []
    if site.modules:
        lines.append(f"module load {shlex.join(site.modules)}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    lines += list(site.before)
    if program(site)[0] == sys.executable:  # no lossmap script beside it: a checkout, perhaps not installed
        here = shlex.quote(str(Path(__file__).resolve().parents[2]))
        lines.append(f'export PYTHONPATH={here}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    if job.cpus_per_rank:
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not inherit it by itself')
    return lines


def _launch(site: Site, launcher: str) -> list[str]:
    if launcher == "none":
        return []
    if launcher == "srun":
        return ["srun", f"--mpi={site.mpi}", *site.launcher_options]
    options = list(site.launcher_options)
    if launcher == "mpirun":
        return ["mpirun", "-n", "$SLURM_NTASKS", *options]
    # Open MPI 5 of the pip package: with ULFM it survives the death of a rank.
    return [
        str(Path(site.python or sys.executable).with_name("mpirun")),
        "-n",
        "$SLURM_NTASKS",
        *(options or ["--with-ft", "ulfm"]),
    ]


def write_script(job: Job, text: str) -> Path:
    """Write the batch script beside the result, by a rename so that it appears whole. Returns its path.

    Raises OSError where the folder cannot be written to.
    """
    path = Path(f"{job.stem}.sbatch")
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
    return path
