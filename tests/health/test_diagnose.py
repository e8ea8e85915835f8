"""Each finding is provoked once, and none is made of a healthy net; a verdict is never stronger than its evidence."""

from __future__ import annotations

import json
from math import nan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lossmap import zoo
from lossmap.data import datasets
from lossmap.data.batches import FixedBatches, Resident, Streamed
from lossmap.data.problem import Problem
from lossmap.diagnostics.stability import stability_limit
from lossmap.health.activation_rules import signal_gains
from lossmap.health.curvature_rules import edge_of_stability
from lossmap.health.diagnose import diagnose, diagnose_network_health, subset
from lossmap.health.finding import SERIOUS
from lossmap.health.label_rules import chance_level
from lossmap.health.measurements import Measurements
from lossmap.health.rules import apply_rules
from lossmap.linalg.power_law import PowerLawTail
from lossmap.report.text import percent_with_error
from lossmap.training import Recipe, train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits", "train")


def trained(data, model=None, epochs=8, **told):
    model = model or zoo.build("mlp", seed=0)
    train(Problem.supervised(model, "crossentropy", data), Recipe(epochs=epochs, **told))
    return model


@pytest.fixture(scope="module")
def healthy(data):
    return trained(data).state_dict()


@pytest.fixture
def net(healthy):
    model = zoo.build("mlp")
    model.load_state_dict(healthy)
    return model.eval()


def rules(health):
    return [f.rule for f in health.findings]


def test_a_healthy_net_gets_a_short_report_without_findings(net, data):
    health = diagnose_network_health(net, data, loss="crossentropy", rate=0.01, momentum=0.9)
    assert health.findings == () and not health.measurements.skipped
    text = repr(health)
    assert "no finding" in text and len(text.splitlines()) < 51  # of 80 columns, three of them on its task
    assert "largest eigenvalue" in text and "+-" in text


@pytest.mark.slow
def test_the_healthy_demo_net_has_no_finding(data):
    model = trained(data, zoo.build("resnet20-w8", seed=0), epochs=12)
    health = diagnose_network_health(
        model, data, held_out=datasets.load("digits", "test"), samples=64, rate=0.05, momentum=0.9, nesterov=True,
        density_error=None, label="the demo net",
    )  # fmt: skip
    assert health.findings == (), health
    assert not health.measurements.skipped and health.measurements.collapse.nc1 < 0.3


def test_a_dead_layer_is_found_with_what_it_cuts_off(net, data):
    with torch.no_grad():
        net[3].bias.fill_(-1e3)
    health = diagnose_network_health(net, data, examinations=("signals", "gradients"))
    first = next(f for f in health.findings if f.rule == "dead layer")
    assert (first.value, first.where, first.level) == (1.0, "4", SERIOUS)
    assert "32 of 32" in first.evidence and "95 % confidence" in first.evidence
    assert any("leaky" in t.what for t in first.tries) and all(t.caveat for t in first.tries)
    silent = next(f for f in health.findings if f.rule == "no gradient")
    assert "1.weight" in silent.evidence and "3.weight" in silent.evidence


def test_an_exploding_layer_is_found_by_what_passes_it(net, data):
    with torch.no_grad():
        net[3].weight.mul_(100.0)
    health = diagnose_network_health(net, data, examinations=("signals",))
    found = next(f for f in health.findings if f.rule == "exploding layer")
    assert found.where == "3" and found.value > 50 and 0 < found.error < 0.1 * found.value
    assert any("normalization" in t.what for t in found.tries)


def test_large_weights_before_a_normalisation_are_no_finding(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(),
                          nn.Linear(32, 10))  # fmt: skip
    with torch.no_grad():
        model[3].weight.mul_(1000.0)
    trained(data, model)
    health = diagnose_network_health(model, data, examinations=("weights", "signals"))
    assert health.measurements.activity.gains[1].alone > 100 and "exploding layer" not in rules(health)


