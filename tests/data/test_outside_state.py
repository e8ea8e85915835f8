"""Tables that a model's or a loss's code keeps outside of the model: as before afterwards, and no obstacle to training.

Each table is multiplied in the precision of the first pass that makes it, so that one left in float64 by a check would
stop the model.
"""

import argparse
import collections
import contextvars
import functools
import gc
import io
import queue
import sys
import threading
import types
import warnings
import weakref
from collections import ChainMap, UserDict, UserList

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor, nn

import lossmap
from lossmap import Grid, Problem
from lossmap.data.borrow import copy_of, temporary_parameters, to_precision
from lossmap.data.loss_check import check_loss
from lossmap.data.outside_state import places_of
from lossmap.module_walks import modules_of, named_tensors

TABLES: dict[int, torch.Tensor] = {}
MASK, MASK_IS_BUILT, PASSES = None, False, []


def table(n, dtype):
    return torch.eye(n, dtype=dtype) * 0.7


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def table(self, dtype):
        return table(5, dtype)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) @ self.table(x.dtype))


class InGlobalDictionary(Body):
    def table(self, dtype):
        if 5 not in TABLES:
            TABLES[5] = table(5, dtype)
        return TABLES[5]


def helper(dtype):
    global MASK, MASK_IS_BUILT
    if not MASK_IS_BUILT:
        MASK, MASK_IS_BUILT = table(5, dtype), True
    return MASK


class InGlobalBesideAFlag(Body):
    def table(self, dtype):
        PASSES.append(1)
        return helper(dtype)


class InClass(Body):
    kept = None

    def table(self, dtype):
        if InClass.kept is None:
            InClass.kept = table(5, dtype)
        return self.kept


class InFunction(Body):
    def table(self, dtype):
        function = InFunction.table
        if not hasattr(function, "kept"):
            function.kept = table(5, dtype)
        return function.kept


class InDefault(Body):
    def table(self, dtype, kept=[]):  # noqa: B006 -- what is tested
        if not kept:
            kept.append(table(5, dtype))
        return kept[0]


def in_closure():
    kept = None

    class InClosure(Body):
        def table(self, dtype):
            nonlocal kept
            if kept is None:
                kept = table(5, dtype)
            return kept

    return InClosure()


@functools.lru_cache
def cached_table(n, dtype):
    return table(n, dtype)


class InCache(Body):
    def table(self, dtype):
        return cached_table(5, dtype)


class Slots:
    __slots__ = ("kept",)


class InSlots(Body):
    def __init__(self):
        super().__init__()
        self.slots = Slots()

    def table(self, dtype):
        if not hasattr(self.slots, "kept"):
            self.slots.kept = table(5, dtype)
        return self.slots.kept


MODELS = [InGlobalDictionary, InGlobalBesideAFlag, InClass, InFunction, InDefault, in_closure, InCache, InSlots]


def loss_with_table(outputs, targets):
    if "loss" not in TABLES:
        TABLES["loss"] = table(3, outputs.dtype)
    return F.cross_entropy(outputs @ TABLES["loss"], targets)


