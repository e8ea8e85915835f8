"""A table with one row a result as an `xarray.Dataset`: each column a variable over the dimension `member`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def dataset_of(columns: Mapping[str, Sequence[Any]], attributes: Mapping[str, Any]) -> Any:
    """The columns as an `xarray.Dataset`; numbers as float64 with NaN where a row has none, all else as text.

    Raises ImportError, with one sentence, where xarray is not installed.
    """
    try:
        import xarray
    except ImportError:
        raise ImportError("a Dataset needs xarray, which is not installed: pip install 'lossmap[xarray]'") from None
    variables = {name: ("member", _array(values)) for name, values in columns.items()}
    return xarray.Dataset(variables, attrs=dict(attributes))


def _array(values: Sequence[Any]) -> np.ndarray:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array(["" if value is None else str(value) for value in values], dtype=object)
