"""The Monte-Carlo Fisher matrix: dense sums over what was drawn, its mean, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lossmap
from lossmap.curvature.build import build_operator, product_of
from lossmap.curvature.drawn_targets import with_drawn_targets
from lossmap.curvature.matrices import monte_carlo_fisher
from lossmap.data.batches import FixedBatches, Streamed
from lossmap.data.drawn_loss import CATEGORICAL, Draws
from lossmap.data.problem import Problem

DOUBLE = torch.float64


class Pixels(nn.Module):
    """(N, 2, 5) -> (N, 3, 5): classes of pixels, one weight used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 2, 1, bias=False)
        self.last = nn.Conv1d(2, 3, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


def case(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    x, labels = torch.randn(10, 3, dtype=DOUBLE), torch.arange(10) % 3
    numbers, hits = torch.randn(10, 3, dtype=DOUBLE), (torch.rand(10, 3) > 0.5).to(DOUBLE)
    some = labels.clone()
    some[3] = -100
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE)
    pixels = torch.randint(0, 3, (6, 5))
    pixels[0, 2] = pixels[4, 0] = -100
    cases = {
        "labels": (net, "crossentropy", labels),
        "own function": (net, lambda f, y: nn.functional.cross_entropy(f, y), labels),
        "probabilities": (net, nn.CrossEntropyLoss(), torch.rand(10, 3, dtype=DOUBLE).softmax(1)),
        "weighted": (net, nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1), some),
        "summed": (net, nn.CrossEntropyLoss(reduction="sum"), labels),
        "binary": (net, nn.BCEWithLogitsLoss(pos_weight=weight), hits),
        "squares": (net, "mse", numbers),
        "sums of squares": (net, nn.MSELoss(reduction="sum"), numbers),
    }
    if name == "pixels":
        model = Pixels().to(DOUBLE)
        return Problem.supervised(model, "crossentropy", (torch.randn(6, 2, 5, dtype=DOUBLE), pixels), batch_size=4)
    model, loss, targets = cases[name]
    return Problem.supervised(model, loss, (x, targets), batch_size=4)


NAMES = (
    "labels",
    "own function",
    "probabilities",
    "weighted",
    "summed",
    "binary",
    "squares",
    "sums of squares",
    "pixels",
)


def language_model():
    """A causal model of Hugging Face whose loss is a mean over the tokens that follow others and are not ignored."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=7, tie_word_embeddings=True, **sizes)
    tokens = torch.randint(1, 7, (5, 4))
    labels = tokens.clone()
    labels[0, 2:] = -100
    model = transformers.LlamaForCausalLM(config).to(DOUBLE)
    return lossmap.huggingface(model, {"input_ids": tokens, "labels": labels}, batch_size=2)


def columns(matrix):
    return matrix @ torch.eye(matrix.size, dtype=matrix.dtype)


def jacobian(problem, sample):
    """(outputs, n) of one sample, by reverse mode, output by output."""
    parameters = list(problem.model.parameters())
    outputs = problem.forward(problem.model, sample)
    rows = [torch.autograd.grad(f, parameters, retain_graph=True) for f in outputs.reshape(-1)]
    return outputs.detach(), torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def scores(distribution, outputs, drawn, root):
    """sqrt(c) times minus the derivative of the log density, (1, classes, ...), by its formula."""
    kind, dimension = distribution.kind, distribution.dimension
    if kind == "Gaussian":
        return root * drawn
    if kind == "Bernoulli":
        return root * (torch.sigmoid(outputs) - drawn)
    classes = dimension % outputs.dim()
    hot = nn.functional.one_hot(drawn, outputs.shape[classes]).movedim(-1, classes)
    return root.unsqueeze(classes) * (outputs.softmax(classes) - hot)


def gradients(drawn):
    """(rows, n): each sample's gradient at each of its draws, one by one, from formulas."""
    rows = []
    for own, y, root in drawn.rebatched(1).data:
        outputs, slope = jacobian(replace(drawn, forward=drawn.forward.forward), own)
        rows.append(scores(drawn.loss.distribution, outputs, y, root).reshape(-1) @ slope)
    return torch.stack(rows), drawn.samples


@pytest.mark.parametrize("name", [*NAMES, "next token"])
def test_it_is_the_dense_sum_over_the_drawn_targets_and_its_mean_is_gauss_newton(name):
    problem = language_model() if name == "next token" else case(name)
    problem = replace(problem, draws=Draws(seed=3, count=2))
    g, weight = gradients(with_drawn_targets(problem))
    matrix = build_operator(problem, "mc-fisher", "all")
    torch.testing.assert_close(columns(matrix), g.T @ g / weight, rtol=1e-9, atol=1e-12)
    # the mean over many draws, along random vectors, within five of its standard errors (measured over draws)
    many = with_drawn_targets(problem, Draws(seed=4, count=400))
    samples = problem.data.samples
    v = torch.randn(matrix.size, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    terms = torch.zeros(400, 8, dtype=DOUBLE)
    _, drawn, root = next(iter(many.rebatched(400 * samples).data))
    for i, sample in enumerate(problem.rebatched(1).data):
        outputs, slope = jacobian(problem, sample)
        own = slice(i, None, samples)
        s = scores(many.loss.distribution, outputs.expand(400, *outputs.shape[1:]), drawn[own], root[own]).flatten(1)
        terms += (s @ (slope @ v)).square() / problem.samples
    truth = (v * (columns(build_operator(problem, "gauss-newton", "all")) @ v)).sum(0)
    gap = (terms.mean(0) - truth).abs() / (terms.std(0) / 20)
    assert float(gap.max()) < 5.0
    assert float((terms.std(0) / 20 / truth).max()) < 0.25  # so that the factor of two, say, would be seen


def test_draws_are_those_of_the_sample_whatever_batches_shares_and_precision():
    problem = replace(case("labels"), draws=Draws(seed=5, count=1))
    _, whole, _ = next(iter(with_drawn_targets(problem).rebatched(10).data))
    for parts in (2, 3):
        shares = [with_drawn_targets(problem.share(r, parts).rebatched(r + 1)) for r in range(parts)]
        assert torch.equal(torch.cat([y for s in shares for _, y, _ in s.data]), whole)
    single = replace(problem, model=case("labels").model.float(), data=problem.data.to(dtype=torch.float32))
    assert torch.equal(next(iter(with_drawn_targets(single).rebatched(10).data))[1], whole)
    x, y = problem.data.tensors
    streamed = problem.with_data(Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(10), 3))
    assert torch.equal(torch.cat([d for _, d, _ in with_drawn_targets(streamed).data]), whole)
    twice = with_drawn_targets(streamed, Draws(5, 2)).share(1, 4)  # a share of what was drawn, across two draws
    assert torch.equal(torch.cat([d for _, d, _ in twice.data]), whole[5:10])
    fixed = problem.with_data(FixedBatches(((x[:7], y[:7]), (x[7:], y[7:]))))
    assert torch.equal(torch.cat([d for _, d, _ in with_drawn_targets(fixed).data]), whole)
    assert torch.equal(torch.cat([d for _, d, _ in with_drawn_targets(fixed.share(1, 2)).data]), whole[7:])
    other = next(iter(with_drawn_targets(problem, Draws(6)).rebatched(10).data))[1]
    assert not torch.equal(other, whole)


