"""`lossmap init`: what it writes runs as it is, by the commands that it prints."""

import re
import shlex

import pytest

import lossmap
from lossmap.cli.__main__ import main
from lossmap.cli.init import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_runs_by_the_commands_that_are_printed(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"own {kind}.py"  # the commands are to be pasted into a shell
    assert main(["init", name, "--kind", kind]) == 0
    commands = re.findall(r"^  lossmap (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["surface", "spectrum"]
    for command in commands:
        words = [re.sub(r"=-1:1:25", "=-1:1:3", w) for w in shlex.split(command) if w != "--plot"]
        assert main(words) == 0
    assert lossmap.read("surface.h5").outcome == "complete"
    inside = re.search(r"^    (lossmap surface .+) --plot$", (tmp_path / name).read_text(), re.MULTILINE)
    assert main([*shlex.split(inside[1])[1:], "--dry-run"]) == 0


def test_nothing_is_replaced_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mymodel.py").write_text("mine")
    assert main(["init"]) == 2
    assert "mymodel.py exists; --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "mymodel.py").read_text() == "mine"
    assert main(["init", "--overwrite"]) == 0
    assert main(["init", "model.txt"]) == 2
    assert main(["init", "nowhere/model.py"]) == 2


@pytest.mark.parametrize("name", ["torch.py", "random.py", "numpy.py"])
def test_a_name_that_would_be_imported_in_another_modules_place_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", name]) == 2
    assert f"{name} would be imported in the place of Python's module {name[:-3]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
