"""Data sets by name: digits, CIFAR, arrays in a file, a user's function; as batches in a fixed order.

    digits           packaged: 1797 real images 1x8x8, values 0..1. Optical Recognition of Handwritten Digits,
                     E. Alpaydin and C. Kaynak, UCI Machine Learning Repository (1998), doi:10.24432/C50P49,
                     CC BY 4.0. Shuffled once by NumPy's default_rng(0): 1437 for training, 360 for the test
    digits32         the same, enlarged bilinearly to 3x32x32, for the nets of the papers
    cifar10 cifar100 from the binary or the Python files in --data-path
    cifar10c:fog:3   CIFAR-10-C at a severity, mapped from the files; it corrupts test images alone
    npz:FILE         arrays x, y, and x_test, y_test where there are any (or by other names in use, which is said), as
                     given; but images of whole numbers from 0 to 255 are divided by 255, as training on them does
    hf:PATH          a data set or a text in local files of Hugging Face, see `huggingface_data`
    file.py:factory  called with split="train" or "test"; returns (x, y), a Dataset or a DataLoader

`digits+fog:3` corrupts the images of a set: every image by random numbers of its own, so that a subset is corrupted
as the whole would be; `digits+gaussian_noise:5:imagenet-c` takes ImageNet-C's stronger noise. Images are float32,
divided by their largest possible value, and for CIFAR normalised as the published nets were trained. Samples live in
memory while they take no more than a quarter of what is free; larger sets are streamed in the same order.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import logging
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap import download as fetching
from lossmap import memory
from lossmap.data import cifar, huggingface_data
from lossmap.data.batch_structure import TARGET_NAMES, strided_parts
from lossmap.data.batches import (
    Batch,
    Batches,
    FixedBatches,
    MappedFetch,
    Resident,
    Streamed,
    join_batches,
    shared_range,
)
from lossmap.data.huggingface_data import Reader
from lossmap.data.huggingface_files import is_in_folder
from lossmap.data.loaders import DEFAULT_BATCH_SIZE, RowsOf, Source, as_batches, collect_in_memory, source_of
from lossmap.data.problem import targets_of
from lossmap.data.told import keeping_what_is_told
from lossmap.import_by_name import resolve_callable
from lossmap.special_files import not_a_file
from lossmap.trees import NotJoined

log = logging.getLogger(__name__)

_ARRAYS = {"train": ("x", "y"), "test": ("x_test", "y_test")}  # the names in npz files, the packaged one and users'
_UNNAMED = ("arr_0", "arr_1")  # how np.savez(file, inputs, targets) names them
_INPUTS = ("x", "inputs", "input", "images", "data", "features")  # others that users have, beside TARGET_NAMES
_USUAL = re.compile(r"_?(?:train|test|validation|valid|val)_?")  # what such names say of the split

NAMES = (
    "digits", "digits32", "cifar10", "cifar100", "cifar10c:NAME:LEVEL", "npz:FILE", "hf:PATH", "path/file.py:factory",
)  # fmt: skip
_CIFAR_MEAN, _CIFAR_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of 255: the original tool's


@keeping_what_is_told
def load(
    name: str,
    split: str = "train",
    *,
    data_path: str | Path | None = None,
    normalize: str | None = None,
    raw: bool = False,
    samples: int | None = None,
    data_seed: int = 0,
    pieces: int = 1,
    piece: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    download: bool = False,
    ranks_sharing: int | None = None,
    budget: int | None = None,
    reader: Reader | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Resident | Streamed | FixedBatches:
    """A split of a data set, as batches in a fixed order; those of a user's function that cannot be cut, as given.

    normalize    "mean/std", one number each or one a channel, such as "0.5,0.5,0.5/0.2,0.2,0.2"; of images whose values
                 are then 0 to 1
    raw          no normalisation, and whole numbers as they are
    samples      at most this many: a random subset, drawn from data_seed, in the data's own order
    pieces       the number of pieces into which the data are cut, of which `piece`, counted from 0, is used
    batch_size   samples in a batch; if left out those of a user's loader, else DEFAULT_BATCH_SIZE
    dtype        of floating-point numbers; float32 if left out
    download     fetch CIFAR-10-C, 2.9 GB, into data_path (or `data`) where it is not there
    ranks_sharing  ranks that share the memory of this host (or GPU) and load the same; by default those that the
                   launcher started here
    budget       bytes that the samples may take; by default `memory.sample_budget(device, ranks_sharing)`
    reader       what reads texts and images of hf:PATH
    prepare      a function of every batch of a user's data, such as one that leaves out what the model does not take

    Raises ValueError and FileNotFoundError, in one sentence, where the name, the files or the shapes are wrong.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test; got {split!r}")
    if download:
        data_path = _downloaded(name, data_path)
    source = _source(name, split, data_path, normalize, raw, ranks_sharing, reader or Reader(), prepare)
    if isinstance(source, FixedBatches):
        return _uncut(source, samples, pieces).to(device, dtype or torch.float32)
    if source.samples < 1:
        raise ValueError(f"{name} holds no sample in its split {split}")
    indices = _subset(source.samples, samples, data_seed, pieces, piece)
    size = (source.batch_size or DEFAULT_BATCH_SIZE) if batch_size is None else batch_size
    size = min(len(indices), size)
    if budget is None:
        budget = memory.sample_budget(device, ranks_sharing)
    streamed = Streamed(source.fetch, indices, size)
    if len(indices) * source.bytes_each() > budget:
        log.info("%s: %d samples are more than the memory for samples; they are streamed", name, len(indices))
        return streamed.to(device, dtype or torch.float32)
    return _joined(streamed, source, size, samples, pieces).to(device, dtype or torch.float32)