def test_labels_are_drawn_with_the_probabilities_of_the_model():
    problem = case("labels")
    drawn = with_drawn_targets(problem, Draws(seed=0, count=1000))
    assert drawn.loss.distribution.kind == CATEGORICAL
    _, y, _ = next(iter(drawn.rebatched(10000).data))
    shares = nn.functional.one_hot(y.reshape(1000, 10), 3).to(DOUBLE).mean(0)
    p = problem.model(problem.data.tensors[0]).softmax(1).detach()
    assert float(((shares - p) / (p * (1 - p) / 1000).sqrt()).abs().max()) < 4.5


@pytest.mark.parametrize("backend", ["linearized", "double-backward"])
def test_every_backend_has_the_same_matrix_in_float32_and_with_frozen_parameters(backend):
    problem = case("weighted")
    truth = columns(monte_carlo_fisher(problem, seed=2, parameters="all"))
    model = case("weighted").model.float()
    model[0].weight.requires_grad_(False)
    single = replace(problem, model=model, data=problem.data.to(dtype=torch.float32))
    found = columns(monte_carlo_fisher(single, seed=2, parameters="all", backend=backend)).double()
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("mse", "mse"),  # of classes: the softmax against one-hot rows
        (nn.NLLLoss(), "NLLLoss"),
        (nn.MultiMarginLoss(p=2), "MultiMarginLoss"),
        (nn.L1Loss(), "L1Loss"),
        (nn.HuberLoss(delta=0.5), "HuberLoss"),
        (nn.PoissonNLLLoss(), "PoissonNLLLoss"),
    ],
)  # fmt: skip
def test_a_loss_that_implies_no_distribution_of_targets_is_refused_by_name(loss, name):
    problem = case("labels" if name in ("mse", "NLLLoss", "MultiMarginLoss") else "squares")
    with pytest.raises(ValueError, match=f"categorical, Bernoulli or Gaussian.*; {name} is none"):
        product_of(Problem.supervised(problem.model, loss, problem.data), "mc-fisher")


def test_a_loss_of_probabilities_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    data = (torch.randn(12, 4), (torch.arange(36).reshape(12, 3) % 2).float())
    with pytest.raises(ValueError, match="BCELoss is none"):  # outside of 0 to 1 it is an error
        product_of(Problem.supervised(model, nn.BCELoss(), data), "mc-fisher")


def coupled(outputs, targets):
    return nn.functional.cross_entropy(outputs - outputs.mean(0), targets)


def test_a_loss_that_couples_samples_and_one_in_one_step_are_refused():
    problem = case("labels")
    with pytest.raises(ValueError, match="coupled is none"):
        with_drawn_targets(Problem.supervised(problem.model, coupled, problem.data))
    own = Problem.custom(problem.model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), problem.data)
    with pytest.raises(ValueError, match="need outputs and loss as two steps"):
        with_drawn_targets(own)


def test_the_spectrum_says_how_targets_were_drawn_and_keeps_the_loss_of_the_data():
    problem = case("labels")
    found = lossmap.spectrum(problem, matrix="mc-fisher", parameters="all", seed=7, fisher_draws=3, top=2)
    truth = torch.linalg.eigvalsh(columns(monte_carlo_fisher(problem, draws=3, seed=7, parameters="all")))
    assert found.largest[0] == pytest.approx(float(truth[-1]), rel=1e-9)
    assert found.loss == pytest.approx(lossmap.spectrum(problem, parameters="all").loss)
    assert found.samples == 10 and "2/lambda_max" not in repr(found)
    assert "Monte-Carlo Fisher matrix" in repr(found) and "3 for each sample, from seed 7" in " ".join(
        repr(found).split()
    )
    layers = lossmap.layer_spectra(problem, matrix="mc-fisher", seed=7, probes=0)
    own = columns(monte_carlo_fisher(problem, seed=7, parameters="^0.weight$"))
    assert layers["0.weight"].values[-1] == pytest.approx(float(torch.linalg.eigvalsh(own)[-1]), rel=1e-9)
    with pytest.raises(ValueError, match="draws of each sample must be >= 1; got 0"):
        monte_carlo_fisher(problem, draws=0)
