"""The pages that are to be copied are run: files are written, commands and Python executed in their order."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from lossmap.cli.__main__ import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
QUICK = "--hvp-backend double-backward --no-probe"
# Smaller than on the page, so that the test is quick: patterns in commands and in Python.
SMALLER = (
    (r"--(x|y)=(-?[\d.]+):(-?[\d.]+):\d+", r"--\1=\2:\3:3"),
    # the run of the demo, which its own test trains
    (r"--model resnet20-w8(.*(?:--folder run|--final other.pt|--other-seed .*))$", r"--model mlp --epochs 1\1"),
    (r"^lossmap dynamics (.*) --epochs 1", r"lossmap dynamics \1"),
    (r"--epochs \d+", "--epochs 1"),
    (r"--save-every \d+", "--save-every 10"),
    (r"square\(-1, 1, \d+\)", "square(-1, 1, 3)"),
    (r"line\(-1, 1, \d+\)", "line(-1, 1, 3)"),
    (
        r"^lossmap spectrum (.*)",
        r"lossmap spectrum \1 --samples 64 --density-steps 8 --density-probes 1 --top 2 " + QUICK,
    ),
    (
        r"^lossmap dynamics (.*)--samples 256 --top 3",
        r"lossmap dynamics \1--samples 32 --top 1 --tol 0.1 --hvp-backend double-backward",
    ),
    (r"^lossmap dynamics (.*)--samples 128 --top 3", r"lossmap dynamics \1--samples 32 --top 1 --tol 0.1"),
    (r"^lossmap connect (.*)", r"lossmap connect \1 --samples 64 --points 5 --no-probe"),
    (r"^lossmap sharpness (.*)", r"lossmap sharpness \1 --samples 64 --draws 2 --ascent-steps 2 --trace-products 8"),
    (r"^lossmap study (?!neurons)(.*)", r"lossmap study \1 --seeds 1 --epochs 1 --samples 16 --threads 1"),
    (r"^lossmap study depth (.*)", r"lossmap study depth \1 --depths 8 --ticks 5"),
    (r"^lossmap study plane-curvature (.*)", r"lossmap study plane-curvature \1 --planes 2"),
    (r"\[:2\]", "[:1]"),
    (r"^lossmap eigenmap (.*)", r"lossmap eigenmap \1 --certify none " + QUICK),
)
PAGES = {
    "start.md": {"line.h5", "line.pdf", "plane.h5", "spectrum.h5", "eigen.h5", "plane-3d.pdf", "surface.png"},
    "sharpness.md": {"sharpness.h5", "sharpness.png", "rescaled.h5"},
    "connect.md": {"a.pt", "aligned.h5", "b-aligned.pt", "b.pt", "line.h5", "line.png"},
    "topology.md": {"surface_topology.pdf", "surface_topology.png", "minima.h5", "other.h5"},
    "studies.md": {"study-flatness", "study-depth", "study-generalisation", "study-plane-curvature", "study-neurons"},
    "equilibrium.md": {"run", "other.pt", "run.h5", "run.png"},
    "campaigns.md": {"sweep.toml", "sweep", "decays.csv", "logs"},
    "how-to/own-model.md": {"huber.h5", "decay.h5", "decay-spectrum.h5", "head.h5", "tagger.h5"},
    "how-to/directions.md": {"net.pt", "sharpest.h5"},
    "how-to/paper-figure.md": {"one.h5", "pair.pdf", "contours.svg", "relief.png"},
    "how-to/page.md": {"one.html", "pair.html"},
    "how-to/callbacks.md": {"training.h5", "training.png", "lightning.h5", "bert.h5"},
    "how-to/fine-tuning.md": {"run.h5", "between.h5", "both.h5", "path.h5", "path-plane.h5"},
}


def blocks(page):
    """The code blocks of a page: (language, file name or nothing, text)."""
    return re.findall(
        r'^```(sh|python|toml)(?: title="([\w.]+)")?\n(.*?)^```', (DOCS / page).read_text(), re.DOTALL | re.M
    )


def smaller(line):
    for pattern, replacement in SMALLER:
        line = re.sub(pattern, replacement, line)
    return line


def run_line(line):
    """One line of a shell block, in this process; ranks of mpirun are left to the README's test."""
    words = shlex.split(smaller(re.sub(r"^mpirun -n \d+ ", "", line)), comments=True)
    if words[:1] == ["lossmap"]:
        assert main(words[1:]) == 0, line
    elif words[:2] == ["sed", "-i"]:
        subprocess.run(words, check=True)
    elif words[:1] == ["python"]:
        runpy.run_path(words[1], run_name="__main__")
    else:
        assert words[:2] in ([], ["pip", "install"]), line


# The libraries of others warn as they like.
OF_OTHERS = {"how-to/callbacks.md"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.filterwarnings("ignore")) if page in OF_OTHERS else page for page in PAGES],
)
def test_a_page_works_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    namespace = {"__name__": "page"}
    for language, name, text in blocks(page):
        if name:
            (tmp_path / name).write_text(text)
        elif language == "python":
            exec(smaller(text), namespace)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line)
    for name in set(sys.modules) - before:
        if name in ("mynet", "project", "prepare", "decays"):
            del sys.modules[name]
    plt.close("all")
    assert PAGES[page] <= {path.name for path in tmp_path.iterdir()}
