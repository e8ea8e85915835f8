"""Tensors that an earlier pass made of the weights are refused by name; what is made of constants is not."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lossmap import Grid, Problem, losses, random_plane, spectrum, survey
from lossmap.data.loss_check import check_loss

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
KEPT = {}


class Product(nn.Module):
    """A weight that is a product of two."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 4))

    def weight(self):
        return self.left @ self.right

    def forward(self, x):
        return x @ self.weight().T


class Property(Product):
    @functools.cached_property
    def product(self):
        return super().weight().detach()

    def weight(self):
        return self.product


class Attribute(Product):
    product = None

    def weight(self):
        if self.product is None:
            self.product = super().weight()
        return self.product


class Dictionary(Product):
    def __init__(self):
        super().__init__()
        self.kept = {}

    def weight(self):
        if "w" not in self.kept:
            self.kept["w"] = super().weight()
        return self.kept["w"]


class Global(Product):
    def weight(self):
        if "w" not in KEPT:
            KEPT["w"] = super().weight()
        return KEPT["w"]


class Constants(Product):
    """A scale that it needs, one that it makes in the first pass, and an anchor that is a buffer."""

    made = None

    def __init__(self):
        super().__init__()
        self.scale = torch.full((4,), 1.5)
        self.register_buffer("anchor", self.left.detach().clone())

    def forward(self, x):
        if self.made is None:
            self.made = torch.arange(4.0)
        return super().forward(x * self.scale.to(x) + self.made.to(x)) + (self.left - self.anchor).square().sum()


@pytest.mark.parametrize(
    "kind, name", [(Property, "product"), (Attribute, "product"), (Dictionary, "kept"), (Global, "KEPT")]
)
def test_a_tensor_made_of_the_weights_is_refused_once_it_is_there(kind, name):
    KEPT.clear()
    model = kind().eval()
    problem = Problem.supervised(model, "crossentropy", (X, Y))
    plane = random_plane(model, axes=1)
    plain = Product()
    plain.load_state_dict(plane.at((0.5,)))
    truth = float(nn.functional.cross_entropy(plain(X), Y).detach())
    assert losses(problem, plane, plan={"batch_size": 12})((0.5,))["train_loss"] == pytest.approx(truth, rel=1e-5)
    with torch.no_grad():
        model(X)
    with pytest.raises(ValueError, match=rf"the model keeps {name}, which an earlier pass made of its weights"):
        check_loss(Problem.supervised(model, "crossentropy", (X, Y)))
    assert vars(model).get(name, KEPT) is not None  # the model is as it was


def test_constants_are_no_reason():
    model = Constants().eval()
    model(X)
    assert check_loss(Problem.supervised(model, "crossentropy", (X, Y))).notes == ()


class Cached(Product):
    @functools.lru_cache  # noqa: B019
    def weight(self):
        return super().weight().detach()


@functools.cache
def product_of(left, right):
    return left @ right


class CachedFunction(Product):
    def forward(self, x):
        return x @ product_of(self.left, self.right).T


BY_ID = {}


def kept_by_id(module):
    if id(module) not in BY_ID:
        BY_ID[id(module)] = module.left @ module.right
    return BY_ID[id(module)]


class ById(Product):
    def forward(self, x):
        return x @ kept_by_id(self).T


class Closure(Product):
    """A function that closes over the model itself, which a copy of the model calls too."""

    def __init__(self):
        super().__init__()
        self.function = lambda x: x @ (self.left @ self.right).T

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(("kind", "name"), [(Cached, "Cached.weight"), (CachedFunction, "product_of"), (ById, "BY_ID")])
def test_what_is_kept_outside_of_the_model_is_refused_by_name(kind, name):
    torch.manual_seed(0)
    model = kind().eval()
    model(X)
    problem = Problem.supervised(model, "crossentropy", (X, Y))
    for make in (lambda: losses(problem, random_plane(model)), lambda: spectrum(problem, top=1)):
        with pytest.raises(ValueError, match=rf"{name}(, which| keeps what) an earlier pass made of (its|the) weights"):
            make()
    product_of.cache_clear()


@pytest.mark.parametrize("kind", [Product, Closure])
def test_other_ways_to_reach_the_weights_are_right_everywhere(kind):
    torch.manual_seed(0)
    model = kind().eval()
    model(X)
    problem = Problem.supervised(model, "crossentropy", (X, Y))
    plane = random_plane(model, axes=1, seed=3)
    surface = survey(losses(problem, plane), Grid.line(-2, 2, 5))
    for x, loss in zip(surface.grid.x, surface["train_loss"], strict=True):
        moved = plane.at((float(x),))
        truth = nn.functional.cross_entropy(X @ (moved["left"] @ moved["right"]).T, Y)
        assert loss == pytest.approx(float(truth), rel=1e-5)


class Doubled(nn.Module):
    def forward(self, weight):
        return weight + 0.5 * weight.tanh()


