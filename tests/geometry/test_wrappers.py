"""One seed, one direction: for a model and for what is wrapped around it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap import Problem, line_between, losses, spectrum
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
    "SWA, EMA": (torch.optim.swa_utils.AveragedModel, "module."),
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


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_read_by_the_module_within_and_goes_on_training(process_group):
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(12, 4), torch.arange(12) % 3
    wrapped = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for _ in range(3):
        problem = Problem.supervised(wrapped, "crossentropy", (x, y))
        own = Problem.custom(wrapped, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), (x, y))
        truth = float(F.cross_entropy(net(x), y).detach())
        for each in (problem, own):
            reading = losses(each, random_plane(wrapped, axes=1, seed=3))((0.0,))["train_loss"]
            assert reading == pytest.approx(truth, rel=1e-6)
        assert spectrum(problem, top=1).largest[0] == pytest.approx(
            spectrum(Problem.supervised(net, "crossentropy", (x, y)), top=1).largest[0]
        )
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()  # raises where a pass of the wrapper was not followed by a backward
        optimizer.step()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.bias[0] += 1.0
    line = line_between(wrapped, other)
    assert list(line.origin) == ["weight", "bias"] and line.lengths == (pytest.approx(1.0),)
