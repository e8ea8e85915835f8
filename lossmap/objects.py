"""The objects built from settings: the machine made ready, the model, the problems, the plane.

Whatever a person got wrong is said here, in one sentence, before anything is computed or written.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossmap import zoo
from lossmap.farm import devices
from lossmap.farm.team import World
from lossmap.options import DataSettings, ModelSettings, PlaneSettings, RunSettings, Settings, Usage
from lossmap.space import checkpoints, datasets
from lossmap.space.callables import resolve_callable
from lossmap.space.data import Batches, Resident, drained
from lossmap.space.directions import Named, Plane, difference, from_vector, normalised, random_axis
from lossmap.space.grid import Grid
from lossmap.space.path import principal_axes
from lossmap.space.problem import Problem, origin_of
from lossmap.space.vectors import Layout
from lossmap.store import legacy
from lossmap.store.surface import read_group

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


def machine(run: RunSettings, world: World) -> Machine:
    """Make this process ready: its device, its threads, its precision; no TF32 unless asked. All ranks call it."""
    # CUDA counts its devices without starting; a rank that only deals wants none
    count = 0 if run.device == "cpu" or not world.measures(run.rank_0) else torch.cuda.device_count()
    shown = world.gather((world.host, devices.visible(os.environ, count)))
    here = [mask for host, mask in shown if host == world.host]
    place = sum(host == world.host for host, _ in shown[: world.rank])
    device = device_of(here, place, run) if world.measures(run.rank_0) else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = cores < (os.cpu_count() or 1)  # the launcher gave this rank cores of its own
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = run.threads or (int(said) if said.isdigit() else 0) or max(1, cores if bound else cores // len(here))
    torch.set_num_threads(threads)
    there = torch.device(device)
    tf32 = run.precision == "tf32"
    if tf32 and there.type != "cuda":
        raise Usage("--precision tf32 is a mode of GPUs; on a CPU use float32")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    return Machine(there, dtype, torch.bfloat16 if run.precision == "bfloat16" else None, threads)


def device_of(masks: Sequence[tuple[str, ...]], place: int, run: RunSettings) -> str:
    """The device of the rank at this place of its node."""
    return devices.device_for(masks, place, run.share_gpus, run.device)


@dataclass(frozen=True)
class Files:
    """What was read from disk, by one rank of each node for all of its ranks.

    state  the tensors of --model-file
    data   the samples of each split, where they are a named data set that fits into memory
    """

    state: dict[str, Tensor] | None
    data: dict[str, Batches]


def files_of(model: ModelSettings, data: DataSettings, splits: Sequence[str], neighbours: int = 1) -> Files:
    """Read the checkpoint and the samples; `world.once_per_node` calls it."""
    state = checkpoints.load_state(model.model_file, unsafe=model.unsafe_load) if model.model_file else None
    own = data.problem or data.trainloader or data.testloader or (":" in data.dataset and ".py:" in data.dataset)
    read = {} if own else {split: samples_of(model, data, split, neighbours) for split in splits}
    return Files(state, {split: batches for split, batches in read.items() if isinstance(batches, Resident)})


def splits_of(data: DataSettings) -> tuple[str, ...]:
    """The splits that the settings name."""
    return ("train", "test") if data.split == "both" else (data.split,)


def problem_and_files(settings: Settings, world: World, at: Machine, splits: Sequence[str] = ()) -> dict[str, Problem]:
    """The problems by split, read once per node; every rank calls it, and all raise as one."""
    names = tuple(splits) or splits_of(settings.data)
    files = world.once_per_node(lambda: files_of(settings.model, settings.data, names, world.node_size))
    return world.together(lambda: problems_of(settings.model, settings.data, at, splits=names, files=files))


def at_checkpoint(settings: Settings, say: Callable[[str], None]) -> Settings:
    """The settings with their checkpoint: of a --model-folder alone the run's last. That there is none is said."""
    model = settings.model
    if model.model_file or settings.data.problem:
        return settings
    if model.model_folder:
        last = str(run_files(model)[-1])
        say(f"the run's last checkpoint is taken, {last}; --model-file names another")
        return settings.changed("model", model_file=last)
    say(f"no --model-file: the weights are as {model.model} makes them")
    return settings


