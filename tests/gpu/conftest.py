"""Tests that need a CUDA device; skipped by name where there is none. Read by `make gpu` too."""

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu():
    """The device; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    return torch.device("cuda", 0)
