"""The objects built from settings: the machine made ready, the model, the problems, the plane.

Whatever a person got wrong is said here, in one sentence, before anything is computed or written.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap import zoo
from lossmap.cli.device import Machine
from lossmap.cli.setting_groups import DataSettings, ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError
from lossmap.data import checkpoints, datasets
from lossmap.data.batches import Batches, Resident
from lossmap.data.import_by_name import resolve_callable
from lossmap.data.loaders import as_batches
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane
from lossmap.parallel.world import World

logger = logging.getLogger("lossmap")


@dataclass(frozen=True)
class Files:
    """What was read from disk, by one rank of each node for all of its ranks.

    state  the tensors of --model-file
    data   the samples of each split, where they are a named data set that fits into memory
    """

    state: dict[str, Tensor] | None
    data: dict[str, Batches]


def files_of(
    model: ModelSettings,
    data: DataSettings,
    splits: Sequence[str],
    ranks_sharing: int = 1,
    dtype: torch.dtype | None = None,
) -> Files:
    """Read the checkpoint and the samples; `world.once_per_node` calls it."""
    state = checkpoints.load_state(model.model_file, unsafe=model.unsafe_load) if model.model_file else None
    own = data.problem or data.trainloader or data.testloader or (":" in data.dataset and ".py:" in data.dataset)
    read = {} if own else {split: samples_of(model, data, split, ranks_sharing, dtype) for split in splits}
    return Files(state, {split: batches for split, batches in read.items() if isinstance(batches, Resident)})


def splits_of(data: DataSettings) -> tuple[str, ...]:
    """The splits that the settings name."""
    return ("train", "test") if data.split == "both" else (data.split,)


def problem_and_files(
    settings: Settings, world: World, at: Machine, splits: Sequence[str] = (), model: ModelSettings | None = None
) -> dict[str, Problem]:
    """The problems by split, read once per node; every rank calls it, and all raise as one.

    model  instead of the settings' own
    """
    names, model = tuple(splits) or splits_of(settings.data), model or settings.model
    files = world.once_per_node(lambda: files_of(model, settings.data, names, world.node_size, at.dtype))
    made = world.together(
        lambda: problems_of(model, settings.data, at, splits=names, files=files, ranks_sharing=world.node_size)
    )
    if world.size > 1 and not files.data:  # each rank has made its own
        told = world.together(lambda: " ".join(datasets.digest(problem.data) for problem in made.values()))
        advice = "draw them from a generator with a seed of its own, and read the same files on all nodes"
        world.check_same(told, "the data", advice)
    return made


@contextmanager
def _same_chance(seed: int = 0) -> Iterator[None]:
    """Inside, the global generators of torch, NumPy and Python start from a seed; outside they are as they were.

    A stranger's function then gives the same to every rank, and to every later run.
    """
    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


def at_checkpoint(settings: Settings, say: Callable[[str], None]) -> Settings:
    """The settings with what goes without saying, which is said.

    Of a --model-folder alone the run's last checkpoint is taken; without any, the weights as the model makes them.
    The nets of the papers, which the packaged digits do not fit, take CIFAR-10, as in the original tool.
    """
    model, data = settings.model, settings.data
    if data.problem:
        return settings
    own = data.trainloader or data.testloader or "dataset" in settings.given or model.model_args
    if zoo.of_the_papers(model.model) and not own:
        say(f"no --dataset: cifar10, for which {model.model} is made; digits32 are packaged images of that size")
        settings = settings.changed("data", dataset="cifar10")
    if model.model_file:
        return settings
    if model.model_folder:
        last = str(run_files(model)[-1])
        say(f"the run's last checkpoint is taken, {last}; --model-file names another")
        return settings.changed("model", model_file=last)
    _factory(model.model)  # a name that is wrong is told before anything else
    say(f"no --model-file: the weights are as {model.model} makes them")
    return settings


def _factory(name: str) -> Callable[..., Any]:
    """What makes the model of this name. Raises ValueError with the nearest names."""
    return resolve_callable(name) if ":" in name else functools.partial(zoo.build, zoo.known(name))


def model_of(settings: ModelSettings, state: Mapping[str, Tensor] | None = None, seed: int = 0) -> nn.Module:
    """The model, with its checkpoint where there is one, in evaluation mode, on the CPU in its own precision.

    state  the tensors of --model-file, where they have been read already
    seed   draws the weights of a model without checkpoint
    """
    try:
        arguments = json.loads(settings.model_args) if settings.model_args else {}
    except json.JSONDecodeError as error:
        wanted = "--model-args wants JSON such as '{\"depth\": 20}'"
        raise UsageError(f"{wanted}; got {settings.model_args!r}: {error}") from None
    if not isinstance(arguments, dict):
        raise UsageError(f"--model-args wants a JSON object; got {settings.model_args!r}")
    with _same_chance(seed):
        factory = _factory(settings.model)
        try:
            model = factory(**arguments)
        except TypeError as error:
            raise UsageError(f"--model {settings.model} could not be called: {error}") from None
        except Exception as error:  # a stranger's factory may raise anything
            if ":" not in settings.model:
                raise
            raise UsageError(f"--model {settings.model} fails: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {settings.model} returned {type(model).__name__}; it wants an nn.Module")
    if settings.model_file:
        _load(model, settings, state)
    _finite(model, settings.model_file or "the model's initial state")
    return model.eval()


def _load(model: nn.Module, settings: ModelSettings, state: Mapping[str, Tensor] | None) -> None:
    try:
        checkpoints.load_into(model, state or str(settings.model_file), unsafe=settings.unsafe_load)
    except ValueError as error:  # the state does not know its file's name
        text = str(error)
        raise UsageError(text.replace("the checkpoint", str(settings.model_file), 1) if state else text) from None


def _finite(model: nn.Module, where: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"{where}: {name} holds values that are not finite; a landscape around it has no meaning")


def problems_of(
    model: ModelSettings,
    data: DataSettings,
    at: Machine,
    *,
    splits: tuple[str, ...] = (),
    files: Files | None = None,
    seed: int = 0,
    ranks_sharing: int = 1,
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
            name: Problem.supervised(
                net, loss, files.data.get(name) or samples_of(model, data, name, ranks_sharing, at.dtype)
            )
            for name in names
        }
    net = next(iter(made.values())).model.to(at.device, at.dtype)
    made = {name: replace(p, model=net).to(at.device, at.dtype) for name, p in made.items()}
    for name, problem in made.items():
        _fits(problem, name)
    return made


def samples_of(
    model: ModelSettings, data: DataSettings, split: str, ranks_sharing: int = 1, dtype: torch.dtype | None = None
) -> Batches:
    """The samples of one split, as settings say."""
    pickled = data.trainloader if split == "train" else data.testloader
    if pickled:
        if not model.unsafe_load:
            raise UsageError(
                f"{pickled} is a pickled loader, which can run code of its own; --unsafe-load if you trust it"
            )
        with _same_chance():
            batches = as_batches(torch.load(pickled, weights_only=False), ranks_sharing=ranks_sharing)
    else:
        with _same_chance():
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
                ranks_sharing=ranks_sharing,
                dtype=dtype,
            )
    return batches


def _own_problems(model: ModelSettings, data: DataSettings, names: tuple[str, ...], files: Files) -> dict[str, Problem]:
    factory = resolve_callable(str(data.problem))
    takes = "split" in inspect.signature(factory).parameters
    made: dict[str, Problem] = {}
    for name in names:
        with _same_chance():  # a loader draws its order when it is read
            problem = factory(split=name) if takes else factory()
            if isinstance(problem, Mapping):
                problem = Problem.custom(**problem)
            elif isinstance(problem, tuple):
                net, batches, loss, *rest = problem
                problem = Problem.custom(net, loss, batches)
                if rest:
                    problem = replace(problem, metrics=rest[0])
        if not isinstance(problem, Problem):
            raise UsageError(
                f"--problem {data.problem} returned {type(problem).__name__}; it wants a Problem, or a tuple "
                "(model, batches, loss(model, batch))"
            )
        made[name] = problem
        if not takes and len(names) > 1:
            raise UsageError(
                f"--problem {data.problem} has one split only; give it a parameter `split`, or --split train"
            )
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
        text = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UsageError(
            f"the model or the loss fails on one {split} sample (a batch of shapes {shapes}): {type(error).__name__}: "
            f"{text}; does the data set fit the model?"
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise UsageError("the loss wants one number per batch")
    if "acc" in problem.metrics and problem.separable:
        outputs = problem.forward(problem.model, next(iter(problem.data.rebatched(1))))
        datasets.labels_within(problem.data, outputs.shape[1])


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]


def run_files(of: ModelSettings) -> list[Path]:
    """The checkpoints of --model-folder, in the order in which people count."""
    if not of.model_folder:
        raise UsageError("a pca direction wants --model-folder, the folder with the run's checkpoints")
    folder = Path(of.model_folder)
    if not folder.is_dir():
        raise UsageError(f"--model-folder {folder} is no folder")
    endings = {".pt", ".pth", ".t7", ".pkl", ".ckpt", ".safetensors"}
    files = [f for f in folder.iterdir() if f.suffix in endings]
    if not files:
        raise UsageError(f"--model-folder {folder} holds no checkpoint (*.pt, *.pth, *.t7, *.pkl, *.safetensors)")
    return [Path(f) for f in checkpoints.sorted_as_people_count(files)]


def identity(of: ModelSettings, data: DataSettings, plane: Plane) -> dict[str, Any]:
    """What a result file belongs to: the model, its files by content, and the plane by its recipes."""
    files = {n: getattr(of, n) for n in ("model_file", "model_file2", "model_file3") if getattr(of, n)}
    return {
        "model": data.problem or of.model,
        "model_args": of.model_args,
        **{f"{name} (SHA-256)": checkpoints.file_sha256(path) for name, path in files.items()},
        "direction": {name: dict(recipe) for name, recipe in zip("xy", plane.recipes, strict=False)},
    }


def held_out(model: nn.Module, settings: Settings, at: Machine) -> Problem | None:
    """The model over the test split, where it stands on training samples and there is such a split beside them."""
    own = settings.data.problem
    if settings.data.split == "test" or (own and "split" not in inspect.signature(resolve_callable(own)).parameters):
        return None
    data = replace(settings.data, split="test")
    try:
        made = problems_of(replace(settings.model, model_file=None), data, at, splits=("test",))["test"]
    except (ValueError, OSError):  # arrays or a problem of one's own without a test split
        return None
    return replace(made, model=model)


def measured_with(data: DataSettings, run: RunSettings, problems: Mapping[str, Problem]) -> dict[str, Any]:
    """What one measure of a file was told: stored with it, and compared when a run goes on."""
    return {
        "dataset": data.problem or data.dataset,
        "data (SHA-256)": {split: datasets.digest(p.data) for split, p in problems.items()},
        "samples": {split: p.data.samples for split, p in problems.items()},
        "loss": data.loss,
        "precision": run.precision,
    }
