"""What the doors are told: settings as dataclasses, as flags, and as TOML; all three read off one place.

A group of settings is a frozen dataclass whose fields are made by `setting(default, help)`. `parse` turns the
command line into values of such groups: flags are spelt with hyphens, underscores are accepted; `--config FILE`
reads the same names from TOML, and flags win. Nothing here wakes torch: a picture is drawn without it.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lossmap.farm.launch import rank_in

EXIT = {"complete": 0, "failed": 3, "unfinished": 75}  # a door's exit code, by how its result stands


class Usage(ValueError):
    """What was asked makes no sense; the text is one sentence for a person. The doors exit with 2."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    names: Sequence[str] = (),
    positional: bool = False,
    least: float | None = None,
) -> Any:
    """A dataclass field that is also a flag.

    default  its value when nothing is said; a bool makes a switch, a tuple takes several values
    help     one phrase; the default is added to it
    names    further spellings, such as `--loss-name` or `-l`
    least    the smallest number that makes sense
    """
    metadata = {"help": help, "choices": tuple(choices), "metavar": metavar, "names": tuple(names)}
    return field(default=default, metadata={**metadata, "positional": positional, "least": least})


@dataclass(frozen=True)
class ModelSettings:
    """The network."""

    model: str = setting(
        "resnet20-w8", "a name of the zoo, package.module:factory, or path/file.py:factory", metavar="NAME"
    )
    model_args: str | None = setting(None, "keywords for the factory, as JSON: '{\"depth\": 20}'", metavar="JSON")
    model_file: str | None = setting(
        None, "checkpoint of the model: .pt .pth .t7 .safetensors", metavar="FILE", names=("-m",)
    )
    model_file2: str | None = setting(None, "checkpoint that the x axis leads to", metavar="FILE")
    model_file3: str | None = setting(None, "checkpoint that the y axis leads to", metavar="FILE")
    model_folder: str | None = setting(None, "folder of a run's checkpoints, for --xdir pca:1", metavar="FOLDER")
    unsafe_load: bool = setting(False, "load pickled files that can run code of their own: only files you trust")


@dataclass(frozen=True)
class DataSettings:
    """The samples and the loss."""

    dataset: str = setting(
        "digits",
        "digits, digits32, cifar10, cifar100, one of them +fog:3, cifar10c:NAME:LEVEL, npz:FILE, or file.py:factory",
        metavar="NAME",
    )
    data_path: str | None = setting(None, "folder of the data set's files", metavar="FOLDER", names=("--datapath",))
    download: bool = setting(False, "fetch CIFAR-10-C into --data-path where it is not there, and check it")
    normalize: str | None = setting(None, "mean/std per channel, such as 0.5,0.5,0.5/0.2,0.2,0.2", metavar="M/S")
    raw_data: bool = setting(False, "do not normalise the data")
    split: str = setting("train", "samples to read", choices=("train", "test", "both"))
    samples: int | None = setting(None, "at most so many samples, a fixed random subset", metavar="N", least=1)
    data_seed: int = setting(0, "seed of that subset", metavar="SEED")
    data_split: int = setting(1, "cut the data into so many pieces and use one", metavar="PIECES", least=1)
    split_idx: int = setting(0, "which piece, counted from 0", metavar="PIECE", least=0)
    trainloader: str | None = setting(None, "pickled DataLoader (needs --unsafe-load)", metavar="FILE")
    testloader: str | None = setting(None, "pickled DataLoader (needs --unsafe-load)", metavar="FILE")
    loss: str = setting(
        "crossentropy",
        "crossentropy, mse, or file.py:function(outputs, targets)",
        metavar="NAME",
        names=("--loss-name", "-l"),
    )
    problem: str | None = setting(None, "file.py:factory that returns a whole problem", metavar="FACTORY")


