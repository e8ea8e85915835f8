"""The objects built from settings: the machine made ready, the model, the problems, the plane.

Whatever a person got wrong is said here, in one sentence, before anything is computed or written.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossmap import zoo
from lossmap.options import DataSettings, ModelSettings, PlaneSettings, RunSettings, Usage
from lossmap.space import checkpoints, datasets
from lossmap.space.callables import resolve_callable
from lossmap.space.data import Batches, drained
from lossmap.space.directions import Named, Plane, difference, from_vector, normalised, random_axis
from lossmap.space.grid import Grid
from lossmap.space.path import principal_axes
from lossmap.space.problem import Problem, origin_of
from lossmap.space.vectors import Layout
from lossmap.store import legacy

logger = logging.getLogger("lossmap")


@dataclass(frozen=True)
class Machine:
    """Where a rank computes, and how.

    device    of this rank
    dtype     of parameters and data
    autocast  a lower precision for the layers that bear it, or none
    threads   of this rank
    """

    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None
    threads: int

    def describe(self) -> str:
        """The device's name as people know it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def machine(run: RunSettings, device: str, local_size: int = 1) -> Machine:
    """Make this process ready: threads, precision, no TF32 unless asked.

    device      such as cpu or cuda:0, chosen among the node's by the farm
    local_size  ranks on this node, among which its cores are shared where the launcher did not bind them
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = cores < (os.cpu_count() or 1)
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = run.threads or (int(said) if said.isdigit() else 0) or max(1, cores if bound else cores // local_size)
    torch.set_num_threads(threads)
    there = torch.device(device)
    if there.type == "cuda" and not torch.cuda.is_available():
        raise Usage(f"--device {device} was asked for, but this PyTorch sees no GPU; --device cpu works anywhere")
    if run.precision == "tf32" and there.type != "cuda":
        raise Usage("--precision tf32 is a mode of GPUs; on a CPU use float32")
    tf32 = run.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    return Machine(there, dtype, torch.bfloat16 if run.precision == "bfloat16" else None, threads)


def model_of(settings: ModelSettings) -> nn.Module:
    """The model, with its checkpoint where there is one, in evaluation mode, on the CPU in its own precision."""
    try:
        arguments = json.loads(settings.model_args) if settings.model_args else {}
    except json.JSONDecodeError as error:
        wanted = "--model-args wants JSON such as '{\"depth\": 20}'"
        raise Usage(f"{wanted}; got {settings.model_args!r}: {error}") from None
    if not isinstance(arguments, dict):
        raise Usage(f"--model-args wants a JSON object; got {settings.model_args!r}")
    if ":" in settings.model:
        factory = resolve_callable(settings.model)
        try:
            model = factory(**arguments)
        except TypeError as error:
            raise Usage(f"--model {settings.model} could not be called: {error}") from None
    else:
        model = zoo.build(settings.model, **arguments)
    if not isinstance(model, nn.Module):
        raise Usage(f"--model {settings.model} returned {type(model).__name__}; it wants an nn.Module")
    if settings.model_file:
        checkpoints.load_into(model, settings.model_file, unsafe=settings.unsafe_load)
    _finite(model, settings.model_file or "the model's initial state")
    return model.eval()


def _finite(model: nn.Module, where: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Usage(f"{where}: {name} holds values that are not finite; a landscape around it has no meaning")


def problems_of(
    model: ModelSettings, data: DataSettings, at: Machine, *, splits: tuple[str, ...] | None = None
) -> dict[str, Problem]:
    """The problems by split, over one model, on the machine's device and in its precision."""
    names = splits or (("train", "test") if data.split == "both" else (data.split,))
    if data.problem:
        made = _own_problems(model, data, names)
    else:
        net = model_of(model)
        loss = resolve_callable(data.loss) if ":" in data.loss else data.loss
        made = {name: Problem.supervised(net, loss, samples_of(model, data, name)) for name in names}
    net = next(iter(made.values())).model.to(at.device, at.dtype)
    made = {name: replace(p, model=net).to(at.device, at.dtype) for name, p in made.items()}
    for name, problem in made.items():
        _fits(problem, name)
    return made


def samples_of(model: ModelSettings, data: DataSettings, split: str) -> Batches:
    """The samples of one split, as settings say."""
    pickled = data.trainloader if split == "train" else data.testloader
    if pickled:
        if not model.unsafe_load:
            raise Usage(f"{pickled} is a pickled loader, which can run code of its own; --unsafe-load if you trust it")
        batches: Batches = drained(torch.load(pickled, weights_only=False))
    else:
        batches = datasets.load(
            data.dataset,
            split,
            data_path=data.data_path,
            normalize=data.normalize,
            raw=data.raw_data,
            samples=data.samples,
            data_seed=data.data_seed,
        )
    if data.data_split > 1:
        if not 0 <= data.split_idx < data.data_split:
            raise Usage(f"--split-idx counts from 0 to {data.data_split - 1}; got {data.split_idx}")
        batches = batches.share(data.split_idx, data.data_split)
    return batches


