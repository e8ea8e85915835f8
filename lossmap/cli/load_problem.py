"""The problems that the settings name: a model over the samples of each split, and what identifies them in a file.

What does not fit together is reported here, in one sentence, before anything is computed or written.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from lossmap import zoo
from lossmap.cli.announce import reported_by_rank_0
from lossmap.cli.device import Machine
from lossmap.cli.load_model import factory_of, load_checkpoint, model_of, read_checkpoint, run_files
from lossmap.cli.setting_groups import DataSettings, ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, flag_of
from lossmap.data import checkpoints, datasets
from lossmap.data.batches import Batches, FixedBatches, Resident
from lossmap.data.borrow import sets_modes_itself, to_precision
from lossmap.data.checkpoints import Checkpoint
from lossmap.data.checks import check_finite, tried_on_samples
from lossmap.data.criteria import metric_of
from lossmap.data.huggingface import huggingface
from lossmap.data.huggingface_data import Reader
from lossmap.data.huggingface_files import is_in_folder, model_files
from lossmap.data.huggingface_pass import is_huggingface
from lossmap.data.loaders import as_batches
from lossmap.data.loss_check import check_loss
from lossmap.data.model_entries import entries_of
from lossmap.data.problem import Problem
from lossmap.data.told import told_of
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import ENDS_AT
from lossmap.import_by_name import kept_folder, resolve_callable
from lossmap.io.surface import EVALUATION, MADE_AS
from lossmap.parallel.team import Team
from lossmap.parallel.world import World
from lossmap.seeding import same_random_state

logger = logging.getLogger("lossmap")
MADE_BY_PROBLEM = (  # settings that make a model, data and a loss
    "model", "model_args", "dataset", "block_length", "data_path", "normalize", "raw_data", "trainloader", "testloader",
    "loss",
)  # fmt: skip
SAME_SAMPLES = (
    "the train and the test split are the same samples, so that nothing is held out: does the factory look at `split`?"
)


@dataclass(frozen=True)
class Files:
    """What was read from disk, by one rank of each node for all of its ranks.

    state  the content of --model-file
    data   the samples of each split, where they are a named data set that fits into memory
    """

    state: Checkpoint | None
    data: dict[str, Batches]


def files_of(
    model: ModelSettings,
    data: DataSettings,
    splits: Sequence[str],
    ranks_sharing: int = 1,
    dtype: torch.dtype | None = None,
) -> Files:
    """Read the checkpoint and the samples; `world.once_per_node` calls it."""
    state = None
    if model.model_file:
        state = read_checkpoint(model, model.model_file, data.problem)
    if data.problem or data.trainloader or data.testloader or ".py:" in data.dataset:
        return Files(state, {})  # made by user code, on every rank
    batches = {split: samples_of(model, data, split, ranks_sharing, dtype) for split in splits}
    return Files(state, {split: b for split, b in batches.items() if isinstance(b, Resident)})


def splits_of(data: DataSettings) -> tuple[str, ...]:
    """The splits that the settings name."""
    return ("train", "test") if data.split == "both" else (data.split,)


def problem_and_files(
    settings: Settings, world: World, machine: Machine, splits: Sequence[str] = (), model: ModelSettings | None = None
) -> dict[str, Problem]:
    """The problems by split, read once per node; every rank calls it, and all raise as one.

    model  instead of the settings' own
    """
    names, model = tuple(splits) or splits_of(settings.data), model or settings.model
    chosen = not_used(settings)
    with reported_by_rank_0(world):
        files = world.once_per_node(lambda: files_of(model, settings.data, names, world.node_size, machine.dtype))
        problems = world.together(
            lambda: problems_of(
                model, settings.data, machine, splits=names, files=files, ranks_sharing=world.node_size, notes=chosen
            )
        )
    if world.size > 1 and not files.data:  # each rank has made its own
        digests = world.together(lambda: " ".join(datasets.digest(problem.data) for problem in problems.values()))
        advice = "draw them from a generator with a seed of its own, and read the same files on all nodes"
        world.check_same(digests, "the data", advice)
    if world.rank == 0:
        said = {sentence for problem in problems.values() for sentence in told_of(problem.data)}  # as they were read
        notes = [note for problem in problems.values() for note in problem.notes if note not in said]
        for note in dict.fromkeys([*chosen, *notes]):
            print(f"note: {note}", flush=True)
    return problems


def not_used(settings: Settings) -> list[str]:
    """A sentence on the flags for what a factory of a whole problem makes itself, where both were given; else none.

    A result that is continued names all settings, those by default too, which are none that somebody gave.
    """
    by_default = {f.name: f.default for group in (settings.model, settings.data) for f in fields(group)}
    values = {**vars(settings.model), **vars(settings.data)}
    meant = settings.given | {n for n in settings.explicit & by_default.keys() if values[n] != by_default[n]}
    idle = ", ".join(flag_of(name) for name in MADE_BY_PROBLEM if name in meant)
    factory = settings.data.problem
    return [f"--problem {factory} makes model, data and loss itself; not used: {idle}"] if factory and idle else []


def team_shares(problems: Mapping[str, Problem], team: Team, world: World) -> dict[str, Problem]:
    """The problems over this rank's share of the samples, where a team of ranks shares each point.

    Every rank of the world calls it; all raise UsageError as one where there is less to share than there are ranks.
    """

    def shares() -> dict[str, Problem]:
        if team.size == 1:
            return dict(problems)
        for problem in problems.values():
            number, parts = problem.data.samples, "samples"
            if isinstance(problem.data, FixedBatches):
                number, parts = len(problem.data.batches), "batches that are not cut"
            if number < team.size:
                raise UsageError(f"--team must be <= {number}, the number of {parts}; got {team.size}")
        return {split: problem.share(team.rank, team.size) for split, problem in problems.items()}

    return world.together(shares)


def model_and_files(settings: Settings, world: World, machine: Machine) -> nn.Module:
    """The model alone, where no data are needed; read once per node, every rank calls it, and all raise as one."""
    model, chosen = settings.model, list[str]()
    path = model.model_file
    with reported_by_rank_0(world):
        state = world.once_per_node(lambda: read_checkpoint(model, path) if path else None)
        network = world.together(
            lambda: to_precision(model_of(model, state, 0, chosen, machine.dtype), machine.dtype, machine.device)
        )
    if world.rank == 0:
        for note in chosen:
            print(f"note: {note}", flush=True)
    return network


def with_default_problem(settings: Settings, say: Callable[[str], None], needs_data: bool = True) -> Settings:
    """The settings with the data set and the checkpoint that were not named; each choice is reported.

    Of a --model-folder alone the run's last checkpoint is taken; without any, the initial weights of the model. The
    networks of the papers, which the packaged digits do not fit, take CIFAR-10, as in the original tool.

    say         prints one sentence
    needs_data  whether any data are read

    Raises ValueError for a model that does not exist, with the nearest names.
    """
    model, data = settings.model, settings.data
    if data.problem:
        return settings
    is_chosen = data.trainloader or data.testloader or "dataset" in settings.explicit or model.model_args
    if needs_data and zoo.of_the_papers(model.model) and not is_chosen:
        say(f"no --dataset: cifar10, for which {model.model} is made; digits32 are packaged images of that size")
        settings = settings.changed("data", dataset="cifar10")
    if is_in_folder(model.model) and not (is_chosen and "dataset" in settings.explicit) and not data.trainloader:
        raise UsageError(f"--model {model.model} needs a --dataset: hf:corpus.txt, or hf:FOLDER of a saved data set")
    if model.model_file:
        return settings
    if model.model_folder:
        last = str(run_files(model)[-1])
        say(f"the run's last checkpoint is taken, {last}; --model-file names another")
        return settings.changed("model", model_file=last)
    if is_in_folder(model.model):
        return settings
    with kept_folder():
        factory_of(model.model)  # a wrong name is reported before anything else
    say(f"no --model-file: the weights are as {model.model} initializes them")
    return settings


def problems_of(
    model: ModelSettings,
    data: DataSettings,
    machine: Machine,
    *,
    splits: tuple[str, ...] = (),
    files: Files | None = None,
    seed: int = 0,
    ranks_sharing: int = 1,
    notes: list[str] | None = None,
) -> dict[str, Problem]:
    """The problems by split, over one model, on the machine's device and in its precision.

    splits         instead of those of the settings
    files          what has been read already
    seed           draws the weights of a model without checkpoint
    ranks_sharing  ranks that divide the memory for samples
    notes          takes sentences on what was chosen in the checkpoint

    Raises UsageError where model, data and loss do not fit together.
    """
    names = splits or splits_of(data)
    files = files or Files(None, {})
    if data.problem:
        problems = _user_problems(model, data, names, files, notes, machine.dtype)
    else:
        network = _in_precision(model_of(model, files.state, seed, notes, machine.dtype), machine, notes)
        with kept_folder():
            loss = resolve_callable(data.loss) if ":" in data.loss else data.loss
        problems, prepare = {}, entries_of(network)  # one for all splits: it reports an entry once
        for name in names:
            batches = files.data.get(name) or samples_of(model, data, name, ranks_sharing, machine.dtype, prepare)
            if data.loss == "crossentropy" and is_huggingface(network):
                problems[name] = huggingface(network, batches)
            else:
                problems[name] = Problem.supervised(network, loss, batches)
    network = next(iter(problems.values())).model
    if data.problem:
        network = _in_precision(network, machine, notes)
    problems = {name: p.over(network).to(machine.device, machine.dtype) for name, p in problems.items()}
    problems = {name: tried_on_samples(problem, name) for name, problem in problems.items()}
    if notes is not None and len({datasets.digest(problem.data) for problem in problems.values()}) < len(problems):
        notes.append(SAME_SAMPLES)
    return {name: check_loss(_with_metrics(problem, data.metric), report=False) for name, problem in problems.items()}


def _in_precision(network: nn.Module, machine: Machine, notes: list[str] | None) -> nn.Module:
    """The network in the machine's precision, to which the data follow: before they do to one that has fewer digits."""
    own = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32, machine.dtype}
    if notes is not None:
        for dtype in own:
            text = f"the model is in {str(dtype)[6:]}, and is measured in {str(machine.dtype)[6:]}"
            notes.append(text + (": --precision float64 keeps it as it is" if dtype == torch.float64 else ""))
    return to_precision(network, machine.dtype, machine.device)


