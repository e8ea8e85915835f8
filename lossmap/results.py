"""Every kind of result: saved into a file of its own, read back equal, given to xarray, drawn.

    spectrum.save("s.h5");  lossmap.read("s.h5")        the Spectrum again
    lossmap.read("plane.h5")                            the Surface that `lossmap surface` or `survey` wrote

A result that is no surface is stored in two forms side by side: the group that commands write too (`spectrum/LABEL`,
`layers/LABEL`, `health`, ...), from which figures and reports are made; and the group `values/NAME`, the value itself:
each array a dataset, and one JSON text (`structure`) that puts them together. Nothing is pickled: reading a file runs
no code of the file's. Classes are named here and loaded when a file holds one, so that nothing here needs torch.
"""

from __future__ import annotations

import io as streams
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from lossmap.geometry.grid import Grid
from lossmap.io import read as files
from lossmap.io.disk import PathLike
from lossmap.io.hdf5_open import Damaged
from lossmap.io.printable import printable
from lossmap.io.spectrum_layout import group_name, group_of
from lossmap.io.surface import DONE, UNPROTECTED, Group, Surface
from lossmap.io.xarray_tree import tree_of
from lossmap.keywords import checked_keywords
from lossmap.values import Result, as_array, is_tensor

VALUES = "values/"
ENCODING = 1
T = TypeVar("T")

# the classes that a file may hold -> their modules
CLASSES = {
    "Activation": "diagnostics.activations",
    "ActivationStatistics": "diagnostics.activations",
    "Answer": "dynamics.summary",
    "BallRise": "landscape.sharpness_result",
    "BatchSharpness": "landscape.batch_sharpness",
    "Block": "spectra.block",
    "BlockSpectra": "spectra.block_spectra",
    "Connection": "landscape.connection",
    "CriticalSharpness": "landscape.critical_sharpness",
    "Density": "linalg.spectral_density",
    "Diagnosis": "health.diagnosis",
    "Diagonal": "linalg.diagonal",
    "EigenPairs": "linalg.eigenpairs",
    "EntrySums": "linalg.entry_sums",
    "Finding": "health.finding",
    "Gain": "diagnostics.activations",
    "GradientCovariance": "curvature.per_sample_gradients",
    "Group": "io.surface",
    "LabelNoise": "diagnostics.label_noise",
    "LanczosRun": "linalg.quadrature",
    "LayerHessian": "spectra.layer_hessian",
    "LayerWeights": "diagnostics.singular_values",
    "MassInterval": "linalg.spectral_density",
    "Measurements": "health.measurements",
    "NeuralCollapse": "diagnostics.neural_collapse",
    "OffDiagonalEnergy": "linalg.block_norms",
    "Plane": "geometry.directions",
    "PowerLawTail": "linalg.power_law",
    "PreconditionedSharpness": "landscape.sharpness_result",
    "RegressionFit": "diagnostics.regression_fit",
    "RunDynamics": "dynamics.run",
    "Sharpness": "landscape.sharpness_result",
    "Signal": "diagnostics.layer_signals",
    "SingularValueTable": "diagnostics.singular_values",
    "Spectrum": "spectra.spectrum_result",
    "Suggestion": "health.finding",
    "Summary": "dynamics.summary",
    "Topology": "topology.result",
    "Trace": "linalg.trace",
}
# the group from which figures and reports of a kind are made
DRAWN_FROM = {
    "Spectrum": "spectrum",
    "BlockSpectra": "layers",
    "Diagnosis": "health",
    "Density": "spectrum",
    "Sharpness": "sharpness",
    "Connection": "connection",
    "Topology": "topology",
}
ALONE = ("health", "connection", "topology")  # groups that bear no label
FIGURE = ("lossmap.plotting.figures", "draw")  # what draws a surface, or what else a file holds
RUN = "evolution/results"
# what Python, NumPy and JSON raise of parts that do not fit together
MISFIT = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
# measures whose results may be unfinished -> the attribute that says what they are of, and what reads these
UNFINISHED = {
    "spectrum": ("spectra", "lossmap.spectra.from_tasks", "results_so_far"),
    "sharpness": ("checkpoints", "lossmap.landscape.sharpness_from_tasks", "results_so_far"),
}
READ_RUN = ("lossmap.dynamics.run", "run_in_file")  # what reads a file that holds this group


