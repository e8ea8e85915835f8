"""The command line as a whole: its list of commands, the help of each, examples, former names of flags."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lossmap.cli import COMMANDS, draw, resume
from lossmap.cli.__main__ import main
from lossmap.cli.resume import EXAMPLES as RESUME_EXAMPLES
from lossmap.cli.resume import split_words
from lossmap.cli.settings import flag_of, former_names, renamed
from lossmap.cli.wrapped_command import SURVEYS, TASKS, module_of, split_at_dashes

WITH_SETTINGS = sorted(set(COMMANDS) - {"resume"})
SECTIONS = re.compile(r"^(\w+) options:$", re.MULTILINE)


def command_of(name):
    return draw.WATCH if name == "watch" else module_of(name).COMMAND


def help_of(name):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return out.getvalue()


def check(words):
    """Parse a command line, and the one behind its dashes, without running it. Raises where it is wrong."""
    words = words[words.index("lossmap") + 1 :]
    name, rest = words[0], words[1:]
    if name in ("estimate", "submit"):
        rest, behind = split_at_dashes(rest, "")
        check(["lossmap", *behind])
    if name == "resume":
        name, rest = "surface", split_words(rest)[1]
    return command_of(name).parse(rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_ends_with_two_or_three_examples_that_parse(name):
    text = help_of(name)
    assert text.count("EXAMPLES") == 1
    examples = text.split("EXAMPLES\n")[1].strip().splitlines()
    assert 2 <= len(examples) <= 3
    for line in examples:
        words = shlex.split(line)
        assert words[words.index("lossmap") + 1] == name
        check(words)
    assert tuple(line.strip() for line in examples) == (
        RESUME_EXAMPLES if name == "resume" else command_of(name).examples
    )


def test_a_flag_of_other_commands_is_named_as_such():
    with pytest.raises(ValueError, match="unknown flag --budget: other commands have it, lossmap plane has not"):
        check(shlex.split("lossmap plane --model mlp --budget 5s"))
    for command, flag in (("train", "--model-folder"), ("train", "--model-file2"), ("sharpness", "--model-file3")):
        with pytest.raises(ValueError, match=f"unknown flag {flag}: other commands have it"):
            check(shlex.split(f"lossmap {command} --model mlp {flag} a.pt"))


def test_an_example_that_does_not_parse_would_be_noticed():
    with pytest.raises(ValueError, match="unknown flag --modle"):
        check(shlex.split("lossmap submit -- surface --modle mlp"))


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_every_flag_of_the_help_stands_in_a_named_section_with_a_phrase(name):
    command, text = command_of(name), help_of(name)
    assert len(SECTIONS.findall(text)) == len(command.groups)
    for group in command.groups:
        for f in fields(group):
            if f.name not in command.without:
                assert f.metadata["help"], f.name
                if not f.metadata["positional"]:
                    assert re.search(rf"{flag_of(f.name)}\b", text) or f"--no-{f.name}" in text


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_no_flag_has_two_meanings_within_a_command(name):
    command = command_of(name)
    names = [f.name for group in command.groups for f in fields(group)]
    assert len(names) == len(set(names))
    assert not set(former_names(command.groups)) & set(names)


@pytest.mark.parametrize(
    ("name", "former", "present"),
    [
        ("eigenmap", "--way linear", "--hvp-backend linearized"),
        ("spectrum", "--way graph", "--hvp-backend retained-graph"),
        ("spectrum", "--way double", "--hvp-backend double-backward"),
        ("spectrum", "--hvp-backend double", "--hvp-backend double-backward"),
        ("spectrum", "--second-reading both", "--layer-output-hessian both"),
        ("spectrum", "--mass-at 0.1 0.2", "--tail-mass 0.1 0.2"),
        ("spectrum", "--dense 12", "--dense-limit 12"),
        ("spectrum", "--weights", "--singular-values"),
        ("spectrum", "--along run --whole", "--along run --full-spectrum"),
        ("dynamics", "run --whole", "run --full-spectrum"),
        ("dynamics", "--along run other", "run other"),
        ("train", "--every 3", "--save-every 3"),
        ("health", "--sheet a.pdf", "--figure a.pdf"),
        ("watch", "a.h5 --every 3", "a.h5 --interval 3"),
        ("status", "a.h5 --every 3 --mark", "a.h5 --interval 3 --fingerprint"),
    ],
)
def test_flags_and_values_of_version_0_1_are_understood(name, former, present, tmp_path):
    command = command_of(name)
    assert command.parse(former.split()).resolved() == command.parse(present.split()).resolved()
    assert command.parse(present.split()).resolved() != command.parse(["a.h5"] * (name == "status")).resolved()


def test_settings_of_version_0_1_are_understood_in_toml_and_in_result_files(tmp_path):
    command = command_of("spectrum")
    config = tmp_path / "run.toml"
    config.write_text('way = "graph"\nsecond-reading = "inputs"\nmass-at = ["0.1"]\nloss-name = "mse"\n')
    from_toml = command.parse(["--config", str(config)])
    stored = {"way": "graph", "second_reading": "inputs", "mass_at": ["0.1"], "loss": "mse", "gone": 1}
    from_file = command.parse([], stored)
    assert from_toml.resolved() == from_file.resolved()
    s = from_file.spectrum
    assert (s.hvp_backend, s.layer_output_hessian, s.tail_mass) == ("retained-graph", "inputs", ("0.1",))


def test_a_present_name_wins_over_a_former_one():
    groups = command_of("spectrum").groups
    assert renamed({"hvp_backend": "auto", "way": "double"}, groups) == {"hvp_backend": "auto"}
    assert renamed({"way": "double"}, groups) == {"hvp_backend": "double"}


def test_positional_arguments_may_follow_flags():
    assert command_of("draw").parse(["--kind", "3d", "a.h5", "b.h5"]).picture.files == ("a.h5", "b.h5")
    assert command_of("plane").parse(["--seed", "3", "a.h5"]).look.files == ("a.h5",)


def test_the_list_of_commands_needs_no_torch_and_no_command():
    code = (
        "import sys\nfrom lossmap.cli.__main__ import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'h5py', 'matplotlib', 'argparse', 'lossmap.cli.surface'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)


def test_python_m_lossmap_is_the_command():
    done = subprocess.run([sys.executable, "-m", "lossmap", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lossmap ")


TWO_WAYS = """
import gc, sys
from lossmap.cli.__main__ import main
frozen = [gc.get_freeze_count()]
for words in (["status", "none.h5"], None):
    sys.argv[1:] = ["status", "none.h5"]
    main(words)
    frozen.append(gc.get_freeze_count())
