"""What the README says is run: its commands, its Python, its flags, its links; and the scripts of a checkout."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.cli.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text=README):
    """Every lossmap command of the shell blocks, as words, continued lines joined."""
    for block in blocks("sh", text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "lossmap" in words:
                yield words


def test_the_python_of_the_readme_works_and_is_about_five_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(b for b in blocks("python") if "survey" in b).replace("-1, 1, 25", "-1, 1, 5")
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 6
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.randint(3, (20,)))
    loader = torch.utils.data.DataLoader(data, batch_size=6)
    namespace = {"model": model, "loss": nn.CrossEntropyLoss(), "loader": loader}
    exec(code, namespace)
    assert Path("surface.pdf").stat().st_size > 1000
    exec(next(b for b in blocks("python") if "lossmap.hessian" in b), namespace)
    assert Path("spectrum.h5").stat().st_size > 1000
    assert model.training


def test_the_measure_in_contributing_works(tmp_path):
    import lossmap

    namespace: dict = {}
    exec(blocks("python", (ROOT / "CONTRIBUTING.md").read_text())[0], namespace)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    problem = lossmap.Problem.supervised(model, nn.CrossEntropyLoss(), (torch.randn(20, 4), torch.randint(3, (20,))))
    plane = lossmap.random_plane(model)
    surface = lossmap.survey(namespace["ConfidenceMap"](problem, plane), lossmap.Grid.square(-1, 1, 3))
    expected = model(problem.data.tensors[0]).softmax(-1).amax(-1).mean().detach()
    assert surface["train_confidence"][1, 1] == pytest.approx(float(expected), rel=1e-6)
    lossmap.draw(surface, field="train_confidence").savefig(tmp_path / "confidence.png")


def test_the_solver_in_contributing_works():
    namespace: dict = {}
    exec(blocks("python", (ROOT / "CONTRIBUTING.md").read_text())[1], namespace)

    class Operator:
        size, dtype, device = 3, torch.float64, torch.device("cpu")

        def __matmul__(self, v):
            return entries @ v

    entries = torch.diag(torch.tensor([-1.0, 2.0, 5.0], dtype=torch.float64)) + 0.1
    pairs = namespace["power_iteration"](Operator(), tol=1e-6)
    largest = np.linalg.eigvalsh(entries.numpy())[-1]
    assert pairs.converged and abs(pairs.values[0] - largest) <= pairs.residuals[0] + 1e-12


def test_the_figure_in_contributing_works():
    from lossmap.io.surface import Group

    namespace: dict = {}
    exec(blocks("python", (ROOT / "CONTRIBUTING.md").read_text())[2], namespace)
    figure = namespace["draw_singular_values"](Group({"fc.weight": np.array([3.0, 2.0, 1.0])}))
    assert list(figure.axes[0].lines[0].get_ydata()) == [3.0, 2.0, 1.0]


def literals(path):
    """The string literals of a module that are no docstrings; what an f-string fills in is a null character."""
    tree = ast.parse(path.read_text())
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def test_the_messages_in_the_troubleshooting_tables_exist():
    texts = "\n".join(text for path in (ROOT / "lossmap").rglob("*.py") for text in literals(path))
    quoted = re.findall(r"^\| `([^`]+)` \|", README.split("## Troubleshooting")[1], re.MULTILINE)
    quoted += re.findall(r'^- \*"([^"]+)"', (ROOT / "docs" / "spectra.md").read_text(), re.MULTILINE)
    assert len(quoted) > 8
    for message in quoted:  # numbers, dots and the names of flags and precisions are filled in
        parts = re.split(r"\d+|\.\.\.|float16|^--x|^top", message)
        pattern = "[^\\n]{0,60}?".join(re.escape(part.strip()) for part in parts if part.strip())
        assert re.search(pattern, texts), f"no message says {message!r}"


@pytest.mark.slow
def test_the_laptop_section_works_word_for_word(tmp_path):
    section = README.split("## On a laptop")[1].split("## In Python")[0]
    (tmp_path / "mynet.py").write_text(blocks("python", section)[0])
    namespace: dict = {}
    exec(blocks("python", section)[0], namespace)
    for name in ("mynet.pt", "a.pt", "b.pt"):
        torch.save(namespace["net"]().state_dict(), tmp_path / name)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 20)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(tmp_path / "mydata.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    from lossmap.cli.demo import environment

    bin_folder = Path(sys.executable).parent
    environ = {**environment(), "TMPDIR": "/tmp"}
    environ["PATH"] = f"{bin_folder}:{environ['PATH']}"
    for block in blocks("sh", section):
        text = re.sub(r"--([xy])=(-1:1|auto):51", r"--\1=\2:5", block)
        text = text.replace("--x=-1:1:11 --y=-1:1:11", "--x=-1:1:3 --y=-1:1:3")
        text = text.replace("--dataset digits ", "--dataset npz:mydata.npz ")
        done = subprocess.run(
            ["bash", "-euc", text], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    made = {p.name for p in tmp_path.iterdir()}
    assert {"line.h5", "plane.h5", "plane-3d.pdf", "eigen.h5"} <= made


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_and_flag_on_a_page_exists(page):
    text = page.read_text()
    for words in commands(text):
        rest = words[words.index("lossmap") + 1 :]
        assert rest[0] in COMMANDS or rest[0].startswith("-"), f"{page.name}: {' '.join(words)}"
    from lossmap.cli.__main__ import main

    known: dict[str, str] = {}
    for flag_of in re.findall(r"lossmap (\w+)", text):
        known.setdefault(flag_of, "")
    for words in commands(text):
        rest = words[words.index("lossmap") + 1 :]
        if rest[0] not in COMMANDS:
            continue
        for command, part in _parts(rest):
            help_text = _help(main, command)
            for word in part:
                if word.startswith("--") and word != "--":
                    flag = word.split("=")[0].replace("_", "-")  # underscores are accepted everywhere
                    assert re.search(rf"{flag}\b", help_text), f"{page.name}: {command} has no {flag}"


def _parts(words):
    if "--" in words:
        at = words.index("--")
        yield words[0], words[1:at]
        yield words[at + 1], words[at + 2 :]
    else:
        yield words[0], words[1:]


_helps: dict[str, str] = {}


def _help(main, command):
    if command not in _helps:
        import contextlib
        import io

        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([command, "--help"])
        _helps[command] = out.getvalue()
    return _helps[command]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_and_file_on_a_page_is_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target and not re.search(r"\b(commands|notebooks)/\w+\.md$", target):  # made with the site
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for script in re.findall(r"`((?:benchmarks|examples|docs|tests|slurm)/[\w./-]+)`", page.read_text()):
        assert (ROOT / script).exists(), f"{page.name} names {script}"


@pytest.mark.parametrize("script", sorted(p.name for p in ROOT.glob("*.py")))
def test_the_scripts_of_a_checkout_print_their_help(script):
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True)
    assert len(done.stdout) > 200


def test_the_command_at_the_root_lists_and_suggests_commands(capsys):
    from lossmap.cli.__main__ import main

    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "surface" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["surfase"]) == 2
    assert "did you mean surface" in capsys.readouterr().err
