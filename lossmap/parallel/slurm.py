"""SLURM: one readable batch script. Standard library alone; no accounting database is needed.

A `Job` is what to run and on how much of a cluster, a `Site` what is peculiar to the cluster; `batch_script` makes the
text of the script from both and from the template `job.sbatch` beside this module; `slurm_queue` hands it to sbatch.
How a job ends is read from the result file alone (`lossmap status`), since launchers do not hand on the ranks' exit
codes. The survey stops on USR1, which SLURM sends `warning` seconds before the limit, and can be resumed.
Source: slurm.schedmd.com/sbatch.html; containers: github.com/NVIDIA/pyxis, github.com/NVIDIA/enroot.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lossmap.parallel.end_mark import VARIABLE
from lossmap.parallel.shards import Shard
from lossmap.parallel.slurm_site import Site

TEMPLATE = Path(__file__).with_name("job.sbatch")
WARNING_SECONDS = 120  # before the limit; SLURM may send the signal up to 60 s early
MAX_FRUITLESS_RESTARTS = 4  # in a row with at most one new point each, after which a job does not requeue itself
PROGRESS = 'status "$result" --fingerprint --job "$SLURM_JOB_ID"'


@dataclass(frozen=True)
class Job:
    """What is to run, and on how much of a cluster.

    work      the words behind `lossmap`: a command and its flags
    result    the file that it writes; None: a command without one, or one that has no state to be resumed from
    folder    where it runs; relative paths in `work` start here
    about     the start of the names of its script and logs where there is no result
    minutes   the time limit; None: the partition's
    array     independent shards; 1: one job
    throttle  how many of them run at a time; None: no limit
    shards_by the flag of the work that takes I/N
    status    the words behind `lossmap` that report the work's state, where that is no result file's
    progress  likewise, that print a number that grows with what is done, and details
    chain     jobs in a row, each after the one before, all on the same result; without a result each after a failure
    requeue   whether a job goes back into the queue where there is more to do and it got something done; without a
              result, where SLURM preempts it or its node fails
    measure   the measure of the result whose completion counts; None: all
    gpu_type  of the GPUs, such as a100; None: any
    options   further #SBATCH lines

    Raises ValueError for numbers below 1, for shards of a command without a survey, and for lines that are no options.
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
    progress: tuple[str, ...] = ()
    about: Path | None = None
    gpu_type: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag in ("nodes", "ranks_per_node", "array", "chain"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} must be >= 1; got {getattr(self, flag)}")
        if self.result is None and self.array > 1:
            raise ValueError(f"--array is for surveys, which can be cut; {self.work[0]} cannot")
        for line in self.options:
            if not line.startswith("-") or "\n" in line:
                raise ValueError(f'--sbatch must be options of sbatch in one line, e.g. "--exclusive"; got {line!r}')

    @property
    def ranks(self) -> int:
        """Ranks of one job."""
        return self.nodes * self.ranks_per_node

    @property
    def stem(self) -> Path:
        """The start of the names of the script and the log."""
        return self.result or self.about or self.folder / self.name

    @property
    def script(self) -> Path:
        """The batch script's file."""
        return Path(f"{self.stem}.sbatch")


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
    status, progress = 'status "$result"', PROGRESS
    if job.status:
        status, progress = (f"{shlex.join(words)} {part}".rstrip() for words in (job.status, job.progress))
    texts = {
        "about": _about(job),
        "status": status,
        "progress": progress,
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(job, site)),
        "setup": "\n".join(_setup(job, site)),
        "program": shlex.join(program(site)),
        "alone": shlex.join(_alone(job, site)),
        "result": result,
        "work": work,
        "launch": shlex.join(_launch(job, site, launcher)).replace("'$SLURM_NTASKS'", '"$SLURM_NTASKS"'),
        "limit": str(int((job.minutes or 1e7) * 60) - 5),
        "measure": "",
        "requeue": ("no", "yes")[job.requeue],
        "fewest": str(MAX_FRUITLESS_RESTARTS),
        "mark": _mark(job, site),
    }
    if job.measure:
        texts["measure"] = f" --measure {job.measure}"
    template = TEMPLATE.read_text()
    if not texts["mark"]:
        template = template.replace("@mark@\n", "")
    text = re.sub(r"@([a-z]+)@( ?)", lambda m: texts[m[1]] + m[2] * bool(texts[m[1]]), template)
    return re.sub(r"\n{3,}", "\n\n", text)


