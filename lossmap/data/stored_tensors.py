"""The tensors of a model in its file, read again one at a time: an origin that takes no memory.

    StoredTensors(model, path)["layer.weight"]     what the model holds there now, from the file

A plane through a large model needs its origin again at every point. Where that is not kept but read again, the model
itself is moved, and put back from the file to the last bit (`landscape.loss`): adding a step and subtracting it would
change half of the float32 entries. Files of PyTorch (zip) and safetensors, whose tensors have the model's names; they
are mapped into memory and let go of after some of them, so that the pages that were read do not add up to a model.
Price: one reading of the file, mostly from the page cache, for each point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.checkpoints import kind_of

MAX_READ = 1 << 24  # bytes between two openings of the file
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where the tensors may stand in a file


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
        for name, p in own.items():
            if p.device.type != "cpu":
                raise ValueError("an origin is read again for a model on the CPU alone; leave origin out")
            if not all(bool(part.isfinite().all()) for part, _ in self._parts(name, p.detach())):
                raise ValueError(f"the model's tensor {name!r} holds values that are not finite; no plane starts there")
            if not all(torch.equal(part, stored) for part, stored in self._parts(name, p.detach())):
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
            self._let_go()
            yield part, self._view(name).reshape(-1)[start : start + entries]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_content": None, "_read": 0}

    def _let_go(self) -> None:
        self._content, self._read = None, 0

    def _view(self, name: str) -> Tensor:
        """The tensor in the file's mapped memory, in the model's precision. Raises ValueError where there is none."""
        if name not in self._about:
            raise KeyError(name)
        shape, dtype = self._about[name]
        if self._content is None or self._read > MAX_READ:
            self._let_go()
            self._content = self._opened()
        try:
            stored = self._content.get_tensor(name) if self.kind == "safetensors" else self._content[name]
        except Exception as error:  # of safetensors, by its own class
            raise ValueError(f"{self.path} has no tensor named {name!r}, as the model has") from error
        if not isinstance(stored, Tensor) or stored.shape != shape:
            raise ValueError(f"{self.path}: {name!r} has another shape than the model's {tuple(shape)}")
        self._read += stored.nbytes
        return stored.detach().to(dtype)  # as it is, where that is its precision

    def _opened(self) -> Any:
        if self.kind == "safetensors":
            from safetensors import safe_open

            return safe_open(self.path, framework="pt", device="cpu").__enter__()  # type: ignore[no-untyped-call]
        content = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        names = list(self._about)
        for key in NESTED:
            if isinstance(content, Mapping) and names and names[0] not in content and key in content:
                content = content[key]
        return content


__all__ = ["StoredTensors"]
