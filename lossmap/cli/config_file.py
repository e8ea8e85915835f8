"""Settings in a TOML file: `--config run.toml`. Tables are for the reader; their names have no meaning."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lossmap.cli.settings import UsageError, nearest_names
from lossmap.special_files import SPECIAL, is_special


def read_config(path: Path, known: Collection[str], former: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a TOML file by their present names.

    known   the names of all settings
    former  further names, and the present name of each

    Raises UsageError where the file cannot be read, is not TOML, or names a setting that does not exist.
    """
    flat: dict[str, Any] = {}
    for key, value in _entries(toml_tree(path)):
        name = key.replace("-", "_")
        name = former.get(name, name)
        if name not in known:
            nearest = nearest_names(name, known)
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            raise UsageError(f"--config {path}: unknown setting {key!r}{hint}")
        flat[name] = json.dumps(value) if isinstance(value, dict) else value
    return flat


def toml_tree(path: Path, what: str = "--config") -> dict[str, Any]:
    """The tables of a TOML file; `what` it is, for messages. Raises UsageError where it cannot be read."""
    if is_special(path):
        raise UsageError(f"{what} {path} {SPECIAL}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{what} {path} must be text in UTF-8: {error}") from None
    return toml_text_tree(text, path, what)


def toml_text_tree(text: str, path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML text, which is, or will be, in this file. Raises UsageError where it is no TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{what} {path} is not TOML: {error}") from None


def _entries(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a table and of the tables in it; a table whose name ends in `args` is itself a value."""
    for key, value in table.items():
        if isinstance(value, dict) and not key.endswith("args"):
            yield from _entries(value)
        else:
            yield key, value
