"""What a GPU computes with, by the switches alone: the CPU's build of PyTorch has them too."""

import sys

import pytest
import torch
from torch import nn

from lossmap import numerics as numerics_module
from lossmap.data.borrow import temporary_parameters
from lossmap.numerics import numerics, use_tf32

GPU = torch.device("cuda")
BACKENDS = torch.backends


def switches():
    cudnn = BACKENDS.cudnn
    return (
        BACKENDS.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before():
    before = switches()
    yield
    BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32 = before[:2]
    BACKENDS.cudnn.enabled, BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic = before[2:5]
    torch.use_deterministic_algorithms(before[5], warn_only=before[6])
    use_tf32(False)


@pytest.mark.parametrize("tf32", [True, False])
def test_a_gpu_computes_in_float32_whatever_the_user_has_set_and_the_users_switches_come_back(tf32):
    BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = tf32
    BACKENDS.cudnn.benchmark = True
    before = switches()
    with numerics(GPU):
        assert switches() == (False, False, True, False, True, True, True)
        with numerics(GPU, recurrent=True):
            assert not BACKENDS.cudnn.enabled
        assert BACKENDS.cudnn.enabled
    assert switches() == before
    with pytest.raises(KeyError), numerics(GPU):
        raise KeyError
    assert switches() == before


def test_tf32_is_on_where_it_was_asked_for():
    use_tf32(True)
    with numerics(GPU):
        assert BACKENDS.cuda.matmul.allow_tf32 and BACKENDS.cudnn.allow_tf32


def test_on_a_cpu_nothing_is_switched():
    before = switches()
    with numerics(torch.device("cpu"), recurrent=True):
        assert switches() == before


@pytest.mark.skipif(not hasattr(BACKENDS, "fp32_precision"), reason="the newer switches came with PyTorch 2.9")
def test_the_newer_switches_are_understood_and_come_back():
    newer = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn
    before = [owner.fp32_precision for owner in newer]
    try:
        for owner, value in zip(newer, ("tf32", "tf32", "ieee"), strict=True):
            owner.fp32_precision = value
        with pytest.raises(RuntimeError):  # the older ones cannot say it
            _ = BACKENDS.cudnn.allow_tf32
        with numerics(GPU):
            assert [owner.fp32_precision for owner in newer] == ["ieee", "ieee", "ieee"]
        assert [owner.fp32_precision for owner in newer] == ["tf32", "tf32", "ieee"]
    finally:
        for owner, value in zip(newer, before, strict=True):
            owner.fp32_precision = value


def test_a_borrowed_model_computes_so(monkeypatch):
    entered = []

    class Watched:
        def __init__(self, device, recurrent):
            entered.append((device.type, recurrent))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    monkeypatch.setattr("lossmap.data.borrow.numerics", Watched)
    with temporary_parameters(nn.Linear(2, 1), {}), torch.device("meta"):
        pass
    assert entered == [("cpu", False)]


def test_looking_at_a_compiled_function_takes_no_reference_from_none():
    """PyTorch 2.6's set_stance takes three each time, and Python before 3.12 aborts when none is left."""
    import torch._dynamo

    with numerics(torch.device("cpu")):
        pass
    before = sys.getrefcount(None)
    for _ in range(200):
        with numerics(torch.device("cpu")):
            pass
    assert before - sys.getrefcount(None) < 100


def test_the_stance_is_put_back_where_set_stance_is_not_used(monkeypatch):
    import torch._dynamo

    frames = torch._dynamo.eval_frame
    monkeypatch.setattr(numerics_module, "_set_stance_loses_references", lambda: True)
    monkeypatch.setattr(frames, "_stance", frames.DynamoStance("eager_on_recompile"))
    with pytest.raises(ValueError, match="inside"), numerics(torch.device("cpu")):
        assert frames._stance.stance == "force_eager"
        raise ValueError("inside")
    assert frames._stance.stance == "eager_on_recompile"