def test_a_vanishing_layer_is_found(net, data):
    with torch.no_grad():
        net[3].weight.mul_(0.001)
        net[3].bias.fill_(0.001)
    assert "vanishing layer" in rules(diagnose_network_health(net, data, examinations=("signals",)))


def test_a_layer_of_rank_one_is_found(net, data):
    with torch.no_grad():
        net[3].weight.copy_(torch.outer(net[3].weight[:, 0], net[3].weight[0]))
    health = diagnose_network_health(net, data, examinations=("weights",))
    (found,) = [f for f in health.findings if f.rule == "rank-deficient layer"]
    assert found.where == "3.weight" and found.value == pytest.approx(1.0, abs=1e-3) and "31 singular" in found.evidence


def test_label_noise_is_found_and_the_suspects_are_the_flipped(data):
    x, y = data.tensors
    generator = torch.Generator().manual_seed(0)
    flipped = torch.rand(len(y), generator=generator) < 0.25
    noisy = (x, torch.where(flipped, (y + 3) % 10, y))
    model = trained(Resident(noisy, 256), epochs=20)
    health = diagnose_network_health(model, noisy, examinations=("signals",))
    (found,) = health.findings
    assert found.rule == "label noise" and abs(found.value - 0.25) < 0.08
    assert flipped[health.measurements.labels.suspected_errors[:100]].float().mean() > 0.9


def test_label_noise_of_an_untrained_net_is_undecided(data):
    health = diagnose_network_health(zoo.build("mlp", seed=1), data, examinations=("signals",), held_out=None)
    assert np.isnan(health.numbers()["label_noise"]["value"]) and "label noise" not in rules(health)
    text = " ".join(repr(health).split())
    assert "label noise: undecided: the network does not classify" in text
    assert "suspects" not in health.to_dict()


def test_a_net_at_the_edge_of_stability_is_found_and_called_no_fault(data):
    small = subset(Problem.supervised(zoo.build("mlp", seed=1), "crossentropy", data), 500)
    rate = 0.3
    train(small, Recipe(epochs=100, batch_size=500, rate=rate, momentum=0.0, nesterov=False, weight_decay=0.0,
                        schedule="constant"))  # fmt: skip
    health = diagnose(small, examinations=("hessian",), rate=rate, density_error=None)
    found = next(f for f in health.findings if "edge of stability" in f.rule)
    assert 0.9 < found.value < 1.5 and found.error < 0.01
    assert all("edge" not in f.rule for f in diagnose(small, examinations=("hessian",), rate=rate / 10,
                                                       density_error=None).findings)  # fmt: skip


def test_an_untrained_net_is_at_chance_level(data):
    health = diagnose_network_health(zoo.build("mlp", seed=0), data, examinations=("signals",))
    assert rules(health)[0] == "chance-level"


@pytest.mark.parametrize("scale", [30.0, 1e4])  # of which some probabilities are 0
def test_a_confident_net_whose_mistakes_ruin_its_likelihood_is_not_at_chance_level(data, net, scale):
    with torch.no_grad():
        for parameter in net[-1].parameters():
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.add_(0.5 * parameter.std() * draw).mul_(scale)  # some mistakes more
    health = diagnose_network_health(net, data, examinations=("signals",))
    labels = health.measurements.labels
    loss, error = labels.negative_log_likelihood
    assert labels.classifies and loss - 2 * error > labels.entropy and np.isfinite(loss)
    assert "chance-level" not in rules(health)
    (found,) = (f for f in health.findings if f.rule == "over-confident")
    assert found.severity == "moderate" and (found.value, found.threshold) == (loss, labels.entropy)
    assert f"right on {percent_with_error(*labels.accuracy_estimate)} of the samples (chance" in found.evidence
    text = " ".join(repr(health).split())
    assert "its task above chance: " in text and "no other finding means much" not in text
    assert "calibrate the temperature" in text


