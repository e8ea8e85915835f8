"""Checkpoints: the tensors of a trained model, by name, whatever the file is called.

Read are PyTorch's files (zip and legacy format), plain pickles of tensors or arrays, safetensors, and the index of the
files that a large model is split over; distinguished by their content, never by the suffix. Which of the tensors are a
model's is found by `checkpoint_match`. No code from a file is run, unless `unsafe` is asked for, which says so loudly.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import logging
import operator
import os
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lossmap import safe_unpickle
from lossmap.data.checkpoint_match import (
    USUAL_KEYS,
    Fit,
    Selection,
    State,
    fitted,
    learning_rate_in,
    listed,
    states_in,
)
from lossmap.data.checkpoint_values import buffers_told, readable_given, readable_values, refuse_scaled
from lossmap.data.loading_rules import load, state_to_load
from lossmap.special_files import not_a_file

log = logging.getLogger(__name__)

_EXPORTED = ("archive_format", "serialized_exported_program.json")  # members of what torch.export saves
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of the legacy format, pickled
OPTIMIZER_FILE = "optimizer.pt"  # of a checkpoint's folder, as the Trainer of Hugging Face writes it
_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".t7")  # ends of names in messages, no more
_INDEX = ".index.json"  # the end of the name of a list of shards, as Hugging Face writes it
# What a folder of Hugging Face keeps its weights in, the first that is there; and what its Trainer puts beside them.
_SAVED = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
    "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
COUNTS = ("global_step", "step", "iteration", "iter_num", "iter", "epoch")  # words for how far a training was
_SIDE = "optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args"
_BESIDE = re.compile(rf"({_SIDE})(?![a-z])|.*-of-\d+\.\w+$")


def kind_of(path: str | Path) -> str | None:
    """What a file is by its content: one of four forms, `torchscript`, or None for what is not a checkpoint.

    The forms are `zip`, `legacy`, `pickle` and `safetensors`.
    """
    path = Path(path)
    _refuse_special(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(32)
        if head.startswith(b"PK\x03\x04"):
            return _kind_of_zip(file)
        if head[:1] == b"\x80" and _LEGACY in head:
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


def _is_exported(path: Path) -> bool:
    """Whether a file is an archive of `torch.export.save`, of this version or the first ones."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(_EXPORTED) for name in archive.namelist())


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: its name, and every set of named tensors in it by the dotted key that it stands under."""

    path: str
    states: Mapping[str, State]
    learning_rate: float = nan  # of the optimizer beside them

    def fit(self, model: nn.Module, selection: Selection | None = None) -> Fit:
        """The tensors that are the model's; raises ValueError as `fitted` does, and where they hold other numbers."""
        fit = fitted(self.states, model, self.path, selection)
        refuse_scaled(fit.state, fit.extra, self.path)
        notes = (*fit.notes, *buffers_told(fit.state, model, self.path))
        given = None if fit.given is None else readable_given(fit.given, self.path)
        return replace(fit, state=readable_values(fit.state, model, self.path), given=given, notes=notes)


