"""Keeps what the probe of products chose, so that it is paid for once: JSON files in a folder that may be deleted.

    $LOSSMAP_CACHE, else $XDG_CACHE_HOME/lossmap, else ~/.cache/lossmap; LOSSMAP_CACHE=off keeps nothing

An entry belongs to one model structure (modules, parameters, what theta is made of), shapes and number of samples,
loss, matrix, machine (processor or GPU, threads) and versions of lossmap and torch. It says what is fast, never what is
right: products are checked before their first use as without it, tiles and memory formats too. A file that is damaged,
belongs to something else, or cannot be read or written counts as none. Price: one small file read, and one written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap import accelerators
from lossmap.curvature.hvp_plan import HvpPlan
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import Layout

log = logging.getLogger("lossmap")

FORMAT = 1  # of the entries; another one is not read
MORE_PRODUCTS = 4  # an entry that was made for fewer than a part in so many of the products is made anew
MAX_ENTRY_BYTES = 1 << 16


def folder() -> Path | None:
    """Where entries are kept; None where they are not."""
    own = os.environ.get("LOSSMAP_CACHE", "")
    if own.lower() in ("off", "none", "0"):
        return None
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):  # no home
        return (Path(shared) if shared else Path.home() / ".cache") / "lossmap"
    return None


def key_of(problem: Problem, layout: Layout, product: str, blocks: bool) -> dict[str, Any]:
    """What a choice depends on, JSON-able.

    layout   of theta
    product  name of the matrix
    blocks   whether products with several vectors are to come
    """
    model = problem.model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    structure = [f"{name} {type(m).__module__}.{type(m).__qualname__} {_words(m)}" for name, m in model.named_modules()]
    shapes = [f"{name} {tuple(t.shape)} {t.dtype} {t.requires_grad}" for name, t in tensors]
    device = tensors[0][1].device
    return {
        "format": FORMAT,
        "lossmap": str(sys.modules["lossmap"].__version__),
        "torch": torch.__version__,
        "machine": _machine(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "model": _digest([*structure, *shapes]),
        "theta": _digest(list(layout.names)),
        "matrix": product,
        "loss": _name_of(problem.loss),
        "forward": _name_of(problem.forward),
        "data": [type(problem.data).__name__, problem.data.samples, *_leaves(problem)],
        "blocks": blocks,
    }


def load(key: Mapping[str, Any], products: int | None) -> HvpPlan | None:
    """The plan that was chosen for this key; None where there is none, or it was made for much fewer products.

    products  that are expected; None: many
    """
    place = _file(key)
    if place is None:
        return None
    try:
        if place.stat().st_size > MAX_ENTRY_BYTES:
            return None
        entry = json.loads(place.read_text(encoding="utf-8"))
        made_for = entry["products"]
        is_known = entry["key"] == json.loads(json.dumps(key))
        is_enough = made_for is None or (products is not None and products <= MORE_PRODUCTS * int(made_for))
        if not is_known or not is_enough:
            return None
        return replace(HvpPlan.from_stored(entry["plan"]), rounding=None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def store(key: Mapping[str, Any], plan: HvpPlan, products: int | None) -> None:
    """Keep a plan; where that is not possible, nothing happens. The file appears whole."""
    place = _file(key)
    if place is None:
        return
    entry = {"key": dict(key), "plan": replace(plan, rounding=None).stored(), "products": products}
    temporary = ""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=".plan-", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entry, file, indent=1)
        os.replace(temporary, place)
    except (OSError, ValueError, TypeError) as error:
        log.info("the choice of products was not kept: %s", error)
        with suppress(OSError):
            os.unlink(temporary)


def forget(key: Mapping[str, Any]) -> None:
    """Remove the entry of this key, whose plan does not run or is not right here."""
    place = _file(key)
    if place is not None:
        with suppress(OSError):
            place.unlink()


def _file(key: Mapping[str, Any]) -> Path | None:
    place = folder()
    if place is None:
        return None
    return place / f"plan-{_digest([json.dumps(key, sort_keys=True)])}.json"


def _digest(words: list[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _words(module: torch.nn.Module) -> str:
    """What a module says of its own settings, such as strides; user code may raise any exception there."""
    try:
        return module.extra_repr()
    except Exception:
        return ""


def _name_of(function: Any) -> str:
    """A function, or an object's class, with the settings that its module says it has."""
    owner = getattr(function, "__self__", None)
    own = function if hasattr(function, "__qualname__") else type(function)
    name = f"{getattr(own, '__module__', '')}.{getattr(own, '__qualname__', '')}"
    if owner is not None:
        name += f" of {type(owner).__module__}.{type(owner).__qualname__}"
    if isinstance(function, torch.nn.Module):
        name += f" {_words(function)}"
    return name


def _leaves(problem: Problem) -> list[str]:
    """Shape and type of each part of the first sample, or batch."""
    first = next(iter(problem.rebatched(1).data))
    return [
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in pytree.tree_leaves(first)
    ]


def _machine(device: torch.device) -> str:
    if accelerators.module_of(device.type) is not None:
        return accelerators.name_of(device)
    return f"{platform.machine()} {_processor()}"


@cache
def _processor() -> str:
    """The processor's name, as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