def test_a_value_in_the_evidence_has_the_digits_of_its_error():
    spectrum = SimpleNamespace(largest=(4.2567568, 8.4e-6), smallest=(nan, nan), top=None)
    (edge,) = edge_of_stability(Measurements("net", 3, 5, spectrum=spectrum, rate=1.0))
    assert "largest eigenvalue 4.2567568 +- 8.4e-06, " in edge.evidence
    labels = SimpleNamespace(negative_log_likelihood=(1.0986123, 1.3e-7), entropy=1.05, classifies=False)
    (chance,) = chance_level(Measurements("net", 3, 5, labels=labels))
    assert chance.rule == "chance-level" and "labels is 1.0986123 +- 1.3e-07 nats" in chance.evidence
    gain = SimpleNamespace(name="1", gain=12.3456789, error=8.4e-6, first=False, last=False, norm="")
    (exploding,) = signal_gains(Measurements("net", 3, 5, activity=SimpleNamespace(gains=(gain,))))
    assert "is 12.3456789 +- 8.4e-06 times" in exploding.evidence


def test_saturated_units_are_found(data):
    model = zoo.build("mlp", seed=0, activation="tanh")
    with torch.no_grad():
        model[1].weight.mul_(100.0)
    assert "saturated units" in rules(diagnose_network_health(model, data, examinations=("signals",)))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_stability_limit_is_where_the_optimiser_begins_to_grow(momentum, nesterov):
    rate, limit = 0.1, stability_limit(0.1, momentum, nesterov)
    for factor, grows in ((0.99, False), (1.01, True)):
        theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([theta], lr=rate, momentum=momentum, nesterov=nesterov and momentum > 0)
        sizes = []
        for _ in range(2):
            for _ in range(1000):
                theta.grad = factor * limit * theta.detach()  # of the loss factor limit theta^2 / 2
                optimiser.step()
            sizes.append(abs(float(theta.detach())))
        assert (sizes[1] > sizes[0]) == grows


def test_memorization_shows_on_held_out_samples(data):
    x, y = data.tensors
    wrong = torch.randint(10, (len(y),), generator=torch.Generator().manual_seed(0))
    model = trained(Resident((x[:200], wrong[:200]), 200), epochs=150, batch_size=50, weight_decay=0.0)
    health = diagnose_network_health(
        model, (x[:200], wrong[:200]), held_out=(x[200:600], y[200:600]), examinations=("signals",)
    )
    found = next(f for f in health.findings if f.rule == "memorization (generalization gap)")
    assert found.value > 0.5 and "400 held out" in found.evidence
    assert health.numbers()["held_out_accuracy"]["value"] == health.measurements.held_out.accuracy
    assert "200 samples, 400 held out" in repr(health)
    assert json.loads(health.to_json())["held_out_samples"] == 400


def measured(**parts):
    """A health of which only these parts are known."""
    blank = dict.fromkeys(("activity", "gradients", "weights", "labels", "held_out", "spectrum", "collapse", "rate"))
    blank |= {"tails": {}, "momentum": 0.0, "nesterov": False, "rounded": (), "frozen": {}}
    blank |= {"gradient_ratio_error": lambda a, b: 1.0}
    return SimpleNamespace(**(blank | parts))


def curvature(values, low=-0.01, error=0.001):
    values = np.array(values)
    return SimpleNamespace(
        largest=(values[0], error), smallest=(low, error), limits=(np.nan, np.nan),
        top=SimpleNamespace(values=values, residuals=np.full(len(values), error)),
    )  # fmt: skip