def model_of(settings: ModelSettings, state: Mapping[str, Tensor] | None = None, seed: int = 0) -> nn.Module:
    """The model, with its checkpoint where there is one, in evaluation mode, on the CPU in its own precision.

    state  the tensors of --model-file, where they have been read already
    seed   draws the weights of a model without checkpoint
    """
    try:
        arguments = json.loads(settings.model_args) if settings.model_args else {}
    except json.JSONDecodeError as error:
        wanted = "--model-args wants JSON such as '{\"depth\": 20}'"
        raise Usage(f"{wanted}; got {settings.model_args!r}: {error}") from None
    if not isinstance(arguments, dict):
        raise Usage(f"--model-args wants a JSON object; got {settings.model_args!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a model without checkpoint is the same on every rank
        if ":" in settings.model:
            factory = resolve_callable(settings.model)
            try:
                model = factory(**arguments)
            except TypeError as error:
                raise Usage(f"--model {settings.model} could not be called: {error}") from None
            except Exception as error:  # a stranger's factory may raise anything
                raise Usage(f"--model {settings.model} fails: {type(error).__name__}: {error}") from error
        else:
            model = zoo.build(settings.model, **arguments)
    if not isinstance(model, nn.Module):
        raise Usage(f"--model {settings.model} returned {type(model).__name__}; it wants an nn.Module")
    if settings.model_file:
        _load(model, settings, state)
    _finite(model, settings.model_file or "the model's initial state")
    return model.eval()


def _load(model: nn.Module, settings: ModelSettings, state: Mapping[str, Tensor] | None) -> None:
    try:
        checkpoints.load_into(model, state or str(settings.model_file), unsafe=settings.unsafe_load)
    except ValueError as error:  # the state does not know its file's name
        text = str(error)
        raise Usage(text.replace("the checkpoint", str(settings.model_file), 1) if state else text) from None


def _finite(model: nn.Module, where: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Usage(f"{where}: {name} holds values that are not finite; a landscape around it has no meaning")


def problems_of(
    model: ModelSettings,
    data: DataSettings,
    at: Machine,
    *,
    splits: tuple[str, ...] = (),
    files: Files | None = None,
    seed: int = 0,
) -> dict[str, Problem]:
    """The problems by split, over one model, on the machine's device and in its precision."""
    names = splits or splits_of(data)
    files = files or Files(None, {})
    if data.problem:
        made = _own_problems(model, data, names, files)
    else:
        net = model_of(model, files.state, seed)
        loss = resolve_callable(data.loss) if ":" in data.loss else data.loss
        made = {
            name: Problem.supervised(net, loss, files.data.get(name) or samples_of(model, data, name))
            for name in names
        }
    net = next(iter(made.values())).model.to(at.device, at.dtype)
    made = {name: replace(p, model=net).to(at.device, at.dtype) for name, p in made.items()}
    for name, problem in made.items():
        _fits(problem, name)
    return made


def samples_of(model: ModelSettings, data: DataSettings, split: str, neighbours: int = 1) -> Batches:
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
            pieces=data.data_split,
            piece=data.split_idx,
            download=data.download,
            neighbours=neighbours,
        )
    return batches


def _own_problems(
    model: ModelSettings, data: DataSettings, names: tuple[str, ...], files: Files
) -> dict[str, Problem]:
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
        _load(net, model, files.state)
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
    if "acc" in problem.metrics and problem.separable:
        outputs = problem.forward(problem.model, next(iter(problem.data.rebatched(1))))
        datasets.labels_within(problem.data, outputs.shape[1])


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]


def grid_of(plane: PlaneSettings) -> Grid:
    """The grid of the settings."""
    return Grid.parse(plane.x, plane.y)


def plane_and_ranks(
    settings: Settings, world: World, model: nn.Module, curved: Curved | None = None
) -> Plane:
    """The plane on every rank: random axes are made from their seed by each, others by rank 0 and told.

    Every rank calls it; all raise as one, also where the ranks' planes differ.
    """

    def make() -> Plane | None:
        return plane_of(model, settings.model, settings.plane, curved)

    kinds = {settings.plane.xdir or "random", settings.plane.ydir or "random"}
    drawn = kinds == {"random"} and not (settings.model.model_file2 or settings.plane.dir_file)
    plane = world.together(lambda: make() if drawn or world.rank == 0 else None)
    if not drawn and world.size > 1:
        device = next(model.parameters()).device
        told = world.broadcast(plane.to("cpu") if plane is not None else None)
        plane = told.to(device)
    if plane is None:  # pragma: no cover
        raise RuntimeError("no plane was made")
    world.same(plane.digest)
    return plane


Curved = Callable[[str], tuple[Tensor, Layout]]  # gradient, hessian:max or hessian:min -> vector and its layout


