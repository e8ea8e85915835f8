"""Settings as values: groups of them are frozen dataclasses, off which flags, help and TOML are all read.

A group is a frozen dataclass `NameSettings` whose fields are made by `setting(default, help)`; its docstring is the
title of its section in the help. `lossmap.cli.command_line` turns a command line into a `Settings` of such groups. A
setting may have former names and values, those of version 0.1: they are still understood on the command line, in TOML
and in the settings that a result file holds. No torch is imported here: a figure is drawn without it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, field, fields, replace
from typing import Any, get_args, get_type_hints

# Names that other commands have for what a command calls otherwise, where no spelling is near.
ELSEWHERE = {"model_file2": "other"}  # of a plane through three checkpoints; of the line between two


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names that are probably meant by one that is not known: what it is called here, or near ones."""
    known = list(known)
    here = ELSEWHERE.get(name)
    return [here] if here in known else difflib.get_close_matches(name, known, count, 0.6)


class UsageError(ValueError):
    """Invalid command line or option combination; the text is one sentence for a person. Commands exit with 2."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    names: Sequence[str] = (),
    former: Sequence[str] = (),
    former_values: Mapping[str, str] | None = None,
    positional: bool = False,
    minimum: float | None = None,
    above: float | None = None,
    needs: Sequence[str] = (),
) -> Any:
    """A dataclass field that is also a flag.

    default        its value where none is set; a bool makes a switch, a tuple takes several values
    help           a noun phrase with the unit; the default is added to it
    names          further spellings, such as `--loss-name` or `-l`
    former         spellings of version 0.1, which are understood but not shown
    former_values  values of version 0.1 and what they are called now
    minimum        the smallest valid number
    above          a bound that a valid number exceeds
    needs          another setting without which it has no effect, and that one's values with which it has; any but none
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "metavar": metavar,
        "names": tuple(names),
        "former": tuple(former),
        "former_values": dict(former_values or {}),
        "positional": positional,
        "minimum": minimum,
        "above": above,
        "needs": tuple(needs),
    }
    return field(default=default, metadata=metadata)


class Settings:
    """The values of several groups: `settings.model.model_file`, `settings.run.team`.

    explicit  the names that were set by a flag, by TOML or by a result file
    notes     sentences for the person, such as a flag without purpose
    given     of the explicit names those that a flag or TOML has set now
    """

    def __init__(
        self, groups: Mapping[str, Any], explicit: Iterable[str], notes: Sequence[str], given: Iterable[str] = ()
    ) -> None:
        self._groups = dict(groups)
        self.explicit, self.given = frozenset(explicit), frozenset(given)
        self.notes = tuple(notes)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_groups"][name]
        except KeyError:
            raise AttributeError(f"no group of settings named {name!r}") from None

    def changed(self, group: str, **values: Any) -> Settings:
        """The same settings but for these values of one group."""
        groups = {**self._groups, group: replace(self._groups[group], **values)}
        return Settings(groups, self.explicit, self.notes, self.given)

    def noted(self, *notes: str) -> Settings:
        """The same settings with further notes."""
        return Settings(self._groups, self.explicit, (*self.notes, *notes), self.given)

    def resolved(self) -> dict[str, Any]:
        """Every setting as one flat dict that JSON can hold, off which `parse(..., defaults=...)` makes it again."""
        flat: dict[str, Any] = {}
        for group in self._groups.values():
            for f in fields(group):
                value = getattr(group, f.name)
                flat[f.name] = list(value) if isinstance(value, tuple) else value
        return flat


def group_name(group: type) -> str:
    """The attribute of `Settings` that a group becomes: `model` for ModelSettings."""
    name = re.sub(r"Settings$", "", group.__name__)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def flag_of(name: str) -> str:
    """A setting's flag: `--model-file` for model_file."""
    return "--" + name.replace("_", "-")


def spellings(f: Field[Any]) -> list[str]:
    """The flags of a setting that the help shows."""
    return [flag_of(f.name), *f.metadata["names"]]


def former_names(groups: Iterable[type]) -> dict[str, str]:
    """Further and former names of settings, as TOML and result files spell them, and the present name of each."""
    return {
        flag.lstrip("-").replace("-", "_"): f.name
        for group in groups
        for f in fields(group)
        for flag in (*f.metadata["names"], *f.metadata["former"])
        if flag.startswith("--")
    }


def renamed(values: Mapping[str, Any], groups: Iterable[type]) -> dict[str, Any]:
    """Settings of a result file under their present names; those that no group knows are left out."""
    groups = tuple(groups)
    known = {f.name for group in groups for f in fields(group)}
    former = former_names(groups)
    present = {former.get(name, name): value for name, value in values.items() if name not in known}
    present |= {name: value for name, value in values.items() if name in known}
    return {name: value for name, value in present.items() if name in known}


def decode_settings(stored: Any) -> dict[str, Any]:
    """The `settings` and the `folder` of a command as a result file holds them, in JSON or decoded already."""
    return dict(json.loads(stored) if isinstance(stored, str) else stored)


def idle_settings(groups: Iterable[Any], names: Iterable[str]) -> list[str]:
    """A sentence for each of these settings, which someone has set, that has no effect beside the others."""
    groups, names = tuple(groups), frozenset(names)
    values = {f.name: getattr(group, f.name) for group in groups for f in fields(group)}
    sentences = []
    for f in (f for group in groups for f in fields(group) if f.name in names and f.metadata["needs"]):
        other, *taken = f.metadata["needs"]
        value = values.get(other)
        if value not in taken if taken else value in (None, False, "none", ()):
            needed = f"{flag_of(other)} {' or '.join(taken)}".rstrip()
            sentences.append(f"{flag_of(f.name)} has no effect: it needs {needed}")
    return sentences


def plain_type(hint: Any) -> type:
    """The type behind `int | None` or `tuple[str, ...]`."""
    inner = [a for a in get_args(hint) if a not in (type(None), Ellipsis)]
    kind: type = inner[0] if inner else hint
    return kind


KINDS = {int: "a whole number", float: "a number", str: "text"}  # of a value, as messages name them


def convert(f: Field[Any], group: type, value: Any) -> Any:
    """A value from the command line, TOML or a result file in its setting's type.

    Raises UsageError where it is of another kind, out of range or no choice.
    """
    hint = get_type_hints(group)[f.name]
    if value is None:
        return None
    if isinstance(f.default, tuple):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    kind = plain_type(hint)
    if kind is bool and not isinstance(value, bool):
        raise UsageError(f"{f.name} must be true or false; got {value!r}")
    if isinstance(value, str) and "\0" in value:  # no name of a file, and nothing else
        raise UsageError(f"{f.name} holds a character that no text has; got {value!r}")
    try:
        if kind in KINDS and not isinstance(value, kind):
            if kind is int and isinstance(value, float) and not value.is_integer():
                raise ValueError("cut off it would be another number")
            value = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{f.name} must be {KINDS[kind]}; got {value!r}") from None
    return _in_range(f, value)


def _in_range(f: Field[Any], value: Any) -> Any:
    meta = f.metadata
    if meta["minimum"] is not None and not value >= meta["minimum"]:
        raise UsageError(f"{flag_of(f.name)} must be >= {meta['minimum']}; got {value}")
    if meta["above"] is not None and not value > meta["above"]:
        raise UsageError(f"{flag_of(f.name)} must be > {meta['above']}; got {value:g}")
    if isinstance(value, str):
        value = meta["former_values"].get(value, value)
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"{f.name} must be one of {', '.join(meta['choices'])}; got {value!r}")
    return value
