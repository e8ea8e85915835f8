"""How Hessian-vector products are computed: the backend, and what the probe of `autotune` chooses beside it.

    backend           kept per point                                  a layer's work in a product (gradient: 3)
    linearized        the values that tangents meet                   6; Gauss-Newton 4
    retained-graph    the gradient's graph, as autograd keeps it      6, batch norm not folded; Hessian only
    double-backward   nothing                                         9; Gauss-Newton 8

Result files keep the keys and the names of version 0.1 (`way`: linear, graph, double; `batch`, `format`, `block`, ...),
so that files of both versions resume and merge with each other. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BACKENDS = ("linearized", "retained-graph", "double-backward")  # all but the first need no trace
_STORED_NAMES = {"linearized": "linear", "retained-graph": "graph", "double-backward": "double"}
_SPELLINGS = {"auto": "auto"} | {b: b for b in BACKENDS} | {old: b for b, old in _STORED_NAMES.items()}


def backend_of(name: str) -> str:
    """The backend of a product, by its name or by the name that version 0.1 gave it; `auto` stays `auto`.

    Raises ValueError for any other name.
    """
    if name not in _SPELLINGS:
        raise ValueError(f"the backend must be one of auto, {', '.join(BACKENDS)}; got {name!r}")
    return _SPELLINGS[name]


@dataclass(frozen=True)
class ProductCheck:
    """What `product_check` says of the backends of one problem: a value that rank 0 sends to the others.

    rejected      backends whose products are wrong or fail, with the reason in one clause
    disagreement  by how much products differ on the two sides of a kink of the loss (ReLU at 0) that lies at a point
                  looked at, or from differences that no pair of steps could decide, relative to the product: what error
                  bars have to hold, in units of the largest absolute eigenvalue; 0 where all was decided
    unchecked     why nothing could be compared; empty where it was
    """

    rejected: Mapping[str, str] = field(default_factory=dict, hash=False)
    disagreement: float = 0.0
    unchecked: str = ""


@dataclass(frozen=True)
class HvpPlan:
    """How products are computed: chosen once by `autotune.prepare`, stored, and taken up again on resuming.

    backend             linearized, retained-graph or double-backward
    batch_size          samples per batch
    memory_format       of 4-d tensors: contiguous or channels_last (linearized only)
    vectorized          several vectors at once by `vmap`, else one after the other (linearized only)
    winograd_channels   3x3 convolutions of at least this many channels use Winograd tiles; 0: none (linearized only)
    graph_bytes         bytes per sample that a retained graph takes at most
    seconds_per_sample  what the probe measured, by the label of each plan that it tried
    rounding            how far rounding may move an eigenvalue where the plan was made, in their unit, and the same
                        relative to the largest there; None where it was not measured, as by version 0.1
    """

    backend: str
    batch_size: int
    memory_format: str = "contiguous"
    vectorized: bool = False
    winograd_channels: int = 0
    graph_bytes: int = 0
    seconds_per_sample: Mapping[str, float] = field(default_factory=dict, hash=False)
    rounding: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """The plan in a few words, as the measured seconds are stored under it."""
        tiles = f" tiled from {self.winograd_channels}" if self.winograd_channels else ""
        return f"{_STORED_NAMES[self.backend]} {self.batch_size} {self.memory_format}{tiles}"

    def stored(self) -> dict[str, Any]:
        """The plan as result files hold it: JSON-able, with the keys and names of version 0.1."""
        entries: dict[str, Any] = {
            "way": _STORED_NAMES[self.backend],
            "batch": self.batch_size,
            "format": self.memory_format,
            "block": "together" if self.vectorized else "apart",
        }
        if self.winograd_channels:
            entries["tiled"] = self.winograd_channels
        if self.backend == "retained-graph":
            entries["kept_per_sample"] = self.graph_bytes
        if self.seconds_per_sample:
            entries["seconds_per_sample"] = dict(self.seconds_per_sample)
        if self.rounding is not None:
            entries["rounding"] = list(self.rounding)
        return entries

    @classmethod
    def from_stored(cls, entries: Mapping[str, Any]) -> HvpPlan:
        """The plan that a result file holds; `backend` is accepted for `way`, and either spelling of its value.

        Raises ValueError where the backend or the batch size is missing, or the backend is unknown.
        """
        name = entries.get("backend", entries.get("way"))
        if name is None or "batch" not in entries:
            raise ValueError(f"a stored plan needs `way` and `batch`; got {dict(entries)}")
        backend = backend_of(str(name))
        if backend == "auto":
            raise ValueError("a stored plan names the backend that was chosen; got 'auto'")
        rounding = entries.get("rounding")
        return cls(
            backend,
            int(entries["batch"]),
            str(entries.get("format", "contiguous")),
            entries.get("block", "apart") == "together",
            int(entries.get("tiled", 0)),
            int(entries.get("kept_per_sample", 0)),
            dict(entries.get("seconds_per_sample", {})),
            None if rounding is None else (float(rounding[0]), float(rounding[1])),
        )