def load_checkpoint(path: str | Path, unsafe: bool = False, homes: Sequence[str] = ()) -> Checkpoint:
    """All named tensors of a checkpoint, on the CPU.

    unsafe  where a file holds more than tensors, read it all the same, running whatever code it names
    homes   names of modules in which a class is looked for that is not where the file says, such as `__main__`

    Raises FileNotFoundError; ValueError, in one sentence, for a file that is cut off, is not a checkpoint, or
    holds more than tensors.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, and there is no such file")
    if not path.exists():
        message = f"there is no file {path}"
        near = difflib.get_close_matches(path.name, _names_in(path.parent), 3)
        if near:
            message += f"; beside it: {', '.join(near)}"
        raise FileNotFoundError(message)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; a checkpoint is one file, or the index of several (*{_INDEX}){_in(path)}"
        )
    if path.name.endswith(_INDEX):
        return Checkpoint(str(path), {"": _merged(path, unsafe)})
    kind = kind_of(path)
    if kind is None and _is_exported(path):
        raise ValueError(
            f"{path} is an archive of torch.export, a program and not a checkpoint; save its tensors: "
            "torch.save(torch.export.load(FILE).state_dict, 'net.pt')"
        )
    if kind is None:
        what = "is not a checkpoint" if path.stat().st_size else "is empty"
        raise ValueError(f"{path} {what}: neither PyTorch's formats nor safetensors")
    content = _content(path, kind, unsafe, homes)
    states = states_in(content)
    if not states:
        raise ValueError(
            f"{path} holds no state dict: neither tensors by name nor a dict of them under {', '.join(USUAL_KEYS[:4])}"
        )
    return Checkpoint(str(path), states, learning_rate_in(content))


def _in(folder: Path) -> str:
    """What to name instead of a folder."""
    names = _names_in(folder)
    if ".metadata" in names:
        return (
            "; torch.distributed.checkpoint wrote it, and makes a file of it: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} net.pt"
        )
    if "zero_to_fp32.py" in names:
        return f"; DeepSpeed wrote it, and makes a file of it: python {folder}/zero_to_fp32.py {folder} net.pt"
    weights = [name for name in names if name.endswith(_INDEX)] or [name for name in names if name.endswith(_WEIGHTS)]
    return f"; in it: {', '.join(sorted(weights)[:3])}" if weights else ""


def file_and_key(named: str) -> tuple[Path, str]:
    """FILE[:KEY] in two: a file that there is, and the key behind the last colon; no key where the whole is a file."""
    file, colon, key = named.rpartition(":")
    if colon and not Path(named).exists() and Path(file).exists():
        return Path(file), key
    return Path(named), ""


def optimizer_state(named: str, unsafe: bool = False) -> Mapping[str, Any]:
    """The state dict of an optimizer in FILE[:KEY], on the CPU: `state` and `param_groups`.

    Without a key it is the file's only one, at the top or under an entry whose name speaks of an optimizer.

    Raises FileNotFoundError; ValueError, in one sentence, where there is none, or several.
    """
    path, key = file_and_key(named)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        beside = path / OPTIMIZER_FILE
        kept = f"; its optimizer is in {beside}" if beside.exists() else ""
        raise ValueError(f"{path} is a folder; an optimizer's state is read from a file{kept}")
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path} is not a checkpoint, and so holds no optimizer's state")
    found = dict(_optimizer_states(_content(path, kind, unsafe), ""))
    if key:
        found = {name: state for name, state in found.items() if name == key}
    if len(found) != 1:
        which = f"; there are {', '.join(found)}: name one as FILE:KEY" if found else ""
        what = "several states of an optimizer" if found else "no state of an optimizer"
        raise ValueError(f"{path} holds {what}{f' under {key}' if key else ''} (`state`, `param_groups`){which}")
    return next(iter(found.values()))


def _optimizer_states(content: Any, key: str, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every state dict of an optimizer, by the dotted key that it stands under."""
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = {str(i): value for i, value in enumerate(content[:8])}
    if not isinstance(content, Mapping) or depth > 4:
        return
    if content.get("param_groups") and isinstance(content.get("state"), Mapping):
        yield key, content
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from _optimizer_states(value, f"{key}.{name}".lstrip("."), depth + 1)