class LazyCriterion(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = None
        self.register_buffer("center", torch.zeros(3))

    def forward(self, outputs, targets):
        if self.kept is None:
            self.kept = table(3, outputs.dtype)
        return F.cross_entropy((outputs - self.center) @ self.kept, targets)


def data():
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


def kept():
    return (
        dict(TABLES), MASK, MASK_IS_BUILT, InClass.kept, getattr(InFunction.table, "kept", None),
        list(Body.table.__defaults__ or ()), [list(d) for d in InDefault.table.__defaults__],
    )  # fmt: skip


def borrow_for(problem, measure):
    if measure == "surface":
        lossmap.survey(lossmap.losses(problem, lossmap.random_plane(problem.model, axes=1)), Grid.line(0, 1, 2))
    elif measure == "product":
        operator = lossmap.hessian(problem, parameters="all")
        operator @ torch.ones(operator.size)
    else:
        lossmap.diagnose(problem, density_error=None, examinations=("hessian", "signals"))


@pytest.mark.parametrize("measure", ["surface", "product", "health"])
@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_a_table_outside_of_the_model_is_as_before(make, measure):
    torch.manual_seed(0)
    model, (x, y) = make(), data()
    before = kept()
    borrow_for(Problem.supervised(model, "crossentropy", (x, y)), measure)
    assert kept() == before
    F.cross_entropy(model.train()(x), y).backward()
    TABLES.clear()


@pytest.mark.parametrize("loss", [loss_with_table, LazyCriterion()], ids=["function", "module"])
def test_a_table_of_the_loss_is_as_before(loss):
    torch.manual_seed(0)
    model, (x, y) = Body(), data()
    borrow_for(Problem.supervised(model, loss, (x, y)), "product")
    assert "loss" not in TABLES and getattr(loss, "kept", None) is None
    loss(model(x), y).backward()
    TABLES.clear()


def test_a_table_that_is_there_already_serves_in_float64_too():
    """The twin of another precision sees it in that; the model's own is the same object afterwards."""
    torch.manual_seed(0)
    model, (x, _) = InGlobalDictionary(), data()
    model(x)
    own = TABLES[5]
    twin = copy_of(model, torch.float64)
    with temporary_parameters(twin, {}):
        assert twin(x.double()).dtype == torch.float64
    assert TABLES[5] is own
    TABLES.clear()


def test_counters_outside_of_the_model_are_as_before():
    class Counted(Body):
        def table(self, dtype):
            PASSES.append(1)
            return table(5, dtype)

    PASSES.clear()
    model, (x, _) = Counted(), data()
    with temporary_parameters(model, {}):
        model(x)
    assert PASSES == []


def test_what_accompanies_a_model_does_not_keep_it_alive():
    def borrowed():
        model = Body()
        problem = Problem.custom(model, lambda _, batch: F.cross_entropy(model(batch[0]), batch[1]), data())
        with temporary_parameters(problem.model, {}):
            return weakref.ref(model)

    alive = borrowed()
    gc.collect()
    assert alive() is None


tables = types.ModuleType("tables")  # as a neighbour of the user's own file
tables.kept = {}


def looking(outputs, targets):
    if plt.rcParams["lines.linewidth"] < 0:
        plt.plot(sys.path)
    return F.cross_entropy(outputs, targets) * tables.kept.get("share", 1.0)


def test_modules_of_the_users_are_looked_into_and_installed_ones_are_not():
    """From `plt` the way led to all of matplotlib, which was put back after each pass."""
    net = nn.Linear(4, 3)
    problem = Problem.supervised(net, looking, (torch.randn(8, 4), torch.randint(0, 3, (8,))))
    holders = [holder for holder, _ in places_of(net)]
    assert any(holder is vars(tables) for holder in holders)
    assert {getattr(holder, "__name__", "") for holder in holders if not isinstance(holder, dict)} == {"looking"}
    assert not any(holder is vars(plt) or holder is vars(sys) for holder in holders)
    assert problem.count(next(iter(problem.data))) == 8


class OneLayer(nn.Module):
    """Shows one of its layers alone."""

    def __init__(self):
        super().__init__()
        self.shown, self.hidden = nn.Linear(2, 3), nn.Linear(3, 3)

    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        yield prefix, self
        yield from self.shown.named_modules(memo, f"{prefix}shown", remove_duplicate)


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Identity(), nn.ModuleList())
    net[2].weight, net.again, net.nothing = net[0].weight, net[1], None
    net.register_buffer("twice", net[1].running_mean)
    net.register_buffer("none", None)
    return net


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [tied, OneLayer, lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))])
def test_a_walk_finds_what_pytorchs_own_finds_in_its_order(make):
    model = make()
    assert list(map(id, modules_of(model))) == list(map(id, model.modules()))
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert [(k, id(t)) for k, t in named_tensors(model).items()] == [(k, id(t)) for k, t in expected.items()]


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x)


CRITIC = Critic()  # of the model's own class in one case


def by_global(model, batch):
    return F.softplus(-CRITIC(model(batch)[:, :3])).mean()


def of_a_closure(critic):
    return lambda model, batch: F.softplus(-critic(model(batch))).mean()


def of_a_default(critic):
    def loss(model, batch, critic=critic):
        return F.softplus(-critic(model(batch))).mean()

    return loss


def of_a_partial(critic):
    def loss(critic, model, batch):
        return F.softplus(-critic(model(batch))).mean()

    return functools.partial(loss, critic)


def of_a_list(critic):
    critics = [critic]
    return lambda model, batch: F.softplus(-critics[0](model(batch))).mean()