CONSTRUCTED = {
    "negative curvature": (measured(spectrum=curvature([10.0, 9], low=-3.0)), measured(spectrum=curvature([10.0, 9]))),
    "ill-conditioned": (
        measured(spectrum=curvature([1000.0, 5, 4, 3, 2])), measured(spectrum=curvature([50.0, 5, 4, 3, 2]))
    ),
    "beyond the edge of stability": (
        measured(spectrum=curvature([30.0]), rate=0.1), measured(spectrum=curvature([30.0]), rate=0.1, momentum=0.9)
    ),
    "unbalanced gradients": (
        measured(gradients=SimpleNamespace(rms=np.array([5000.0, 1]), names=("a", "b"), samples=10)),
        measured(gradients=SimpleNamespace(rms=np.array([50.0, 1]), names=("a", "b"), samples=10)),
    ),
    "dominant gradient direction": (
        measured(gradients=SimpleNamespace(rms=np.ones(1), names=("a",), samples=50, concentrated=(0.95, 0.01))),
        measured(gradients=SimpleNamespace(rms=np.ones(1), names=("a",), samples=50, concentrated=(0.5, 0.01))),
    ),
    "light-tailed weights": (
        measured(tails={"w": PowerLawTail(9.0, 0.5, 1.0, 100, 200, 0.05, 0.6)}),
        measured(tails={"w": PowerLawTail(3.0, 0.5, 1.0, 100, 200, 0.05, 0.6)}),
    ),
    "class means not separated": (
        measured(collapse=SimpleNamespace(nc4=0.6, errors={"nc4": 0.02}, layer="fc", samples=500)),
        measured(collapse=SimpleNamespace(nc4=0.1, errors={"nc4": 0.02}, layer="fc", samples=500)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", CONSTRUCTED)
def test_a_rule_finds_what_was_constructed_and_not_its_healthy_twin(rule):
    ill, well = CONSTRUCTED[rule]
    (found,) = apply_rules(ill)[0]
    assert found.rule == rule and found.source and found.means and found.tries
    assert apply_rules(well) == ((), ())


def test_a_number_within_two_errors_of_its_threshold_is_undecided():
    unsure = measured(collapse=SimpleNamespace(nc4=0.27, errors={"nc4": 0.02}, layer="fc", samples=500))
    sure, undecided = apply_rules(unsure)
    assert sure == () and undecided[0].rule == "class means not separated"
    unknown = measured(spectrum=curvature([10.0, 9], low=-3.0, error=float("nan")))
    assert apply_rules(unknown)[0][0].rule == "negative curvature"


def test_power_laws_that_are_refused_are_no_finding():
    assert apply_rules(measured(tails={"w": PowerLawTail(9.0, 0.5, 1.0, 100, 200, 0.3, 0.0)})) == ((), ())


def test_findings_are_ranked_by_severity_then_by_excess(net, data):
    with torch.no_grad():
        net[3].weight.copy_(torch.outer(net[3].weight[:, 0], net[3].weight[0]) * 1000)
        net[1].bias[:12] = -1e3
    health = diagnose_network_health(net, data, examinations=("weights", "signals"))
    levels = [f.level for f in health.findings]
    assert levels == sorted(levels, reverse=True) and levels[0] == SERIOUS and len(set(levels)) > 1
    assert rules(health).index("exploding layer") < rules(health).index("dead units")


def test_the_report_and_the_json_carry_numbers_thresholds_sources_and_caveats(net, data):
    with torch.no_grad():
        net[3].weight.mul_(100.0)
    health = diagnose_network_health(net, data, examinations=("weights", "signals", "collapse"), label="a net")
    text = repr(health)
    for part in ("Health of a net", "exploding layer, 3  [serious]", "threshold 10", "may mean", "try", "caveat: "):
        assert part in text
    read = json.loads(health.to_json())
    finding = next(f for f in read["findings"] if f["rule"] == "exploding layer")
    assert (
        finding["threshold"] == 10.0
        and finding["tries"][0]["caveat"] == finding["tries"][0]["doubt"] != ""
        and finding["level"] == "serious"
    )
    assert read["numbers"]["nc1"]["error"] > 0 and len(read["weights"]) == 3


def test_what_does_not_apply_is_left_out_with_the_reason():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(40, 3)
    health = diagnose_network_health(model, (x, x[:, :1]), loss="mse")
    assert (
        set(health.measurements.skipped) == {"collapse", "labels"}
        and "classifier" in health.measurements.skipped["labels"]
    )
    assert (
        "not examined" in repr(health)
        and health.measurements.gradients is not None
        and health.measurements.spectrum is not None
    )
    json.loads(health.to_json())


def residual(model, t):
    """u' = -u: a loss that differentiates by its inputs."""
    t = t.clone().requires_grad_(True)
    u = model(t)
    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    return (slope + u).square().mean()


def test_a_loss_with_derivatives_by_its_inputs_is_examined_in_all_that_applies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    t = torch.linspace(0, 2, 24, dtype=torch.float64)[:, None]
    health = diagnose(Problem.custom(model, residual, t))
    assert (
        set(health.measurements.skipped) == {"collapse", "labels"}
        and "classifier" in health.measurements.skipped["labels"]
    )
    weights = [model[0].weight, model[2].weight]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(residual(model, one[None]), weights)]) for one in t]
    rows = torch.stack(rows).numpy()
    np.testing.assert_allclose(health.measurements.gradients.gram, rows @ rows.T, atol=1e-12)
    assert len(health.measurements.activity.activations) == 1 and health.measurements.spectrum.loss == pytest.approx(
        residual(model, t).item()
    )


