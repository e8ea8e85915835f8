"""What code measures a result: values on a few samples, digests of the user's files, commit, versions, processor.

    values["loss at the origin"], values["loss at a grid point"]     mean over the first samples, in the problem's unit
    values["product at the origin"]                                  |H v|, v a fixed random direction, by two backward
                                                                     passes; of measures that make products
    sources[path]                                                    SHA-256 of each of the user's own .py files, as
                                                                     this process first saw it after its import

`io/code_identity.py` compares them when a result is continued. Price: two forward passes and, with a product, two
backward passes over `SAMPLES` samples; the digests of the files; two calls of git where there are such files.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from lossmap import accelerators
from lossmap.curvature.double_backward import twice_differentiable
from lossmap.curvature.operators import differentiated
from lossmap.data.batches import copied
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Point
from lossmap.import_by_name import imported_digest
from lossmap.installed import installed_folders, installed_prefixes
from lossmap.io.provenance import checkout_of
from lossmap.seeding import same_random_state
from lossmap.sums import in_float64

SAMPLES = 16
MAX_DEPTH = 4  # of callables within callables
MAX_SOURCES = 200
SEED = 20_260_101  # of the direction of the product


def code_of(
    problems: Mapping[str, Problem],
    *,
    plane: Plane | None = None,
    point: Point | None = None,
    product: bool = False,
    files: Iterable[Path] = (),
) -> dict[str, Any]:
    """The fingerprint of what these problems compute, as plain values.

    problems  by split; the first one's values count
    plane     whose origin and `point` the losses are at; None: the model's own parameters
    product   whether the measure makes products
    files     source files that are known to take part, such as those of a data set's factory
    """
    problem = next(iter(problems.values()))
    sources = source_files(problems, files)
    dtype = next((p.dtype for p in problem.model.parameters() if p.is_floating_point()), torch.float32)
    return {
        "values": _values(problem, plane, point, product),
        "eps": float(torch.finfo(dtype).eps),
        "sources": source_digests(sources),
        "git": checkout_of(sources[0].parent) if sources else {},
        "environment": environment(next((p.device for p in problem.model.parameters()), torch.device("cpu"))),
    }


# ---- values


def _values(problem: Problem, plane: Plane | None, point: Point | None, product: bool) -> dict[str, float | str]:
    few = _attempt(lambda: problem.rebatched(SAMPLES))
    batch = few if isinstance(few, str) else _attempt(lambda: next(iter(few.data)))
    if isinstance(batch, str):  # data that cannot be cut: what is compared is that they cannot
        return {"loss at the origin": batch}
    origin: Mapping[str, torch.Tensor] = {} if plane is None else plane.at((0.0,) * len(plane.axes))
    values = {"loss at the origin": _attempt(lambda: _loss(problem, batch, origin))}
    if plane is not None and point is not None:
        values["loss at a grid point"] = _attempt(lambda: _loss(problem, batch, plane.at(point)))
    if product:
        values["product at the origin"] = _attempt(lambda: _product(problem, batch, origin))
    return values


def _attempt(compute: Callable[[], Any]) -> Any:
    """What was computed, or that it fails and how: user code may raise anything, here as at a point."""
    try:
        return compute()
    except Exception as error:
        return f"fails with {type(error).__name__}"


def _loss(problem: Problem, batch: Any, state: Mapping[str, torch.Tensor]) -> float:
    batch = copied(batch)  # the problem may not have been asked yet whether it writes into its batch
    with same_random_state(problem.noise_seed or 0), temporary_parameters(problem.model, dict(state)):
        return float(problem.total(batch).detach()) / problem.count(batch)


def _product(problem: Problem, batch: Any, state: Mapping[str, torch.Tensor]) -> float:
    """|H v| of the mean loss over the batch, v of fixed random entries."""
    chance, batch = torch.Generator().manual_seed(SEED), copied(batch)
    with same_random_state(problem.noise_seed or 0), temporary_parameters(problem.model, dict(state)):
        parameters = [p for p in problem.model.parameters() if p.is_floating_point()]
        with differentiated(problem.model, parameters), twice_differentiable(problem.model):
            loss = problem.total(batch) / problem.count(batch)
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            v = [torch.randn(p.shape, generator=chance).to(p.device, p.dtype) for p in parameters]
            along = torch.stack([(g * d).sum() for g, d in zip(gradient, v, strict=True)]).sum()
            if not along.requires_grad:  # a loss that is linear in theta
                return 0.0
            product = torch.autograd.grad(along, parameters, materialize_grads=True)
        return float(torch.stack([in_float64(p).square().sum() for p in product]).sum().sqrt())


# ---- sources


def source_files(problems: Mapping[str, Problem], files: Iterable[Path] = ()) -> list[Path]:
    """The user's own .py files that take part: of models, losses, metrics, and their neighbours that are imported."""
    named: dict[Path, None] = dict.fromkeys(path.resolve() for path in files if path.is_file())
    for problem in problems.values():
        classes = {type(module) for module in problem.model.modules()}
        own = [problem.forward, problem.loss, problem.count, *(m.total for m in problem.metrics.values())]
        for item in (*classes, *(function for value in own for function in _functions(value))):
            named |= dict.fromkeys(_own_file(item))
    named = {path: None for path in named if path.suffix == ".py"}
    folders = tuple({f"{path.parent}{os.sep}" for path in named})
    for name, module, file in _own_modules() if folders else ():
        if name != "__main__" and os.path.realpath(file).startswith(folders):
            named |= dict.fromkeys(_own_file(module))
    return sorted(named)[:MAX_SOURCES]