@pytest.mark.parametrize("make", [of_a_closure, of_a_default, of_a_partial, of_a_list])
def test_a_network_of_the_models_own_class_beside_it_is_as_before(make):
    """A critic whose batch norm counts in training mode, as that of a GAN does, or a teacher."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    before = {name: t.clone() for name, t in critic.state_dict().items()}
    problem = Problem.custom(model, make(critic), [torch.randn(20, 2)])
    lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), Grid.line(-1, 1, 3))
    lossmap.spectrum(problem, top=1)
    assert all(torch.equal(t, before[name]) for name, t in critic.state_dict().items())


def test_a_network_of_the_users_own_class_in_a_global_is_as_before():
    before = {name: t.clone() for name, t in CRITIC.state_dict().items()}
    for model in (nn.Linear(2, 3), Critic()):
        width = 2 if isinstance(model, nn.Linear) else 3
        loss = by_global if width == 2 else lambda model, batch: (model(batch) - CRITIC(batch)).square().mean()
        problem = Problem.custom(model, loss, [torch.randn(20, width)])
        lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), Grid.line(-1, 1, 3))
        lossmap.spectrum(problem, top=1)
    assert all(torch.equal(t, before[name]) for name, t in CRITIC.state_dict().items())


def test_a_teacher_that_its_loss_moves_is_as_before_and_the_loss_refused():
    torch.manual_seed(0)
    model, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    before = {name: t.clone() for name, t in teacher.state_dict().items()}

    def loss(model, batch):
        with torch.no_grad():
            for mine, its in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.mul_(0.9).add_(its.detach().to(mine.dtype), alpha=0.1)
            target = teacher(batch)
        return (model(batch) - target).square().mean()

    x = torch.randn(24, 4)
    for batches in ([x], [x[:8], x[8:16], x[16:]]):
        with pytest.raises(ValueError, match=r"a stopped gradient|carries a state from batch to batch"):
            lossmap.spectrum(Problem.custom(model, loss, batches), top=1)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_large_weights_of_a_teacher_that_its_loss_moves_are_as_before_at_every_point():
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Linear(512, 256), nn.Tanh(), nn.Linear(256, 4)) for _ in range(2))
    before = {name: t.clone() for name, t in teacher.state_dict().items()}

    def loss(model, batch):
        with torch.no_grad():
            for mine, its in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.mul_(0.996).add_(its.detach().to(mine.dtype), alpha=0.004)
            target = teacher(batch)
        return (model(batch) - target).square().mean()

    x = torch.randn(8, 512)
    problem = Problem.custom(model, loss, [x])
    surface = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), Grid.line(-1, 1, 5))
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    again = float(loss(model, x).detach())
    assert float(surface["train_loss"][2]) == pytest.approx(again, rel=1e-5)


def test_an_unfinished_spectral_norm_of_a_critic_is_read_as_it_stands():
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 12))
    critic = nn.Sequential(norm(nn.Linear(12, 16)), nn.Tanh(), nn.Linear(16, 1)).train()
    z = torch.randn(30, 2)
    before = {name: t.clone() for name, t in critic.state_dict().items()}
    with torch.no_grad():
        truth = float(F.softplus(-critic(model(z))).mean())
    critic.load_state_dict(before)
    problem = Problem.custom(model, lambda m, x: F.softplus(-critic(m(x))).mean(), [z])
    surface = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), Grid.line(0, 0, 1))
    assert float(surface["train_loss"][0]) == pytest.approx(truth, rel=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in critic.state_dict().items())


IMPORTED = """
import dataclasses
import torch
from torch import nn


class Trainer:
    def __init__(self, network):
        self.network = network


@dataclasses.dataclass
class Given:
    network: object


class Queue:
    def __init__(self):
        self.kept = torch.zeros(8, 2)


