"""Values that are summed over ranks, as arrays in the host's memory and back; tensors without an import of torch."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_host_array(value: Any) -> np.ndarray:
    """A tensor, array or number as an array in the host's memory, of the same shape; half precision as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) in ("torch.bfloat16", "torch.float16"):  # MPI has no half precision
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def like(value: Any, array: np.ndarray) -> Any:
    """The array in the type, dtype, device and shape of `value`, which is a tensor, an array or a number."""
    if hasattr(value, "detach"):
        return value.new_tensor(array).reshape(value.shape)
    if isinstance(value, np.ndarray):
        return array.reshape(value.shape)
    return type(value)(array)
