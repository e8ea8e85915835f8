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
from dataclasses import MISSING, Field, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lossmap.parallel.launcher import rank_in

EXIT = {"complete": 0, "failed": 3, "unfinished": 75}  # a door's exit code, by how its result stands


class UsageError(ValueError):
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
        raise UsageError(message)


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
        raise UsageError(f"--config {path}: {error.strerror}") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {path} is no TOML: {error}") from None
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
                raise UsageError(f"--config {path}: unknown setting {key!r}{hint}")
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
        raise UsageError(f"{f.name} wants true or false; got {value!r}")
    try:
        value = kind(value) if kind in (int, float, str) and not isinstance(value, kind) else value
    except (TypeError, ValueError):
        raise UsageError(f"{f.name} wants {kind.__name__}; got {value!r}") from None
    least = f.metadata["least"]
    if least is not None and not value >= least:
        raise UsageError(f"--{f.name.replace('_', '-')} wants {least} or more; got {value}")
    if f.metadata["choices"] and value not in f.metadata["choices"]:
        raise UsageError(f"{f.name} is one of {', '.join(f.metadata['choices'])}; got {value!r}")
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