class SlottedQueue:
    __slots__ = ("kept",)

    def __init__(self):
        self.kept = torch.zeros(8, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    kept: torch.Tensor


class Loss:
    __slots__ = ("critic",)

    def __init__(self, critic):
        self.critic = critic

    def __call__(self, model, batch):
        return model(batch).square().mean() + self.critic(model(batch)).mean()


MASKS = {}


class Masked(nn.Module):
    def forward(self, x):
        if "mask" not in MASKS:
            MASKS["mask"] = torch.eye(2, dtype=x.dtype)
        return x @ MASKS["mask"]
"""
imported = types.ModuleType("of_another_file")  # whose classes are the user's, but not of the loss's own module
sys.modules[imported.__name__] = imported
exec(IMPORTED, vars(imported))


class Trainer:
    def __init__(self, network):
        self.network = network


class Holding(nn.Module):
    """Itself holds what its loss uses, as a Lightning module does."""

    def __init__(self):
        super().__init__()
        self.net, self.teacher = nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, x):
        return self.net(x)


class Slotted:
    __slots__ = ("network",)

    def __init__(self, network):
        self.network = network


def in_array(teacher):
    array = np.empty(1, dtype=object)
    array[0] = teacher
    return array


def in_thread(teacher):
    local = threading.local()
    local.network = teacher
    return local


def in_context(teacher):
    variable = contextvars.ContextVar("teacher")
    variable.set(teacher)
    return variable


HOLDERS = {  # and how the teacher is taken out
    "tuple": (lambda t: (t,), lambda held: held[0]),
    "dict": (lambda t: {"a": [t]}, lambda held: held["a"][0]),
    "deep": (lambda t: {"a": {"b": {"c": [{"d": t}]}}}, lambda held: held["a"]["b"]["c"][0]["d"]),
    "key": (lambda t: {t: 1}, lambda held: next(iter(held))),
    "namespace": (lambda t: types.SimpleNamespace(t=t), lambda held: held.t),
    "arguments": (lambda t: argparse.Namespace(t=t), lambda held: held.t),
    "object": (Trainer, lambda held: held.network),
    "imported object": (imported.Trainer, lambda held: held.network),
    "imported dataclass": (imported.Given, lambda held: held.network),
    "objects": (lambda t: [{"a": imported.Trainer(Trainer(t))}], lambda held: held[0]["a"].network.network),
    "method": (lambda t: t.forward, lambda held: held),
    "slots": (Slotted, lambda held: held.network),
    "weak reference": (weakref.ref, lambda held: held()),
    "weak values": (lambda t: weakref.WeakValueDictionary(a=t), lambda held: held["a"]),
    "weak keys": (lambda t: weakref.WeakKeyDictionary({t: 1}), lambda held: next(iter(held))),
    "weak set": (lambda t: weakref.WeakSet([t]), lambda held: next(iter(held))),
    "functions": (lambda t: [lambda x: t(x)], lambda held: held[0]),
    "UserDict": (lambda t: UserDict(a=[t]), lambda held: held["a"][0]),
    "ChainMap": (lambda t: ChainMap({}, {"a": [t]}), lambda held: held["a"][0]),
    "mapping proxy": (lambda t: types.MappingProxyType({"a": [t]}), lambda held: held["a"][0]),
    "UserList": (lambda t: UserList([t]), lambda held: held[0]),
    "array": (in_array, lambda held: held[0]),
    "thread": (in_thread, lambda held: held.network),
    "context": (in_context, lambda held: held.get()),
}


@pytest.mark.parametrize(("hold", "take"), HOLDERS.values(), ids=HOLDERS)
def test_a_network_in_anything_that_a_loss_uses_is_as_before(hold, take):
    teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before, holder = {name: t.clone() for name, t in teacher.state_dict().items()}, hold(teacher)

    def loss(model, batch):
        return (model(batch) - take(holder)(batch).detach()).square().mean()

    lossmap.spectrum(Problem.custom(nn.Linear(3, 1), loss, [torch.randn(20, 3)]), top=1)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def centre_of(problem):
    plane = lossmap.random_plane(problem.model, axes=1)
    return float(lossmap.survey(lossmap.losses(problem, plane), Grid.line(0, 0, 1))["train_loss"][0])


def test_a_critic_in_a_loss_that_is_an_object_with_slots_is_read_as_it_stands():
    torch.manual_seed(0)
    model, norm = nn.Linear(2, 12), nn.utils.parametrizations.spectral_norm
    critic, x = nn.Sequential(norm(nn.Linear(12, 16)), nn.Tanh(), nn.Linear(16, 1)).train(), torch.randn(30, 2)
    before, loss = {name: t.clone() for name, t in critic.state_dict().items()}, imported.Loss(critic)
    truth = float(loss(model, x).detach())
    critic.load_state_dict(before)
    assert centre_of(Problem.custom(model, loss, [x])) == pytest.approx(truth, rel=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in critic.state_dict().items())


@pytest.mark.parametrize("make", [imported.Queue, imported.SlottedQueue])
def test_a_queue_in_an_object_of_an_imported_class_is_as_before(make):
    torch.manual_seed(0)
    queue, model, x = make(), nn.Linear(4, 2), torch.randn(24, 4)

    def loss(model, batch):
        outputs = model(batch)
        value = (outputs - 1).square().mean() + (outputs @ queue.kept.T).mean()
        queue.kept = torch.cat([outputs.detach()[:8], queue.kept])[:8]
        return value

    truth = float((model(x) - 1).square().mean().detach())  # of the empty queue
    problem = Problem.custom(model, loss, [x])
    assert "carries a state from batch to batch (queue.kept)" in check_loss(problem, report=False).notes[0]
    assert centre_of(problem) == pytest.approx(truth, rel=1e-6)
    lossmap.spectrum(problem, top=1)
    assert queue.kept.dtype == torch.float32
    assert not queue.kept.any()


QUEUE, OWN = torch.zeros(8, 2), {"kept": torch.zeros(8, 2)}


class Filling(nn.Module):
    """Fills a tensor in place that is none of its buffers."""

    def __init__(self, queue):
        super().__init__()
        self.layer, self.queue = nn.Linear(4, 2), queue

    def forward(self, x):
        outputs = self.layer(x)
        queue = self.queue[0] if isinstance(self.queue, list) else self.queue
        value = outputs + (outputs @ queue.clone().T).mean(1, keepdim=True)
        queue.copy_(outputs.detach()[:8])
        return value


def fill_global(outputs):
    value = (outputs @ QUEUE.clone().T).mean()
    QUEUE.copy_(outputs.detach()[:8])
    return value


def fill_in_dictionary(outputs):
    value = (outputs @ OWN["kept"].clone().T).mean()
    OWN["kept"].copy_(outputs.detach()[:8])
    return value


@pytest.mark.parametrize("kind", ["attribute", "list", "global", "dictionary"])
def test_a_tensor_that_a_pass_fills_in_place_is_as_before(kind):
    torch.manual_seed(0)
    queues, x = torch.zeros(8, 2), torch.randn(24, 4)
    model = Filling({"attribute": queues, "list": [queues]}[kind]) if kind in ("attribute", "list") else nn.Linear(4, 2)
    filled = {"global": fill_global, "dictionary": fill_in_dictionary}.get(kind, lambda outputs: 0.0)
    problem = Problem.custom(model, lambda m, b: (outputs := m(b) - 1).square().mean() + filled(outputs), [x])
    linear = model.layer if isinstance(model, Filling) else model
    truth = float((linear(x) - 1).square().mean().detach())  # of the empty queue
    assert centre_of(problem) == pytest.approx(truth, rel=1e-6)
    lossmap.spectrum(problem, top=1)
    assert not any(queue.any() for queue in (queues, QUEUE, OWN["kept"]))


def test_points_that_a_loss_differentiates_by_are_leaves_in_float64_too(caplog):
    points = torch.linspace(0.1, 1, 20)[:, None].requires_grad_(True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def residual(model, batch):
        outputs = model(points)
        return (torch.autograd.grad(outputs.sum(), points, create_graph=True)[0] - outputs).square().mean()

    lossmap.spectrum(Problem.custom(model, residual, [torch.zeros(1, 1)]), top=1)
    assert not any("not compared" in m or "not measured" in m for m in caplog.messages)
    assert points.requires_grad and points.dtype == torch.float32


def test_a_counter_behind_more_objects_than_are_looked_into_is_put_back():
    meter, x = types.SimpleNamespace(transitions=[Trainer(i) for i in range(800)], count=0), torch.randn(24, 4)

    def loss(model, batch):
        meter.count += 1
        return (model(batch) - 1).square().mean()

    check_loss(Problem.custom(nn.Linear(4, 2), loss, [x]), report=False)
    assert meter.count < 10_000  # not as far ahead as it was looked at


def test_a_view_of_a_parameter_stays_one_that_is_moved_in_place():
    model = nn.Linear(3, 2)
    model.view = model.weight.data[0]
    with temporary_parameters(model, {}, left=["weight"]):
        model.weight.data.add_(1)
        moved = model.weight.tolist()
    assert model.weight.tolist() == moved
    assert model.view.tolist() == moved[0]


@pytest.mark.parametrize("in_place", [True, False])
def test_an_array_that_every_call_changes_is_named_and_as_before(in_place, caplog):
    scale, x = types.SimpleNamespace(mean=np.full(1, 2.0)), torch.randn(24, 4)

    def loss(model, batch):
        value = (model(batch) - 1).square().mean() / scale.mean.item()
        if in_place:
            scale.mean += 0.5
        else:
            scale.mean = 0.9 * scale.mean + 1.0
        return value

    model = nn.Linear(4, 2)
    assert centre_of(Problem.custom(model, loss, [x])) == pytest.approx(
        float((model(x) - 1).square().mean().detach()) / 2, rel=1e-6
    )
    assert "carries a state from batch to batch (scale.mean)" in caplog.text
    assert scale.mean.tolist() == [2.0]
    with pytest.raises(ValueError, match=r"from batch to batch \(scale\.mean\): over 2 batches"):
        lossmap.spectrum(Problem.custom(model, loss, [x[:12], x[12:]]), top=1)


class Far:
    """A bank behind more objects than are looked at around every pass."""

    def __init__(self, objects):
        self.first = [types.SimpleNamespace(inner=[types.SimpleNamespace(name=i)]) for i in range(objects)]
        self.last = [types.SimpleNamespace(inner=types.SimpleNamespace(bank=torch.zeros(8, 2), of={}))]

    def loss(self, model, batch):
        outputs, holder = model(batch) - 1, self.last[0].inner
        value = outputs.square().mean() + (outputs @ holder.bank.clone().to(outputs.dtype).T).mean()
        value = value + sum(t.mean() for t in holder.of.values())
        holder.bank.copy_(outputs.detach()[:8])
        holder.of[len(holder.of)] = outputs.detach()
        return value


@pytest.mark.parametrize("objects", [3, 2_000])
def test_what_a_pass_changes_is_put_back_however_far_it_is(objects):
    torch.manual_seed(0)
    far, x, model = Far(objects), torch.randn(24, 4), nn.Linear(4, 2)
    problem = Problem.custom(model, far.loss, [x])
    assert centre_of(problem) == pytest.approx(float((model(x) - 1).square().mean().detach()), rel=1e-6)
    lossmap.spectrum(problem, top=1)
    assert not far.last[0].inner.bank.any() and not far.last[0].inner.of


def test_a_data_set_beside_the_loss_is_neither_copied_nor_converted(monkeypatch):
    """A tensor of millions of numbers and a list of thousands serve in float64 all the same, mixed with the model's."""
    rows = torch.randn(4, 1 << 21)
    keeper = types.SimpleNamespace(x=rows, parts=[torch.full((1,), float(i)) for i in range(2_000)], calls=0)
    converted, convert = [], Tensor.to

    def noting(t, *args, **kwargs):
        if t.numel() == rows.numel() and torch.float64 in args:
            converted.append(t.shape)
        return convert(t, *args, **kwargs)

    def loss(model, batch):
        keeper.calls += 1
        return (model(batch) * keeper.x[:2, 0] - keeper.parts[1]).square().mean()

    model, x = nn.Linear(4, 2), torch.randn(24, 4)
    monkeypatch.setattr(Tensor, "to", noting)
    spectrum = lossmap.spectrum(Problem.custom(model, loss, [x]), top=1)
    monkeypatch.undo()
    # of the two outputs apart: the mean over outputs and samples of (s w.x)^2
    blocks = [float(s) ** 2 / 24 * torch.linalg.matrix_norm(x.double(), 2) ** 2 for s in rows[:2, 0]]
    assert not converted and keeper.calls == 0
    assert abs(float(spectrum.largest[0]) - float(max(blocks))) <= float(spectrum.largest[1])


class LogsEveryFourth:
    """As a trainer whose loss logs now and then, into what an object of its holds; beside many samples."""

    def __init__(self):
        self.samples = [{"x": torch.zeros(1), "name": str(i)} for i in range(2_000)]
        self.state, self.calls = types.SimpleNamespace(history=[]), 0

    def loss(self, model, batch):
        self.calls += 1
        if self.calls % 4 == 0:
            self.state.history.append(self.calls)
        return (model(batch) - 1).square().mean()


def test_what_a_watched_object_leads_to_is_put_back_too():
    """Its counter alone changes in the first pass, by which it is watched; its history does later."""
    logs, model, x = LogsEveryFourth(), nn.Linear(4, 2), torch.randn(24, 4)
    problem = Problem.custom(model, lambda model, batch: logs.loss(model, batch), [x])
    lossmap.spectrum(problem, top=1)
    centre_of(problem)
    assert logs.calls == 0 and logs.state.history == []


class Named(dict):
    """A dictionary of somebody's own, whose entries are attributes too, and whose `update` adds."""

    def update(self, other):
        for key, value in other.items():
            self[key] = self.get(key, 0) + value


def test_containers_of_somebodys_own_class_and_generators_are_as_before():
    counts, generator, numpy = Named(seen=3), torch.Generator().manual_seed(1), np.random.default_rng(2)
    other = collections.Counter(a=1)
    next_ones = (torch.Generator().manual_seed(1).initial_seed(), np.random.default_rng(2).random())

    def loss(model, batch):
        counts["seen"] += 1
        counts.update({"more": 1})
        other["a"] += 1
        noise = float(torch.rand((), generator=generator)) + numpy.random()
        return (model(batch) - noise).square().mean()

    model, x = nn.Linear(4, 2), torch.randn(24, 4)
    noise = float(torch.rand((), generator=torch.Generator().manual_seed(1))) + next_ones[1]
    truth = float((model(x) - noise).square().mean().detach())
    assert centre_of(Problem.custom(model, loss, [x])) == pytest.approx(truth, rel=1e-6)
    assert counts == {"seen": 3} and other == {"a": 1} and numpy.random() == next_ones[1]
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=torch.Generator().manual_seed(1)))


