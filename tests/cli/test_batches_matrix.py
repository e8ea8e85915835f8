"""Every command over every kind of batch, by one rank and by a team of two: right, or refused by name; the docs' table.

LOSSMAP_WRITE_TABLES=1 pytest tests/cli/test_batches_matrix.py      writes docs/your-model/batches.md anew

The cells are computed by `tests/programs/commands_by_batches.py`, those of a team in one start of mpirun, and compared
with the loss and the dense Hessian in float64.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "programs" / "commands_by_batches.py"
TABLE = ROOT / "docs" / "your-model" / "batches.md"
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here"),
]
COMMANDS = (
    "surface",
    "plane",
    "eigenmap",
    "spectrum",
    "layers",
    "dynamics",
    "health",
    "sharpness",
    "connect",
    "estimate",
)
TEAMS = ("surface", "eigenmap", "spectrum", "layers", "sharpness", "connect")  # what a team of ranks works at together
KINDS = ("plain", "dicts", "padded", "graphs", "parts", "full", "strings", "mappings")
# what is refused: (kind or every, command, ranks) -> the sentence
ONE_BATCH = "--team must be <= 1, the number of batches that are not cut; got 2"
ONE_PROCESS = "an estimate is made by one process; this one was started with 2 ranks"
REFUSALS = {("full", command, 2): ONE_BATCH for command in TEAMS} | {
    (kind, "estimate", 2): ONE_PROCESS for kind in KINDS
}
HEAD = """# Kinds of batches

