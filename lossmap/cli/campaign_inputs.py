"""The files that a member's settings name, and what counts of them: their contents, not their names. No torch.

A setting that names a file is part of a member's digest as the SHA-256 of what is in the file; where more stands beside
the file's name (a function's, a label), that counts as it is. Of code the user's own files that it imports count too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lossmap.campaign.digests import DigestCache
from lossmap.campaign.neighbours import depends_on_place, imported_files, module_file
from lossmap.cli.settings import UsageError
from lossmap.data.huggingface_files import PREFIX, data_files, is_in_folder, model_files, path_in
from lossmap.special_files import plain_text

PATHS = {
    "model_file", "model_file2", "model_file3", "model_folder", "trainloader", "testloader", "dir_file", "proj_file",
    "other", "ends",
}  # fmt: skip
CHECKPOINTS = {"model_file", "model_file2", "model_file3"}  # PATHS that are files, and no folders
CODE = {"model", "dataset", "loss", "problem", "metric"}  # may be file.py:function, or package.module:function
DIRECTIONS = {"xdir", "ydir"}
IN_FOLDERS = {"model": model_files, "dataset": data_files}  # may be hf:PATH
LABELLED = {"compare"}  # LABEL=FILE or LABEL=MODEL@FILE


class LastInputs:
    """What counted of the files that a campaign's settings name when they were last there, in a JSON file.

    path  the file; None: in memory alone
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._changed = path, False
        self._counted: dict[str, Any] = {}
        try:
            known = {} if path is None else json.loads(plain_text(path))
            self._counted = known if isinstance(known, dict) else {}
        except (OSError, ValueError, RecursionError):  # it can be made again while the files are there
            return

    def last(self, name: str, value: str) -> Any:
        """What counted of this setting's value, as JSON writes it; None where that is not known."""
        return self._counted.get(f"{name} {value}")

    def keep(self, name: str, value: str, counted: Any) -> None:
        """Keep what counts of it now."""
        if self.last(name, value) != counted:
            self._counted[f"{name} {value}"] = counted
            self._changed = True

    def save(self) -> None:
        """Write the file, whole, where something has changed; a folder that cannot be written to is no error."""
        if self.path is None or not self._changed:
            return
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with suppress(OSError):
            part.write_text(json.dumps(self._counted))
            part.replace(self.path)
            self._changed = False


def identity_of(name: str, value: Any, folder: Path, digests: DigestCache) -> tuple[Any, dict[str, str]]:
    """What counts of a setting's value, and the digests of the files that it names, by path.

    folder  where relative paths start

    Raises UsageError where a file is not there.
    """
    if isinstance(value, list):
        parts = [identity_of(name, item, folder, digests) for item in value]
        return [part for part, _ in parts], {path: d for _, files in parts for path, d in files.items()}
    if name in IN_FOLDERS and is_in_folder(str(value)):
        return _identity_of_folder(name, str(value), folder, digests)
    contents: dict[str, str] = {}
    counted: Any = value
    for path, around in _files_in(name, str(value), folder):
        if name in CHECKPOINTS and (folder / path).is_dir():
            raise UsageError(f"{name}: {path} is a folder; a checkpoint is one file")
        try:
            contents[path] = digests.of(folder / path)
        except OSError as error:
            raise UsageError(f"{name}: {path}: {error.strerror or error}") from None
        counted = [around, contents[path]]
        if name in CODE and path.endswith(".py"):
            files = imported_files(folder / path, folder)
            imported = {os.path.relpath(file, folder): digests.of(file) for file in files}
            counted += sorted([Path(other).name, digest] for other, digest in imported.items())
            if depends_on_place(folder / path, files, folder):
                counted.append(os.path.relpath(Path(folder / path).parent, folder))
            contents |= imported
        for shard in _shards(folder / path):
            contents[str(Path(path).parent / shard)] = digests.of(folder / Path(path).parent / shard)
            counted.append(contents[str(Path(path).parent / shard)])
    return counted, contents


def _identity_of_folder(name: str, value: str, folder: Path, digests: DigestCache) -> tuple[Any, dict[str, str]]:
    """The same of `hf:PATH`, all of whose files count."""
    try:
        files = IN_FOLDERS[name](f"{PREFIX}{folder / path_in(value)}")
        contents = {os.path.relpath(file, folder): digests.of(file) for file in files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from None
    return [PREFIX, *contents.values()], contents


def _shards(path: Path) -> list[str]:
    """The files that a list of shards names, as Hugging Face writes it; none of any other file."""
    if not path.name.endswith(".index.json"):
        return []
    try:
        return sorted(set(json.loads(plain_text(path))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the command says what is wrong with it
        return []


def _files_in(name: str, value: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The file in a setting's value, where there is one, and what stands around it."""
    if name in PATHS:
        yield value, ""
    elif name in CODE and (match := re.fullmatch(r"(.+\.py):(.+)", value)):
        yield match[1], match[2]
    elif (
        name in CODE and (match := re.fullmatch(r"([\w.]+):[\w.]+", value)) and (file := module_file(match[1], folder))
    ):
        yield os.path.relpath(file, folder), value
    elif name == "dataset" and value.startswith("npz:"):
        yield value[4:], "npz"
    elif name in DIRECTIONS and value.startswith("to:"):
        yield value[3:], "to"
    elif name in DIRECTIONS and (match := re.fullmatch(r"file:(.+):([^:]+)", value)):
        yield match[1], f"file:{match[2]}"
    elif name in LABELLED and (match := re.fullmatch(r"([^=]+=(?:[^@]+@)?)(.+)", value)):
        yield match[2], match[1]
