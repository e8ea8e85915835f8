"""Models in local folders of Hugging Face, `hf:FOLDER`: the class that config.json names, weights from safetensors.

A folder of PEFT's adapter gives the base model, frozen, with the adapter on it, whose parameters require gradients. No
network is used, no code of a folder runs (`trust_remote_code` is never set), and every weight of the model must stand
in the files: one that does not would be drawn at random.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lossmap.data.huggingface_files import (
    base_of,
    existing_path,
    is_adapter,
    listed,
    missing_library,
    path_in,
    read_json,
    weight_files,
)
from lossmap.data.huggingface_pass import without_warnings

_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")  # PEFT's names of adapters


def load_model(name: str, *, unsafe: bool = False, allow_unexpected: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
    """The model of `hf:FOLDER`, on the CPU, in float32 or float64, and sentences on what was left out of its files.

    unsafe            whether weights in pickled files are read where there are no others
    allow_unexpected  whether the files may hold more tensors than the model has

    Raises ValueError, FileNotFoundError and ImportError, in one sentence.
    """
    folder = existing_path(path_in(name), "--model hf:FOLDER")
    try:
        with _quiet():
            if is_adapter(folder):
                return _adapted(folder, unsafe, allow_unexpected)
            return _whole(folder, unsafe, allow_unexpected)
    except ImportError as error:
        raise missing_library(name, error) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bars and no reports of its own."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with without_warnings():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _whole(folder: Path, unsafe: bool, allow_unexpected: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """A model by its own weights."""
    kind = class_of(folder)
    files = weight_files(folder, unsafe)
    safe = files[0].suffix == ".safetensors"
    try:
        model, report = kind.from_pretrained(
            str(folder), output_loading_info=True, local_files_only=True, use_safetensors=safe, trust_remote_code=False
        )
    except (RuntimeError, OSError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{folder} cannot be loaded as {kind.__name__}: {first}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder} does not hold all weights of {kind.__name__}, which its config.json names: {listed(missing)} "
            f"are missing, {len(missing)} in all, and would be drawn at random"
        )
    left_out = sorted(report["unexpected_keys"])
    if left_out and not allow_unexpected:
        raise ValueError(
            f"{folder} holds more tensors than {kind.__name__} has: {listed(left_out)}; --allow-unexpected leaves them "
            "out"
        )
    notes = (f"{folder}: {len(left_out)} tensors are left out: {listed(left_out)}",) if left_out else ()
    return _in_full_precision(model), notes


def class_of(folder: Path) -> Any:
    """The class of transformers that a folder's config.json names. Raises ValueError where there is none."""
    import transformers

    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json: it is no folder of a model (model.save_pretrained makes one)")
    config = read_json(path)
    names = config.get("architectures") or []
    for name in names:
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    if "auto_map" in config:
        raise ValueError(
            f"{path} is of a model with code of its own (auto_map), which is not run; write a factory that imports it, "
            "and name that: --model file.py:factory"
        )
    if names:
        raise ValueError(
            f"{path} names the architecture {names[0]}, which transformers {transformers.__version__} lacks"
        )
    raise ValueError(f'{path} names no architecture, such as "architectures": ["GPT2LMHeadModel"]; add it there')


def _in_full_precision(model: nn.Module) -> nn.Module:
    """The model in float32 where its weights are stored in less."""
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        return model.float()
    return model


def _adapted(folder: Path, unsafe: bool, allow_unexpected: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """The base model with the adapter of a folder on it."""
    from peft import PeftModel, get_peft_model_state_dict

    file = weight_files(folder, unsafe)[0]
    kind = str(read_json(folder / "adapter_config.json").get("peft_type"))
    if kind in _PROMPTS:
        raise ValueError(
            f"{folder} is an adapter of prompts ({kind}), which PEFT does not load to be trained; in Python, let "
            "the parameters of its prompt_encoder require gradients, and give it to lossmap.huggingface(model, data)"
        )
    base, notes = _whole(base_of(folder), unsafe, allow_unexpected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between the two libraries
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=True, local_files_only=True)
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as stored:
            names = set(stored.keys())
        missing = sorted(set(get_peft_model_state_dict(model)) - names)
        if missing:
            raise ValueError(f"{file} does not hold all weights of the adapter: {listed(missing)} are missing")
    return _in_full_precision(model), notes
