"""The preconditioned Hessian: dense float64 truth, its optimizer's state, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.curvature.build import build_matrix, build_operator
from lossmap.curvature.product_time import seconds_of_product
from lossmap.data import checkpoints
from lossmap.data.preconditioner import Preconditioner
from lossmap.diagnostics.step_rule import optimizer_of_state, preconditioner_of, with_preconditioner

ADAPTIVE = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, alpha=0.9, momentum=0.5),
    "centered": lambda p: torch.optim.RMSprop(p, lr=1e-2, alpha=0.9, centered=True, weight_decay=0.1),
}
ADAMW = 38 / 1e-2 * (1 - 0.5 * 1e-2 * 0.3)  # its decoupled decay shrinks every step
THRESHOLD = {"Adam": 3.6 / 0.2 / 1e-2, "AdamW": ADAMW, "amsgrad": 38 / 1e-2, "RMSprop": 300.0, "centered": 200.0}


def trained(kind, dtype=torch.float64, steps=7):
    """A problem, and the optimizer after some steps on it, whose state is made here by hand as well."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    data = (torch.randn(20, 4).to(dtype), torch.arange(20) % 3)
    problem = lossmap.Problem.supervised(model, "crossentropy", data)
    optimizer = ADAPTIVE[kind](model.parameters())
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return problem, optimizer


def truth(problem, optimizer, kind, steps=7):
    """P^-1/2 (H + W) P^-1/2, from the optimizers' formulas and a Hessian by `torch.autograd.functional`."""
    model = problem.model
    names, parameters = zip(*model.named_parameters(), strict=True)
    x, y = problem.data.tensors

    def loss(theta):
        parts = torch.split(theta, [p.numel() for p in parameters])
        own = {n: t.view(p.shape) for n, t, p in zip(names, parts, parameters, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, own, (x,)), y)

    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    h = torch.autograd.functional.hessian(loss, theta)
    rows = []
    for p in parameters:
        state = optimizer.state[p]
        if kind == "RMSprop":
            row = state["square_avg"].sqrt() + 1e-8
        elif kind == "centered":
            row = (state["square_avg"] - state["grad_avg"] ** 2).sqrt() + 1e-8
        else:
            b1, b2 = optimizer.defaults["betas"]
            v = state["max_exp_avg_sq"] if kind == "amsgrad" else state["exp_avg_sq"]
            row = (1 - b1**steps) * ((v / (1 - b2**steps)).sqrt() + 1e-8)
        rows.append(row.reshape(-1))
    d = torch.cat(rows).rsqrt()
    decay = {"Adam": 0.3, "centered": 0.1}.get(kind, 0.0)
    return d[:, None] * (h + decay * torch.eye(len(d), dtype=torch.float64)) * d


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_it_is_the_dense_matrix_of_the_optimizer_and_of_its_state_in_a_file(kind, tmp_path):
    problem, optimizer = trained(kind)
    exact = truth(problem, optimizer, kind)
    own = with_preconditioner(problem, optimizer, "all")
    matrix = build_matrix(own, "preconditioned", "all")
    eye = torch.eye(matrix.size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ eye, exact, rtol=1e-8, atol=1e-9 * float(exact.abs().max()))
    assert own.preconditioner.threshold == pytest.approx(THRESHOLD[kind], rel=1e-12)
    torch.save({"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "net.pt")
    state = checkpoints.optimizer_state(str(tmp_path / "net.pt"))
    again = preconditioner_of(optimizer_of_state(state, problem.model), dict(problem.model.named_parameters()))
    for name, root in own.preconditioner.root.items():
        assert torch.equal(root, again.root[name])
    if kind == "Adam" and "decoupled_weight_decay" not in optimizer.param_groups[0]:  # as AdamW, which it may be
        assert again.threshold == pytest.approx(THRESHOLD[kind] * (1 - 0.5 * 1e-2 * 0.3))
    else:
        assert again.threshold == own.preconditioner.threshold


def test_the_spectrum_reads_it_against_the_threshold_also_of_a_float32_model():
    problem, optimizer = trained("AdamW", torch.float32)
    exact = torch.linalg.eigvalsh(truth(*trained("AdamW"), "AdamW"))
    for dense in (300, 10):
        found = lossmap.spectrum(
            problem, matrix="preconditioned", preconditioner=optimizer, parameters="all", dense=dense, top=2, bottom=1
        )
        # the same steps in float32 end elsewhere by rounding
        assert found.largest[0] == pytest.approx(float(exact[-1]), rel=1e-3)
        assert found.precision == "float64" and found.threshold == pytest.approx(ADAMW)
        text = " ".join(repr(found).split())
        assert "preconditioned Hessian" in text and "threshold of the optimizer 3,794" in text
        assert "P of AdamW" in text and "per squared unit of P^1/2 theta" in text and "2/lambda_max" not in text
    layers = lossmap.layer_spectra(problem, matrix="preconditioned", preconditioner=optimizer, probes=0)
    block = truth(*trained("AdamW"), "AdamW")[:20, :20]
    assert layers["0.weight"].values[-1] == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-3)


def test_a_diagonal_is_taken_by_name_or_flat_and_weights_that_stand_still_have_none():
    problem, _ = trained("Adam")
    diagonal = {n: torch.rand(p.shape, dtype=torch.float64) + 0.1 for n, p in problem.model.named_parameters()}
    flat = torch.cat([t.reshape(-1) for t in diagonal.values()])
    h = build_operator(problem, "hessian", "all") @ torch.eye(43, dtype=torch.float64)
    exact = flat.rsqrt()[:, None] * h * flat.rsqrt()
    for given in (diagonal, flat):
        found = lossmap.spectrum(problem, matrix="preconditioned", preconditioner=given, parameters="all")
        assert found.largest[0] == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-10)
        assert np.isnan(found.threshold) and "threshold is not known" in " ".join(repr(found).split())
    still = {**diagonal, "2.bias": torch.full((3,), torch.inf, dtype=torch.float64)}
    matrix = build_matrix(with_preconditioner(problem, still, "all"), "preconditioned", "all")
    assert not (matrix @ torch.eye(43, dtype=torch.float64))[-3:].any()