def test_the_model_comes_back_as_it_was(data):
    model = zoo.build("mlp", seed=0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    diagnose_network_health(model, data, samples=32, density_error=None)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_subset_is_the_same_for_a_seed_and_keeps_its_order(data):
    problem = Problem.supervised(zoo.build("mlp"), "crossentropy", data)
    one, same, other = subset(problem, 50), subset(problem, 50), subset(problem, 50, seed=1)
    assert torch.equal(one.data.tensors[0], same.data.tensors[0]) and one.data.samples == 50
    assert not torch.equal(one.data.tensors[0], other.data.tensors[0])
    assert subset(problem, 10**6) is problem
    x, y = data.tensors
    streamed = problem.with_data(Streamed(lambda i: (x[list(i)], y[list(i)]), range(len(y)), 64))
    assert torch.equal(next(iter(subset(streamed, 50).data))[1], one.data.tensors[1])


def test_an_examination_that_there_is_not_is_refused(net, data):
    with pytest.raises(ValueError, match="no examination 'pulse'; there are weights"):
        diagnose_network_health(net, data, examinations=("pulse",))


def test_the_report_says_over_how_many_tokens_the_loss_is_a_mean():
    torch.manual_seed(0)
    x, y = torch.randn(6, 4, 3), torch.arange(24).reshape(6, 4) % 5
    y[:, -1] = -100  # of 24 places 18 are counted

    def loss(model, batch):
        outputs, targets = model(batch[0]), batch[1]
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten()), int((targets >= 0).sum())

    problem = Problem.custom(nn.Linear(3, 5), loss, (x, y), unit="nats per token")
    diagnosis = diagnose(problem, examinations=["weights"])
    assert "6 samples with 18 tokens" in repr(diagnosis)
    assert diagnosis.to_dict()["weight"] == 18 and diagnosis.to_dict()["samples"] == 6
    assert "weight" not in diagnose(Problem.custom(nn.Linear(3, 5), loss, (x, y)), examinations=["weights"]).to_dict()


class Recurring(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.inner = self.again = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.again(torch.tanh(self.inner(x)))))


def test_a_module_under_two_names_is_the_same_after_single_gradients():
    """PyTorch's functional_call leaves such a module with the tensors of the call."""
    torch.manual_seed(0)
    model, data = Recurring(), (torch.randn(30, 5), torch.arange(30) % 3)
    health = diagnose_network_health(model, data, examinations=("gradients", "hessian", "signals"), density_error=None)
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    norms = health.measurements.gradient_norms
    assert norms["inner.weight"][0] == pytest.approx(float(model.inner.weight.grad.norm()), rel=1e-4)
    stored = health.to_dict()
    assert {name: norms[name][1] for name in norms} == stored["gradients"]["mean_error"]
    assert all(0 < error < 1e-4 for error in (*stored["gradients"]["mean_error"].values(),))
    assert 0 < stored["hessian"]["gradient_norm_error"] < 1e-4 * stored["hessian"]["gradient_norm"]
    assert "hessian" not in health.measurements.skipped