def _joined(
    streamed: Streamed, source: Source, size: int, samples: int | None, pieces: int
) -> Resident | Streamed | FixedBatches:
    """All samples in memory; where they do not join, as graphs and texts padded by the loader, its batches as given."""
    reason: Exception
    try:
        are_all = len(streamed.indices) == source.samples
        sizes = source.loader_sizes if are_all and size == source.batch_size else ()
        resident = Resident(collect_in_memory(streamed), size, sizes)
        if resident.samples == streamed.samples:
            return resident
        reason = NotJoined(f"{streamed.samples} samples were put together into {resident.samples}")
    except (ValueError, TypeError, RuntimeError) as error:  # a user's collate may raise any of them
        reason = error
    batches = None if source.whole is None else as_batches(source.whole, prepare=source.prepare)
    if not isinstance(batches, FixedBatches):
        raise reason
    return _uncut(batches, samples, pieces)


def _uncut(batches: FixedBatches, samples: int | None, pieces: int) -> FixedBatches:
    """Batches that are not cut, all of them; raises ValueError where a part is asked for."""
    limited(batches, samples, pieces=pieces)
    return batches


def limited(batches: Batches, samples: int | None, data_seed: int = 0, pieces: int = 1, piece: int = 0) -> Batches:
    """Batches over at most so many of their samples, the same random subset that `load` takes; or over a piece of them.

    Raises ValueError for batches that are not cut.
    """
    if samples is None and pieces == 1:
        return batches
    rows = _subset(batches.samples, samples, data_seed, pieces, piece)
    if len(rows) == batches.samples:
        return batches
    if isinstance(batches, Resident):
        size = min(batches.batch_size, len(rows))
        return Resident(RowsOf(batches.tensors)(rows), size)
    if isinstance(batches, Streamed):
        return replace(batches, indices=[batches.indices[i] for i in rows])
    asked = f"--data-split {pieces}" if samples is None else f"--samples {samples}"
    raise ValueError(f"{asked}: these {batches.samples} samples are in batches that are not cut; take fewer batches")


def _subset(total: int, samples: int | None, seed: int, pieces: int, piece: int) -> Sequence[int]:
    if not 0 <= piece < pieces <= total:
        raise ValueError(f"piece {piece} of {pieces} pieces of {total} samples: pieces are counted from 0")
    start, stop = shared_range(total, piece, pieces)
    if samples is None or samples >= stop - start:
        return range(start, stop)
    if samples < 1:
        raise ValueError(f"samples must be >= 1; got {samples}")
    chance = np.random.default_rng([seed, 0x5A3])
    return [int(i) for i in np.sort(start + chance.permutation(stop - start)[:samples])]