def test_what_does_not_fit_is_refused(tmp_path):
    problem, optimizer = trained("Adam")
    with pytest.raises(ValueError, match="needs the diagonal of a preconditioner"):
        lossmap.spectrum(problem, matrix="preconditioned")
    with pytest.raises(ValueError, match=r"must have shape \(43,\)"):
        with_preconditioner(problem, torch.ones(7), "all")
    with pytest.raises(ValueError, match=r"no entries for 0\.bias"):
        Preconditioner.of_diagonal({"0.weight": torch.ones(5, 4)}, {"0.weight": (5, 4), "0.bias": (5,)})
    with pytest.raises(ValueError, match="must be > 0 everywhere"):
        with_preconditioner(problem, torch.zeros(43), "all")
    with pytest.raises(ValueError, match="SGD has no preconditioner"):
        with_preconditioner(problem, torch.optim.SGD(problem.model.parameters(), lr=0.1), "all")
    with pytest.raises(ValueError, match="it has taken no step"):
        with_preconditioner(problem, torch.optim.Adam(problem.model.parameters()), "all")
    other = nn.Linear(4, 5).double()
    with pytest.raises(ValueError, match="is of 4 parameters, in number or shape not those of the model, which has 2"):
        optimizer_of_state(optimizer.state_dict(), other)
    groups = [{"params": [p]} for p in problem.model.parameters()]
    with pytest.raises(ValueError, match="several groups of parameters, and its state does not name them"):
        optimizer_of_state(torch.optim.Adam(groups).state_dict(), problem.model)
    sgd = torch.optim.SGD(problem.model.parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match="none of Adam, AdamW or RMSprop"):
        optimizer_of_state(sgd, problem.model)
    torch.save({"a": sgd, "b": sgd}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"several states of an optimizer.*a, b: name one as FILE:KEY"):
        checkpoints.optimizer_state(str(tmp_path / "two.pt"))
    assert checkpoints.optimizer_state(f"{tmp_path / 'two.pt'}:b")["param_groups"][0]["lr"] == 0.1
    with pytest.raises(ValueError, match="no state of an optimizer"):
        torch.save(other.state_dict(), tmp_path / "none.pt")
        checkpoints.optimizer_state(str(tmp_path / "none.pt"))


