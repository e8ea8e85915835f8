"""From a command line to settings: flags are spelt with hyphens, underscores are accepted, and flags win over TOML.

A subcommand is described by a `Command`: its groups of settings, its help and its examples. Flags of the original tool
(tomgoldstein/loss-landscape) that have no purpose any more are accepted, and noted in one line.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from lossmap.cli.config_file import read_config
from lossmap.cli.entry_point import command_words
from lossmap.cli.settings import (
    ELSEWHERE,
    Settings,
    UsageError,
    convert,
    flag_of,
    former_names,
    group_name,
    idle_settings,
    plain_type,
    renamed,
    spellings,
)

# Flags of the original tool that have no purpose any more: how many values follow, and the note for the person.
RETIRED = {
    "--mpi": (0, "implied by starting under mpirun or srun"),
    "--ngpu": (1, "each rank takes its own GPU"),
    "--cuda": (0, ""),
}

OF_FLAGS = ("--sbatch",)  # whose value begins with a minus


@dataclass(frozen=True)
class Command:
    """A subcommand: what it takes, and what its help says.

    name      such as `surface`
    about     the first part of its help
    groups    dataclasses of settings; `ModelSettings` becomes `settings.model`
    examples  command lines that its help ends with
    without   settings of these groups that have no meaning here: they keep their defaults, and are no flags
    """

    name: str
    about: str
    groups: tuple[type, ...]
    examples: tuple[str, ...]
    without: frozenset[str] = frozenset()

    def parse(self, argv: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None) -> Settings:
        """The settings of a command line, as `parse` reads it."""
        return parse(
            self.groups,
            argv,
            prog=f"lossmap {self.name}",
            about=self.about,
            defaults=defaults,
            examples=self.examples,
            without=self.without,
        )


def parse(
    groups: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    about: str,
    defaults: Mapping[str, Any] | None = None,
    examples: Sequence[str] = (),
    without: frozenset[str] = frozenset(),
) -> Settings:
    """Settings from the command line.

    groups    dataclasses; `ModelSettings` becomes `.model`
    defaults  values instead of the settings' own, such as those read from a result file, of version 0.1 too
    examples  command lines that the help ends with
    without   settings that are no flags here

    Raises UsageError with one sentence; `--help` prints and leaves with SystemExit(0).
    """
    line = _normalized(command_words(argv), groups)
    parser, home = _parser(groups, prog, about, examples, without)
    flags = vars(parser.parse_intermixed_args(line.tokens))
    values = {k: v for k, v in renamed(defaults or {}, groups).items() if k in home}
    config = flags.pop("config", None)
    given = flags if config is None else read_config(Path(config), home, former_names(groups)) | flags
    values |= given
    if "--cuda" in line.retired and "device" in home and "device" not in flags:
        values["device"] = "cuda"
    made = {}
    for group in groups:
        own = {f.name: convert(f, group, values[f.name]) for f in fields(group) if f.name in values}
        made[group_name(group)] = group(**own)
    return Settings(made, values, [*line.notes, *idle_settings(made.values(), given)], given)


class _Parser(argparse.ArgumentParser):
    without: frozenset[str] = frozenset()  # flags of other commands

    def error(self, message: str) -> Any:
        raise UsageError(self._sentence(message.removeprefix("argument ")))

    def _sentence(self, message: str) -> str:
        """An error of argparse in the words of all other errors: what came, and what is needed."""
        if match := re.match(r"(\S+): invalid choice: (.+) \(choose from (.+)\)", message):
            return f"{_first(match[1])} must be one of {match[3].replace(chr(39), '')}; got {match[2]}"
        if match := re.match(r"(\S+): invalid (int|float) value: (.+)", message):
            kind = {"int": "a whole number", "float": "a number"}[match[2]]
            return f"{_first(match[1])} must be {kind}; got {match[3]}"
        if match := re.match(r"(\S+): expected (?:one|at least one) argument", message):
            return f"{_first(match[1])} needs a value"
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            return self._unknown(match[1].split("=")[0])
        return message

    def _unknown(self, flag: str) -> str:
        shown = [s for a in self._actions if a.help != argparse.SUPPRESS for s in a.option_strings]
        names = {name.removeprefix("--").replace("-", "_"): name for name in shown}
        here = ELSEWHERE.get(flag.removeprefix("--").replace("-", "_"))
        # without the dashes, which all have: `--yes` is not like `--abs`
        like = difflib.get_close_matches(flag.removeprefix("--").replace("-", "_"), names, 3, 0.7)
        nearest = [names[here]] if here in names else [names[name] for name in like]
        if flag in self.without and here not in names:
            return f"unknown flag {flag}: other commands have it, {self.prog} has not; see --help"
        if nearest:
            return f"unknown flag {flag}; did you mean {' or '.join(nearest)}?"
        return f"unknown flag {flag}; see --help"


def _first(names: str) -> str:
    """The first of the names by which argparse calls a flag, `--loss/--loss-name/-l`."""
    return names.split("/")[0]


def _parser(
    groups: Sequence[type], prog: str, about: str, examples: Sequence[str], without: frozenset[str]
) -> tuple[_Parser, dict[str, type]]:
    """The parser, and for each setting that is a flag the group that it belongs to."""
    parser = _Parser(
        prog=prog,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.without = frozenset(map(flag_of, without))
    if examples:
        parser.epilog = "\n  ".join(["EXAMPLES", *examples])
    home: dict[str, type] = {}
    for group in groups:
        section = parser.add_argument_group(*group_titles(group))
        hints = get_type_hints(group)
        for f in fields(group):
            if f.name not in without:
                home[f.name] = group
                _add_flag(section, f, hints[f.name])
    parser.add_argument("--config", metavar="TOML", help="TOML file to read settings from; flags win over it")
    return parser, home


def group_titles(group: type) -> tuple[str, str | None]:
    """The title of a group of settings, and what its docstring says of them together; None where that is nothing."""
    title, _, text = inspect.cleandoc(group.__doc__ or "").partition("\n\n")
    return title.rstrip("."), text or None


def _add_flag(section: Any, f: Field[Any], hint: Any) -> None:
    options = _options(f, hint)
    if f.metadata["positional"]:
        section.add_argument(f.name, **options)
    else:
        section.add_argument(*spellings(f), dest=f.name, **options)
    if f.metadata["former"]:
        section.add_argument(*f.metadata["former"], **{**options, "dest": f.name, "help": argparse.SUPPRESS})


def _options(f: Field[Any], hint: Any) -> dict[str, Any]:
    """The keywords of `add_argument` for a setting."""
    meta, default = f.metadata, f.default
    text = meta["help"].replace("%", "%%")
    if hint is bool and default is True:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if hint is bool:
        return {"action": "store_true", "help": text}
    if default not in (None, (), "") and default is not MISSING:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" (default: {shown})".replace("%", "%%")
    options: dict[str, Any] = {"help": text}
    if meta["choices"]:
        options["choices"] = meta["choices"]
    else:
        options["metavar"] = meta["metavar"]
    kind = plain_type(hint)
    if kind in (int, float):
        options["type"] = kind
    elif meta["former_values"]:
        options["type"] = lambda value: meta["former_values"].get(value, value)
    if isinstance(default, tuple):
        options["nargs"] = "*" if meta["positional"] else "+"
        if not meta["positional"]:
            options["action"] = "extend"  # the flag may be repeated
    elif meta["positional"] and default is not MISSING:
        options["nargs"] = "?"
    return options


class _Line(NamedTuple):
    """A command line made ready for argparse: its tokens, the retired flags in it, and notes on them."""

    tokens: list[str]
    retired: set[str]
    notes: list[str]


def _normalized(argv: list[str], groups: Sequence[type]) -> _Line:
    """Underscores as hyphens, `--x -1:1:51` as `--x=-1:1:51`, and retired flags taken out."""
    own = {s for g in groups for f in fields(g) for s in (*spellings(f), *f.metadata["former"])}
    line = _Line([], set(), [])
    rest = iter(range(len(argv)))
    for i in rest:
        token = argv[i]
        if token == "--":
            line.tokens.extend(argv[i:])
            break
        if not token.startswith("--"):
            line.tokens.append(token)
            continue
        name, equals, value = token.partition("=")
        flag = name.replace("_", "-")
        if flag in RETIRED and flag not in own:
            _retire(flag, line)
            if RETIRED[flag][0] and not equals:
                next(rest, None)
            continue
        following = argv[i + 1 : i + 2]
        is_value = r"-" if flag in OF_FLAGS else r"-[\d.]"
        if not equals and flag in own and following and re.match(is_value, following[0]):
            equals, value = "=", following[0]  # argparse would take a range that begins with a minus for a flag
            next(rest, None)
        line.tokens.append(flag + equals + value)
    return line


def _retire(flag: str, line: _Line) -> None:
    line.retired.add(flag)
    note = RETIRED[flag][1]
    if note:
        line.notes.append(f"{flag} is not needed any more: {note}")