def _source(
    name: str,
    split: str,
    data_path: str | Path | None,
    normalize: str | None,
    raw: bool,
    ranks_sharing: int | None,
    reader: Reader,
    prepare: Callable[[Batch], Batch] | None,
) -> Source | FixedBatches:
    plain, corruption = _split_corruption(name)
    key = plain.lower()
    means: tuple[Sequence[float], Sequence[float]] | None = None
    if key in ("digits", "digits32"):
        images, labels, whole = *_digits(split), 16.0
        if key == "digits32":
            images = _enlarged(images)
            whole = 1.0
    elif key in ("cifar10", "cifar100"):
        planes, labels = cifar.images(key, split, data_path)
        images, whole = planes.transpose(0, 2, 3, 1), 255.0
        means = _of_255(_CIFAR_MEAN), _of_255(_CIFAR_STD)
    elif key.startswith("cifar10c:"):
        images, labels = _cifar10c(plain, split, data_path)
        whole = 255.0
        means = _of_255(_CIFAR_MEAN), _of_255(_CIFAR_STD)
    else:
        source = _user_source(plain, split, data_path, ranks_sharing, normalize, raw, reader, prepare)
        if corruption is not None:
            raise ValueError(f"{plain} cannot be corrupted: only digits, digits32, cifar10 and cifar100 can")
        if normalize is None or raw:
            return source
        if isinstance(source, FixedBatches):
            raise ValueError(f"--normalize: {name} gives batches that are not cut; let it normalize them")
        if not plain.startswith("npz:"):  # of which the same was said as it was read
            _warn_of_another_scale(source, plain, normalize)
        return _normalised(source, *_parsed(normalize))
    if normalize is not None:
        means = _parsed(normalize)

    source = Source(_ImageFetch(images, labels, whole, split, corruption), len(images))
    if raw or means is None:
        return source
    return _normalised(source, *means)


@dataclass(frozen=True, eq=False)
class _ImageFetch:
    """Indices -> (x, y) of images (N, H, W, C): x (B, C, H, W) float32 in units of `whole`, corrupted where asked."""

    images: NDArray[Any]
    labels: NDArray[np.int64]
    whole: float
    split: str
    corruption: tuple[str, int, str] | None  # name, severity, benchmark

    def __call__(self, indices: Sequence[int]) -> Batch:
        rows = _rows(indices)
        x = self.images[rows]
        if self.corruption is not None:
            from lossmap.images.corruptions import corrupt

            if x.dtype == np.uint8 and self.whole != 255.0:
                x = x.astype(np.float32) / np.float32(self.whole)
            numbers = np.arange(len(self.images))[rows]
            kind, level, benchmark = self.corruption
            x = corrupt(x, kind, level, seed=0, indices=numbers, stream=self.split, benchmark=benchmark)
        tensor = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32))
        if x.dtype == np.uint8:
            tensor = tensor.div_(self.whole)
        return tensor, torch.from_numpy(np.ascontiguousarray(self.labels[rows]))


def _rows(indices: Sequence[int]) -> Any:
    """Indices as NumPy takes them: a range as a slice, which copies nothing of a mapped file."""
    if isinstance(indices, range):
        return slice(indices.start, indices.stop)
    return np.asarray(indices)


def _split_corruption(name: str) -> tuple[str, tuple[str, int, str] | None]:
    form = r"(digits|digits32|cifar10|cifar100)\+([^:+]+):([^:+]+)(?::([^:+]+))?"
    match = re.fullmatch(form, name.strip(), re.IGNORECASE)
    if match is None:
        if re.match(r"(digits|cifar)\w*\+", name, re.IGNORECASE):
            raise ValueError(f"{name!r} must have the form digits+gaussian_noise:5")
        return name.strip(), None
    from lossmap.images.corruptions import known

    plain, corruption, level, benchmark = match.groups()
    benchmark = (benchmark or "cifar-10-c").lower()
    return plain, (*known(corruption, level, benchmark), benchmark)


def _of_255(values: Sequence[float]) -> list[float]:
    return [value / 255.0 for value in values]


@lru_cache(maxsize=1)
def _packaged() -> dict[str, NDArray[np.uint8]]:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key != "about"}


