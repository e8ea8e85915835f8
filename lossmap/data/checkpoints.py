"""Checkpoints: the tensors of a trained model, by name, whatever the file is called.

Read are PyTorch's files (zip and legacy format), plain pickles of tensors or arrays, and safetensors; distinguished
by their first bytes, never by the suffix. The tensors may stand plain or under `state_dict`, `model`,
`net` or `params`; the prefixes `module.` and `_orig_mod.`, left by wrappers, are taken off. No code from a file
is run, unless `unsafe` is asked for, which says so loudly.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.data import safe_unpickle

log = logging.getLogger(__name__)

State = dict[str, Tensor]

# the entries under which users' files hold their tensors
_UNDER = ("state_dict", "model", "net", "params", "model_state_dict", "module", "weights")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of the legacy format, pickled
_MAX_LISTED = 8  # names in one error


def kind_of(path: str | Path) -> str | None:
    """What a file is by its content: one of four forms, `torchscript`, or None for what is not a checkpoint.

    The forms are `zip`, `legacy`, `pickle` and `safetensors`.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head.startswith(b"PK\x03\x04"):
            return _kind_of_zip(file)
        if head.startswith(_LEGACY):
            return "legacy"
        if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000 and size > 9:
            return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return None


def _kind_of_zip(file: BinaryIO) -> str | None:
    try:
        names = zipfile.ZipFile(file).namelist()
    except zipfile.BadZipFile:  # cut off: its table, at the end, is missing; reading it will say so
        return "zip"
    if any(name.endswith("constants.pkl") for name in names):
        return "torchscript"
    if any(name.endswith("data.pkl") for name in names):
        return "zip"
    return None


def load_state(path: str | Path, unsafe: bool = False) -> State:
    """The tensors of a checkpoint by name, on the CPU.

    unsafe  where a file holds more than tensors, read it all the same, running whatever code it names

    Raises FileNotFoundError; ValueError, in one sentence, for a file that is cut off, is not a checkpoint, or
    holds more than tensors.
    """
    path = Path(path)
    if not path.exists():
        message = f"there is no file {path}"
        near = difflib.get_close_matches(path.name, _names_in(path.parent), 3)
        if near:
            message += f"; beside it: {', '.join(near)}"
        raise FileNotFoundError(message)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a checkpoint is one file")
    kind = kind_of(path)
    if kind is None:
        what = "is not a checkpoint" if path.stat().st_size else "is empty"
        raise ValueError(f"{path} {what}: neither PyTorch's formats nor safetensors")
    state = _state_in(_content(path, kind, unsafe))
    if state is None:
        raise ValueError(
            f"{path} holds no state dict: neither tensors by name nor a dict of them under {', '.join(_UNDER[:4])}"
        )
    return _stripped(state)


def _names_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry in folder.iterdir()]


def _allowed() -> list[Any]:
    """What may stand in a checkpoint beside tensors: Namespaces, NumPy's numbers and arrays."""
    kinds = {type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    named = [(thing, f"{module}.{name}") for (module, name), thing in safe_unpickle.NAMES.items() if "numpy" in module]
    return [safe_unpickle.NAMES["argparse", "Namespace"], *kinds, *named]


def _content(path: Path, kind: str, unsafe: bool) -> Any:
    try:
        if kind == "torchscript":
            raise safe_unpickle.Refused("it is a TorchScript archive")
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if kind == "pickle":
            with path.open("rb") as file:
                return safe_unpickle.read(file)
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols other than 2
            with path.open("rb") as file:  # given a name, torch.load would judge by the suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = _what_was_refused(error)
        if refused and unsafe:
            return _unsafe_content(path, kind)
        if refused:
            raise ValueError(
                f"{path} holds more than tensors ({refused}), and reading that could run code; save "
                "model.state_dict() instead, or, if you trust the file, ask for --unsafe-load"
            ) from None
        if isinstance(error, OSError):
            raise
        detail = (str(error).splitlines() or [""])[0].partition(". ")[0][:120]
        raise ValueError(
            f"{path} cannot be read: it is cut off, damaged or not a checkpoint ({type(error).__name__}: {detail})"
        ) from None


def _what_was_refused(error: Exception) -> str:
    """What a file holds that could run code; empty where the error is another one."""
    text = str(error)
    if isinstance(error, safe_unpickle.Refused):
        return text
    for pattern in (r"Unsupported global: GLOBAL (\S+)", r"Trying to (?:call|instantiate|load) .*?(\S+\.\S+)"):
        match = re.search(pattern, text)
        if match:
            return f"it asks for {match.group(1).rstrip('.')}"
    if "WeightsUnpickler error" in text and "Unsupported" in text:
        return "it is refused by weights_only"
    return ""


def _unsafe_content(path: Path, kind: str) -> Any:
    log.warning("UNSAFE: reading %s with all that it names; code inside it runs now, with your rights", path)
    with path.open("rb") as file, warnings.catch_warnings():
        if kind == "pickle":
            return pickle.load(file)
        warnings.simplefilter("ignore", UserWarning)  # that it is TorchScript, which is being said already
        return torch.load(file, map_location="cpu", weights_only=False)


def _state_in(content: Any) -> State | None:
    """The named tensors in what a file held, or None."""
    if isinstance(content, nn.Module):
        return dict(content.state_dict())
    if not isinstance(content, Mapping) or not content:
        return None
    tensors = {k: _tensor(v) for k, v in content.items() if isinstance(k, str)}
    state = {k: t for k, t in tensors.items() if t is not None}
    if len(state) == len(content):
        return state
    for key in _UNDER:
        inside = _state_in(content.get(key))
        if inside is not None:
            return inside
    return None


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))  # an owned, writable copy
    return None


