import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.data.batches import Streamed
from lossmap.data.problem import Problem
from lossmap.geometry.directions import line_between, move_point, random_plane
from lossmap.landscape.fold_batchnorm import fold_batchnorm_modules
from lossmap.landscape.loss import ForwardPlan, LossMap, losses, plain_forward, probe_forward_plan


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width)
        self.fc, self.bn3 = nn.Linear(width * 9, 6), nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.out(F.relu(self.bn3(self.fc(x.flatten(1)))))


@pytest.fixture
def net():
    net = Net()
    for _ in range(5):
        net(torch.randn(32, 3, 8, 8))
    return net.eval()


@pytest.fixture
def data():
    return torch.randn(83, 3, 8, 8), torch.randint(5, (83,))


def by_hand(net, plane, point, x, y):
    moved = move_point(plane.origin, plane.axes, point)
    with torch.no_grad():
        outputs = torch.func.functional_call(net, moved, (x,))
    return F.cross_entropy(outputs, y).item(), 100 * (outputs.argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("batch", [1, 7, 40, 83])
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_any_way_through_the_data_gives_the_mean_over_samples(net, data, batch, fold, last, states):
    plane = random_plane(net, states=states)
    measure = losses(Problem.supervised(net, "crossentropy", data), plane, plan=ForwardPlan(batch, last, fold))
    for point in [(0.0, 0.0), (0.3, -0.2), (-1.0, 1.0)]:
        reading = measure(point)
        loss, accuracy = by_hand(net, plane, point, *data)
        assert reading["train_loss"] == pytest.approx(loss, rel=2e-5)
        assert reading["train_acc"] == pytest.approx(accuracy, abs=1e-9)


def test_in_float64_folding_changes_nothing_but_rounding(net, data):
    net, data = net.double(), (data[0].double(), data[1])
    plane = random_plane(net, states=True)
    problem = Problem.supervised(net, "crossentropy", data)
    for point in [(0.0, 0.0), (0.7, -0.4)]:
        one = losses(problem, plane, plan=ForwardPlan(83))(point)["train_loss"]
        other = losses(problem, plane, plan=ForwardPlan(83, True, True))(point)["train_loss"]
        assert other == pytest.approx(one, rel=1e-12)


def test_every_batch_norm_behind_a_layer_is_folded(net):
    graph, layers = fold_batchnorm_modules(net)
    assert len(layers) == 3
    assert not any(n.op == "call_module" and "bn" in str(n.target) for n in graph.graph.nodes)


class WithOwnLoss(nn.Module):
    """As a model of Hugging Face: with a loss where there are labels, which torch.fx takes for given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def test_a_model_whose_traced_form_fails_is_not_folded():
    model, x, y = WithOwnLoss().eval(), torch.randn(9, 3), torch.arange(9) % 2
    problem = Problem.supervised(model, "crossentropy", {"x": x, "labels": y})
    value = losses(problem, random_plane(model))((0.0, 0.0))["train_loss"]
    assert value == pytest.approx(F.cross_entropy(model.net(x), y).item(), rel=1e-6)


def test_a_model_that_branches_on_its_data_is_not_folded():
    class Branches(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    assert fold_batchnorm_modules(Branches()) is None
    assert fold_batchnorm_modules(nn.Linear(3, 2)) is None


def test_train_and_test_are_read_at_once(net, data):
    plane = random_plane(net, axes=1)
    splits = {"train": data, "test": (data[0][:20], data[1][:20])}
    problems = {k: Problem.supervised(net, "crossentropy", d) for k, d in splits.items()}
    measure = losses(problems, plane, plan=ForwardPlan(16))
    assert [f.name for f in measure.fields] == ["train_loss", "train_acc", "test_loss", "test_acc"]
    reading = measure((0.4,))
    for split, (x, y) in splits.items():
        assert reading[f"{split}_loss"] == pytest.approx(by_hand(net, plane, (0.4,), x, y)[0], rel=1e-5)


def test_nan_and_inf_are_results(net, data):
    plane = random_plane(net, axes=1)
    plan = ForwardPlan(83)
    far = losses(Problem.supervised(net, "crossentropy", data), plane, plan=plan)((1e30,))
    assert not math.isfinite(far["train_loss"])
    custom = Problem.custom(net, lambda m, b: m(b[0]).sum() * float("inf"), data)
    assert not math.isfinite(losses(custom, plane, plan=plan)((0.0,))["train_loss"])


def test_the_model_comes_back_untouched_and_points_do_not_drift(net, data):
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pointers = {k: p.data_ptr() for k, p in net.named_parameters()}
    plane = random_plane(net, states=True)
    measure = losses(Problem.supervised(net, "crossentropy", data), plane, plan=ForwardPlan(32, True, True))
    first = measure((0.1, 0.2))
    for i in range(20):
        measure((0.05 * i, -0.7))
    assert measure((0.1, 0.2)) == first
    assert net.training and all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert {k: p.data_ptr() for k, p in net.named_parameters()} == pointers
    assert all(p.grad is None for p in net.parameters())


def test_a_forward_that_raises_gives_the_model_back_and_passes_the_reason_on(net, data):
    problem = Problem.supervised(net, "crossentropy", (torch.randn(4, 5, 8, 8), data[1][:4]))
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        losses(problem, random_plane(net), plan=ForwardPlan(4))
    measure = losses(replace(problem, checked=True), random_plane(net), plan=ForwardPlan(4))
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        measure((0.5, 0.5))
    assert torch.equal(net.conv1.weight, measure.plane.origin["conv1.weight"])


def test_the_probe_chooses_a_way_that_gives_the_same_losses(net, data):
    problem = Problem.supervised(net, "crossentropy", data)
    plane = random_plane(net)
    plan = probe_forward_plan(problem, plane, seconds=0.5)
    assert 1 <= plan.batch_size <= 83
    chosen, twin = losses(problem, plane, plan=plan), losses(problem, plane, plan=plain_forward(problem))
    assert chosen((0.5, 0.1))["train_loss"] == pytest.approx(twin((0.5, 0.1))["train_loss"], rel=1e-5)
    assert chosen.settings["chosen"]["way"]["batch_size"] == plan.batch_size


def test_a_smaller_batch_is_half_until_one_sample_is_left(net, data):
    measure = losses(Problem.supervised(net, "crossentropy", data), random_plane(net), plan=ForwardPlan(3))
    before = measure((0.2, 0.2))["train_loss"]
    assert "batches of 1 samples" in measure.smaller()
    assert measure.smaller() is None
    assert measure((0.2, 0.2))["train_loss"] == pytest.approx(before, rel=1e-6)


def test_streamed_data_give_the_same_losses_as_resident(net, data):
    plane = random_plane(net)
    streamed = Streamed(lambda rows: tuple(t[list(rows)] for t in data), range(83), 10)
    one = losses(Problem.supervised(net, "crossentropy", streamed), plane, plan=ForwardPlan(10, True))
    other = losses(Problem.supervised(net, "crossentropy", data), plane, plan=ForwardPlan(10, True))
    assert one((0.3, 0.1)) == other((0.3, 0.1))


def test_shares_added_up_over_a_team_are_the_whole(net, data):
    problem = Problem.supervised(net, "crossentropy", data)
    plane = random_plane(net)
    parts = []
    for rank in range(3):
        LossMap({"train": problem.share(rank, 3)}, plane, ForwardPlan(16), total=lambda t: parts.append(t) or t)(
            (0.3, 0.3)
        )
    whole = losses(problem, plane, plan=ForwardPlan(16))((0.3, 0.3))
    total = sum(parts)
    assert total[0] == 83
    assert (total[1] / total[0]).item() == pytest.approx(whole["train_loss"], rel=1e-6)
    assert (total[2] / total[0]).item() == whole["train_acc"]


def test_a_failure_on_another_rank_of_the_team_is_raised_here_too(net, data):
    def total(t):
        return torch.cat([t[:-1], t[-1:] + 1])

    problem = Problem.supervised(net, "crossentropy", data)
    measure = LossMap({"train": problem}, random_plane(net), ForwardPlan(83), total=total)
    with pytest.raises(RuntimeError, match="another rank of this point's team failed"):
        measure((0.0, 0.0))


def test_a_loss_that_differentiates_by_its_inputs_works():
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.linspace(0, 1, 11)[:, None]

    def residual(model, batch):
        points = batch.clone().requires_grad_(True)
        u = model(points)
        (du,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        return (du - u).square().mean()

    problem = Problem.custom(net, residual, x, batch_size=4)
    plane = random_plane(net, axes=1)
    measure = losses(problem, plane, plan=ForwardPlan(4))
    assert [f.name for f in measure.fields] == ["train_loss"]
    assert measure((0.0,))["train_loss"] == pytest.approx(residual(net, x).item(), rel=1e-5)


def test_a_line_between_models_ends_at_the_second(net, data):
    other = Net().eval()
    line = line_between(net, other, states=True)
    measure = losses(Problem.supervised(net, "crossentropy", data), line, plan=ForwardPlan(83))
    with torch.no_grad():
        assert measure((1.0,))["train_loss"] == pytest.approx(F.cross_entropy(other(data[0]), data[1]).item(), rel=1e-4)


def test_a_survey_needs_one_model(net, data):
    problems = {"train": Problem.supervised(net, "mse", data), "test": Problem.supervised(Net(), "mse", data)}
    with pytest.raises(ValueError, match="must share one model"):
        losses(problems, random_plane(net))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["crossentropy", nn.CrossEntropyLoss()])
def test_the_loss_of_a_model_in_half_precision_is_summed_in_float32(dtype, loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).to(dtype)
    x, y = torch.randn(3000, 20).to(dtype), torch.arange(3000) % 4
    with torch.no_grad():
        truth = float(nn.functional.cross_entropy(model(x).double(), y))
    problem = lossmap.Problem.supervised(model, loss, (x, y))
    found = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model)), lossmap.Grid([0.0, 1.0], [0.0, 1.0]))
    assert found["train_loss"][0, 0] == pytest.approx(truth, rel=1e-5)  # in bfloat16 it was off by half a percent


def test_samples_whose_outputs_are_nan_are_not_classified_as_their_targets_say():
    class Root(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).sqrt()

    model = Root(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3)), model.bias.zero_()
    x = torch.eye(3).repeat(4, 1)
    x[::4, 2] = -1.0  # three samples whose last output is NaN, of each class one
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, torch.arange(12) % 3))
    measure = lossmap.losses(problem, lossmap.random_plane(model, axes=1))
    assert measure((0.0,))["train_acc"] == pytest.approx(100.0 * 9 / 12)