def directives(job: Job, site: Site) -> list[str]:
    """The options of the #SBATCH lines. Raises ValueError for a path with a backslash or a line break."""
    head, tail = _around_index(job)
    # in the name of a log, sbatch reads % as the start of a pattern
    plain, head, tail = (text.replace("%", "%%") for text in (str(job.stem), head, tail))
    log = f"{plain}.%j.log"  # %j: the number of the job; a requeued one keeps it
    if job.array > 1:
        log = f"{head}%a{tail}.%A.log"  # %a: the index in the array, %A: the number of the whole
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
        kind = f"{job.gpu_type}:" if job.gpu_type else ""
        lines.append(f"--gpus-per-node={kind}{job.gpus_per_node}")
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
    return [*lines, *site.options, *job.options]


def option(name: str, value: str) -> str:
    """An option of sbatch with a value, as its lines in a script spell it."""
    return f"--{name}={_quoted(value)}"


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
        if site.container_kind == "pyxis":  # where srun starts the container
            return words
        starts = {"apptainer": ["apptainer", "exec"], "enroot": ["enroot", "start"]}[site.container_kind]
        return [*starts, *site.container_options, site.container, *words]
    if site.python is None and own.exists():
        return [str(own)]
    return [site.python or sys.executable, "-m", "lossmap.cli"]


def _quoted(text: str) -> str:
    """A word for a #SBATCH line: sbatch knows double quotes, and backslashes within them."""
    if re.fullmatch(r"[\w./+:,=%@-]+", text, re.ASCII):
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


def _mark(job: Job, site: Site) -> str:
    """The lines that name the file in which a command without a result notes its end.

    srun, which starts the containers of pyxis, hands on the exit codes of its ranks, and enroot has one rank. Apptainer
    may not show the folder to a container, nor the variable: then there is no such file.
    """
    if job.result is not None:
        return ""
    if site.container and site.container_kind != "apptainer":
        return f"unset {VARIABLE}"
    lines = [f'export {VARIABLE}={shlex.quote(str(job.stem))}.ended-"$SLURM_JOB_ID"', f'rm -f "${VARIABLE}"']
    if site.container:
        inside = shlex.join(["apptainer", "exec", *site.container_options, site.container])
        lines.append(f"""{inside} sh -c 'test -w "${{{VARIABLE}%/*}}"' || unset {VARIABLE}""")
    return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}"


def _setup(job: Job, site: Site) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    if site.modules:
        lines.insert(0, f"module load {shlex.join(site.modules)}")
    lines += list(site.before)
    if site.modules or site.before:
        lines = [*STRICT, *lines, *NO_LONGER_STRICT]
    if program(site)[0] == sys.executable:  # no lossmap script beside it: a checkout, perhaps not installed
        here = shlex.quote(str(Path(__file__).resolve().parents[2]))
        lines.append(f'export PYTHONPATH={here}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    if job.cpus_per_rank:
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not inherit it by itself')
    return lines


STRICT = (
    "# A line that fails ends the job; where one may fail, it ends in || true.",
    """trap 'echo "the job ends, since this line failed: $BASH_COMMAND" >&2' ERR""",
    "set -e",
)
NO_LONGER_STRICT = ("set +e", "trap - ERR")


def _launch(job: Job, site: Site, launcher: str) -> list[str]:
    """The words that start the ranks."""
    container = _pyxis(job, site)
    if launcher == "none":
        return ["srun", "--ntasks=1", *container] if container else []
    if launcher == "srun":
        return ["srun", f"--mpi={site.mpi}", *site.launcher_options, *container]
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


def _alone(job: Job, site: Site) -> list[str]:
    """The words that start a single process beside the ranks, which looks at the result."""
    container = _pyxis(job, site)
    return ["srun", "--nodes=1", "--ntasks=1", "--overlap", *container] if container else []


def _pyxis(job: Job, site: Site) -> list[str]:
    """The flags by which srun starts a container, with the folder of the job in it; none without pyxis."""
    if not site.container or site.container_kind != "pyxis":
        return []
    folders = dict.fromkeys((str(job.folder), str(job.stem.parent)))
    return [
        f"--container-image={site.container}",
        f"--container-mounts={','.join(f'{folder}:{folder}' for folder in folders)}",
        f"--container-workdir={job.folder}",
        *site.container_options,
    ]
