"""The model that the settings name, with its checkpoint; and the checkpoints of a run."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lossmap import zoo
from lossmap.cli.entry_point import launched_rank
from lossmap.cli.setting_groups import ModelSettings
from lossmap.cli.settings import UsageError
from lossmap.data import checkpoints
from lossmap.data.borrow import sets_modes_itself, to_precision
from lossmap.data.checkpoint_match import Selection
from lossmap.data.checkpoints import Checkpoint, homes_of
from lossmap.data.checks import check_finite
from lossmap.data.huggingface_files import is_in_folder
from lossmap.data.huggingface_folder import load_model
from lossmap.import_by_name import kept_folder, resolve_callable
from lossmap.landscape.checkpoint_steps import found_checkpoints
from lossmap.seeding import same_random_state

log = logging.getLogger(__name__)


def factory_of(name: str) -> Callable[..., Any]:
    """The function that makes the model of this name. Raises ValueError with the nearest names."""
    if ":" in name:
        return resolve_callable(name)
    return functools.partial(zoo.build, zoo.known(name))


def selection_of(settings: ModelSettings) -> Selection:
    """Which tensors of its checkpoints the settings mean."""
    return Selection(settings.state_key, settings.strip_prefix, settings.allow_unexpected)


def read_checkpoint(
    settings: ModelSettings, path: str | Path, maker: str | None = None, model: nn.Module | None = None
) -> Checkpoint:
    """A checkpoint of the settings' model; with --unsafe-load a pickled module may be of a class of that model's file.

    maker  the factory that the model, or the problem around it, comes from
    model  where it is there already: its classes are looked for where it has them from
    """
    homes = () if model is None else homes_of(model)
    maker = maker or settings.model
    if settings.unsafe_load and ":" in maker and not is_in_folder(maker):
        with kept_folder():  # imported by this, so that the file's classes are found
            homes = (*_homes_beside(resolve_callable(maker)), *homes)
    return checkpoints.load_checkpoint(path, settings.unsafe_load, homes)


def _homes_beside(factory: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a factory's module and of those in its folder that it imports from: there a run's classes stand."""
    module = sys.modules.get(factory.__module__)
    folder = os.path.dirname(getattr(module, "__file__", None) or "")
    names = [factory.__module__]
    for value in list(vars(module).values()) if module else []:
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        file = getattr(sys.modules.get(name), "__file__", None) if isinstance(name, str) else None
        if file and folder and os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep):
            names.append(str(name))
    return tuple(dict.fromkeys(names))


def model_of(
    settings: ModelSettings,
    state: Checkpoint | None = None,
    seed: int = 0,
    notes: list[str] | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The model, with its checkpoint where there is one, in evaluation mode (but where modules have a
    mode of their own, such as merging adapters), on the CPU, in its own precision.

    state  the content of --model-file, where it has been read already
    seed   draws the weights of a model without checkpoint
    notes  takes sentences on what was chosen in the checkpoint
    dtype  as of `load_checkpoint`

    Raises UsageError where it cannot be made, is no module, or has values that are not finite.
    """
    if is_in_folder(settings.model):
        model = _from_folder(settings, notes)
    else:
        model = _called(settings, _keywords(settings.model_args), seed)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {settings.model} must return an nn.Module; got {type(model).__name__}")
    if settings.model_file:
        sentences = load_checkpoint(model, settings, state, dtype=dtype)
        if notes is not None:
            notes.extend(sentences)
    check_finite(model, settings.model_file or _origin(settings))
    if not sets_modes_itself(model):  # adapters that merge in eval() stay apart
        model.eval()
    return model


def _origin(settings: ModelSettings) -> str:
    """Where the weights of a model without --model-file are from."""
    return settings.model if is_in_folder(settings.model) else "the model's initial state"


def _from_folder(settings: ModelSettings, notes: list[str] | None) -> nn.Module:
    """The model of hf:FOLDER. Raises UsageError where it cannot be loaded."""
    if settings.model_args:
        raise UsageError(
            f"--model-args are keywords of a factory; {settings.model} is made by its config.json: leave them out"
        )
    try:
        with same_random_state():
            model, sentences = load_model(
                settings.model, unsafe=settings.unsafe_load, allow_unexpected=settings.allow_unexpected
            )
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from None
    if notes is not None:
        notes.extend(sentences)
    return model


def _keywords(text: str | None) -> dict[str, Any]:
    """The keywords of --model-args."""
    try:
        keywords = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        example = "--model-args must be JSON such as '{\"depth\": 20}'"
        raise UsageError(f"{example}; got {text!r}: {error}") from None
    if not isinstance(keywords, dict):
        raise UsageError(f"--model-args must be a JSON object; got {text!r}")
    return keywords


def _called(settings: ModelSettings, keywords: dict[str, Any], seed: int) -> Any:
    with same_random_state(seed), kept_folder():
        factory = factory_of(settings.model)
        if isinstance(factory, nn.Module):
            raise UsageError(
                f"--model {settings.model} is a module already; name the function or class that makes one, such as "
                f"def net(): return {type(factory).__name__}(...)"
            )
        try:
            return factory(**keywords)
        except TypeError as error:
            raise UsageError(f"--model {settings.model} could not be called: {error}") from None
        except Exception as error:  # user code may raise any exception
            if ":" not in settings.model:
                raise
            raise UsageError(f"--model {settings.model} fails: {type(error).__name__}: {error}") from error


def load_checkpoint(
    model: nn.Module,
    settings: ModelSettings,
    state: Checkpoint | None,
    maker: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[str, ...]:
    """Load --model-file into a model, `state` where it has been read already; sentences on what was chosen in it.

    maker  as of `read_checkpoint`
    dtype  precision of computing, which the model takes before where the file has more digits than the model
    """
    try:
        state = state or read_checkpoint(settings, str(settings.model_file), maker, model)
        if dtype is not None and _loses_digits(model, state, dtype):
            to_precision(model, dtype)
        return checkpoints.load_into(model, state, selection=selection_of(settings))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _loses_digits(model: nn.Module, state: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether the model would round tensors of a file which computing in this precision holds."""
    tensors = (t for named in state.states.values() for t in named.values() if isinstance(t, Tensor))
    file = min((torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point()), default=inf)
    own = [p for p in model.parameters() if p.is_floating_point()]
    if any(is_lazy(p) for p in own):  # made by the file, in its precision
        return False
    coarsest = max((torch.finfo(p.dtype).eps for p in own), default=0.0)
    return max(file, torch.finfo(dtype).eps) < coarsest


def run_files(settings: ModelSettings) -> list[Path]:
    """The checkpoints of --model-folder, in the order of their steps. Raises UsageError without any."""
    if not settings.model_folder:
        raise UsageError("a pca direction needs --model-folder, the folder with the run's checkpoints")
    folder = Path(settings.model_folder)
    if not folder.is_dir():
        raise UsageError(f"--model-folder {folder} is not a folder")
    try:
        found, notes = found_checkpoints([folder])
    except ValueError as error:
        raise UsageError(f"--model-folder {folder}: {error}") from None
    say_once(folder, tuple(notes))
    return list(found.values())


@functools.cache
def say_once(folder: Path, notes: tuple[str, ...]) -> None:
    """Report what was found of a run's order, by the first rank, once for each command (`main` forgets it)."""
    for note in notes if launched_rank() == 0 else ():
        log.warning("%s: %s", folder, note)