class Watching:
    """Its method is a hook, as libraries that record activations register them."""

    def __init__(self):
        self.calls, self.outputs = 0, []

    def note(self, module, args, outputs):
        self.calls += 1
        self.outputs.append(outputs)


def test_what_a_hook_that_is_a_method_keeps_is_as_before():
    watching, model, (x, y) = Watching(), nn.Linear(4, 3), data()
    model.register_forward_hook(watching.note)
    lossmap.spectrum(Problem.supervised(model, "crossentropy", (x, y)), top=1)
    assert watching.calls == 0 and watching.outputs == []


class Odd:
    """Shows no attributes."""

    @property
    def __dict__(self):
        raise RuntimeError("none of anybody's business")


class Keeper:
    def __init__(self):
        gone = Trainer(0)
        self.gone, self.odd, self.count, self.table = weakref.proxy(gone), Odd(), 0, torch.arange(3.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
        self.file, self.numbers = io.StringIO(), iter(range(1_000_000))

    def loss(self, model, batch):
        self.count += 1
        self.file.write("a line")
        next(self.numbers)
        return F.cross_entropy(model(batch[0]) + self.table, batch[1])


def test_objects_of_which_nothing_can_be_asked_stand_in_no_way():
    keeper, model, batch = Keeper(), Body(), data()
    with torch.no_grad():
        truth = keeper.loss(model, batch).item()
    problem = Problem.custom(model, keeper.loss, [batch])
    assert centre_of(problem) == pytest.approx(truth, rel=1e-6)
    lossmap.spectrum(problem, top=1)
    assert keeper.count == 1 and keeper.table.dtype == torch.float32


def test_a_table_in_a_frozen_object_of_attrs_is_as_before():
    attrs = pytest.importorskip("attr")
    held = attrs.make_class("Held", {"table": attrs.ib(), "count": attrs.ib(0)}, frozen=True, slots=True)(torch.ones(3))

    def loss(model, batch):
        object.__setattr__(held, "count", held.count + 1)
        return F.cross_entropy(model(batch[0]) * held.table, batch[1])

    lossmap.spectrum(Problem.custom(Body(), loss, [data()]), top=1)
    assert held.table.dtype == torch.float32 and held.count == 0


def test_an_iterator_that_is_used_up_is_named():
    model, others = Body(), iter([torch.randn(4, 3)])

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1]) + next(others).mean()

    with pytest.raises(ValueError, match="asked an iterator for more than it holds"):
        check_loss(Problem.custom(model, loss, [data()]))


