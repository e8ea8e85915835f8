"""Copies of large tensors: equal to a clone, and of their own from the first write on, whoever writes, and how."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lossmap import copies
from lossmap.copies import copy_without_memory, lazy_copy, same_memory


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    monkeypatch.setattr(copies, "MIN_LAZY_BYTES", 0)


WRITES = {
    "in place": lambda t: t.add_(1),
    "a view": lambda t: t.view(-1)[2:4].zero_(),
    "data": lambda t: t.data.mul_(2),
    "numpy": lambda t: np.multiply(t.numpy(), 2, out=t.numpy()),
    "out": lambda t: torch.exp(torch.ones(4, 5), out=t),
    "renorm": lambda t: F.embedding(torch.tensor([1, 2]), t, max_norm=0.1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
@pytest.mark.parametrize("to_copy", [True, False])
def test_a_write_to_one_leaves_the_other(write, to_copy):
    t = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    before = t.tolist()
    twin = lazy_copy(t)
    assert same_memory(t, twin) and twin.tolist() == before
    written, other = (twin, t) if to_copy else (t, twin)
    write(written)
    assert other.tolist() == before and written.tolist() != before and not same_memory(t, twin)


def test_reading_and_differentiating_takes_no_copy():
    layer = nn.Linear(20, 20)
    twin = nn.Linear(20, 20)
    twin.weight.data = lazy_copy(layer.weight)
    loss = twin(torch.randn(3, 20)).tanh().square().sum()
    (slope,) = torch.autograd.grad(loss, twin.weight, create_graph=True)
    torch.autograd.grad(slope.square().sum(), twin.weight)
    assert same_memory(twin.weight.data, layer.weight.data)


@pytest.mark.parametrize(
    "t",
    [torch.from_numpy(np.ones(6)), torch.ones(4, 6)[:, 1:3], torch.ones(1).expand(8), torch.eye(3).to_sparse()],
    ids=["numpy", "a view", "expanded", "sparse"],
)
def test_what_cannot_wait_is_copied_at_once(t):
    twin = lazy_copy(t)
    assert not same_memory(t, twin) and torch.equal(twin.to_dense(), t.to_dense())
    assert copy_without_memory(t) is None


def test_a_copy_without_memory_is_one_that_waits():
    t = torch.ones(4, 5)
    twin = copy_without_memory(t)
    assert same_memory(t, twin)
    t += 1
    assert twin.tolist() == torch.ones(4, 5).tolist()


def test_copies_are_no_inference_tensors_and_travel():
    with torch.inference_mode():
        t = torch.ones(3)
    twin = lazy_copy(t)
    assert not twin.is_inference() and not twin.requires_grad
    assert torch.equal(pickle.loads(pickle.dumps(twin)), t) and torch.equal(copy.deepcopy(twin), t)


def test_a_numpy_array_that_was_taken_before_writes_into_both_as_the_docs_say():
    t = torch.ones(4, 5)
    taken = t.numpy()
    twin = lazy_copy(t)
    taken += 1
    assert twin.tolist() == t.tolist() == taken.tolist()  # no write that PyTorch could see
    t.numpy()[0] = 7
    assert twin[0].tolist() == [2.0] * 5  # an array that is taken afterwards counts as a write