def _digits(split: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(N, 8, 8, 1) of 0..16, and labels."""
    x, y = _ARRAYS[split]
    arrays = _packaged()
    return arrays[x][..., None], arrays[y].astype(np.int64)


def _enlarged(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 8, 8, 1) of 0..16 -> (N, 32, 32, 3) of 0..1, bilinear; exact, as all weights are powers of two."""
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 16.0
    large = torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    result: NDArray[np.float32] = large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    return result


def _downloaded(name: str, data_path: str | Path | None) -> Path:
    """The folder that holds CIFAR-10-C, fetched where it does not."""
    if not name.lower().startswith("cifar10c:"):
        raise ValueError(f"only cifar10c:NAME:LEVEL can be downloaded; got {name!r}")
    folder = Path(data_path or "data")
    if any((parent / "labels.npy").is_file() for parent in (folder, folder / "CIFAR-10-C")):
        return folder
    return fetching.fetch_cifar10c(folder)


def _cifar10c(name: str, split: str, data_path: str | Path | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    _, _, rest = name.partition(":")
    corruption, _, level = rest.partition(":")
    if not corruption or not level.isdigit():
        raise ValueError(f"{name!r} must have the form cifar10c:gaussian_noise:5")
    if split != "test":
        raise ValueError(f"{name} has test images alone; ask for the split test")
    return cifar.corrupted(corruption, int(level), data_path)


def _user_source(
    name: str,
    split: str,
    data_path: str | Path | None,
    ranks_sharing: int | None,
    normalize: str | None,
    raw: bool,
    reader: Reader,
    prepare: Callable[[Batch], Batch] | None,
) -> Source | FixedBatches:
    if is_in_folder(name):
        return huggingface_data.source(name, split, reader)
    if name.lower().startswith("npz:"):
        return _npz(Path(data_path or ".") / name[4:], split, normalize, raw)
    if ":" not in name:
        hint = ""
        near = difflib.get_close_matches(name, NAMES, 3, 0.5)
        if name.endswith(".npz"):
            hint = f"; a file of arrays is named npz:{name}"
        elif near:
            hint = f"; nearest: {', '.join(near)}"
        raise ValueError(f"no data set is named {name!r}{hint}. There are {', '.join(NAMES)}")
    factory = resolve_callable(name)
    try:
        inspect.signature(factory).bind(split=split)
    except TypeError as error:
        raise ValueError(f'{name} is called with split="train" or "test", which it does not take: {error}') from None
    except ValueError:  # a builtin shows no signature
        pass
    try:
        given = factory(split=split)
    except MemoryError:
        raise
    except Exception as error:  # user code may raise any exception
        raise ValueError(f"--dataset {name} fails: {type(error).__name__}: {error}") from error
    return source_of(given, name, ranks_sharing, prepare)


def _npz(path: Path, split: str, normalize: str | None, raw: bool) -> Source | FixedBatches:
    if reason := not_a_file(path):
        raise ValueError(f"{path} {reason}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    opened = path.open("rb")
    try:
        with opened:
            file = np.load(opened, allow_pickle=False)
            if not hasattr(file, "files"):
                raise ValueError("it holds one array, without a name")
            names = list(file.files)
            x, y = _names_of_arrays(names, split)
            arrays = {key: file[key] for key in (x, y) if key in names}
    except Exception as error:  # zipfile, zlib, struct and NumPy each have errors of their own for a damaged file
        raise ValueError(f"{path} is not an npz file of arrays x and y: {error}") from None
    if (x, y) != _ARRAYS[split]:
        log.warning("%s: inputs are the array %s, targets the array %s", path, x, y)
    if x not in arrays or y not in arrays:
        raise ValueError(
            f"{path} must hold {x} and {y} for the split {split}; it holds {', '.join(names) or 'nothing'}: name its "
            f'arrays so, as in np.savez("{path.name}", {x}=inputs, {y}=targets)'
        )
    inputs = arrays[x]
    if _are_images_of_255(inputs):
        inputs = _of_unit_range(inputs, str(path), normalize, raw)
    elif normalize is not None and not raw and max(map(max, _parsed(normalize))) <= 2 and _hold_255_as_floats(inputs):
        log.warning(
            "%s: the images hold whole numbers up to %g as %s, which are taken as given (only integers are divided by "
            "255), and --normalize %s is by values from 0 to 1: divide images, or multiply mean and std, by 255",
            path, inputs.max(), inputs.dtype, normalize,
        )  # fmt: skip
    return source_of((inputs, arrays[y]), str(path))


def _names_of_arrays(names: Sequence[str], split: str) -> tuple[str, str]:
    """The names of the inputs and targets of a split: x and y, or others in use (`X_train`, `labels`) where evident."""
    usual = _ARRAYS[split]
    if set(usual) <= set(names):
        return usual
    if split == "train" and set(names) == set(_UNNAMED):
        return _UNNAMED
    of_split = {name: _USUAL.sub("", name.lower()) for name in names if _split_in(name) == split}
    inputs = [name for name, rest in of_split.items() if rest in _INPUTS]
    targets = [name for name, rest in of_split.items() if rest in TARGET_NAMES]
    return (inputs[0], targets[0]) if len(inputs) == len(targets) == 1 else usual


def _split_in(name: str) -> str:
    """The split that an array's name says that it is of; train where it says none."""
    words = _USUAL.findall(name.lower())
    return "train" if not words or "train" in words[0] else words[0].strip("_")


def _are_images_of_255(x: NDArray[Any]) -> bool:
    """Whether these are images of whole numbers 0 to 255: bytes (N, H, W, ...), or any integers (N, C, H, W)."""
    if x.dtype == np.uint8:
        return x.ndim >= 3
    return x.dtype.kind in "iu" and x.ndim == 4 and x.size > 0 and int(x.min()) >= 0 and int(x.max()) <= 255


def _hold_255_as_floats(x: NDArray[Any]) -> bool:
    """Whether these are images (N, C, H, W) of whole numbers 0 to 255 that are kept as floating-point numbers."""
    if x.dtype.kind != "f" or x.ndim != 4 or not x.size or not 2 < float(x.max()) <= 255 or float(x.min()) < 0:
        return False
    return bool((x == np.round(x)).all())


def _of_unit_range(x: NDArray[Any], name: str, normalize: str | None, raw: bool) -> NDArray[Any]:
    """Images of 0 to 255 as float32 of 0 to 1, which is said; as they are where `raw`.

    Raises ValueError for a normalization in units of 0 to 255.
    """
    if raw:
        return x.astype(np.float32)
    if normalize is not None and max(map(max, _parsed(normalize))) > 2:
        raise ValueError(
            f"--normalize {normalize} is for values up to 255; the images of {name} are whole numbers ({x.dtype}), "
            "which are divided by 255 first: divide mean and std by 255 too"
        )
    log.warning("%s: images of whole numbers (%s) are divided by 255 (--raw-data: as they are)", name, x.dtype)
    return x.astype(np.float32) / np.float32(255)


def _warn_of_another_scale(source: Source, name: str, normalize: str) -> None:
    """Say so where the first samples of a user's function are images of 0 to 255, and mean and std of 0 to 1."""
    if max(map(max, _parsed(normalize))) > 2:
        return
    first = [source.fetch([i]) for i in range(min(source.samples, 8))]  # one by one: they need not join
    images = [b[0].double().numpy() for b in first if isinstance(b, (tuple, list)) and isinstance(b[0], Tensor)]
    highest = max((float(x.max()) for x in images if _hold_255_as_floats(x)), default=None)
    if highest is not None:
        log.warning(
            "%s: the first images hold whole numbers up to %g, and --normalize %s is by values from 0 to 1: divide "
            "them by 255 in that function, or multiply mean and std by 255",
            name, highest, normalize,
        )  # fmt: skip


def _parsed(text: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation from "mean/std" or "m,m,m/s,s,s"."""
    try:
        mean, std = ([float(value) for value in part.split(",")] for part in text.split("/"))
    except ValueError:
        raise ValueError(
            f"--normalize must be mean/std, such as 0.5/0.25 or 0.5,0.5,0.5/0.2,0.2,0.2; got {text!r}"
        ) from None
    if len({len(mean), len(std)} - {1}) > 1 or not all(s > 0 for s in std):
        raise ValueError(f"--normalize must have as many means as standard deviations, and these > 0; got {text!r}")
    return mean, std


@dataclass(frozen=True, eq=False)
class _Normalization:
    """(x, y) -> the same with the mean subtracted from x, and divided by the standard deviation, by channel."""

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, batch: Batch) -> Batch:
        mean, std = self.mean, self.std
        if not isinstance(batch, (tuple, list)) or not isinstance(batch[0], Tensor) or not batch[0].is_floating_point():
            raise ValueError("--normalize needs batches (x, y) whose x are floating-point numbers")
        x = batch[0]
        channels = max(len(mean), len(std))
        if channels > 1 and (x.dim() < 2 or x.shape[1] != channels):
            raise ValueError(f"--normalize has {channels} channels; the inputs have shape {tuple(x.shape[1:])}")
        shape = (1, -1, *(1 for _ in range(x.dim() - 2))) if x.dim() > 1 else (-1,)
        return ((x - x.new_tensor(mean).view(shape)) / x.new_tensor(std).view(shape), *batch[1:])


def _normalised(source: Source, mean: Sequence[float], std: Sequence[float]) -> Source:
    """A source whose inputs have the mean subtracted and are divided by the standard deviation, by channel."""
    return replace(source, fetch=MappedFetch(source.fetch, _Normalization(mean, std)), whole=None)


def digest(batches: Batches) -> str:
    """The SHA-256 of the samples in their order, in hexadecimal; the cut into batches does not matter.

    Of streamed data, all indices and 256 evenly spread samples are hashed.
    """
    total = hashlib.sha256()
    if isinstance(batches, Streamed):
        total.update(np.asarray(batches.indices, np.int64).tobytes())
        step = max(1, batches.samples // 256)
        batch = batches.fetch([batches.indices[i] for i in range(0, batches.samples, step)])
    else:
        batch = _all_of(batches)
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor):
            total.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            for values in strided_parts(leaf):
                flat = values.detach().cpu().contiguous().view(-1)
                for part in torch.split(flat, 1 << 22):
                    total.update(part.view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        elif isinstance(batches, FixedBatches):
            total.update(_bytes_of(leaf))
    return total.hexdigest()


def _bytes_of(leaf: Any) -> bytes:
    """What tells a name, a number or an object of one batch from another's; of what cannot be pickled, its class."""
    if leaf is None or isinstance(leaf, (str, int, float, bool)):
        return repr(leaf).encode()
    try:
        return pickle.dumps(leaf, protocol=4)
    except Exception:  # an object of somebody's own may raise anything
        return type(leaf).__qualname__.encode()


def _all_of(batches: Batches) -> Any:
    """All tensors of data in memory: joined where they can be, so that the cut does not matter."""
    if isinstance(batches, Resident):
        return batches.tensors
    try:
        return join_batches(list(batches))
    except NotJoined:
        return list(batches)


@dataclass(frozen=True)
class LabelsWithin:
    """A batch of streamed samples, asked as it is read: raises ValueError where a target is no class.

    classes, ignored  as of `labels_within`
    """

    classes: int
    ignored: int = -100

    def __call__(self, batch: Batch) -> Batch:
        """The batch."""
        _batch_within(batch, self.classes, self.ignored)
        return batch


def labels_within(batches: Batches, classes: int, ignored: int = -100) -> Batches:
    """The samples; raises ValueError where a whole-number target is not a class 0 to classes - 1.

    classes  of the model
    ignored  the target that the loss leaves out, as PyTorch's `ignore_index`

    Streamed samples are asked batch by batch when they are read.
    """
    if isinstance(batches, Resident):
        _batch_within(batches.tensors, classes, ignored)
    if isinstance(batches, Streamed):
        return replace(batches, fetch=MappedFetch(batches.fetch, LabelsWithin(classes, ignored)))
    return batches


def _batch_within(batch: Batch, classes: int, ignored: int) -> None:
    targets = targets_of(batch)
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return
    counted = targets[targets != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ValueError(
            f"the targets run from {counted.min()} to {counted.max()}; the model has {classes} outputs, so class "
            f"labels must be whole numbers from 0 to {classes - 1}"
        )