_installed: dict[str, Any] = {}  # modules that were found to be installed, thousands of them: they stay so


def _own_modules() -> Iterator[tuple[str, Any, str]]:
    """(name, module, file) of what was imported from files that are not installed."""
    prefixes = installed_prefixes()
    for name, module in list(sys.modules.items()):
        if _installed.get(name) is module:
            continue
        # not by getattr, at which a module that is loaded when it is first used would load; and by the name of the file
        # alone: to follow the links of two thousand of them takes longer than all the rest
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str):
            if file.startswith(prefixes):
                _installed[name] = module
            else:
                yield name, module, file


_seen: dict[Path, tuple[Any, str]] = {}  # by file: the import that ran it, and its SHA-256 then


def source_digests(files: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file, as it was when this process first looked at the module that it is imported as.

    A file that is edited later, while members of a campaign go on with what was imported, has another one on the disk.
    """
    names, imports = {path.name for path in files}, {}
    for _, module, file in _own_modules():
        if os.path.basename(file) in names:
            imports[Path(os.path.realpath(file))] = getattr(module, "__spec__", None)
    digests = {}
    for path in files:
        spec = imports.get(path)
        if spec is None or path not in _seen or _seen[path][0] is not spec:  # a reloaded module has another spec
            _seen[path] = spec, imported_digest(path) or hashlib.sha256(path.read_bytes()).hexdigest()
        digests[str(path)] = _seen[path][1]
    return digests


def _functions(value: Any, depth: int = 0) -> Iterator[Any]:
    """The functions and classes behind a callable: of partials, decorated functions, methods and dataclasses."""
    if depth > MAX_DEPTH or not callable(value):
        return
    yield value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    inner = [getattr(value, "__wrapped__", None), getattr(value, "__self__", None)]
    if isinstance(value, functools.partial):
        inner += [value.func, *value.args, *value.keywords.values()]
    if is_dataclass(value) and not isinstance(value, type):
        inner += [getattr(value, field.name) for field in fields(value)]
    for item in inner:
        yield from _functions(item, depth + 1)


def _own_file(item: Any) -> Iterator[Path]:
    """The file in which it is defined, where that is the user's own: of no installed package."""
    name = getattr(item, "__module__", None)
    module = item if inspect.ismodule(item) else sys.modules.get(str(name))
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return
    path = Path(os.path.realpath(file))
    if path.is_file() and not any(path.is_relative_to(folder) for folder in installed_folders()):
        yield path


# ---- versions


def environment(device: torch.device) -> dict[str, str]:
    """Versions, and the processor or device that computes."""
    processor = _processor()
    if accelerators.module_of(device.type) is not None:
        processor = accelerators.name_of(device)
    return {
        "lossmap": str(sys.modules["lossmap"].__version__),
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "processor": processor,
    }


@functools.cache
def _processor() -> str:
    """The name of the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
