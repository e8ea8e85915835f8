"""Errors of a device: memory that ran out, and a GPU that this process has lost. Known without PyTorch.

After some errors every further call of CUDA fails until the process ends: a failed assertion in a kernel, an address
outside of its memory, a memory that cannot be corrected (ECC). Each point after that would fail, whatever it is; so the
rank hands its point back and computes no more.

Source: the documentation of CUDA's runtime: after such an error the process must be terminated and launched anew.
"""

from __future__ import annotations

from lossmap import accelerators

_lost_by: list[str] = []  # the error by which the GPU was lost, once it was


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: CUDA's, the CPU's, or Python's own. Known by name and text."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"OutOfMemoryError", "MemoryError"}:
        return True
    text = str(error).lower()
    phrases = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)


def raise_if_of_device(error: BaseException) -> None:
    """Raise an error again that says nothing of what was tried: memory ran out, or the GPU is lost."""
    if out_of_memory(error) or loses_gpu(error):
        raise error


def gpu_lost_by() -> str | None:
    """The first line of the error by which this process lost its GPU, None where it has not."""
    return _lost_by[0] if _lost_by else None


def loses_gpu(error: BaseException) -> bool:
    """Whether this process's GPU computes no more, after an error of whatever kind; once so, always."""
    if not _lost_by and _every_call_fails():
        first = str(error).strip().splitlines()
        _lost_by.append(first[0] if first else type(error).__name__)
    return bool(_lost_by)


def _every_call_fails() -> bool:
    try:
        for module in accelerators.started():
            module.synchronize()  # reports an error that lasts, and no other
    except Exception:
        return True
    return False