print(frozen[0] == frozen[1] < frozen[2], gc.isenabled())
"""


def test_a_process_of_a_command_never_collects_what_it_imports_and_a_caller_in_python_is_left_alone():
    run = subprocess.run([sys.executable, "-c", TWO_WAYS], capture_output=True, text=True, timeout=60)
    assert run.stdout == "True True\n", run.stderr


def test_every_command_that_stores_its_settings_can_be_resumed():
    assert set(SURVEYS | TASKS) == {
        name for name in WITH_SETTINGS if "defaults" in module_of(name).main.__wrapped__.__annotations__
    }
    assert resume.ONCE


def test_former_backends_of_the_flag_are_those_of_the_operators():
    from lossmap.cli.setting_groups import FORMER_BACKENDS
    from lossmap.curvature.hvp_plan import backend_of

    assert {former: backend_of(former) for former in FORMER_BACKENDS} == FORMER_BACKENDS


def test_in_the_scripts_of_the_original_tool_one_letter_flags_mean_what_they_meant_there():
    from lossmap.cli.original_flags import with_original_letters

    words = ["-m", "--model", "mlp", "-c", "--x=-1:1:3", "--", "-m"]
    assert with_original_letters(words) == ["--mpi", "--model", "mlp", "--cuda", "--x=-1:1:3", "--", "-m"]


@pytest.mark.parametrize("script", ["plot_surface.py", "plot_hessian_eigen.py"])
def test_those_scripts_take_m_for_mpi(script, tmp_path):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / script), "-m", "--model", "mlp", "--x=-1:1:2", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--mpi is not needed any more" in done.stdout, done.stderr
