"""What of a batch a model takes: the rest is left out and reported, or refused where it may be an argument."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lossmap.data.batches import FixedBatches, Resident
from lossmap.data.model_entries import entries_of
from lossmap.data.problem import Problem

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Masked(nn.Module):
    """A model with an argument that may be left out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask=None):
        return self.layer(x if mask is None else x * mask)


class Teacher(Masked):
    """A model one of whose arguments has a usual name of targets."""

    def forward(self, x, y=None):
        return self.layer(x if y is None else x + y)


class Flagged(Masked):
    """A model with an argument that evidently takes no words, but any of them for true."""

    def forward(self, x, doubled=False, by: torch.Tensor | None = None):
        return self.layer((2 if doubled else 1) * x * (1 if by is None else by))


class Reader(Masked):
    """A model with an argument of words."""

    def forward(self, x, texts: list[str] | None = None):
        return self.layer(x + (0 if texts is None else len(texts[0])))


class Samples(Dataset):
    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.entries(i)


def mean_loss(problem):
    sums = [problem.total(batch) for batch in problem.data]
    return float(sum(sums).detach()) / problem.samples


WAYS = [
    lambda d: DataLoader(d, 5),
    lambda d: d,
    lambda d: list(DataLoader(d, 5)),
    lambda d: DataLoader(d, 5).__iter__(),
]
KINDS = {
    "words": lambda i: {"x": X[i], "y": Y[i], "path": f"{i}.png"},
    "number": lambda i: {"index": i, "x": X[i], "y": Y[i]},
    "words named as targets": lambda i: {"x": X[i], "label": "cat", "target": Y[i]},
    "other name": lambda i: {"image": X[i], "label": Y[i], "path": f"{i}.png"},
    "beside": lambda i: ({"x": X[i], "name": f"{i}"}, Y[i]),
    "words before": lambda i: (X[i], f"{i}.png", Y[i]),
    "words behind": lambda i: (X[i], Y[i], f"{i}.png"),
    "words before, another argument": lambda i: (X[i], f"{i}.png", Y[i]),
    "words within": lambda i: ((X[i], f"{i}.png"), Y[i]),
}


@pytest.mark.parametrize("way", range(len(WAYS)))
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_does_not_take_is_left_out(kind, way, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)) if kind in ("words before", "words within", "other name") else Masked()
    if kind == "words before, another argument":
        model = Flagged()
    problem = Problem.supervised(model, "crossentropy", WAYS[way](Samples(KINDS[kind])))
    layer = model[0] if isinstance(model, nn.Sequential) else model.layer
    assert isinstance(problem.data, Resident)
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(layer(X), Y).item(), rel=1e-5)
    assert "left out of the batches" in caplog.text and "uncut" not in caplog.text


def test_an_entry_with_a_name_of_targets_reaches_the_argument_of_that_name():
    model, shift = Teacher(), torch.ones(12, 4)
    problem = Problem.supervised(model, "crossentropy", [{"x": X, "y": shift, "labels": Y}])
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(model.layer(X + 1), Y).item(), rel=1e-5)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_wrapper_takes_what_the_model_within_takes(wrap):
    model = Masked()
    problem = Problem.supervised(wrap(model), "crossentropy", [{"x": X, "y": Y, "path": ["a"] * 12}])
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(model.layer(X), Y).item(), rel=1e-5)


def test_a_tensor_that_may_be_an_argument_is_refused_by_its_name():
    batch = {"x": X, "msk": torch.ones(12, 4), "y": Y}
    with pytest.raises(ValueError, match=r"hold msk, which Masked\.forward does not take; .*lack mask: give"):
        Problem.supervised(Masked(), "crossentropy", [batch])
    with pytest.raises(ValueError, match=r"hold image, depth, which Linear\.forward does not take"):
        Problem.supervised(nn.Linear(4, 3), "crossentropy", [{"image": X, "depth": X, "y": Y}])


def test_batches_that_were_not_cut_join_without_what_kept_them_apart():
    batches = tuple({"x": X[i : i + 4], "y": Y[i : i + 4], "path": [f"{i}"] * 4} for i in (0, 4, 8))
    problem = Problem.supervised(Masked(), "crossentropy", FixedBatches(batches))
    assert isinstance(problem.data, Resident) and problem.data.samples == 12


def test_a_model_that_takes_any_keyword_is_given_all():
    class Any(Masked):
        def forward(self, x, **others):
            return self.layer(x * others["mask"])

    model = Any()
    problem = Problem.supervised(model, "crossentropy", [{"x": X, "mask": 2 * torch.ones(12, 4), "y": Y}])
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(model.layer(2 * X), Y).item(), rel=1e-5)


def test_what_is_taken_whole_is_the_same_object():
    batch = {"x": X, "y": Y}
    assert entries_of(Masked())(batch) is batch


@pytest.mark.parametrize("pack", [lambda x, words, y: (x, words, y), lambda x, words, y: ((x, words), y)])
def test_words_in_the_place_of_an_optional_argument(pack):
    words = ["abc"] * 12
    reader = Reader()
    problem = Problem.supervised(reader, "crossentropy", [pack(X, words, Y)])
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(reader.layer(X + 3), Y).item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"hold words in the place of mask, an optional argument of Masked\.forward"):
        Problem.supervised(Masked(), "crossentropy", [pack(X, words, Y)])
    flagged, by = Flagged(), torch.full((12, 4), 3.0)
    problem = Problem.supervised(flagged, "crossentropy", [(X, False, by, words, Y)])
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(flagged.layer(3 * X), Y).item(), rel=1e-5)


def test_texts_are_one_argument():
    class Lengths(nn.Linear):
        def forward(self, texts):
            return super().forward(torch.tensor([[float(len(text))] for text in texts]))

    model, texts = Lengths(1, 3), ["a", "bcd"]
    for batch in ((texts, Y[:2]), (tuple(texts), Y[:2])):
        problem = Problem.supervised(model, "crossentropy", [batch])
        assert mean_loss(problem) == pytest.approx(F.cross_entropy(model(texts), Y[:2]).item(), rel=1e-5)


def test_whole_numbers_of_samples_that_go_to_an_optional_argument_are_reported(caplog):
    Problem.supervised(Masked(), "crossentropy", [(X[:4], torch.arange(4), Y[:4]), (X, torch.ones(12, 4), Y)])
    assert caplog.text.count("which is given to Masked.forward as mask; the last entry is the target") == 1
