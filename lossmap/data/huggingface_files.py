"""What a folder of Hugging Face holds, by names and configuration files alone: no torch, no transformers, no network.

hf:FOLDER     config.json, weights *.safetensors (with their index where there are several)     a model
adapter_config.json, adapter_model.safetensors                                   PEFT's adapter of one
*.arrow, dataset_info.json or dataset_dict.json                                  a data set
hf:FILE.txt   a text
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from lossmap.special_files import not_a_file

PREFIX = "hf:"
INSTALL = "pip install 'lossmap[huggingface]'"
WEIGHTS, ADAPTER_WEIGHTS = "*.safetensors", "adapter_model.safetensors"
PICKLES = ("pytorch_model*.bin", "adapter_model.bin")


def path_in(name: str) -> Path:
    """The path in `hf:PATH`."""
    return Path(name[len(PREFIX) :])


def is_in_folder(name: str | None) -> TypeGuard[str]:
    """Whether a name is one of Hugging Face's, `hf:...`."""
    return name is not None and name.startswith(PREFIX)


def existing_path(path: Path, what: str) -> Path:
    """The path, where there is one.

    Raises FileNotFoundError, which says that nothing is read from a network, and ValueError for a pipe, a device or a
    pointer of Git LFS.
    """
    if reason := not_a_file(path):
        raise ValueError(f"{what}: {path} {reason}")
    if path.exists():
        return path
    message = f"there is no folder {path}: {what} must be a local folder, no network is used"
    if len(path.parts) <= 2 and not path.is_absolute():
        message += f"; a model or data set of the hub is brought there by `hf download {path} --local-dir FOLDER`"
    raise FileNotFoundError(message)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a configuration file. Raises ValueError where it is no JSON object."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object; got {type(content).__name__}")
    return content


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not the model that it adapts."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path) -> Path:
    """The folder of the model that an adapter is for: as its configuration says, from here or from beside the adapter.

    Raises ValueError where the configuration names none, FileNotFoundError where it is not on this machine.
    """
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{folder}/adapter_config.json names no base_model_name_or_path, the folder of the base model")
    for path in (Path(named), folder / named, folder.parent / named):
        if (path / "config.json").is_file():
            return path
    raise FileNotFoundError(
        f"the base model of the adapter {folder} is not here: base_model_name_or_path in its adapter_config.json is "
        f"{named!r}; bring that model into a local folder and write the folder there, no network is used"
    )


def model_folder(name: str) -> Path:
    """The folder of `hf:FOLDER`, or for an adapter that of its base: where tokenizer and configuration are."""
    folder = existing_path(path_in(name), "--model hf:FOLDER")
    if is_adapter(folder) and not (folder / "config.json").is_file():
        return base_of(folder)
    return folder


def tokenizer_folder(name: str) -> Path:
    """Where the tokenizer of a model is: beside an adapter where it stands there, else beside the model."""
    folder = existing_path(path_in(name), "--model hf:FOLDER")
    if any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        return folder
    return model_folder(name)


def weight_files(folder: Path, unsafe: bool = False) -> list[Path]:
    """The files of weights in a model's or adapter's folder, by name.

    unsafe  whether pickled files are taken where there are no others

    Raises ValueError where there are none, pickled ones alone, or pointers of Git LFS in their place.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; hf:FOLDER has a config.json and *.safetensors in it")
    pattern = ADAPTER_WEIGHTS if is_adapter(folder) else WEIGHTS
    files = sorted(file for file in folder.glob(pattern) if is_adapter(folder) or file.name != ADAPTER_WEIGHTS)
    pickles = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
    for file in files or pickles:
        if reason := not_a_file(file):
            raise ValueError(f"{file} {reason}")
    if files:
        return files
    if pickles and not unsafe:
        raise ValueError(
            f"{folder} holds weights in a pickled file alone, {pickles[0].name}, and reading that could run code; save "
            "them anew by model.save_pretrained(FOLDER), or, if you trust the file, add --unsafe-load"
        )
    if not pickles:
        raise ValueError(f"{folder} holds no weights ({pattern})")
    return pickles


def model_files(name: str) -> list[Path]:
    """All files that `hf:FOLDER` as a model consists of, with those of an adapter's base: its identity.

    Raises as `weight_files` and `base_of` do.
    """
    folder = existing_path(path_in(name), "--model hf:FOLDER")
    files = [folder / ("adapter_config.json" if is_adapter(folder) else "config.json"), *weight_files(folder, True)]
    if is_adapter(folder):
        files += model_files(f"{PREFIX}{base_of(folder)}")
    return files


def data_files(name: str) -> list[Path]:
    """All files that `hf:PATH` as a data set consists of. Raises FileNotFoundError where there are none."""
    path = existing_path(path_in(name), "--dataset hf:PATH")
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("cache-"))


def missing_library(name: str, error: ImportError) -> ImportError:
    """The error of a library that is not installed, with the extra that installs it or what transformers says."""
    if error.name is None and str(error):  # a library that only this model needs, such as that of quantised weights
        return ImportError(f"{name}: {str(error).strip().partition(chr(10))[0]}")
    return ImportError(f"{name} needs the library {error.name or 'transformers'}: {INSTALL}", name=error.name)


def listed(names: Sequence[str]) -> str:
    """The first three of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
