"""One seed, one direction: for a model and for what is wrapped around it."""

import pytest
import torch
from torch import nn

from lossmap.geometry.directions import random_plane
from lossmap.geometry.wrappers import plain_names

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))


def lightning(model):
    """A module as Lightning users write it; the class is found by where it says that it comes from."""
    base = type("LightningModule", (nn.Module,), {"__module__": "lightning.pytorch.core.module"})
    wrapped = type("Task", (base,), {})()
    wrapped.net = model
    return wrapped


def adapted(model):
    """The names of a PEFT model around it, with an adapter in its last layer."""
    holder = nn.Module()
    holder.base_layer, holder.lora_A = model[2], nn.Linear(2, 1, bias=False)
    model[2] = holder
    wrapped = type("PeftModel", (nn.Module,), {"__module__": "peft.peft_model"})()
    wrapped.base_model = nn.Module()
    wrapped.base_model.model = model
    return wrapped


WRAPPERS = {
    "DataParallel": (nn.DataParallel, "module."),
    "compile": (torch.compile, "_orig_mod."),
    "both": (lambda m: nn.DataParallel(torch.compile(m)), "module._orig_mod."),
    "lightning": (lightning, "net."),
    "peft": (adapted, "base_model.model."),
}


@pytest.mark.parametrize("which", WRAPPERS)
def test_a_wrapper_has_the_directions_of_the_model_within(which):
    wrap, prefix = WRAPPERS[which]
    plain = random_plane(net(), seed=3, states=True)
    wrapped = random_plane(wrap(net()), seed=3, states=True)
    for mine, theirs in zip(plain.axes, wrapped.axes, strict=True):
        for name, d in mine.items():
            inside = name.replace("2.", "2.base_layer.") if which == "peft" else name
            assert torch.equal(theirs[prefix + inside], d), name


def test_a_part_of_ones_own_that_is_called_like_a_wrapper_is_none():
    own = nn.Module()
    own.module = nn.Linear(2, 2)
    assert plain_names(own) == {"module.weight": "module.weight", "module.bias": "module.bias"}
