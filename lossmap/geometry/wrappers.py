"""What wrappers write into the names of a model's tensors: `module.`, `_orig_mod.`, Lightning's and PEFT's prefixes.

Random directions are drawn from the names without them, so that a model and its wrapper have the same directions.
"""

from __future__ import annotations

from torch import nn


def plain_names(model: nn.Module) -> dict[str, str]:
    """By the names of a model's tensors, as in its state dict, the names that they have without its wrappers."""
    prefix, is_adapted, inner = "", False, model
    while True:
        step = _wrapper_prefix(inner)
        if not step:
            break
        is_adapted |= step == "base_model.model."
        prefix += step
        inner = inner.get_submodule(step.rstrip("."))
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    plain = {name: name.removeprefix(prefix).replace("_orig_mod.", "") for name in names}
    if is_adapted:
        plain = {name: short.replace(".base_layer.", ".") for name, short in plain.items()}
    return plain


def _wrapper_prefix(model: nn.Module) -> str:
    """What a wrapper writes before the names of the model within; empty for a model that is none."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
    if kinds & {"torch.DataParallel", "torch.DistributedDataParallel", "torch.AveragedModel"}:
        return "module."
    if "torch.OptimizedModule" in kinds:
        return "_orig_mod."
    if "peft.PeftModel" in kinds:
        return "base_model." if hasattr(model, "prompt_encoder") else "base_model.model."  # prompts change no layer
    if kinds & {"lightning.LightningModule", "pytorch_lightning.LightningModule"}:
        homes = {name.partition(".")[0] for name, _ in model.named_parameters() if "." in name}
        if len(homes) == 1 and all("." in name for name, _ in model.named_parameters()):
            return f"{homes.pop()}."
    return ""


def within_ddp(model: nn.Module) -> nn.Module:
    """The module within DistributedDataParallel; any other model as it is.

    A forward pass of the wrapper waits for the gradients of a training step on all processes, and the next one raises
    where none has come.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        within: nn.Module = model.module
        return within
    return model