@dataclass(frozen=True, eq=False)
class Results(Mapping[str, Any], Result):
    """Several results of one file, by the names of their groups, such as `spectrum/train` and `layers/train`."""

    values_by_name: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.values_by_name:
            raise KeyError(f"no result {name!r} here; there are: {', '.join(self.values_by_name)}")
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __repr__(self) -> str:
        return "\n\n".join(f"{name}\n{value!r}" for name, value in self.values_by_name.items())


# ---- a value as arrays and one text


def encode(value: Any) -> Group:
    """The value as a group of a file: its arrays by name, and the attribute `structure` that puts them together.

    Raises TypeError for what no file can hold.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _Encoder(arrays).encode(value, "value")
    attributes = {"kind": type(value).__name__, "encoding": ENCODING, "structure": json.dumps(structure)}
    return Group(arrays, attributes)


class _Encoder:
    """Plain values of JSON; arrays go into `arrays`."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def encode(self, value: Any, name: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if is_tensor(value):
            return {"tensor": self._put(as_array(value), name), "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, np.ndarray):
            return {"array": self._put(value, name), "dtype": value.dtype.str}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping) and not is_dataclass(value):
            pairs = [[self.encode(k, name), self.encode(v, f"{name}.{k}")] for k, v in value.items()]
            return {"map": pairs}
        if isinstance(value, (tuple, list)):
            items = [self.encode(item, f"{name}.{i}") for i, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        kind = type(value).__name__
        if kind in CLASSES or kind == "Results":
            own = {f.name: self.encode(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value) if f.init}
            return {"kind": kind, "fields": own}
        raise TypeError(f"a {kind} cannot be saved: results hold numbers, text, arrays, tensors and results")

    def _put(self, array: np.ndarray, name: str) -> str:
        """The name under which the array is kept: no slashes, and no other array's."""
        name = re.sub(r"[^\w.:+-]+", "_", name.removeprefix("value.")) or "value"
        while name in self.arrays:
            name += "_"
        self.arrays[name] = array
        return name


def decode(group: Group) -> Any:
    """The value behind such a group.

    Raises ValueError where it was written by a newer version, and where its parts do not fit together.
    """
    kind = group.attributes.get("kind")
    try:
        is_newer = int(group.attributes.get("encoding", 0)) > ENCODING
        value = None if is_newer else _decode(json.loads(str(group.attributes["structure"])), group.arrays)
    except MISFIT as error:
        raise ValueError(
            f"the stored {kind} cannot be put together: it is damaged, or was written by a newer lossmap"
        ) from error
    if is_newer:
        raise ValueError(f"the stored {kind} was written by a newer version of lossmap: install that one")
    return value


def _decode(structure: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(structure, list):
        return [_decode(item, arrays) for item in structure]
    if isinstance(structure, str):
        return printable(structure)
    if not isinstance(structure, dict):
        return structure
    if "array" in structure:
        array = arrays[structure["array"]]
        return array.astype(np.dtype(structure["dtype"]), copy=False)
    if "tensor" in structure:
        torch: Any = import_module("torch")
        return torch.tensor(arrays[structure["tensor"]], dtype=getattr(torch, structure["dtype"]))
    if "map" in structure:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in structure["map"]}
    if "tuple" in structure:
        return tuple(_decode(item, arrays) for item in structure["tuple"])
    cls = class_named(structure["kind"])
    known = {f.name for f in fields(cls)}
    return cls(**{name: _decode(v, arrays) for name, v in structure["fields"].items() if name in known})


def class_named(kind: str) -> Any:
    """The class of a stored value. Raises ValueError for one that this version does not have."""
    if kind == "Results":
        return Results
    if kind not in CLASSES:
        raise ValueError(f"this lossmap has no result of the kind {kind!r}: install a newer one")
    return getattr(import_module(f"lossmap.{CLASSES[kind]}"), kind)


# ---- files


def value_groups(value: Any, name: str) -> dict[str, Group]:
    """What a file keeps of a value beside what figures are made of: the group `values/NAME`."""
    return {VALUES + name.replace("/", "."): encode(value)}


def surface_of(value: Any) -> Surface:
    """The result as a surface of a single point, which a file can hold and a figure can show; a Surface as it is."""
    if isinstance(value, Surface):
        return value
    kind = type(value).__name__
    groups: dict[str, Group] = {}
    for name, result in value.items() if isinstance(value, Results) else [("", value)]:
        groups |= _drawn_group(result, name)
    groups |= value_groups(value, "result")
    return Surface(Grid(np.zeros(1)), {}, attributes={"long_name": "a single point", "result": kind}, groups=groups)


def _drawn_group(value: Any, name: str) -> dict[str, Group]:
    """The group from which a figure of the value is made; none where there is no figure."""
    kind = type(value).__name__
    if kind == "RunDynamics" and value.evolution is not None:
        return {RUN: value.evolution}
    if kind == "SingularValueTable":
        return {"weights/singular_values": group_of(value)}
    if kind not in DRAWN_FROM:
        return {}
    group, place = group_of(value), DRAWN_FROM[kind]
    if place not in ALONE:
        place = name or group_name(place, str(group.attributes.get("label", "")))
    return {place: group}


def save(value: Any, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a result into a file of its own; see `Result.save`."""
    source = _source_of(value)
    if type(value).__name__ == "RunDynamics" and source is not None:
        value = files.read(source)  # with the eigenvectors, which are in the file alone
    files.write_surface(path, surface_of(value), overwrite=overwrite, tensors_from=source)


def _source_of(value: Any) -> Path | None:
    """The file that holds what the value itself leaves behind (directions, eigenvectors), where there is one."""
    name = getattr(value, "source", "") or getattr(value, "path", "")
    if not name or not Path(name).exists():
        return None
    return Path(name)


@overload
def read(path: PathLike) -> Any: ...
@overload
def read(path: PathLike, kind: type[T]) -> T: ...
@checked_keywords
def read(path: PathLike, kind: type[Any] | None = None) -> Any:
    """The result in a file: of `lossmap.survey`, of a command, of `save`, or of the original tool.

    Reads only, and may be called while a survey runs: what its journal knows better is taken from there.

    Args:
        path: of the file.
        kind: the class that is expected, such as `lossmap.Surface` or `lossmap.Spectrum`: for type checkers, and where
            a file holds several results. By default what the file is mostly about.

    Returns:
        A `Surface` where the file holds readings over a grid. Else the result that it holds: a `Spectrum`, a
        `Diagnosis`, and so on; where there are several, a mapping of them by name, such as `spectrum/train`. Of an
        unfinished spectrum, of its layers or of sharpness what there is so far, whose notes say what is still to come.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: with one sentence.
        ValueError: where the file holds no result, or none, or several, of this kind.
        TypeError: where `kind` is no class.

    Example:
        >>> import tempfile, numpy as np, lossmap
        >>> surface = lossmap.Surface(lossmap.Grid.line(-1, 1, 3), {"train_loss": np.array([2.0, 1.0, 2.0])})
        >>> path = surface.save(tempfile.mkdtemp() + "/line.h5")
        >>> lossmap.read(path, lossmap.Surface)["train_loss"].tolist()
        [2.0, 1.0, 2.0]

    """
    if kind is not None and not isinstance(kind, type):
        raise TypeError(f"kind must be a class, such as lossmap.Surface; got {kind!r}")
    surface = files.read(path)
    if kind is Surface:
        return surface
    stored = {n: g for n, g in surface.groups.items() if n.startswith(VALUES)}
    if RUN in surface.groups and (kind is None or kind.__name__ == "RunDynamics"):
        module, function = READ_RUN
        return getattr(import_module(module), function)(path, surface)
    if kind is not None and not stored:
        fitting = [value for value in _so_far(path, surface).values() if type(value) is kind]
        if len(fitting) == 1:
            return fitting[0]
    if kind is not None:
        return _only(path, stored, kind, surface.integrity, surface.outcome == "unfinished")
    if not stored or _holds_points(surface):
        so_far = _so_far(path, surface)
        if len(so_far) == 1:
            return next(iter(so_far.values()))
        return Results(so_far) if so_far else surface
    if len(stored) == 1:
        return _value_in(path, next(iter(stored)), surface.integrity)
    names = {name: name.removeprefix(VALUES).replace(".", "/", 1) for name in stored}
    return Results({short: _value_in(path, name, surface.integrity) for name, short in names.items()})


def _so_far(path: PathLike, surface: Surface) -> dict[str, Any]:
    """By name, what an unfinished file holds of its spectra, layers or sharpness; empty where there is nothing yet."""
    measure = next((name for name in UNFINISHED if name in surface.measures), "")
    if not measure:
        return {}
    attribute, module, function = UNFINISHED[measure]
    settings, about = surface.settings.get("measures", {}).get(measure), surface.attributes.get(attribute)
    if settings is None or not isinstance(about, Mapping):  # the file of an earlier version says too little of them
        return {}
    status = np.asarray(surface.status[measure])
    note = (
        f"unfinished: {int((status == DONE).sum())} of {status.size} tasks are done; lossmap resume {path} computes "
        "the rest"
    )
    groups = {name: files.read_group(path, name).arrays for name in surface.groups if name.startswith("tasks/")}
    try:
        found = getattr(import_module(module), function)(about, settings, groups, note)
    except MISFIT as error:
        raise Damaged(f"{path} is damaged: what its groups tasks hold does not fit ({error})") from error
    return {group_name(kind, label): value for (kind, label), value in found.items()}


def _value_in(path: PathLike, name: str, integrity: str) -> Any:
    """The value in a group of a file. What it says of its own file is not followed: it is this one.

    Of a file without digests it must also be able to say what it is: else a part that does not fit would be met later.

    Raises Damaged where it cannot be put together.
    """
    try:
        value = decode(files.read_group(path, name))
    except Damaged:
        raise
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {name}: {error}") from error
    if integrity == UNPROTECTED:
        try:
            with np.errstate(all="ignore"):
                repr(value)
        except MISFIT as error:
            raise Damaged(f"{path} is damaged: the parts of {name} do not fit together") from error
    if is_dataclass(value) and not isinstance(value, type) and isinstance(getattr(value, "path", None), (str, Path)):
        return replace(value, path=Path(path))
    return value


def _only(
    path: PathLike, stored: Mapping[str, Group], kind: type[Any], integrity: str, is_unfinished: bool = False
) -> Any:
    """The one stored value of this kind. Raises ValueError where there is none, or more than one."""
    kinds = {name: str(group.attributes.get("kind")) for name, group in stored.items()}
    fitting = [name for name, held in kinds.items() if held == kind.__name__]
    if len(fitting) != 1:
        there = ", ".join(f"{held} ({name.removeprefix(VALUES)})" for name, held in kinds.items()) or "a Surface"
        rest = f", which is unfinished: lossmap resume {path} computes the rest" if is_unfinished else ""
        raise ValueError(f"{path} must hold one {kind.__name__}; it holds {there}{rest}")
    return _value_in(path, fitting[0], integrity)


def _holds_points(surface: Surface) -> bool:
    """Whether there are readings over a grid: fields beside those that say where the time went."""
    beside = {f"{measure}_{what}" for measure in surface.status for what in ("seconds", "rank")}
    return bool(set(surface.fields) - beside)


# ---- other forms


def complete(surface: Surface) -> Surface:
    """The surface with the arrays that `read` leaves in the file (directions, eigenvectors), where that is there."""
    source = _source_of(surface)
    if source is None:
        return surface
    absent = [name for name, group in surface.groups.items() if not group.arrays]
    return replace(surface, groups={**surface.groups, **{name: files.read_group(source, name) for name in absent}})


def to_xarray(value: Any) -> Any:
    """The result as an xarray.DataTree; see `Result.to_xarray`."""
    return tree_of(complete(surface_of(value)))


def picture(value: Any) -> bytes | None:
    """The result's figure as PNG; None where there is nothing to draw yet."""
    surface = surface_of(value)
    if isinstance(value, Surface) and value.fields and not any(np.isfinite(v).any() for v in value.fields.values()):
        return None
    module, function = FIGURE
    try:
        figure = getattr(import_module(module), function)(surface)
    except ValueError:  # nothing in it that a figure shows
        return None
    buffer = streams.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