def _own_problems(model: ModelSettings, data: DataSettings, names: tuple[str, ...]) -> dict[str, Problem]:
    factory = resolve_callable(str(data.problem))
    takes = "split" in inspect.signature(factory).parameters
    made: dict[str, Problem] = {}
    for name in names:
        problem = factory(split=name) if takes else factory()
        if isinstance(problem, Mapping):
            problem = Problem.custom(**problem)
        elif isinstance(problem, tuple):
            net, batches, loss, *rest = problem
            problem = Problem.custom(net, loss, batches)
            if rest:
                problem = replace(problem, metrics=rest[0])
        if not isinstance(problem, Problem):
            raise Usage(
                f"--problem {data.problem} returned {type(problem).__name__}; it wants a Problem, or a tuple "
                "(model, batches, loss(model, batch))"
            )
        made[name] = problem
        if not takes and len(names) > 1:
            raise Usage(f"--problem {data.problem} has one split only; give it a parameter `split`, or --split train")
    net = next(iter(made.values())).model
    if model.model_file:
        checkpoints.load_into(net, model.model_file, unsafe=model.unsafe_load)
    _finite(net.eval(), model.model_file or "the problem's model")
    return {name: replace(p, model=net) for name, p in made.items()}


def _fits(problem: Problem, split: str) -> None:
    """One sample through the model and the loss, so that what does not fit is said before a thousand points fail."""
    try:
        value = problem.total(next(iter(problem.data.rebatched(1))))
    except Exception as error:  # a stranger's forward may raise anything
        shapes = [tuple(t.shape) for t in _tensors(next(iter(problem.data.rebatched(1))))]
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Usage(
            f"the model or the loss fails on one {split} sample (a batch of shapes {shapes}): {type(error).__name__}: "
            f"{text}; does the data set fit the model?"
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise Usage("the loss wants one number per batch")


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]


def grid_of(plane: PlaneSettings) -> Grid:
    """The grid of the settings."""
    return Grid.parse(plane.x, plane.y)


Curved = Callable[[str], tuple[Tensor, Layout]]  # gradient, hessian:max or hessian:min -> vector and its layout


def plane_of(model: nn.Module, of: ModelSettings, plane: PlaneSettings, curved: Curved | None = None) -> Plane:
    """The plane of the settings, its origin at the model's present tensors.

    curved  makes directions out of curvature; given by the doors, as nothing here may measure
    """
    states = plane.dir_type == "states"
    origin = origin_of(model, states)
    count = 1 if plane.y is None else 2
    if plane.dir_file and Path(plane.dir_file).exists():
        return _from_file(model, plane, origin, count)
    kinds = [plane.xdir or (f"to:{of.model_file2}" if of.model_file2 else "random")]
    if count == 2:
        kinds.append(plane.ydir or (f"to:{of.model_file3}" if of.model_file3 else "random"))
    axes: list[Named] = []
    recipes: list[dict[str, Any]] = []
    for i, kind in enumerate(kinds):
        norm, ignore = ((plane.xnorm, plane.xignore), (plane.ynorm, plane.yignore))[i]
        drawn = kind == "random"
        norm, ignore = norm or ("filter" if drawn else "none"), ignore or ("biasbn" if drawn else "none")
        recipe: dict[str, Any] = {"kind": kind, "norm": norm, "ignore": ignore, "states": states}
        if drawn:
            seed = plane.seed if plane.idx == 0 else f"{plane.seed}/{plane.idx}"
            index = 0 if i == 1 and plane.same_dir else i
            axes.append(random_axis(origin, seed, index, norm=norm, ignore=ignore))
            recipe |= {"seed": plane.seed, "idx": plane.idx, "index": index}
        else:
            axis, more = _made(kind, origin, of, curved)
            axes.append(normalised(axis, origin, norm, ignore))
            recipe |= more
        recipes.append(recipe)
    return Plane(origin, tuple(axes), tuple(recipes))