Whatever a loader gives can be surveyed: batches that can be cut are cut anew into what is fast, all others are read as
given, whole, and whole batches are dealt to the ranks of a team
([A model of your own](../how-to/own-model.md#batches-that-cannot-be-cut)). Each cell is a command over batches of that
kind, by one rank (1) and by a team of two (2), compared with the loss and the dense Hessian in float64; `-` beside a
footnote is refused. `dynamics` shares checkpoints among ranks instead, and of `plane` and `health` one rank does the
work. `layers` is `lossmap spectrum --layers tensor`. The table is written by `tests/cli/test_batches_matrix.py`, which
holds it to what happens.

"""


@pytest.fixture(scope="module")
def program():
    """The names of the program."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("commands_by_batches", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses need
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """{ranks: {kind: {command: cell}}}."""
    folder, values = tmp_path_factory.mktemp("matrix"), {}
    for ranks in (1, 2):
        words = [sys.executable, str(PROGRAM), str(folder), str(ranks)]
        if ranks > 1:
            words = [MPIRUN, "-n", str(ranks), *words]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=560)
        assert done.returncode == 0, done.stderr[-3000:]
        values[ranks] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


class Mean(torch.nn.Module):
    """The mean over the batches, by their weights, as a module of which `functional_call` moves the tensors."""

    def __init__(self, net, batches, loss, weights):
        super().__init__()
        self.net, self.batches, self.loss, self.weights = net, batches, loss, weights

    def forward(self):
        total = 0.0
        for batch, weight in zip(self.batches, self.weights, strict=True):
            value = self.loss(self.net, batch)
            total = total + weight * (value[0] if isinstance(value, tuple) else value)
        return total / sum(self.weights)


def doubled(part):
    """A batch in float64."""
    if isinstance(part, torch.Tensor):
        return part.double() if part.is_floating_point() else part
    if isinstance(part, tuple):
        return tuple(map(doubled, part))
    if isinstance(part, str):
        return part
    if hasattr(part, "items"):
        return {name: doubled(value) for name, value in part.items()}
    return type(part)(**{name: doubled(value) for name, value in vars(part).items()})


@pytest.fixture(scope="module")
def truths(program):
    """{kind: (theta, the loss as a function of it, {name: its places in theta}, names of the weights)}."""
    values = {}
    for kind in KINDS:
        *_, weights = program.KINDS[kind]
        net, batches, loss = program.problem_of(kind)
        mean = Mean(net.double(), list(map(doubled, batches)), loss, weights)
        state = {name: p.detach() for name, p in mean.named_parameters()}
        sizes = [p.numel() for p in state.values()]

        def of(theta, mean=mean, state=state, sizes=sizes):
            parts = zip(state.items(), torch.split(theta, sizes), strict=True)
            return functional_call(mean, {name: part.view_as(p) for (name, p), part in parts}, ())

        theta = torch.cat([p.reshape(-1) for p in state.values()]).detach()
        places = dict(zip(state, torch.split(torch.arange(len(theta)), sizes), strict=True))
        places = {name.removeprefix("net."): rows for name, rows in places.items()}
        names = [name.removeprefix("net.") for name, p in state.items() if p.dim() > 1]
        values[kind] = (theta, of, places, names)
    return values


def is_refused(kind, command, ranks):
    return (kind, command, ranks) in REFUSALS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_cell_is_right_or_refused_by_name(program, cells, truths, kind, ranks):
    theta, of, places, names = truths[kind]
    loss, hessian = float(of(theta).detach()), torch.autograd.functional.hessian(of, theta)
    rows = torch.cat([places[name] for name in names])
    of_weights = hessian[rows][:, rows]
    ends = torch.linalg.eigvalsh(of_weights)
    smallest, largest, scale = float(ends[0]), float(ends[-1]), float(ends.abs().max())
    row = cells[ranks][kind]
    for command in COMMANDS:
        if is_refused(kind, command, ranks):
            assert row[command]["code"] == 2 and row[command]["said"] == "", row[command]
            assert row[command]["refused"] == [f"lossmap: {REFUSALS[kind, command, ranks]}"]
        else:
            assert "value" in row[command], (command, row[command])
    value = {command: cell.get("value") for command, cell in row.items()}
    if value["surface"] is not None:
        assert value["surface"][0] == pytest.approx(loss, rel=1e-5)
        assert value["surface"] == pytest.approx(cells[1][kind]["surface"]["value"], rel=1e-5)
    direction = torch.cat([torch.tensor(value["plane"][name], dtype=torch.float64) for name in names])
    curvature = direction @ of_weights @ direction / (direction @ direction)
    assert float(curvature) == pytest.approx(largest, rel=1e-4)
    assert all(not any(value["plane"][name]) for name in set(places) - set(names))
    if value["eigenmap"] is not None:
        top, bottom, top_error, bottom_error = value["eigenmap"]
        assert abs(top - largest) <= top_error + 1e-6 * scale and top_error < 0.01 * scale
        assert abs(bottom - smallest) <= bottom_error + 1e-6 * scale and bottom_error < 0.01 * scale
    if value["spectrum"] is not None:
        own_loss, top, top_error, bottom, bottom_error = value["spectrum"]
        assert own_loss == pytest.approx(loss, rel=1e-5)
        assert abs(top - largest) <= top_error + 1e-6 * scale
        assert abs(bottom - smallest) <= bottom_error + 1e-6 * scale
    for name, top in (value["layers"] or {}).items():
        block = torch.linalg.eigvalsh(hessian[places[name]][:, places[name]])
        assert top == pytest.approx(float(block[-1]), rel=1e-3, abs=1e-6 * scale), name
    assert value["layers"] is None or set(value["layers"]) == set(places)
    if value["sharpness"] is not None:
        own_loss, top, top_error, rise = value["sharpness"]
        gradient = torch.zeros_like(theta)
        gradient[rows] = torch.autograd.functional.jacobian(of, theta)[rows]
        step = program.RADIUS * gradient / gradient.norm()
        assert own_loss == pytest.approx(loss, rel=1e-5) and abs(top - largest) <= top_error + 1e-6 * scale
        assert rise == pytest.approx(float(of(theta + step).detach()) - loss, rel=1e-4)
    if value["connect"] is not None:
        line = [float(of(theta * (1 + t * (program.OTHER - 1))).detach()) for t in (0, 0.5, 1)]
        assert value["connect"] == pytest.approx(line, rel=1e-5)
    assert value["dynamics"] == pytest.approx([largest], rel=1e-3)
    assert value["health"] == pytest.approx([loss, largest, smallest], rel=1e-3, abs=1e-6 * scale)


def table(program, cells):
    """The page, from what happens."""
    lines = [f"| batches | {' | '.join(f'`{c}`' for c in COMMANDS)} |", "|---" * (len(COMMANDS) + 1) + "|"]
    sentences = []
    for kind in KINDS:
        row = [program.KINDS[kind][0]]
        for command in COMMANDS:
            parts = []
            for ranks in (1, 2):
                cell = cells[ranks][kind][command]
                if "value" in cell:
                    parts.append(str(ranks))
                    continue
                sentence = cell["refused"][0].removeprefix("lossmap: ")
                sentences += [sentence] * (sentence not in sentences)
                parts.append(f"- ({sentences.index(sentence) + 1})")
            row.append(", ".join(parts))
        lines.append(f"| {' | '.join(row)} |")
    refusals = [f"{i}. `{sentence}`" for i, sentence in enumerate(sentences, 1)]
    return (
        HEAD + "\n".join(lines) + "\n\nRefused, with exit code 2 and nothing written:\n\n" + "\n".join(refusals) + "\n"
    )


def test_the_page_lists_what_happens(program, cells):
    text = table(program, cells)
    if os.environ.get("LOSSMAP_WRITE_TABLES"):
        TABLE.write_text(text)
    assert TABLE.read_text() == text