def test_a_buffer_that_a_loss_holds_is_the_models_own_in_another_precision_too():
    """`model.to(float64)` makes other buffers, and the loss would go on with one that stands still: 1.084 for 1.293."""
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(20, 4)
    mean = model[1].running_mean
    to_precision(model, torch.float64)
    assert model[1].running_mean is mean and mean.dtype == torch.float64 and model.double()(x.double()).shape == (20, 3)


def test_a_loader_with_workers_that_a_loss_reads_goes_on():
    """In float64 too, where what a worker hands over was taken for what the loss casts, and waited for ever after."""
    loader = torch.utils.data.DataLoader(list(torch.arange(10_000.0)), 1, num_workers=1)
    keeper, model, batch = types.SimpleNamespace(others=iter(loader), last=None), Body(), data()

    def loss(model, batch):
        keeper.last = next(keeper.others)
        return F.cross_entropy(model(batch[0]), batch[1])

    problem = Problem.custom(model, loss, [batch])
    truth = F.cross_entropy(model(batch[0]), batch[1]).item()
    assert centre_of(problem) == pytest.approx(truth, rel=1e-6)
    lossmap.spectrum(problem, top=1)
    first = next(keeper.others)
    assert first.dtype == torch.float32 and next(keeper.others) == first + 1 and keeper.last is None