def _made(kind: str, origin: Named, of: ModelSettings, curved: Curved | None) -> tuple[Named, dict[str, Any]]:
    what, _, rest = kind.partition(":")
    if what == "to" and rest:
        state = checkpoints.load_state(rest, unsafe=of.unsafe_load)
        return difference(origin, state), {"sha256": checkpoints.file_sha256(rest)}
    if what == "pca" and rest.isdigit() and int(rest) >= 1:
        files = run_files(of)
        states = [checkpoints.load_state(f, unsafe=of.unsafe_load) for f in files]
        found = principal_axes(origin, states, int(rest))
        return found.axes[-1], {"explained_variance_ratio": found.explained[-1], "checkpoints": len(files)}
    if what == "file" and ":" in rest:
        path, _, name = rest.rpartition(":")
        named = legacy.read_axis(path, name)
        return _in_order(named, origin, origin, path), {"sha256": checkpoints.file_sha256(path)}
    if kind in ("gradient", "hessian:max", "hessian:min") and curved is not None:
        v, layout = curved(kind)
        return from_vector(v, layout, origin), {}
    raise Usage(
        f"unknown direction {kind!r}; there are random, to:FILE, pca:1, hessian:max, hessian:min, gradient, and "
        "file:FILE:name"
    )


def run_files(of: ModelSettings) -> list[Path]:
    """The checkpoints of --model-folder, in the order in which people count."""
    if not of.model_folder:
        raise Usage("a pca direction wants --model-folder, the folder with the run's checkpoints")
    folder = Path(of.model_folder)
    if not folder.is_dir():
        raise Usage(f"--model-folder {folder} is no folder")
    endings = {".pt", ".pth", ".t7", ".pkl", ".ckpt", ".safetensors"}
    files = [f for f in folder.iterdir() if f.suffix in endings]
    if not files:
        raise Usage(f"--model-folder {folder} holds no checkpoint (*.pt, *.pth, *.t7, *.pkl, *.safetensors)")
    return [Path(f) for f in checkpoints.sorted_as_people_count(files)]


def _from_file(model: nn.Module, plane: PlaneSettings, origin: Named, count: int) -> Plane:
    path = str(plane.dir_file)
    digest = checkpoints.file_sha256(path)
    axes, recipes = [], []
    for name in ("x", "y")[:count]:
        full = {**origin, **{k: v for k, v in model.state_dict().items() if k not in origin}}
        axes.append(_in_order(legacy.read_axis(path, name), origin, full, path))
        recipes.append({"kind": f"file:{Path(path).name}:{name}", "norm": "none", "ignore": "none", "sha256": digest})
    return Plane(origin, tuple(axes), tuple(recipes))


def _in_order(found: Any, origin: Named, full: Named, path: str) -> dict[str, Tensor]:
    """An axis of a file over the origin: by names where it has them, else by the original tool's order."""
    if isinstance(found, Mapping):
        missing = [k for k in origin if k not in found]
        if missing:
            raise Usage(f"{path}: the direction has no tensor named {missing[0]!r}; it belongs to another model")
        return {k: torch.as_tensor(found[k]).to(w.device, w.dtype).view(w.shape) for k, w in origin.items()}
    names = list(origin)
    if len(found) != len(names):  # every entry of the state dict, the counters of batch norm among them
        names = list(full)
    if len(found) != len(names):
        raise Usage(f"{path}: the direction has {len(found)} tensors; this model has {len(origin)} parameters")
    axis: dict[str, Tensor] = {}
    for name, values in zip(names, found, strict=True):
        if name in origin:
            w, d = origin[name], torch.as_tensor(values)
            if d.numel() != w.numel():
                raise Usage(f"{path}: the direction of {name!r} has shape {tuple(d.shape)}, not {tuple(w.shape)}")
            axis[name] = d.to(w.device, w.dtype).reshape(w.shape)
    return axis


def identity(of: ModelSettings, data: DataSettings, plane: Plane) -> dict[str, Any]:
    """What a result file belongs to: the model, its files by content, and the plane by its recipes."""
    files = {n: getattr(of, n) for n in ("model_file", "model_file2", "model_file3") if getattr(of, n)}
    return {
        "model": data.problem or of.model,
        "model_args": of.model_args,
        **{f"{name} (SHA-256)": checkpoints.file_sha256(path) for name, path in files.items()},
        "plane": [dict(r) for r in plane.recipes],
    }


def measured_with(data: DataSettings, run: RunSettings, problems: Mapping[str, Problem]) -> dict[str, Any]:
    """What one measure of a file was told: stored with it, and compared when a run goes on."""
    return {
        "dataset": data.problem or data.dataset,
        "data (SHA-256)": {split: datasets.digest(p.data) for split, p in problems.items()},
        "samples": {split: p.data.samples for split, p in problems.items()},
        "loss": data.loss,
        "precision": run.precision,
    }
