"""How passes are computed: uncompiled, and on a GPU in full float32 by deterministic algorithms, whatever is set.

    with numerics(device, recurrent=True):   forward passes, gradients, products

TF32 has 10 bits of mantissa in place of 23: an error near 5e-4 of every convolution and matrix product, far beyond the
bars of a curvature; cuDNN takes it by default. Algorithms that are chosen by timing, or that add by atomic operations,
give other bits at every run. Where there is none but such an algorithm, it is taken in silence. Price: some 50
microseconds (the switches alone, timed without a GPU).

What `torch.compile` has made of a model, of a part of it or of a loss rests meanwhile, and what it was made of runs: a
compiled function has no second derivative ("torch.compile with aot_autograd does not currently support double
backward"), sees neither forms that do not cancel nor traces, and rounds otherwise than the function that it is made of.

Sources: PyTorch's notes on numerical accuracy, on reproducibility and on CUDA semantics (TF32).
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

WORKSPACE = ":4096:8"  # of cuBLAS, with which its sums are deterministic; read when CUDA starts
_SILENCED = (
    ".*does not have a deterministic implementation",
    ".*defaults to a non-deterministic algorithm",
    ".*CuBLAS",  # which is deterministic on one stream; its variable is for several
    "RNN module weights are not part of single contiguous chunk",  # borrowed parameters: only slower
    "There is a performance drop because we have not yet implemented the batching rule",
)

_tf32 = False  # whether this process was asked for it


def use_tf32(enabled: bool) -> None:
    """Let passes over data on a GPU be computed in TF32, or not; for the whole process, as a command asks for it."""
    global _tf32
    _tf32 = enabled


def is_tf32() -> bool:
    """Whether passes are computed so."""
    return _tf32


def ask_for_determinism() -> None:
    """What must be said before CUDA starts; a value of the user's own stays."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)


@contextmanager
def numerics(device: torch.device, recurrent: bool = False) -> Iterator[None]:
    """Inside, passes are computed so; the switches are put back afterwards.

    device     that computes; of any other than a CUDA device nothing is switched
    recurrent  whether gradients of cuDNN's recurrent layers are to be taken: it has none in evaluation mode, so that
               PyTorch's own kernels do the work, of the other layers too
    """
    with _uncompiled(), _cuda(recurrent) if device.type == "cuda" else nullcontext():
        yield


def _uncompiled() -> AbstractContextManager[Any]:
    """Inside, functions that torch.compile has made run uncompiled; nothing to do where the process has none."""
    if "torch._dynamo" not in sys.modules:  # whose import takes a second
        return nullcontext()
    if _set_stance_loses_references():
        return _eager_stance()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@functools.cache
def _set_stance_loses_references() -> bool:
    """Whether each use of set_stance takes a reference from None, as in PyTorch 2.6: at the last one Python aborts."""
    before, uses = sys.getrefcount(None), 20
    for _ in range(uses):
        with torch.compiler.set_stance("force_eager"):
            pass
    return before - sys.getrefcount(None) >= uses


@contextmanager
def _eager_stance() -> Iterator[None]:
    """What set_stance("force_eager") does, without its look at what is being compiled."""
    frames = sys.modules["torch._dynamo.eval_frame"]
    before, frames._stance = frames._stance, frames.DynamoStance("force_eager")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        frames._stance = before  # type: ignore[attr-defined]


@contextmanager
def _cuda(recurrent: bool) -> Iterator[None]:
    """The switches of a CUDA device; see `numerics`."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    tf32 = _switches_of_tf32()
    cudnn.benchmark, cudnn.deterministic = False, True
    if recurrent:
        cudnn.enabled = False
    for switch, _ in tf32:
        switch.set(_tf32)
    if not algorithms[0]:
        _set_deterministic(True, True)
    try:
        with warnings.catch_warnings():
            for message in _SILENCED:
                warnings.filterwarnings("ignore", message, UserWarning)
            yield
    finally:
        _set_deterministic(*algorithms)
        for switch, value in tf32:
            switch.restore(value)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before


def _set_deterministic(enabled: bool, warn_only: bool) -> None:
    # the public function imports PyTorch's compiler first, which takes seconds
    torch._C._set_deterministic_algorithms(enabled, warn_only=warn_only)


@dataclass(frozen=True)
class _Switch:
    """An attribute of one of PyTorch's backends, which says whether TF32 is allowed.

    on, off  its values for both
    """

    owner: Any
    name: str
    on: object
    off: object

    def value(self) -> object:
        return getattr(self.owner, self.name)

    def set(self, enabled: bool) -> None:
        self.restore(self.on if enabled else self.off)

    def restore(self, value: object) -> None:
        setattr(self.owner, self.name, value)


def _switches_of_tf32() -> list[tuple[_Switch, object]]:
    """The switches with their values: PyTorch's older ones, or those of 2.9 where the user has set these.

    The older ones raise where the newer have been set to what they cannot express.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = [_Switch(matmul, "allow_tf32", True, False), _Switch(cudnn, "allow_tf32", True, False)]
    try:
        return [(switch, switch.value()) for switch in switches]
    except RuntimeError:
        owners = (matmul, cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
        switches = [_Switch(owner, "fp32_precision", "tf32", "ieee") for owner in owners]
        return [(switch, switch.value()) for switch in switches]
