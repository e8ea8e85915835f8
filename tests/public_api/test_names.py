"""The public names: what they are, that they explain themselves, and that a misspelt keyword is answered."""

import doctest
import inspect
import pickle
import re
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lossmap

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name in lossmap.__all__ if not name.startswith("_")]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(lossmap, name))]
MAKERS = [lossmap.Problem.supervised, lossmap.Problem.custom]


def test_there_are_about_thirty_names_and_they_are_these():
    assert 25 <= len(NAMES) <= 42
    assert {
        "Problem", "Grid", "Plane", "random_plane", "line_between", "plane_through", "pca_plane", "losses",
        "EigenvalueMap", "survey", "Surface", "read", "draw", "hessian", "gauss_newton", "eigenpairs", "trace",
        "spectral_density", "spectrum", "layer_spectra", "singular_values", "run_dynamics", "diagnose",
        "diagnose_network_health", "sharpness", "Sharpness", "connect", "Connection", "find_minima", "Topology", "page",
        "align", "empirical_fisher",
    } <= set(NAMES)  # fmt: skip


def test_in_any_order_of_imports_a_name_is_the_function_and_not_a_module():
    code = (
        "import lossmap.spectra.spectrum, lossmap.linalg.trace, lossmap.landscape.run_survey, lossmap.io.read\n"
        "from lossmap import spectrum, trace, survey, read, diagnose, losses\n"
        "import inspect\n"
        "assert all(map(inspect.isfunction, (spectrum, trace, survey, read, diagnose, losses)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_real_keywords_and_can_be_pickled(name):
    function = getattr(lossmap, name)
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("thing", [*map(lossmap.__getattr__, FUNCTIONS), *MAKERS], ids=lambda f: f.__qualname__)
def test_a_public_function_explains_each_argument_what_it_returns_and_raises(thing):
    text = inspect.getdoc(thing)
    assert all(f"\n{section}:\n" in text for section in ("Args", "Returns", "Raises", "Example")), thing
    part = text.split("\nArgs:\n")[1].split("\nReturns:")[0]
    described = re.findall(r"^    (\w+): ", part, re.MULTILINE)
    parameters = [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]
    assert sorted(described) == sorted(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_gives_what_it_says(name):
    examples = [t for t in doctest.DocTestFinder().find(getattr(lossmap, name), name, module=False) if t.examples]
    assert examples, f"{name} has no example"
    for example in examples:
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        report: list[str] = []
        runner.run(example, out=report.append)
        assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lossmap.spectral_density(None, probe=3), "unexpected keyword 'probe'; did you mean 'probes'?"),
        (lambda: lossmap.survey(None, None, pth="a.h5"), "unexpected keyword 'pth'; did you mean 'path'?"),
        (lambda: lossmap.Grid.square(-1, 1, cuont=3), "unexpected keyword 'cuont'; did you mean 'count'?"),
        (lambda: lossmap.Problem.supervised(None, "mse", (), batchsize=3), "did you mean 'batch_size'?"),
        (lambda: lossmap.EigenvalueMap(None, None, parameter="all"), "did you mean 'parameters'?"),
        (lambda: lossmap.read("a.h5", qqqqqq=1), "unexpected keyword 'qqqqqq'; it takes path, kind"),
    ],
)
def test_a_misspelt_keyword_is_a_type_error_that_names_the_nearest(call, sentence):
    with pytest.raises(TypeError, match=re.escape(sentence)):
        call()


def frames_of(call):
    """The functions in the traceback of an error, outermost first."""
    try:
        call()
    except Exception as error:
        return [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    raise AssertionError("it raised nothing")


def test_in_a_notebook_a_refusal_comes_without_the_frames_within_and_other_errors_with_all(monkeypatch):
    class ZMQInteractiveShell:
        pass

    monkeypatch.delenv("LOSSMAP_DEBUG", raising=False)
    model = torch.nn.Linear(4, 3)

    def refused():
        lossmap.random_plane(model, norm="no such norm")

    def broken():
        lossmap.hessian(lossmap.Problem.custom(model, int, torch.randn(3, 4)))

    assert "random_axis" in frames_of(refused)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=ZMQInteractiveShell))
    assert frames_of(refused) == ["frames_of", "refused", "checked"]
    assert len(frames_of(broken)) > 4
    monkeypatch.setenv("LOSSMAP_DEBUG", "1")
    assert "random_axis" in frames_of(refused)


def test_the_stub_lists_what_there_is():
    listed = re.findall(r"import \w+ as (\w+)", (ROOT / "lossmap" / "__init__.pyi").read_text())
    assert sorted(listed) == sorted(NAMES)


def test_mypy_strict_passes_on_a_users_script_and_sees_what_is_wrong_in_it():
    scripts = ["examples/everything.py", "tests/public_api/user_script.py"]
    command = [sys.executable, "-m", "mypy", *scripts]  # strict by pyproject.toml, so that the package's cache serves
    if np.__version__ < np.lib.NumpyVersion("2.0.0"):  # its stubs find errors in the package that newer ones do not
        command.append("--follow-imports=silent")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_problem_made_by_its_class_says_what_makes_one():
    model, data = torch.nn.Linear(2, 1), (torch.ones(3, 2), torch.ones(3, 1))
    for arguments in ((model, "mse", data), (model,), (*range(20),)):
        with pytest.raises(
            TypeError, match=r"argument.*; make it by Problem.supervised\(model, loss, data\) or Problem"
        ):
            lossmap.Problem(*arguments)


@pytest.mark.parametrize("name", ["hessian", "gauss_newton", "losses", "sharpness", "spectrum", "connect"])
def test_a_model_in_the_place_of_a_problem_is_named(name):
    with pytest.raises(TypeError, match=rf"{name}\(\) takes a Problem, and got a model: Problem.supervised"):
        getattr(lossmap, name)(torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match="takes a Problem, and got a model"):
        getattr(lossmap, name)(problem=torch.nn.Linear(2, 1))


def test_a_matrix_that_is_a_module_is_taken_for_a_matrix():
    class Twice(torch.nn.Module):
        shape = (3, 3)

        def matvec(self, v):
            return 2.0 * v

    assert lossmap.spectrum(Twice(), top=1).top.values == pytest.approx([2.0])