@dataclass(frozen=True)
class PlaneSettings:
    """The line or plane, and the points on it."""

    x: str = setting("-1:1:51", "ticks along x", metavar="LOW:HIGH:COUNT")
    y: str | None = setting(None, "ticks along y; none for a line", metavar="LOW:HIGH:COUNT")
    dir_type: str = setting("weights", "move weights, or states with running statistics", choices=("weights", "states"))
    xdir: str | None = setting(
        None,
        "random, to:FILE, pca:1, hessian:max, hessian:min, gradient, file:FILE:name; by default random",
        metavar="DIRECTION",
    )
    ydir: str | None = setting(None, "the same for y", metavar="DIRECTION")
    xnorm: str | None = setting(
        None, "filter, layer, weight, dfilter, dlayer, none; by default filter if random, else none", metavar="NORM"
    )
    ynorm: str | None = setting(None, "the same for y", metavar="NORM")
    xignore: str | None = setting(None, "biasbn or none; by default biasbn if random, else none", metavar="WHAT")
    yignore: str | None = setting(None, "the same for y", metavar="WHAT")
    same_dir: bool = setting(False, "y is the same random direction as x")
    idx: int = setting(0, "number of a repeated experiment: other random directions", metavar="NUMBER")
    seed: int = setting(0, "of directions, probes and start vectors", metavar="SEED")
    dir_file: str | None = setting(
        None, "file of directions: taken from it if it is there, else written to it", metavar="FILE"
    )
    proj_file: str | None = setting(None, "a training path to draw on the plane", metavar="FILE")
    store_directions: bool = setting(True, "keep the directions in the result")


@dataclass(frozen=True)
class RunSettings:
    """Where and how it runs."""

    surf_file: str | None = setting(
        None, "the result, .h5; by default named after model, plane and grid", metavar="FILE"
    )
    overwrite: bool = setting(False, "start anew where the result is already there")
    precision: str = setting("float32", "of all computing", choices=("float32", "tf32", "float64", "bfloat16"))
    device: str = setting("auto", "auto, cpu, cuda or cuda:1", metavar="DEVICE")
    ranks_per_gpu: int = setting(1, "ranks that may share one GPU", metavar="RANKS", least=1)
    threads: int | None = setting(None, "threads of a rank; by default its own cores", metavar="COUNT", least=1)
    batch_size: int | None = setting(
        None, "images per pass; by default chosen by a short probe", metavar="SAMPLES", least=1
    )
    probe: bool = setting(True, "choose the fastest way by a short probe; without it, separate files have equal bits")
    team: int = setting(1, "ranks that share one point", metavar="RANKS", least=1)
    rank_0: str = setting("auto", "what rank 0 does beside dealing", choices=("auto", "computes", "deals"))
    shard: str | None = setting(None, "compute only shard I of N of the points, such as 1/3", metavar="I/N")
    retry_failed: bool = setting(False, "measure failed points again")
    stop_after: float | None = setting(None, "stop in good order after so many seconds", metavar="SECONDS")
    point_timeout: float | None = setting(None, "deal a point again after so many seconds", metavar="SECONDS")
    dry_run: bool = setting(False, "say what would be done, and do nothing")


@dataclass(frozen=True)
class DrawSettings:
    """Pictures after computing."""

    plot: bool = setting(False, "draw the result, PDF and PNG")
    page: bool = setting(False, "make an interactive page")
    vtk: bool = setting(False, "write a file for ParaView")
    show: bool = setting(False, "open the picture on the screen")
    log: bool = setting(False, "logarithmic levels")
    loss_max: float | None = setting(None, "cut the loss axis here, in 1-D", metavar="LOSS")
    vmax: float | None = setting(None, "largest level", metavar="LOSS")
    vmin: float | None = setting(None, "smallest level", metavar="LOSS")
    vlevel: float | None = setting(None, "step of the levels", metavar="LOSS")


# Flags of the original tool that have no purpose any more: what to say of them.
_PAST = {
    "--mpi": (0, "implied by starting under mpirun or srun"),
    "--ngpu": (1, "each rank takes its own GPU"),
    "--cuda": (0, ""),
}


