"""What all results have in common: they can be saved, compared, given to xarray, and shown in a notebook.

Files, xarray and pictures belong to packages above that of a result. They are named here and loaded when they are first
needed, so that nothing below imports them.
"""

from __future__ import annotations

import base64
import html
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# what is done with a result -> (module, function of it)
SERVICES = {
    "save": ("lossmap.results", "save"),
    "tree": ("lossmap.results", "to_xarray"),
    "picture": ("lossmap.results", "picture"),
    "surface": ("lossmap.results", "surface_of"),
}


def service(name: str) -> Any:
    """The function that does this with a result."""
    module, function = SERVICES[name]
    return getattr(import_module(module), function)


class Result:
    """A result: a value that can be saved, compared, given to xarray and shown in a notebook."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the result into a file of its own, which `lossmap.read` gives back equal: HDF5 that is also netCDF-4.

        Args:
            path: of the file, such as `result.h5`.
            overwrite: whether a file that is there is replaced.

        Returns:
            The path.

        Raises:
            FileExistsError: where there is a file, and `overwrite` is not given.
            OSError: where it cannot be written; a file that was there is then as it was.

        """
        path = Path(path)
        service("save")(self, path, overwrite=overwrite)
        return path

    def to_xarray(self) -> Any:
        """All that the result holds as an `xarray.DataTree`: arrays, attributes, and its groups as nodes.

        Raises ImportError, with one sentence, where xarray is not installed.
        """
        return service("tree")(self)

    def as_surface(self) -> Any:
        """The result as a `Surface` of a single point that holds it as groups, as a file does: what `draw` takes."""
        return service("surface")(self)

    def equals(self, other: object) -> bool:
        """Whether the other result is of the same kind and holds the same values, NaN equal to NaN."""
        return same_values(self, other)

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(repr(self))}</pre>'


class DrawnResult(Result):
    """A result that has a picture."""

    def _repr_png_(self) -> bytes | None:
        picture: bytes | None = service("picture")(self)
        return picture

    def _repr_html_(self) -> str:
        text = super()._repr_html_()
        picture = self._repr_png_()
        if picture is None:
            return text
        return f'{text}<img src="data:image/png;base64,{base64.b64encode(picture).decode()}" style="max-width: 100%">'


def same_values(a: Any, b: Any) -> bool:
    """Whether two values are of one kind and equal all through: arrays, tensors, dataclasses, mappings, sequences.

    NaN equals NaN. Fields of dataclasses that are not compared (`compare=False`) are passed over.
    """
    if is_tensor(a) or is_tensor(b):
        return is_tensor(a) and is_tensor(b) and a.dtype == b.dtype and _same_arrays(as_array(a), as_array(b))
    if isinstance(a, (np.ndarray, np.generic)) or isinstance(b, (np.ndarray, np.generic)):
        return _same_arrays(np.asarray(a), np.asarray(b))
    if is_dataclass(a) and not isinstance(a, type):
        names = [f.name for f in fields(a) if f.compare]
        return type(a) is type(b) and all(same_values(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same_values(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(same_values, a, b))
    return bool(a == b or (isinstance(a, float) and isinstance(b, float) and a != a and b != b))


def _same_arrays(a: np.ndarray, b: np.ndarray) -> bool:
    floating = a.dtype.kind == "f" and b.dtype.kind == "f"
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=floating))


def is_tensor(value: Any) -> bool:
    """Whether the value is a tensor of torch, which is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(tensor: Any) -> np.ndarray:
    """The tensor's numbers on the host; bfloat16, which NumPy does not have, as float32."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy()
    return array
