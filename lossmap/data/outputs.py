"""What a loss takes of what a model returns: a tensor, or the logits of a record such as Hugging Face's models return.

logits_of(outputs)     outputs.logits, outputs["logits"], or the outputs themselves
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(outputs: Any) -> Any:
    """The logits of a record or a dict that has some, such as a `ModelOutput`; other outputs as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    return outputs
