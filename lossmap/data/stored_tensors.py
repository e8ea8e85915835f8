"""The tensors of a model in its file, read again one at a time: an origin that takes no memory.

    StoredTensors(model, path)["layer.weight"]     what the model holds there now, from the file
    StoredTensors(model, path).moved(model, move)  the model itself moved by a function, and put back afterwards

A plane through a large model needs its origin again at every point. Where that is not kept but read again, the model
itself is moved, and put back from the file to the last bit (`landscape.loss`): adding a step and subtracting it would
change half of the float32 entries. Files of PyTorch (zip) and safetensors, whose tensors have the model's names; they
are mapped into memory and let go of after some of them, so that the pages that were read do not add up to a model.

The model is compared with the file before anything is overwritten: one that was trained on since is left alone.
Price: two readings of the file, mostly from the page cache, for each point.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.checkpoints import kind_of
from lossmap.memory import LARGE_MODEL, trim_heap
from lossmap.safe_unpickle import load_tensors

MAX_READ = 1 << 24  # bytes of mapped memory that are read before its pages are let go of
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where the tensors may stand in a file


class ChangedModelError(ValueError):
    """A model no longer holds what its file does, so that it must not be put back from there."""


class StoredTensors(Mapping[str, Tensor]):
    """A model's parameters by name, each read from a file when it is asked for.

    Raises ValueError where the file is of another kind, or does not hold the model's present values under its names.

    Example:
        >>> import torch, lossmap, tempfile
        >>> from lossmap.data.stored_tensors import StoredTensors
        >>> model, file = torch.nn.Linear(3, 2), f"{tempfile.mkdtemp()}/net.pt"
        >>> torch.save(model.state_dict(), file)
        >>> plane = lossmap.random_plane(model, origin=StoredTensors(model, file))
        >>> plane.origin["weight"].shape
        torch.Size([2, 3])

    """

    read_again = True  # what a measure looks for: see `landscape.loss`

    def __init__(self, model: nn.Module, path: str | Path) -> None:
        self.path, self.kind = str(Path(path).resolve()), kind_of(path)
        if self.kind not in ("zip", "safetensors"):
            raise ValueError(
                f"{path}: an origin is read again from a file of torch.save (zip) or safetensors; got {self.kind}"
            )
        own = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        self._about = {name: (p.shape, p.dtype) for name, p in own.items()}
        self._content: Any = None
        self._read = 0
        self._mapped: list[tuple[int, int]] = []  # addresses and bytes that were read since
        for name, p in own.items():
            if p.device.type != "cpu":
                raise ValueError("an origin is read again for a model on the CPU alone; leave origin out")
            if not all(bool(part.isfinite().all()) for part, _ in self._parts(name, p.detach())):
                raise ValueError(f"the model's tensor {name!r} holds values that are not finite; no plane starts there")
            if not self._holds(name, p.detach()):
                raise ValueError(
                    f"{path}: {name!r} has other values than the model; it is no file of its present weights"
                )
        self._let_go()

    def __getitem__(self, name: str) -> Tensor:
        return self._view(name).clone()

    def __contains__(self, name: object) -> bool:
        return name in self._about  # a Mapping reads the tensor to answer

    def __iter__(self) -> Iterator[str]:
        return iter(self._about)

    def __len__(self) -> int:
        return len(self._about)

    def verify(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's own tensors that the file holds, by name. Raises ChangedModelError where their values differ."""
        own = {name: p.data for name, p in model.named_parameters() if name in self}
        for name in self:
            if name not in own or own[name].shape != self._about[name][0] or not self._holds(name, own[name]):
                raise ChangedModelError(
                    f"the model's tensor {name!r} is no longer what {self.path} holds: it has changed since it was "
                    "stored, and is left as it is; save it and make its StoredTensors and the plane anew"
                )
        self._let_go()
        return own

    @contextmanager
    def moved(self, model: nn.Module, move: Callable[[Mapping[str, Tensor]], None]) -> Iterator[None]:
        """The model itself, moved by a function that writes into its tensors; put back to the last bit, come what may.

        Nobody else may use it meanwhile. Raises ChangedModelError, before anything is moved, where it is not what the
        file holds, and RuntimeError where it cannot be put back, since the file is gone.
        """
        parameters = dict(model.named_parameters())
        values = self.verify(model)
        if sum(value.nbytes for value in values.values()) >= LARGE_MODEL:
            gc.collect()  # cycles that still hold copies of the weights, which a write to them would make real
            trim_heap()
        try:
            with torch.no_grad():
                move(values)
            yield
        finally:
            try:
                self._put_back(parameters, values)
            except KeyboardInterrupt:  # in the midst of it: once more, and then it is passed on
                self._put_back(parameters, values)
                raise

    def _put_back(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        try:
            with torch.no_grad():
                self.put_into(values)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"the model was moved and cannot be put back, load it again: {error}") from error
        finally:
            for name, value in values.items():  # a forward pass may have put another tensor there
                parameters[name].data = value

    def _holds(self, name: str, tensor: Tensor) -> bool:
        """Whether the file holds a tensor's values to the last bit, the sign of 0 too."""
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        return tensor.dtype == self._about[name][1] and all(
            torch.equal(part.view(bits), stored.view(bits)) for part, stored in self._parts(name, tensor)
        )

    def put_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the file's values into these tensors, by name."""
        for name, tensor in tensors.items():
            for part, stored in self._parts(name, tensor):
                part.copy_(stored)
        self._let_go()

    def _parts(self, name: str, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A tensor and what the file holds for it, some entries at a time."""
        entries = MAX_READ // 8
        if tensor.numel() <= entries or not tensor.is_contiguous():
            yield tensor, self._view(name)
            return
        for start in range(0, tensor.numel(), entries):
            part = tensor.view(-1)[start : start + entries]
            self._drop_pages()
            yield part, self._view(name).reshape(-1)[start : start + entries]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_content": None, "_read": 0, "_mapped": []}

    def _let_go(self) -> None:
        self._content, self._read, self._mapped = None, 0, []

    def _drop_pages(self) -> None:
        """Let the pages that were read count no longer: to open a file of many tensors again takes a tenth of a second.

        Of a private mapping of a file that nobody writes to, they come again from the file.
        """
        size = mmap.PAGESIZE
        try:
            if self.kind != "zip":
                raise OSError("whether a tensor of safetensors lies in mapped memory is not known")
            for address, length in self._mapped:
                start, stop = -(-address // size) * size, (address + length) // size * size
                if start < stop and ctypes.CDLL(None).madvise(
                    ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED
                ):
                    raise OSError("madvise failed")
        except (OSError, AttributeError):
            self._let_go()
        self._read, self._mapped = 0, []

    def _view(self, name: str) -> Tensor:
        """The tensor in the file's mapped memory, in the model's precision. Raises ValueError where there is none."""
        if name not in self._about:
            raise KeyError(name)
        shape, dtype = self._about[name]
        if self._read > MAX_READ:
            self._drop_pages()
        if self._content is None:
            self._content = self._opened()
        try:
            stored = self._content.get_tensor(name) if self.kind == "safetensors" else self._content[name]
        except Exception as error:  # of safetensors, by its own class
            raise ValueError(f"{self.path} has no tensor named {name!r}, as the model has") from error
        if not isinstance(stored, Tensor) or stored.shape != shape:
            raise ValueError(f"{self.path}: {name!r} has another shape than the model's {tuple(shape)}")
        self._read += stored.nbytes
        self._mapped.append((stored.data_ptr(), stored.nbytes))
        return stored.detach().to(dtype)  # as it is, where that is its precision

    def _opened(self) -> Any:
        if self.kind == "safetensors":
            from safetensors import safe_open

            return safe_open(self.path, framework="pt", device="cpu").__enter__()  # type: ignore[no-untyped-call]
        content = load_tensors(self.path, mmap=True)
        names = list(self._about)
        for key in NESTED:
            if isinstance(content, Mapping) and names and names[0] not in content and key in content:
                content = content[key]
        return content


__all__ = ["ChangedModelError", "StoredTensors"]