def test_what_threads_share_is_left_alone():
    """A writer's thread may have taken from its queue what would be put there a second time."""
    lines = queue.Queue()
    lines.put("first")
    keeper, model = types.SimpleNamespace(lines=lines), Body()
    problem = Problem.custom(model, lambda m, b: (keeper, F.cross_entropy(m(b[0]), b[1]))[1], data())
    with temporary_parameters(problem.model, {}):
        assert lines.get() == "first"
    assert lines.empty()


def test_a_table_in_a_frozen_object_with_slots_serves_in_float64_too(caplog):
    torch.manual_seed(0)
    table, x = imported.Table(torch.randn(2, 3)), torch.randn(24, 4)
    problem = Problem.custom(nn.Linear(4, 2), lambda m, b: (m(b) @ table.kept).square().mean(), [x])
    spectrum = lossmap.spectrum(problem, top=1)
    truth = 2 / 3 / 24 * torch.linalg.matrix_norm(table.kept.double(), 2) ** 2
    truth *= torch.linalg.matrix_norm(x.double(), 2) ** 2
    assert abs(float(spectrum.largest[0]) - float(truth)) <= float(spectrum.largest[1])
    assert not any("not compared" in m or "not measured" in m for m in caplog.messages)
    assert table.kept.dtype == torch.float32


