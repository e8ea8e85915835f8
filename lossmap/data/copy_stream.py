"""Batches from the host to a GPU while it computes on those before.

    host           reads k+1, pins it | launches the work on k+1 | waits until the work on k is done, reads k+2 ...
    copy stream                         copies k+1
    compute stream ...... works on k ............. waits for the copy | works on k+1

A copy from memory that is not pinned holds up the host, and one on the stream that computes waits for what was launched
there before. The host runs at most two batches ahead, so that no more of them lie on the GPU. Elsewhere (the CPU, and
devices whose module in torch has no streams) a batch is moved as it is read.

Source: "CUDA semantics" in the documentation of PyTorch, on pinned memory; that of `torch.Tensor.record_stream`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lossmap.data.batch_marks import with_mark_of
from lossmap.trees import rebuilt

AHEAD = 2  # batches whose work may be unfinished while the next one is copied
NEEDED = ("Stream", "Event", "stream", "current_stream")  # of the module of a device, such as torch.cuda

log = logging.getLogger("lossmap")
_streams: dict[torch.device, Any] = {}  # one each: the allocator keeps freed memory apart for every stream
_unpinned: list[str] = []  # why memory could not be pinned, once that was so


def streams_of(device: torch.device | str | None) -> Any:
    """The module of a device that copies beside its work, such as torch.cuda; None for others."""
    kind = "cpu" if device is None else torch.device(device).type
    module = None if kind == "cpu" else getattr(torch, kind, None)
    return module if all(hasattr(module, name) for name in NEEDED) else None


def copied_ahead(
    batches: Iterable[Any], device: torch.device | str, move: Callable[[Any], Any], module: Any
) -> Iterator[Any]:
    """The batches, moved on a stream of their own.

    batches  on the host
    move     a batch -> the same on the device
    module   as of `streams_of`
    """
    place = torch.device(device)
    if place not in _streams:
        _streams[place] = module.Stream(device=place)
    done: deque[Any] = deque()
    for batch in batches:
        if len(done) == AHEAD:
            done.popleft().synchronize()
        # not kept here: what the one who asked has dropped is free while the next batch is read
        yield _moved(batch, move, module, _streams[place], module.current_stream(place))
        event = module.Event()
        event.record(module.current_stream(place))
        done.append(event)


def _moved(batch: Any, move: Callable[[Any], Any], module: Any, copying: Any, computing: Any) -> Any:
    """The batch on the device; the stream that computes waits for the copy, and the copy's memory for that stream."""
    with module.stream(copying):
        moved = move(pinned(batch))
    computing.wait_stream(copying)
    for leaf in pytree.tree_leaves(moved):
        if isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu":
            leaf.record_stream(computing)
    return moved


def pinned(batch: Any) -> Any:
    """The batch in memory that a GPU reads by itself; as it is where the system grants no such memory, said once."""

    def pin(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu" or leaf.layout != torch.strided:
            return leaf
        return with_mark_of(leaf.pin_memory(), leaf)

    if _unpinned:
        return batch
    try:
        return rebuilt(pin, batch)
    except RuntimeError as error:
        _unpinned.append(str(error).splitlines()[0])
        log.info("samples are copied from memory that is not pinned: %s", _unpinned[0])
        return batch