def _with_metrics(problem: Problem, functions: Sequence[str]) -> Problem:
    """The problem with further metrics, file.py:function(outputs, targets) -> mean over the batch, by their names."""
    if functions and not problem.separable:
        raise UsageError("--metric needs outputs and targets; a problem whose loss is one step has its own metrics")
    with kept_folder():
        metrics = {name.rpartition(":")[2]: resolve_callable(name) for name in functions}
    return replace(problem, metrics={**problem.metrics, **{name: metric_of(name, f) for name, f in metrics.items()}})


def samples_of(
    model: ModelSettings,
    data: DataSettings,
    split: str,
    ranks_sharing: int = 1,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Batches:
    """The samples of one split, as settings say.

    prepare  a function of every batch of a user's data, such as one that leaves out what the model does not take
    """
    pickled = getattr(data, f"{split}loader")
    if pickled and pickled.endswith(".npz"):
        raise UsageError(f"--{split}loader takes a pickled loader; {pickled} holds arrays: --dataset npz:{pickled}")
    if pickled and not model.unsafe_load:
        raise UsageError(
            f"{pickled} is a pickled loader, which can run code of its own; add --unsafe-load if you trust it"
        )
    with same_random_state(), kept_folder():
        if pickled:
            loader = torch.load(pickled, weights_only=False)
            return as_batches(loader, ranks_sharing=ranks_sharing, prepare=prepare)
        return datasets.load(
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
            reader=Reader(model.model, data.block_length),
            prepare=prepare,
        )


def _user_problems(
    model: ModelSettings,
    data: DataSettings,
    names: tuple[str, ...],
    files: Files,
    notes: list[str] | None,
    dtype: torch.dtype,
) -> dict[str, Problem]:
    """The problems of the factory that --problem names, all over the model of the first."""
    problems: dict[str, Problem] = {}
    with kept_folder():
        factory = resolve_callable(str(data.problem))
        takes_split = "split" in inspect.signature(factory).parameters
        for name in names:
            with same_random_state():  # a loader draws its order when it is read
                given = _returned_by(factory, str(data.problem), {"split": name} if takes_split else {})
                problems[name] = _as_problem(given, str(data.problem))
            if not takes_split and len(names) > 1:
                raise UsageError(
                    f"--problem {data.problem} has one split only; give it a parameter `split`, or use --split train"
                )
    network = next(iter(problems.values())).model
    if model.model_file:
        sentences = load_checkpoint(network, model, files.state, data.problem, dtype)
        if notes is not None:
            notes.extend(sentences)
    if not sets_modes_itself(network):
        network.eval()
    check_finite(network, model.model_file or "the problem's model")
    part = (data.samples, data.data_seed, data.data_split, data.split_idx)
    limited = {name: p.over_part(datasets.limited(p.data, *part)) for name, p in problems.items()}
    return {name: replace(p, model=network) for name, p in limited.items()}


def _returned_by(factory: Callable[..., Any], name: str, keywords: Mapping[str, str]) -> Any:
    """What a factory returns. Raises UsageError where it does not take these keywords, or fails."""
    try:
        inspect.signature(factory).bind(**keywords)
    except TypeError as error:
        called = ", ".join(keywords) or "nothing"
        raise UsageError(f"--problem {name} is called with {called}, which does not fit it: {error}") from None
    try:
        return factory(**keywords)
    except MemoryError:
        raise
    except Exception as error:  # user code may raise any exception
        raise UsageError(f"--problem {name} fails: {type(error).__name__}: {error}") from error


def _as_problem(value: Any, name: str) -> Problem:
    """What a factory returned, as a problem: one already, keywords of `Problem.custom`, or a tuple of them."""
    if isinstance(value, Mapping):
        keywords = inspect.signature(Problem.custom)
        try:
            keywords.bind(**value)
        except TypeError as error:
            raise UsageError(
                f"--problem {name} must return a Problem, or a dict of keywords of Problem.custom "
                f"({', '.join(keywords.parameters)}); {error}"
            ) from None
        value = Problem.custom(**value)
    elif isinstance(value, tuple) and len(value) >= 3:
        network, batches, loss, *metrics = value
        value = Problem.custom(network, loss, batches)
        if len(metrics) > 1 or any(metrics):
            raise UsageError(
                f"--problem {name} returned {len(metrics) + 3} values; a tuple holds (model, batches, loss(model, "
                "batch)). Metrics are of outputs and targets: return lossmap.Problem.supervised(model, loss, batches, "
                "metrics={'name': function})"
            )
    if not isinstance(value, Problem):
        raise UsageError(
            f"--problem {name} must return a Problem, or a tuple (model, batches, loss(model, batch)); "
            f"got {type(value).__name__}"
        )
    return value


def identity(model: ModelSettings, data: DataSettings, plane: Plane) -> dict[str, Any]:
    """What a result file belongs to: the model, its files by content, and the plane by its recipes."""
    files = {n: getattr(model, n) for n in ("model_file", "model_file2", "model_file3") if getattr(model, n)}
    of_words = (MADE_AS, ENDS_AT)  # which follow from the rest
    recipes = [{key: value for key, value in recipe.items() if key not in of_words} for recipe in plane.recipes]
    return {
        "model": data.problem or model.model,
        "model_args": model.model_args,
        **folder_digest(model),
        **{f"{name} (SHA-256)": checkpoints.file_sha256(path) for name, path in files.items()},
        **{name: getattr(model, name) for name in ("state_key", "strip_prefix") if getattr(model, name)},
        "direction": dict(zip("xy", recipes, strict=False)),
    }


def folder_digest(model: ModelSettings) -> dict[str, str]:
    """The SHA-256 of the files of --model hf:FOLDER, all together; nothing of other models."""
    if not is_in_folder(model.model):
        return {}
    digests = [checkpoints.file_sha256(path) for path in model_files(model.model) if not path.name.endswith(".json")]
    configs = [path.read_bytes() for path in model_files(model.model) if path.name.endswith(".json")]
    return {"model folder (SHA-256)": hashlib.sha256("".join(digests).encode() + b"".join(configs)).hexdigest()}


def held_out_problem(problem: Problem, settings: Settings, machine: Machine) -> Problem | None:
    """The problem's model over the test split, where its samples are for training and there is such a split.

    A factory that gives the same samples for both splits holds nothing out, which the log says.
    """
    factory = settings.data.problem
    if settings.data.split == "test":
        return None
    with kept_folder():
        if factory and "split" not in inspect.signature(resolve_callable(factory)).parameters:
            return None
    data = replace(settings.data, split="test")
    try:
        held_out = problems_of(replace(settings.model, model_file=None), data, machine, splits=("test",))["test"]
    except (ValueError, OSError):  # arrays or a user's problem without a test split
        return None
    if datasets.digest(held_out.data) == datasets.digest(problem.data):
        logger.warning("%s", SAME_SAMPLES)
        return None
    return held_out.over(problem.model)


def measured_with(data: DataSettings, run: RunSettings, problems: Mapping[str, Problem]) -> dict[str, Any]:
    """What one measure of a file depends on: stored with it, and compared when a run resumes."""
    measured: dict[str, Any] = {
        "dataset": data.problem or data.dataset,
        "data (SHA-256)": {split: datasets.digest(p.data) for split, p in problems.items()},
        "samples": {split: p.data.samples for split, p in problems.items()},
        "loss": data.loss,
        "precision": run.precision,
    }
    if data.metric:
        measured["metric"] = list(data.metric)
    notes = dict.fromkeys(note for problem in problems.values() for note in problem.notes)
    if notes:  # the loss is evaluated in a way that version 0.1 did not know
        measured[EVALUATION] = list(notes)
    return measured