def test_a_table_that_a_critics_class_makes_in_a_global_is_taken_away():
    masked, x = imported.Masked(), torch.randn(24, 4)
    lossmap.spectrum(Problem.custom(nn.Linear(4, 2), lambda m, b: masked(m(b)).square().mean(), [x]), top=1)
    assert not imported.MASKS


@pytest.mark.parametrize("module", [__name__, imported.__name__])
def test_a_part_of_the_model_that_the_loss_takes_from_the_model_itself_is_as_before(module):
    torch.manual_seed(0)
    model, x = type("Model", (Holding,), {"__module__": module})(), torch.randn(16, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():  # in the mode that models are read in
        truth = float(F.mse_loss(model.eval()(x), model.teacher(x)))
    model.train()
    problem = Problem.custom(model, lambda m, b: F.mse_loss(m(b), model.teacher(b).detach()), [x])
    for _ in range(2):
        assert lossmap.spectrum(problem, parameters="net", top=1).loss == pytest.approx(truth, rel=1e-5)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["lazy", "meta", "coo", "csr", "quantized"])
def test_tensors_beside_the_model_that_cannot_be_compared_stand_in_no_way(kind):
    teacher, matrix = nn.Linear(3, 1), torch.eye(3)
    if kind == "lazy":
        teacher.head = nn.LazyLinear(2)
    elif kind == "quantized":
        teacher.register_buffer("table", torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8))
    else:
        how = {"meta": lambda t: t.to("meta"), "coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr}[kind]
        teacher.register_buffer("table", how(matrix))

    def loss(model, batch):
        return (model(batch) - F.linear(batch, teacher.weight, teacher.bias).detach()).square().mean()

    assert lossmap.spectrum(Problem.custom(nn.Linear(3, 1), loss, [torch.randn(20, 3)]), top=1).loss > 0


def test_a_network_that_is_made_in_the_first_call_of_a_loss_can_draw_its_weights():
    @functools.lru_cache
    def critic():
        return nn.Linear(3, 3)

    def loss(model, batch):
        return F.mse_loss(model(batch), critic()(batch).detach())

    try:
        lossmap.hessian(Problem.custom(nn.Linear(3, 3), loss, [torch.randn(20, 3)]))
    except ValueError as error:  # a new network in each copy of the problem is another function
        assert "repeatable" in str(error) or "draws" in str(error) or "function" in str(error)


class Missing:
    """Stands for a package that is not there, as MONAI's `optional_import` gives it: it raises whatever is asked."""

    def __getattr__(self, name):
        raise ImportError("no module named 'cupy'")

    def __call__(self, *values):
        raise ImportError("no module named 'cupy'")


class MissingSlots(Missing):
    __slots__ = ()


optional, optional_without_attributes = Missing(), MissingSlots()


class AsksForAPackage(nn.Linear):
    optional = MissingSlots()

    def __init__(self):
        super().__init__(3, 2)
        self.array, self.listed = MissingSlots(), [Missing()]

    def forward(self, x):
        return super().forward(x) if isinstance(x, Tensor) else self.array(optional(x))


def test_what_stands_for_a_missing_package_is_asked_for_nothing():
    def loss(outputs, targets):
        if not isinstance(outputs, Tensor):
            return optional_without_attributes(optional(outputs))
        return F.cross_entropy(outputs, targets)

    torch.manual_seed(0)
    net, data = AsksForAPackage(), (torch.randn(12, 3), torch.randint(0, 2, (12,)))
    plain = nn.Linear(3, 2)
    plain.load_state_dict(net.state_dict())
    s, other = (
        lossmap.spectrum(Problem.supervised(m, c, data), top=1, density_error=None)
        for m, c in ((net, loss), (plain, "crossentropy"))
    )
    assert s.loss == pytest.approx(other.loss, rel=1e-6)
    assert s.top.values[0] == pytest.approx(other.top.values[0], rel=1e-5)
