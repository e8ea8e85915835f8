"""For every test: one thread, a fixed seed, no cache, the reference files."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
if os.environ.get("LOSSMAP_GPU_TESTS") != "1":  # `make gpu` sets it; all other tests are of the CPU's numbers
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["LOSSMAP_CACHE"] = "off"  # nothing is written into a home, and no test depends on another one's probe

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import settings

# No deadlines on busy machines. The same examples each time, so that a red run is a change's own fault and green means
# green; LOSSMAP_RANDOM_TESTS=1 draws new ones for a developer who looks for faults, but never in CI.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, derandomize=False)


def hypothesis_profile(environ: Mapping[str, str]) -> str:
    """The Hypothesis profile for these environment variables."""
    if environ.get("CI") or environ.get("LOSSMAP_RANDOM_TESTS") != "1":
        return "fixed"
    return "random"


settings.load_profile(hypothesis_profile(os.environ))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none begins when the other workers have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference files; the test is skipped by name where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the reference files are not here: ../shared/reference")
    return folder
