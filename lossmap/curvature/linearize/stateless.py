"""Call a module with tensors given from outside, so that it keeps nothing of them.

`torch.func.functional_call` replaces a shared module's tensors once for each name that the module has, and puts them
back in the same order: the second one puts back what the first had put in, and the module is left with the tensors of
the call. Inside a transform of torch.func they are dead ones after it.

Price: a look at the tensors of every module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """What a module returns with these parameters and buffers in place of its own, which are as before afterwards."""
    with _tensors_put_back(module):
        return functional_call(module, dict(tensors), arguments)


@contextmanager
def _tensors_put_back(module: nn.Module) -> Iterator[None]:
    owned: list[dict[str, Any]] = [own for m in module.modules() for own in (m._parameters, m._buffers)]
    kept = [dict(own) for own in owned]
    try:
        yield
    finally:
        for own, before in zip(owned, kept, strict=True):
            own.update(before)