def test_parametrizations_that_are_cached_meanwhile_follow_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    parametrize.register_parametrization(model[0], "weight", Doubled())
    problem = Problem.supervised(model, "crossentropy", (X, Y))
    plane = random_plane(model, axes=1, seed=3)
    grid = Grid.line(-2, 2, 3)
    expected = survey(losses(problem, plane), grid)["train_loss"], spectrum(problem, top=1).top.values
    with parametrize.cached():
        model(X)
        kept = model[0].weight
        found = survey(losses(problem, plane), grid)["train_loss"], spectrum(problem, top=1).top.values
        assert model[0].weight is kept
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in zip(found, expected, strict=True))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x):
        hidden = checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=self.reentrant)
        return checkpoint(self.second, hidden, use_reentrant=self.reentrant)


def test_reentrant_checkpoints_have_the_curvature_of_others():
    before = torch.utils.checkpoint.CheckpointFunction
    tops, runs = [], []
    for reentrant in (False, True):
        problem = Problem.supervised(Checkpointed(reentrant), "crossentropy", (X, Y))
        result = spectrum(problem, top=2, bottom=1)
        tops.append((result.top.values, result.bottom.values))
        runs.append(check_loss(problem).notes)
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in zip(*tops, strict=True)) and runs == [(), ()]
    assert torch.utils.checkpoint.CheckpointFunction is before


class Soft(nn.Module):
    """Functions with forms of their own, computed a second time while gradients are taken."""

    def __init__(self, again):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.again = nn.Linear(4, 5), nn.Linear(5, 3), again

    def part(self, x):
        return torch.softmax(nn.functional.softplus(self.first(x)), 1)

    def forward(self, x):
        return self.last(checkpoint(self.part, x, use_reentrant=False) if self.again else self.part(x))


def test_a_checkpoint_computes_the_same_forms_a_second_time():
    results = [spectrum(Problem.supervised(Soft(again), "crossentropy", (X, Y)), top=2) for again in (False, True)]
    assert results[1].values == pytest.approx(results[0].values, rel=1e-4, abs=1e-6)
    assert results[1].gradient_norm == pytest.approx(results[0].gradient_norm, rel=1e-5)


OPTIONS = {"scale": torch.tensor(2.0)}


class Optional(Product):
    """A mask and an offset that may be None, an optional entry of a global dictionary, and a note of outputs."""

    def __init__(self):
        super().__init__()
        self.mask, self.offset, self.tables = torch.tensor([1.0, 0, 1, 1]), None, [torch.tensor([1.0, 2, 3])]

    def forward(self, x):
        if self.mask is not None:
            x = x * self.mask.to(x)
        hidden = super().forward(x)
        if "scale" in OPTIONS:
            hidden = hidden * OPTIONS["scale"].to(x)
        for table in self.tables:
            hidden = hidden + table.to(x)
        self.last = hidden.detach()
        return hidden


@functools.lru_cache
def random_features(size):
    return torch.randn(4, size)


class RandomFeatures(nn.Module):
    """Features drawn in the first pass, behind a cache, and a direction drawn and kept by the model."""

    direction = None

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        if self.direction is None:
            self.direction = torch.randn(4)
        x = x + 0.1 * self.direction.to(x)
        return self.head(torch.cos(x @ random_features(16).to(x)))


@pytest.mark.parametrize("kind", [Optional, RandomFeatures])
def test_what_the_model_is_given_or_draws_once_is_measured(kind):
    torch.manual_seed(0)
    model = kind().eval()
    model(X)
    problem = Problem.supervised(model, "crossentropy", (X, Y))
    plane = random_plane(model, axes=1, seed=3)
    found = losses(problem, plane)((0.7,))["train_loss"]
    with torch.no_grad():
        model.load_state_dict(plane.at((0.7,)))
        truth = nn.functional.cross_entropy(model(X), Y)
    assert check_loss(problem).notes == () and found == pytest.approx(float(truth), rel=1e-5)


class ByShape(Product):
    """Kept in a dictionary of the class, for each shape of a batch."""

    kept = {}  # noqa: RUF012

    def weight_for(self, x):
        key = id(self), x.shape
        if key not in self.kept:
            self.kept[key] = self.weight().detach()
        return self.kept[key]

    def forward(self, x):
        return x @ self.weight_for(x).T


CALLED = {}


@functools.lru_cache
def product_by_name(name):
    return CALLED[name].weight().detach()


class SharedKey(Product):
    """Behind a cache whose key is not the model: copies of the model share it."""

    def forward(self, x):
        CALLED["model"] = self
        return x @ product_by_name("model").T


class InList(ByShape):
    def weight_for(self, x):
        if not self.kept_list:
            self.kept_list.append((x.shape[-1], self.weight()))
        return self.kept_list[0][1]

    def __init__(self):
        super().__init__()
        self.kept_list = []


class Fused(Product):
    """A product that is made once by a method of its own."""

    product = None

    def fuse(self):
        self.product = self.weight().detach()

    def forward(self, x):
        return x @ (self.weight() if self.product is None else self.product).T


class Number(Product):
    @functools.cached_property
    def scale(self):
        return float(self.left.detach().norm())

    def forward(self, x):
        return super().forward(x) / self.scale


KEPT_GLOBAL = None


