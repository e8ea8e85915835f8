"""What there is of a spectrum whose process was killed: made of its tasks, the same as in the complete file."""

from dataclasses import replace

import numpy as np
import pytest

from lossmap.cli.__main__ import main
from lossmap.io.read import read
from lossmap.plotting.dispatch import figures_of
from lossmap.plotting.unfinished_spectra import MISSING, missing_parts, with_unfinished

QUICK = "--model mlp --samples 32 --device cpu --threads 1 --hvp-backend double-backward --split both --matrix both"
DENSITY = "--trace-products 6 --density-steps 8 --density-probes 2 --top 2"


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    path = tmp_path_factory.mktemp("spectrum") / "s.h5"
    assert main(["spectrum", *QUICK.split(), *DENSITY.split(), "--surf-file", str(path)]) == 0
    return read(path)


def unfinished(surface, *kinds):
    """The surface as a kill leaves it when the tasks of these kinds are done."""
    left = {name: group for name, group in surface.groups.items() if name.split("/")[2:3] in [[k] for k in kinds]}
    return with_unfinished(replace(surface, groups=left))


def test_what_is_made_of_the_tasks_is_what_the_complete_file_holds(complete):
    made = unfinished(complete, "ends", "trace", "density")
    labels = [name for name in complete.groups if name.startswith("spectrum/")]
    assert len(labels) == 4
    for name in labels:
        there, here = complete.groups[name], made.groups[name]
        for array in ("top", "top_error", "bottom", "bottom_error"):
            assert np.array_equal(there[array], here[array])
        assert np.allclose(there["node"], here["node"], rtol=0, atol=1e-12 * np.abs(there["node"]).max())
        for attribute in ("label", "matrix", "unit", "size", "trace", "trace_error", "upper_limit", "lower_limit"):
            assert there.attributes[attribute] == here.attributes[attribute]
        assert here.attributes[MISSING] == "the error band of the density"


@pytest.mark.parametrize(
    ("kinds", "missing"),
    [(("ends",), "trace, density"), (("gradient", "trace"), "eigenvalues, density"), (("ends", "trace"), "density")],
)
def test_what_is_not_there_is_named_and_what_is_there_is_drawn(complete, kinds, missing):
    made = unfinished(complete, *kinds)
    assert set(missing_parts(made).values()) == {missing}
    figures = figures_of(made)
    assert bool(figures) == ("ends" in kinds)
    for figure in figures.values():
        assert "unfinished" in figure.get_suptitle()


def test_a_complete_file_is_drawn_as_it_is(complete):
    assert with_unfinished(complete) is complete and not missing_parts(complete)
