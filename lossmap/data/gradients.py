"""The gradient of a loss one tensor at a time: each is given back as soon as it is used, so that no two are held.

    each_gradient(loss, parameters, take)     take(i, gradient of the i-th) in the order of the backward pass

Of a large model the whole gradient is another copy of the weights. Price: that of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossmap.memory import LARGE_MODEL, trim_heap


def each_gradient(loss: Tensor, parameters: Sequence[Tensor], take: Callable[[int, Tensor], None]) -> None:
    """Call `take` with the place and the gradient of each of the parameters that the loss depends on.

    loss        a number with its graph, which is gone afterwards
    parameters  leaves that require gradients
    take        must not keep the gradient

    Raises what `take` and the backward pass raise.
    """
    freed = 0  # bytes that glibc may keep between what stays, as yet

    def taken(i: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            nonlocal freed
            freed += gradient.nbytes
            if freed >= LARGE_MODEL:
                trim_heap()
                freed = 0
            take(i, gradient.detach())
            # what the backward pass returns in its place: of its shape, and a single number in memory
            return torch.zeros((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)

        return hook

    hooks = [p.register_hook(taken(i)) for i, p in enumerate(parameters)]  # type: ignore[no-untyped-call]
    try:
        torch.autograd.grad(loss, list(parameters), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()


__all__ = ["each_gradient"]
