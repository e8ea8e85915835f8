"""The zoo against the published nets: names, shapes, parameters, outputs."""

import gzip
import json
import subprocess
import sys
import zlib
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from lossmap import zoo

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "zoo.json.gz"
PUBLISHED = (
    "vgg9 densenet121 resnet18 resnet18_noshort resnet34 resnet34_noshort resnet50 resnet50_noshort resnet101 "
    "resnet101_noshort resnet152 resnet152_noshort resnet20 resnet20_noshort resnet32_noshort resnet44_noshort "
    "resnet50_16_noshort resnet56 resnet56_noshort resnet110 resnet110_noshort wrn56_2 wrn56_2_noshort wrn56_4 "
    "wrn56_4_noshort wrn56_8 wrn56_8_noshort wrn110_2_noshort wrn110_4_noshort"
)
STATED = "vgg9 densenet121 resnet18 resnet50 resnet20 resnet20_noshort resnet56 resnet110_noshort wrn56_2"
SMALL = ("mlp", "cnn", "resnet20-w8", "resnet20-w8-noshort")


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.exists():
        pytest.skip("the reference of the published nets lies outside this checkout")
    with gzip.open(REFERENCE) as file:
        return json.load(file)


def filled(net):
    """Every entry by the reference's stated rule."""
    state = net.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(tensor.shape)
        a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            a = 0.5 + np.abs(a)
        elif len(shape) > 1:
            a = a * np.float32(np.sqrt(2 / prod(shape[1:])))
        else:
            a = 1 + 0.1 * a if name.endswith("weight") else 0.1 * a
        tensor.copy_(torch.from_numpy(np.asarray(a, np.float32)))
    return net.eval()


def test_the_zoo_holds_every_published_name(reference):
    assert sorted(reference["all_names"]) == sorted(PUBLISHED.split())
    assert {name.replace("_", "-") for name in PUBLISHED.split()} <= set(zoo.names())


@pytest.mark.parametrize("name", STATED.split())
def test_a_stated_net_has_the_published_tensors_and_outputs(name, reference):
    stated = reference["nets"][name]
    net = filled(zoo.build(name))
    ours = {k: list(t.shape) for k, t in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert ours == {k: list(s) for k, s in stated["state_dict"].items() if not k.endswith("num_batches_tracked")}
    assert list(ours) == [k for k in stated["state_dict"] if not k.endswith("num_batches_tracked")]
    assert sum(p.numel() for p in net.parameters()) == stated["parameters"]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
    with torch.no_grad():
        outputs = net(x).numpy()
    expected = np.asarray(stated["logits"])
    np.testing.assert_allclose(outputs, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_every_name_builds_without_drawing_numbers():
    with torch.device("meta"):
        nets = {name: zoo.build(name) for name in zoo.names()}
    for name, net in nets.items():
        assert sum(p.numel() for p in net.parameters()) > 1000, name
        if name not in ("mlp", "cnn", "vgg9", "densenet121"):
            assert any("shortcut" in k for k in net.state_dict()) == ("noshort" not in name), name


@pytest.mark.parametrize("name", SMALL)
def test_a_small_net_takes_the_digits(name):
    assert zoo.build(name).eval()(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_the_mlp_has_3392_weights():
    assert sum(p.numel() for p in zoo.build("mlp").parameters() if p.dim() > 1) == 3392


@pytest.mark.parametrize("name", [*SMALL, "resnet20", "vgg9", "densenet121", "resnet50-noshort"])
def test_a_net_can_be_traced_and_does_nothing_in_place(name):
    with torch.device("meta"):
        graph = fx.symbolic_trace(zoo.build(name))
    for node in graph.graph.nodes:
        if node.op == "call_method":
            assert not node.target.endswith("_"), node
        if node.op == "call_module":
            assert not getattr(graph.get_submodule(node.target), "inplace", False), node


def test_hyphens_underscores_and_capitals_are_one():
    a, b = (zoo.build(name, seed=3) for name in ("resnet20-w8_noshort", "ResNet20_w8-noshort"))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_seed_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    zoo.build("mlp", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(zoo.build("mlp", seed=1)[1].weight, zoo.build("mlp", seed=2)[1].weight)


def test_settings_change_a_net():
    with torch.device("meta"):
        assert zoo.build("resnet20", classes=100).linear.out_features == 100
        assert zoo.build("resnet20-w8", channels=3).conv1.in_channels == 3
        assert zoo.build("mlp", widths=[64, 5], activation="tanh")[-1].out_features == 5


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no net is named 'resnet21'; nearest: .*resnet20"):
        zoo.build("resnet21")
    with pytest.raises(ValueError, match=r"no net is named 'qqqq'\. names\(\) of lossmap\.zoo"):
        zoo.build("qqqq")


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("mlp", {"depth": 3}, "mlp has no setting 'depth'; it takes widths, activation"),
        ("mlp", {"widths": [3]}, "widths must hold those of the input and the output at least"),
        ("mlp", {"activation": "swosh"}, "no activation is named 'swosh'"),
        ("resnet20", {"depth": 21}, r"6m \+ 2\); got 21"),
        ("resnet18", {"depth": 20}, "depth must be one of 18, 34, 50, 101, 152; got 20"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_message(name, settings, text):
    with pytest.raises(ValueError, match=text):
        zoo.build(name, **settings)


def test_looking_at_the_names_wakes_no_torch():
    code = "import sys, lossmap.zoo as z; z.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