def plane_of(model: nn.Module, of: ModelSettings, plane: PlaneSettings, curved: Curved | None = None) -> Plane:
    """The plane of the settings, its origin at the model's present tensors.

    curved  makes directions out of curvature; given by the doors, as nothing here may measure
    """
    states = plane.dir_type == "states"
    origin = origin_of(model, states)
    count = 1 if plane.y is None else 2
    if plane.ydir and count == 1:
        raise Usage(f"--ydir {plane.ydir} wants ticks along y too, such as --y=-1:1:51")
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
            axis, more = _made(kind, model, origin, of, curved)
            axes.append(normalised(axis, origin, norm, ignore))
            recipe |= more
        recipes.append(recipe)
    return Plane(origin, tuple(axes), tuple(recipes))


def _made(
    kind: str, model: nn.Module, origin: Named, of: ModelSettings, curved: Curved | None
) -> tuple[Named, dict[str, Any]]:
    what, _, rest = kind.partition(":")
    if what == "to" and rest:
        state = checkpoints.load_state(rest, unsafe=of.unsafe_load)
        _running(model, origin, state, rest)
        return difference(origin, state), {"sha256": checkpoints.file_sha256(rest)}
    if what == "pca" and rest.isdigit() and int(rest) >= 1:
        files = run_files(of)
        states = [checkpoints.load_state(f, unsafe=of.unsafe_load) for f in files]
        found = principal_axes(origin, states, int(rest))
        return found.axes[-1], {"explained_variance_ratio": found.explained[-1], "checkpoints": len(files)}
    if what == "file" and ":" in rest:
        path, _, name = rest.rpartition(":")
        return _axis_in(path, name, model, origin), {"sha256": checkpoints.file_sha256(path)}
    if kind in ("gradient", "hessian:max", "hessian:min") and curved is not None:
        v, layout = curved(kind)
        return from_vector(v, layout, origin), {}
    raise Usage(
        f"unknown direction {kind!r}; there are random, to:FILE, pca:1, hessian:max, hessian:min, gradient, and "
        "file:FILE:name"
    )


def _running(model: nn.Module, origin: Named, state: Mapping[str, Tensor], file: str) -> None:
    """Say that the line to a checkpoint does not arrive there, where the running statistics stay behind."""
    for name, buffer in model.named_buffers():
        there = state.get(name)
        if name in origin or there is None or not buffer.is_floating_point() or there.shape != buffer.shape:
            continue
        if not torch.equal(buffer.cpu(), there.to("cpu", buffer.dtype)):
            logger.warning(
                "at 1 are the weights of %s, but the running statistics of the model; --dir-type states moves both",
                file,
            )
            return


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
        axes.append(_axis_in(path, name, model, origin))
        recipes.append({"kind": f"file:{Path(path).name}:{name}", "norm": "none", "ignore": "none", "sha256": digest})
    return Plane(origin, tuple(axes), tuple(recipes))


def _axis_in(path: str, name: str, model: nn.Module, origin: Named) -> dict[str, Tensor]:
    """An axis of a result file, or of a direction file of the original tool, over the origin's tensors."""
    try:
        found: Mapping[str, Any] = read_group(path, f"directions/{name}").arrays
        if not found:
            raise Usage(f"{path} holds the recipe of the direction {name} alone (--no-store-directions)")
    except KeyError:
        theirs = legacy.directions(path)
        if name not in theirs:
            raise Usage(f"{path} holds no direction {name!r}; it has {', '.join(theirs)}") from None
        parameters = {k: tuple(p.shape) for k, p in model.named_parameters()}
        states = {k: tuple(t.shape) for k, t in model.state_dict().items()}
        found = legacy.matched(theirs[name], parameters, states)
    missing = [k for k in origin if k not in found]
    if missing and not any(k in found for k in origin):
        raise Usage(f"{path}: the direction has no tensor named {missing[0]!r}; it belongs to another model")
    axis: dict[str, Tensor] = {}
    for k, w in origin.items():
        d = torch.as_tensor(found[k]) if k in found else torch.zeros(())
        if k in found and d.numel() != w.numel():
            raise Usage(f"{path}: the direction of {k!r} has shape {tuple(d.shape)}; the model's {tuple(w.shape)}")
        axis[k] = d.to(w.device, w.dtype).reshape(w.shape) if k in found else torch.zeros_like(w)
    return axis


def identity(of: ModelSettings, data: DataSettings, plane: Plane) -> dict[str, Any]:
    """What a result file belongs to: the model, its files by content, and the plane by its recipes."""
    files = {n: getattr(of, n) for n in ("model_file", "model_file2", "model_file3") if getattr(of, n)}
    return {
        "model": data.problem or of.model,
        "model_args": of.model_args,
        **{f"{name} (SHA-256)": checkpoints.file_sha256(path) for name, path in files.items()},
        "direction": {name: dict(recipe) for name, recipe in zip("xy", plane.recipes, strict=False)},
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