class AsGlobal(Product):
    def forward(self, x):
        global KEPT_GLOBAL
        if KEPT_GLOBAL is None:
            KEPT_GLOBAL = self.weight().detach()
        return x @ KEPT_GLOBAL.T


class Store:
    pass


class InObject(Product):
    def __init__(self):
        super().__init__()
        self.store = Store()

    def forward(self, x):
        if not hasattr(self.store, "w"):
            self.store.w = self.weight().detach()
        return x @ self.store.w.T


class AsFloat(Product):
    """A number that the first pass makes."""

    norm = None

    def forward(self, x):
        if self.norm is None:
            self.norm = float(self.left.detach().norm())
        return super().forward(x) / self.norm


class Slots:
    __slots__ = ("__w",)

    def product(self, module):
        if not hasattr(self, "_Slots__w"):
            self.__w = module.weight().detach()
        return self.__w


class InSlots(Product):
    def __init__(self):
        super().__init__()
        self.store = Slots()

    def forward(self, x):
        return x @ self.store.product(self).T


ANCHORS = {}


class Anchored(Product):
    """A penalty that holds weights to former ones, where there are any."""

    def forward(self, x):
        penalty = sum(
            (p - ANCHORS[name].to(p)).square().sum() for name, p in self.named_parameters() if name in ANCHORS
        )
        return super().forward(x) + penalty * torch.arange(3).to(x)


def test_former_weights_in_a_penalty_may_stay():
    torch.manual_seed(0)
    model = Anchored().eval()
    ANCHORS.update({name: p.detach().clone() for name, p in model.named_parameters()})
    assert check_loss(Problem.supervised(model, "crossentropy", (X, Y))).notes == ()


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ByShape, "ByShape.kept"),
        (SharedKey, "product_by_name"),
        (InList, "kept_list"),
        (Number, "scale"),
        (AsGlobal, "KEPT_GLOBAL"),
        (InObject, "store.w"),
        (AsFloat, "norm"),
        (InSlots, "store._Slots__w"),
    ],
)
def test_what_is_kept_under_other_keys_is_refused_by_name(kind, name, is_loaded):
    torch.manual_seed(0)
    model = kind().eval()
    model(X)
    if is_loaded:  # other weights, as of a checkpoint, after the pass that made it
        model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    try:
        refuse(model, name)
    finally:
        product_by_name.cache_clear()
        CALLED.clear()
        ByShape.kept.clear()
        globals()["KEPT_GLOBAL"] = None


@pytest.mark.parametrize("kind", [ByShape, SharedKey, InList, InObject, AsGlobal, AsFloat, InSlots])
def test_what_was_not_kept_before_is_made_anew_at_every_point(kind):
    torch.manual_seed(0)
    model = kind().eval()
    plane = random_plane(model, axes=1, seed=3)
    surface = survey(losses(Problem.supervised(model, "crossentropy", (X, Y)), plane), Grid.line(-1, 1, 3))
    for x, loss in zip(surface.grid.x, surface["train_loss"], strict=True):
        plain = AsFloat() if kind is AsFloat else Product()
        plain.load_state_dict(plane.at((float(x),)))
        assert loss == pytest.approx(float(nn.functional.cross_entropy(plain(X), Y).detach()), rel=1e-5)


class Tables(nn.Module):
    """A layer with five constants that it needs."""

    def __init__(self):
        super().__init__()
        self.left = nn.Parameter(torch.randn(4, 4) / 2)
        for i in range(5):
            setattr(self, f"table_{i}", torch.linspace(0.1, 0.2 + i, 4))

    def forward(self, x):
        for i in range(5):
            x = x + 0.1 * getattr(self, f"table_{i}").to(x)
        return x


class Keeping(Tables):
    product = None

    def forward(self, x):
        if self.product is None:
            self.product = (self.left @ self.left).detach()
        return x + torch.tanh(super().forward(x) @ self.product.T)


def test_values_kept_behind_many_constants_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(*(Tables() for _ in range(12)), Keeping(), Keeping(), nn.Linear(4, 3)).eval()
    model(X)
    refuse(model, r"12.product \(and 1 more of this name\)")


def test_what_a_method_of_the_model_made_is_refused_by_name():
    torch.manual_seed(0)
    model = Fused().eval()
    model.fuse()
    refuse(model, "product")


def refuse(model, name):
    with pytest.raises(ValueError, match=rf"{name}(, which| keeps what) an earlier pass made of (its|the) weights"):
        losses(Problem.supervised(model, "crossentropy", (X, Y)), random_plane(model))


class Many(nn.Module):
    """A layer with more plain objects than are remembered, the last of which holds a constant that the loss needs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scales = [SimpleNamespace(scale=torch.ones(3)) for _ in range(900)]

    def forward(self, x):
        return self.linear(x) * self.scales[-1].scale


def test_what_is_taken_away_for_a_look_is_put_back_wherever_it_was():
    net = Many()
    before = [each.scale for each in net.scales]
    check_loss(Problem.supervised(net, "crossentropy", (X, Y)))
    assert all(vars(each).get("scale") is scale for each, scale in zip(net.scales, before, strict=True))
