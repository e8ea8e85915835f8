"""Points that were left before their end: the state of each in a file of its own, beside the surface."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lossmap.io.surface import to_plain
from lossmap.special_files import is_special


def folder_of(path: Path) -> Path:
    """The folder of the states beside a surface file."""
    return path.with_name(path.name + ".unfinished")


def save_state(path: Path, file_id: str, measure: str, index: int, state: Mapping[str, Any]) -> None:
    """Keep the state of a point, written whole. Raises OSError where there is no room."""
    arrays = {name: np.asarray(v) for name, v in state.items() if _is_array(v)}
    rest = {name: to_plain(v) for name, v in state.items() if name not in arrays}
    about = {"id": file_id, "names": list(arrays), "plain": rest}
    content: dict[str, Any] = {f"a{i}": a for i, a in enumerate(arrays.values())}
    target = folder_of(path) / f"{measure}-{index}.npz"
    part = target.with_suffix(".part")
    target.parent.mkdir(exist_ok=True)
    try:
        with open(part, "wb") as file:
            _write(file, {"about": np.array(json.dumps(about)), **content})
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _write(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """As `np.savez`, which may leave its archive open on a full disk: Python then complains of it later."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def forget_states(path: Path) -> None:
    """Remove the states of all points of a surface file. Raises OSError where that is not allowed."""
    for state in folder_of(path).glob("*.npz"):
        state.unlink(missing_ok=True)


class Unfinished(Mapping[int, dict[str, Any]]):
    """The saved states of a measure, each read from its file when asked for."""

    def __init__(self, folder: Path, measure: str, file_id: str) -> None:
        self._folder, self._measure, self._file_id = folder, measure, file_id

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._folder / f"{self._measure}-{index}.npz"
        if is_special(path):
            raise KeyError(index)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["id"] != self._file_id:
                    raise KeyError(index)
                state: dict[str, Any] = {str(name): file[f"a{i}"] for i, name in enumerate(about["names"])}
                state.update(about["plain"])
                return state
        except (OSError, ValueError, zipfile.BadZipFile):
            raise KeyError(index) from None

    def __iter__(self) -> Iterator[int]:
        pattern = re.compile(re.escape(self._measure) + r"-(\d+)\.npz")
        names = sorted(os.listdir(self._folder)) if self._folder.is_dir() else []
        indices = [int(found[1]) for name in names if (found := pattern.fullmatch(name))]
        return iter([index for index in indices if index in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.get(index) is not None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "__array__")