class Settings:
    """The values of several groups: `settings.model.model_file`, `settings.run.team`.

    resolved()  every setting as one flat dict, JSON-able, from which `parse(..., given=...)` makes it again
    given       the names that were set by flag or TOML
    notes       sentences for the person, such as a flag without purpose
    """

    def __init__(self, groups: Mapping[str, Any], given: Iterable[str], notes: Sequence[str]) -> None:
        self._groups = dict(groups)
        self.given = frozenset(given)
        self.notes = tuple(notes)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_groups"][name]
        except KeyError:
            raise AttributeError(f"no group of settings named {name!r}") from None

    def changed(self, group: str, **values: Any) -> Settings:
        """The same settings but for these values of one group."""
        return Settings({**self._groups, group: replace(self._groups[group], **values)}, self.given, self.notes)

    def resolved(self) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for group in self._groups.values():
            for f in fields(group):
                value = getattr(group, f.name)
                flat[f.name] = list(value) if isinstance(value, tuple) else value
        return flat


def parse(
    groups: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    about: str,
    given: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from the command line.

    groups  dataclasses; `ModelSettings` becomes `.model`
    given   values that stand in for the defaults, such as those read from a result file

    Raises Usage with one sentence; `--help` prints and leaves with SystemExit(0).
    """
    tokens, past, notes = _tidied(list(sys.argv[1:] if argv is None else argv), groups)
    parser, home = _parser(groups, prog, about)
    values = vars(parser.parse_args(tokens))
    chosen: dict[str, Any] = dict(given or {})
    chosen = {k: v for k, v in chosen.items() if k in home}
    config = values.pop("config", None)
    if config is not None:
        chosen |= _toml(Path(config), home)
    chosen |= values
    if "--cuda" in past and "device" in home and "device" not in values:
        chosen["device"] = "cuda"
    made = {}
    for group in groups:
        own = {f.name: _as(f, group, chosen[f.name]) for f in fields(group) if f.name in chosen}
        made[_short(group)] = group(**own)
    return Settings(made, chosen, notes)


def _short(group: type) -> str:
    name = re.sub(r"Settings$", "", group.__name__)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _spellings(f: Field[Any]) -> list[str]:
    return ["--" + f.name.replace("_", "-"), *f.metadata["names"]]


def _plain(hint: Any) -> type:
    """The type behind `int | None` or `tuple[str, ...]`."""
    inner = [a for a in get_args(hint) if a not in (type(None), Ellipsis)]
    kind: type = inner[0] if inner else hint
    return kind


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        message = message.removeprefix("argument ")
        if choice := re.match(r"(\S+): invalid choice: (.+) \(choose from (.+)\)", message):
            message = f"{choice[1]} is one of {choice[3].replace(chr(39), '')}; got {choice[2]}"
        elif number := re.match(r"(\S+): invalid (int|float) value: (.+)", message):
            message = f"{number[1]} wants a {'whole ' if number[2] == 'int' else ''}number; got {number[3]}"
        elif valueless := re.match(r"(\S+): expected (?:one|at least one) argument", message):
            message = f"{valueless[1]} wants a value"
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown.group(1).split("=")[0]
            known = [s for a in self._actions for s in a.option_strings]
            near = difflib.get_close_matches(flag, known, 3, 0.6)
            message = f"unknown flag {flag}" + (f"; did you mean {' or '.join(near)}?" if near else "; see --help")
        raise Usage(message)


def _parser(groups: Sequence[type], prog: str, about: str) -> tuple[_Parser, dict[str, type]]:
    parser = _Parser(
        prog=prog,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    home: dict[str, type] = {}
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or "").strip().splitlines()[0].rstrip("."))
        hints = get_type_hints(group)
        for f in fields(group):
            home[f.name] = group
            _flag(section, f, hints[f.name])
    parser.add_argument("--config", metavar="TOML", help="read settings from a TOML file; flags win")
    return parser, home


def _flag(section: Any, f: Field[Any], hint: Any) -> None:
    meta, default = f.metadata, f.default
    shown = "" if default in (None, False, ()) or default is MISSING else f" (default: {default})"
    help = (meta["help"] + shown).replace("%", "%%")
    if hint is bool:
        action: Any = argparse.BooleanOptionalAction if default is True else "store_true"
        section.add_argument(*_spellings(f), dest=f.name, action=action, help=meta["help"].replace("%", "%%"))
        return
    more: dict[str, Any] = {"help": help, "metavar": meta["metavar"]}
    if meta["choices"]:
        more["choices"] = meta["choices"]
        more.pop("metavar")
    kind = _plain(hint)
    if kind in (int, float):
        more["type"] = kind
    several = isinstance(default, tuple)
    if meta["positional"]:
        section.add_argument(f.name, nargs="*" if several else ("?" if default is not MISSING else None), **more)
    elif several:
        section.add_argument(*_spellings(f), dest=f.name, nargs="+", **more)
    else:
        section.add_argument(*_spellings(f), dest=f.name, **more)


def _tidied(argv: list[str], groups: Sequence[type]) -> tuple[list[str], set[str], list[str]]:
    """Underscores as hyphens, `--x -1:1:51` as `--x=-1:1:51`, and flags of the past taken out."""
    own = {s for g in groups for f in fields(g) for s in _spellings(f)}
    tokens: list[str] = []
    past: set[str] = set()
    notes: list[str] = []
    rest = iter(range(len(argv)))
    for i in rest:
        token = argv[i]
        if token == "--":
            return tokens + argv[i:], past, notes
        if token.startswith("--"):
            flag, equals, value = token.partition("=")
            token = flag.replace("_", "-") + equals + value
            flag = flag.replace("_", "-")
            if flag in _PAST and flag not in own:
                takes, why = _PAST[flag]
                past.add(flag)
                if takes and not equals:
                    next(rest, None)
                if why:
                    notes.append(f"{flag} is not needed any more: {why}")
                continue
            follows = argv[i + 1] if i + 1 < len(argv) else ""
            if not equals and flag in own and re.match(r"-[\d.]", follows):
                token = f"{flag}={follows}"
                next(rest, None)
        tokens.append(token)
    return tokens, past, notes


def _toml(path: Path, home: Mapping[str, type]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise Usage(f"--config {path}: {error.strerror}") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"--config {path} is no TOML: {error}") from None
    flat: dict[str, Any] = {}

    def gather(table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if isinstance(value, dict) and not key.endswith("args"):
                gather(value)  # a table is there for the reader; its name says nothing
                continue
            name = key.replace("-", "_")
            name = {"loss_name": "loss", "datapath": "data_path"}.get(name, name)
            if name not in home:
                near = difflib.get_close_matches(name, home, 3, 0.6)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise Usage(f"--config {path}: unknown setting {key!r}{hint}")
            flat[name] = json.dumps(value) if isinstance(value, dict) else value

    gather(tree)
    return flat


def _as(f: Field[Any], group: type, value: Any) -> Any:
    """A value from TOML or a result file in its setting's type."""
    hint = get_type_hints(group)[f.name]
    if value is None:
        return None
    if isinstance(f.default, tuple):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    kind = _plain(hint)
    if kind is bool and not isinstance(value, bool):
        raise Usage(f"{f.name} wants true or false; got {value!r}")
    try:
        value = kind(value) if kind in (int, float, str) and not isinstance(value, kind) else value
    except (TypeError, ValueError):
        raise Usage(f"{f.name} wants {kind.__name__}; got {value!r}") from None
    least = f.metadata["least"]
    if least is not None and not value >= least:
        raise Usage(f"--{f.name.replace('_', '-')} wants {least} or more; got {value}")
    if f.metadata["choices"] and value not in f.metadata["choices"]:
        raise Usage(f"{f.name} is one of {', '.join(f.metadata['choices'])}; got {value!r}")
    return value


def sentence(error: Exception) -> str:
    """An error as one sentence for a person."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.filename and error.strerror:  # not yet put into words
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def launched_rank() -> int:
    """The rank of this process by the launcher's variables, before any MPI is started; 0 without a launcher."""
    return rank_in(os.environ)


def guarded(door: Callable[..., int]) -> Callable[..., int]:
    """A door whose errors reach a person as one sentence and exit code 2; LOSSMAP_DEBUG=1 shows the traceback."""

    @functools.wraps(door)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            return door(*args, **kwargs)
        except BrokenPipeError:  # whoever read, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except (ValueError, OSError, ImportError, KeyError, RuntimeError, ArithmeticError) as error:
            if os.environ.get("LOSSMAP_DEBUG"):
                raise
            if launched_rank() == 0:
                print(f"lossmap: {sentence(error)}", file=sys.stderr)
            return 2

    return run