def test_samples_of_one_class_are_no_chance_level():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    model.bias.data = torch.tensor([0.0, 9.0, 0.0])
    data = (torch.randn(40, 4), torch.ones(40, dtype=torch.int64))
    assert "chance-level" not in rules(diagnose_network_health(model, data, examinations=("signals",)))


def test_norms_of_earlier_files_which_had_no_errors_are_read_as_such():
    earlier = Measurements("net", 3, 5, gradient_norms={"weight": 0.5, "bias": (0.25, 1e-8)})
    assert earlier.gradient_norms["bias"] == (0.25, 1e-8) and earlier.gradient_norms["weight"][0] == 0.5
    assert np.isnan(earlier.gradient_norms["weight"][1])


def test_negative_curvature_along_frozen_parameters_is_not_laid_to_the_training_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net[0].weight.requires_grad_(False)
    problem = Problem.supervised(net, "crossentropy", (torch.randn(30, 4), torch.arange(30) % 3))
    whole = diagnose(problem, examinations=["hessian"])
    (finding,) = [f for f in whole.findings if f.rule == "negative curvature"]
    assert "; 20 frozen parameters are counted, which no training moves" in finding.means
    assert diagnose(problem, examinations=["hessian"], parameters="trainable").measurements.frozen == {}
    net[0].weight.requires_grad_(True)
    (finding,) = [f for f in diagnose(problem, examinations=["hessian"]).findings if f.rule == "negative curvature"]
    assert "frozen" not in finding.means


def test_tensors_that_are_frozen_and_unused_are_no_finding_while_unused_ones_in_training_are():
    """As PEFT leaves the original of a layer that it trains a copy of: frozen, and never called."""

    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.original, self.copy = nn.Linear(4, 3), nn.Linear(4, 3)
            self.original.requires_grad_(False)

        def forward(self, x):
            return self.copy(x)

    torch.manual_seed(2)
    model, data = Copied(), (torch.randn(40, 4), torch.arange(40) % 3)
    problem = Problem.supervised(model, "crossentropy", data)
    assert "no gradient" not in [f.rule for f in diagnose(problem, examinations=["gradients"]).findings]
    model.original.requires_grad_(True)
    (finding,) = [f for f in diagnose(problem, examinations=["gradients"]).findings if f.rule == "no gradient"]
    assert finding.where == "original.weight" and "1 of 2 tensors" in finding.evidence


def test_the_report_says_by_how_many_parameters_the_hessian_is_and_gives_no_rank_of_a_single_row():
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(30, 4)
    diagnosis = diagnose(Problem.supervised(model, "mse", (x, x[:, :1])), examinations=["weights", "hessian"])
    assert "of the Hessian by 25 of the parameters, " in " ".join(repr(diagnosis).split())
    ranks = {w.name: w.stable_rank for w in diagnosis.measurements.weights}
    assert ranks["2.weight"] == 1.0 and diagnosis.numbers()["least_stable_rank"]["value"] == ranks["0.weight"] > 1


def test_whole_batches_are_drawn_of_those_that_are_not_cut():
    sizes = (3, 4, 5, 3, 4)
    batches = FixedBatches(tuple({"x": torch.full((n, 2), float(i))} for i, n in enumerate(sizes)))
    problem = Problem.custom(nn.Linear(2, 1), lambda model, batch: model(batch["x"]).mean(), batches)
    few = subset(problem, 9)
    assert few.data.samples <= 9 and len(few.data.batches) == 2
    assert [b["x"][0, 0] for b in few.data] == sorted(b["x"][0, 0] for b in few.data)
    assert len(subset(problem, 1).data.batches) == 1
    assert subset(problem, 19) is problem