def _stripped(state: State) -> State:
    """Without what DistributedDataParallel and torch.compile write before the names."""
    while all(name.startswith(("module.", "_orig_mod.")) for name in state):
        state = {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
    return {name.replace("._orig_mod.", ".").removeprefix("_orig_mod."): t for name, t in state.items()}


def finite_or_named(state: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
    """Raises ValueError that names the tensors with entries that are not finite, and how many."""
    bad = {name: int((~t.isfinite()).sum()) for name, t in state.items() if t.is_floating_point()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        listed = _listed([f"{name} ({count} of {state[name].numel()})" for name, count in bad.items()])
        raise ValueError(f"{origin} has entries that are not finite: {listed}")


def load_into(
    model: nn.Module,
    state: str | Path | Mapping[str, Tensor],
    unsafe: bool = False,
    *,
    finite: bool = True,
) -> None:
    """Give a model the tensors of a checkpoint.

    finite  whether entries that are not finite are refused

    Raises ValueError where the checkpoint is of another architecture, with the names that are missing, not
    expected, or of other shapes; then nothing has been changed.
    """
    if isinstance(state, Mapping):
        origin, tensors = "the checkpoint", dict(state)
    else:
        origin, tensors = str(state), load_state(state, unsafe)
    own = model.state_dict()
    wrapped = bool(own) and all(name.startswith("module.") for name in own)
    if wrapped and not any(name.startswith("module.") for name in tensors):
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}  # loaded as it is
    # old checkpoints lack the counters of batch norm, which no evaluation reads
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in own and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{k} is {tuple(tensors[k].shape)} there and {tuple(own[k].shape)} here"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    differences = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
        if names
    ]
    if differences:
        raise ValueError(f"{origin} is of another architecture than {type(model).__name__}; {'; '.join(differences)}")
    if finite:
        finite_or_named(tensors, origin)
    model.load_state_dict({k: tensors[k] for k in own if k in tensors}, strict=False)


def _listed(names: list[str]) -> str:
    text = ", ".join(names[:_MAX_LISTED])
    if len(names) > _MAX_LISTED:
        text += f" and {len(names) - _MAX_LISTED} more"
    return text


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _count(path: str | os.PathLike[str]) -> tuple[tuple[int, int, str], ...]:
    """A key by which epoch 2 stands before epoch 10."""
    parts = re.split(r"(\d+)", os.fspath(path))
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def sorted_as_people_count(paths: Iterable[str | Path]) -> list[Path]:
    """Paths in the order in which people count: epoch 2 before epoch 10."""
    return sorted((Path(path) for path in paths), key=_count)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, as people count, judged by their content.

    Raises FileNotFoundError where there is no such folder, ValueError where it holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    paths = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.is_file() and kind_of(path) is not None:
                paths.append(path)
    if not paths:
        raise ValueError(f"the folder {folder} holds no checkpoint")
    return sorted_as_people_count(paths)
