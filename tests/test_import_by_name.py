"""Functions of one's own, by name."""

import random
import sys

import numpy as np
import pytest
import torch

from lossmap.import_by_name import resolve_callable


def test_a_function_of_a_package_is_found():
    import math

    assert resolve_callable("math:sqrt") is math.sqrt
    assert resolve_callable("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


def test_a_function_in_a_file_is_found_and_the_file_runs_once(tmp_path):
    (tmp_path / "nets.py").write_text("from beside_nets import value\ndef net(): return value\nclass A: pass\n")
    (tmp_path / "beside_nets.py").write_text("value = 7\n")
    spec = f"{tmp_path / 'nets.py'}:net"
    assert resolve_callable(spec)() == 7
    assert resolve_callable(spec) is resolve_callable(spec)
    made = resolve_callable(f"{tmp_path / 'nets.py'}:A")()
    assert sys.modules[type(made).__module__].A is type(made)


def test_what_a_file_draws_when_it_is_imported_is_the_same_in_each_process(tmp_path):
    """A network in a global, in the file and in one beside it: ranks and later runs must have the same."""
    source = "import random\nimport numpy as np\nimport torch\n{}\n"
    source += "DRAWN = torch.rand(3), np.random.rand(), random.random()\n"
    drawn = []
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"beside_{name}.py").write_text(source.format(""))
        text = source.format(f"import beside_{name}") + f"def net():\n    return repr((DRAWN, beside_{name}.DRAWN))\n"
        (tmp_path / name / "draws.py").write_text(text)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), random.getstate()
        drawn.append(resolve_callable(f"{tmp_path / name / 'draws.py'}:net")())
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert drawn[0] == drawn[1]


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "here_it_is.py").write_text("def f(): return 1\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_callable("here_it_is:f")() == 1


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("math", "'math' must have the form package.module:function or path/file.py:function"),
        ("math:", "must have the form"),
        (":sqrt", "must have the form"),
        ("math:sqr", "math has nothing named 'sqr'; it has sqrt"),
        ("math:pi", "math:pi is a float and cannot be called"),
        ("no_such_package_here:f", "importing no_such_package_here failed: ModuleNotFoundError"),
        ("nowhere/file.py:f", r"there is no file nowhere/file\.py"),
    ],
)
def test_a_wrong_name_is_reported_in_one_message(spec, text):
    with pytest.raises(ValueError, match=text):
        resolve_callable(spec)


@pytest.mark.parametrize("code", ["1 / 0", "import no_such_thing", "def f(:", "raise SystemExit(1)"])
def test_a_file_that_fails_is_named_and_forgotten(tmp_path, code):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(ValueError, match=r"importing .*bad\.py failed: "):
        resolve_callable(f"{tmp_path / 'bad.py'}:f")
    (tmp_path / "bad.py").write_text("def f(): return 2")
    assert resolve_callable(f"{tmp_path / 'bad.py'}:f")() == 2


def test_a_file_with_relative_imports_is_named_as_a_part_of_its_package(tmp_path):
    package = tmp_path / "project" / "nets"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "model.py").write_text("from .blocks import Block\n")
    with pytest.raises(ValueError, match=r"name it as a part of its package, project\.nets\.model:\.\.\. in place of"):
        resolve_callable(f"{package / 'model.py'}:net")
