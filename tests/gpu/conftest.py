"""Tests that need a CUDA device: `make gpu`. Elsewhere they are skipped by name."""

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu():
    """The device; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here, or it is hidden from the tests: `make gpu` shows it")
    return torch.device("cuda", 0)