def damaged(change):
    """The model's problem, and the state of its named Adam after this change to it."""
    problem, optimizer = trained("Adam")
    named = torch.optim.Adam(problem.model.named_parameters(), lr=0.01, weight_decay=0.3)
    named.state = optimizer.state
    state = copy.deepcopy(named.state_dict())
    change(state)
    return problem.model, state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s["state"][0].update(exp_avg_sq=s["state"][0]["exp_avg_sq"].T),
            "0.weight has shape .*another order",
        ),
        (lambda s: s["param_groups"][0]["param_names"].reverse(), "2.bias has shape .*another order"),
        (lambda s: s["state"][0]["exp_avg_sq"].fill_(-1.0), "0.weight is negative or not finite"),
        (lambda s: s["state"][2]["exp_avg_sq"].fill_(torch.nan), "2.weight is negative or not finite"),
        (lambda s: s["state"][1].pop("step"), "0.bias does not say after how many steps"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_the_parameter(change, words):
    model, state = damaged(change)
    with pytest.raises(ValueError, match=words):
        preconditioner_of(optimizer_of_state(state, model), dict(model.named_parameters()))


def test_what_the_optimizer_has_not_moved_is_named():
    def change(state):
        state["state"].pop(2)  # no gradient so far
        state["state"][0]["step"].zero_()
        state["state"][0]["exp_avg_sq"].zero_()

    model, state = damaged(change)
    own = preconditioner_of(optimizer_of_state(state, model), dict(model.named_parameters()))
    assert own.unmoved == ("0.weight", "2.weight")
    found = lossmap.spectrum(trained("Adam")[0], matrix="preconditioned", preconditioner=own, parameters="all")
    assert "as the optimizer has not moved them by more than rounding: 0.weight, 2.weight" in " ".join(
        str(found).split()
    )


@pytest.mark.parametrize("kind", ["Adam", "RMSprop", "centered"])
def test_rows_of_tokens_that_training_has_not_met_stand_still(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    x, y = torch.randint(6, (20, 2)), torch.arange(20) % 3
    if kind == "Adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    else:
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2, centered=kind == "centered")
    for _ in range(5):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x.clamp(max=4)), y).backward()  # token 5 never comes, 0 pads
        optimizer.step()
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    own = preconditioner_of(optimizer, dict(model.named_parameters()))
    squares = "exp_avg_sq" if kind == "Adam" else "square_avg"
    is_moved = torch.cat([optimizer.state[p][squares].reshape(-1) != 0 for p in model.parameters()])
    assert is_moved[:18].view(6, 3).any(1).tolist() == [False, True, True, True, True, False]
    seen = build_matrix(with_preconditioner(problem, own, "all"), "preconditioned", "all")
    matrix = seen @ torch.eye(seen.size, dtype=torch.float64)
    assert not matrix[~is_moved].any() and not matrix[:, ~is_moved].any()
    assert matrix[is_moved].any(1).sum() > 20 and matrix.abs().max() < 1e4  # with the rows: 1e6


def test_names_with_a_wrappers_prefix_and_a_schedule_at_its_end_are_understood():
    problem, optimizer = trained("Adam")
    parameters = list(problem.model.named_parameters())
    groups = [{"params": parameters[::2], "lr": 0.01}, {"params": parameters[1::2], "lr": 0.001}]
    named = torch.optim.Adam(groups, weight_decay=0.3)
    named.state = optimizer.state
    exact = preconditioner_of(named, dict(parameters))
    state = copy.deepcopy(named.state_dict())
    for group in state["param_groups"]:
        group["param_names"] = [f"_orig_mod.module.{name}" for name in group["param_names"]]
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    found = preconditioner_of(optimizer_of_state(state, problem.model), dict(parameters))
    for name, root in exact.root.items():
        torch.testing.assert_close(found.root[name], root)
    assert np.isnan(found.threshold)
    del state["param_groups"][0]["initial_lr"]
    with pytest.raises(ValueError, match="the learning rate is 0"):
        preconditioner_of(optimizer_of_state(state, problem.model), dict(parameters))


def test_a_product_is_timed():
    problem, optimizer = trained("Adam")
    matrix = build_matrix(with_preconditioner(problem, optimizer, "all"), "preconditioned", "all")
    ticks = iter(range(1000))
    assert seconds_of_product(matrix, lambda: float(next(ticks))) == 1.0