def homes_of(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules in which the classes of a model stand, where these are not PyTorch's."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules())
    return tuple(name for name in names if name.partition(".")[0] != "torch")


def load_state(path: str | Path, unsafe: bool = False) -> State:
    """The tensors of a checkpoint by name where no model is at hand: plain ones, or those under the most usual key.

    Prefixes of wrappers (`module.`, `_orig_mod.`) are taken off. Raises as `load_checkpoint` does.
    """
    states = load_checkpoint(path, unsafe).states
    most = max(map(len, states.values()))
    plain = [""] if len(states.get("", {})) == most else []  # tensors beside a state dict may be an epoch, say
    usual = [key for name in (*plain, *USUAL_KEYS) for key in states if key.rpartition(".")[2] == name]
    return _stripped(states[[*usual, *states][0]])


def shards_of(index: str | Path) -> list[Path]:
    """The files that an index names, in its order. Raises ValueError where it is no index, or names other folders."""
    index = Path(index)
    try:
        names = list(dict.fromkeys(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{index} is no index of a checkpoint: it has no table `weight_map` of tensors and files"
        ) from None
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{index} is no index of a checkpoint: a tensor in its `weight_map` has no file")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise ValueError(f"{index} names files outside of its folder")
    return [index.parent / name for name in names]


def _merged(index: Path, unsafe: bool) -> State:
    """The tensors of all files that an index names."""
    merged: State = {}
    paths = shards_of(index)
    named = {name: index.parent / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    for path in paths:
        for name, tensor in load_state(path, unsafe).items():
            if name not in merged or named.get(name) == path:  # the others are stale copies
                merged[name] = tensor
    return merged


def _names_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry in folder.iterdir()]


def _content(path: Path, kind: str, unsafe: bool, homes: Sequence[str] = ()) -> Any:
    try:
        if kind == "torchscript":
            raise safe_unpickle.Refused("it is a TorchScript archive")
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if kind == "pickle":
            with path.open("rb") as file:
                return safe_unpickle.read(file)
        if kind == "zip":
            _refuse_damaged(path)
        # given a name, torch.load would judge by the suffix
        with path.open("rb") as file:
            return safe_unpickle.load_tensors(file)
    except Exception as error:
        refused = _what_was_refused(error)
        if refused and unsafe:
            return _unsafe_content(path, kind, homes)
        if refused:
            raise ValueError(
                f"{path} holds more than tensors ({refused}), and reading that could run code; save "
                "model.state_dict() instead, or, if you trust the file, ask for --unsafe-load"
            ) from None
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which it is where the end is missing
            raise
        detail = (str(error).splitlines() or [""])[0].partition(". ")[0][:120]
        raise ValueError(
            f"{path} cannot be read: it is cut off, damaged or not a checkpoint ({type(error).__name__}: {detail})"
        ) from None


def _refuse_damaged(path: Path) -> None:
    """Raises ValueError where a record of PyTorch's zip file has another checksum than it was saved with.

    PyTorch does not look at them. A file that was saved without any (`set_crc32_options(False)`) has none that is
    right. Price: the file is read once.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        damaged = [name for name in names if not _is_sound(archive, name)]
    if 0 < len(damaged) < len(names):
        raise ValueError(f"the checksum of its record {damaged[0]} is another one than when it was saved")


def _is_sound(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as record:
            while record.read(1 << 22):
                pass
    except zipfile.BadZipFile:
        return False
    return True


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


def _unsafe_content(path: Path, kind: str, homes: Sequence[str]) -> Any:
    log.warning("UNSAFE: reading %s with all that it names; code inside it runs now, with your rights", path)
    reader = _reader_at_home(homes)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            if kind == "pickle":
                return reader.load(file)
            warnings.simplefilter("ignore", UserWarning)  # that it is TorchScript, which is being said already
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} names a class that is not found ({error}); start from the folder of its module, or name that "
            "module in --model"
        ) from None


def _reader_at_home(homes: Sequence[str]) -> Any:
    """Python's pickle module, but for classes that are not where a file says: these are taken from `homes`.

    A class of the program that wrote the file is said to be of `__main__`, which is another program by now.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                for home in homes:
                    with contextlib.suppress(AttributeError):
                        return operator.attrgetter(name)(sys.modules.get(home))
                raise

    reader = ModuleType("pickle")
    reader.__dict__.update(vars(pickle))
    reader.__dict__.update(Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load())
    return reader


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
        names = [f"{name} ({count} of {state[name].numel()})" for name, count in bad.items()]
        raise ValueError(f"{origin} has entries that are not finite: {listed(names)}")


def load_into(
    model: nn.Module,
    state: str | Path | Checkpoint | Mapping[str, Tensor],
    unsafe: bool = False,
    *,
    finite: bool = True,
    selection: Selection | None = None,
    homes: Sequence[str] = (),
) -> tuple[str, ...]:
    """Give a model the tensors of a checkpoint; returns sentences on what was chosen, and what was left out.

    finite     whether entries that are not finite are refused
    selection  which of the tensors are meant, where they do not say so themselves
    homes      as of `load_checkpoint`; by default the modules of the model's own classes

    Raises ValueError where the checkpoint is of another architecture, with the names that are missing, not
    expected, or of other shapes; then nothing has been changed.
    """
    if isinstance(state, Mapping):
        state = Checkpoint("the checkpoint", {"": states_in(state).get("", dict(state))})
    elif not isinstance(state, Checkpoint):
        state = load_checkpoint(state, unsafe, homes or homes_of(model))
    fit = state.fit(model, selection)
    if finite:
        finite_or_named(fit.state, state.path)
    load(model, _in_layout_of(model, fit.state if fit.given is None else fit.given), strict=False)
    return fit.notes


def _in_layout_of(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors, which were read as dense, sparse again where the model's own are."""
    own = {name: t.layout for name, t in model.named_buffers() if t.layout != torch.strided}
    here = {name: state[name].to_sparse(layout=layout) for name, layout in own.items() if name in state}
    return state_to_load({**state, **here}, getattr(state, "_metadata", None)) if here else state


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; of an index, of its own and those of the files that it names."""
    path, digest = Path(path), hashlib.sha256()
    paths = [path, *shards_of(path)] if path.name.endswith(_INDEX) else [path]
    for each in paths:
        _refuse_special(each)
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _refuse_special(path: Path) -> None:
    if reason := not_a_file(path):
        raise ValueError(f"{path} {reason}")


def is_last(stem: str) -> bool:
    """Whether a name, without its ending, is that of a run's last checkpoint, as Lightning writes it."""
    return re.fullmatch(r"last(-v\d+)?", stem) is not None


def _count(path: Path) -> tuple[Any, ...]:
    """A key by which epoch 2 stands before epoch 10, and `last` behind all beside it."""
    folder, name, ending = (
        tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text))
        for text in (os.fspath(path.parent), path.stem, path.suffix)
    )
    return folder, is_last(path.stem), name, ending


def sorted_as_people_count(paths: Iterable[str | Path]) -> list[Path]:
    """Paths in the order in which people count: epoch 2 before epoch 10, and `last` behind all beside it."""
    return sorted((Path(path) for path in paths), key=_count)


def step_in(path: str | Path) -> float | None:
    """The step that stands in a checkpoint beside its tensors, as Lightning and others keep it; None without one."""
    counts = counts_in(path)
    return next((counts[key] for key in ("global_step", "step") if key in counts), None)


def counts_in(path: str | Path) -> dict[str, float]:
    """How far a training was, as it stands in a checkpoint beside its tensors, by the words for it."""
    path = Path(path)
    kind = kind_of(path)
    if kind is None or kind == "safetensors":
        return {}
    try:
        content = _content(path, kind, unsafe=False)
    except (OSError, ValueError):  # said where its tensors are read
        return {}
    if not isinstance(content, Mapping):
        return {}
    beside = content.get("meta")
    held = {**(beside if isinstance(beside, Mapping) else {}), **content}
    found = {key: held[key] for key in COUNTS if isinstance(held.get(key), (int, float))}
    return {key: float(value) for key, value in found.items() if not isinstance(value, bool)}


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint by its content, or the index of one in several files."""
    return path.name.endswith(_INDEX) or kind_of(path) is not None


def _saved_in(folder: Path) -> Path | None:
    """The weights of a folder as Hugging Face writes it; None where it is none, or holds other checkpoints as well."""
    names = {path.name for path in _files_of(folder)}
    weights = [name for name in _SAVED if name in names]
    others = [name for name in names.difference(_SAVED) if not _BESIDE.match(name)]
    return folder / weights[0] if weights and not others else None


def _files_of(folder: Path) -> list[Path]:
    """The checkpoints among a folder's own files."""
    paths = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.is_file() and is_checkpoint(path):
                    paths.append(path)
    return paths


def saved_run(folder: Path) -> list[Path]:
    """The weights of a run that a Trainer of Hugging Face wrote, as people count; empty where none did.

    They are those in its folders `checkpoint-500`, without what it or `save_model("run/final")` leaves beside these in
    the end; of one such folder its own, without the states of optimizer and chance.
    """
    saved = _saved_in(folder)
    if saved is None and _files_of(folder):
        return []
    within = [weights for path in folder.iterdir() if path.is_dir() and (weights := _saved_in(path))]
    of_steps = [path for path in within if re.fullmatch(r"checkpoint-\d+", path.parent.name)]
    within = of_steps or within
    return sorted_as_people_count(within or ([saved] if saved else []))


def _within(folder: Path) -> list[Path]:
    """The checkpoints of a folder's own folders, one in each (`epoch1/model.pt`) or all in one (`checkpoints/`).

    Raises ValueError where several of these hold some, and one of them several.
    """
    held = {path: _files_of(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    held = {path: paths for path, paths in held.items() if paths}
    if len(held) > 1 and any(len(paths) > 1 for paths in held.values()):
        names = ", ".join(path.name for path in list(held)[:4]) + (", ..." if len(held) > 4 else "")
        raise ValueError(f"the folder {folder} holds no checkpoint, but several of its folders do: {names}; name one")
    return [path for paths in held.values() for path in paths]


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, as people count, judged by their content; of a Trainer's, as `saved_run` says.

    Of a folder that holds none itself those of its folders: one of each, or all of one, as Lightning's `version_0` has
    them in `checkpoints`.

    Raises FileNotFoundError where there is no such folder, ValueError where it holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    paths = saved_run(folder) or _files_of(folder) or _within(folder)
    if not paths:
        raise ValueError(f"the folder {folder} holds no checkpoint")
    return sorted_as_people_count(paths)
