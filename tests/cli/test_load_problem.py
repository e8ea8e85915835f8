"""The devices of a run, as the log names them; and what is said while a problem is made."""

import logging

import pytest
import torch

from lossmap.cli.device import Machine, prepare_machine
from lossmap.cli.load_problem import _as_problem, problem_and_files, problems_of
from lossmap.cli.setting_groups import DataSettings, ModelSettings
from lossmap.cli.settings import UsageError
from lossmap.cli.surface import COMMAND, main
from lossmap.io.read import read
from lossmap.parallel.world import World

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("every", "names", "sentence"),
    [
        ([("n1", "", "cpu")], "cpu", "computing on cpu; 2 threads"),
        ([("n1", "", "cpu"), ("n2", "", "cpu")], "cpu (2 ranks)", "computing on cpu (2 ranks); 2 threads each"),
        (
            [("n1", "0", H100), ("n1", "3", H100), ("n2", "0", H100), ("n2", "", "cpu")],
            f"{H100} (3 ranks), cpu (1 rank)",
            f"computing on {H100} (3 ranks), cpu (1 rank): n1 GPU 0 3, n2 GPU 0; 2 threads each",
        ),
        (
            [(f"n{i}", "0", H100) for i in range(10)],
            f"{H100} (10 ranks)",
            f"computing on {H100} (10 ranks): {', '.join(f'n{i} GPU 0' for i in range(8))} and 2 more nodes; "
            "2 threads each",
        ),
    ],
)
def test_devices_are_named_as_people_know_them(every, names, sentence):
    machine = Machine(torch.device("cpu"), torch.float32, None, 2, tuple(every))
    assert machine.describe() == names
    assert machine.sentence() == sentence


@pytest.mark.parametrize(("rank", "times"), [(0, 1), (1, 0)])
def test_what_is_left_out_of_the_batches_is_said_once_by_all_ranks_and_for_all_splits(rank, times, tmp_path, caplog):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def model(): return torch.nn.Linear(4, 3)\n"
        "def data(split):\n"
        "    return [{'x': torch.ones(5, 4), 'y': torch.arange(5) % 3, 'path': [split] * 5}]\n"
    )
    world = World()
    world.rank = rank
    own = str(tmp_path / "own.py")
    settings = COMMAND.parse(["--model", f"{own}:model", "--dataset", f"{own}:data", "--split", "both"])
    problems = problem_and_files(settings, world, prepare_machine(settings.run, world))
    assert [p.data.samples for p in problems.values()] == [5, 5]
    assert caplog.text.count("does not take it: path") == times
    assert logging.getLogger("lossmap").level == logging.NOTSET


@pytest.mark.parametrize(("dtype", "precision", "is_said"), [(64, 32, True), (64, 64, False), (32, 32, False)])
def test_a_model_in_float64_that_is_measured_in_float32_is_reported(tmp_path, dtype, precision, is_said):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        f"def model(): return torch.nn.Linear(3, 2).to(torch.float{dtype})\n"
        "def data(split): return torch.arange(18.).reshape(6, 3), torch.arange(6) % 2\n"
    )
    own, notes = str(tmp_path / "own.py"), []
    machine = Machine(torch.device("cpu"), getattr(torch, f"float{precision}"), None, 1, ())
    model, data = ModelSettings(model=f"{own}:model"), DataSettings(dataset=f"{own}:data")
    problem = problems_of(model, data, machine, splits=("train",), notes=notes)["train"]
    assert next(problem.model.parameters()).dtype == getattr(torch, f"float{precision}")
    assert ("the model is in float64, and is measured in float32" in " ".join(notes)) == is_said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["--samples", "3"], ""),
        (["--normalize", "0.5/0.5", "--loss", "mse", "--model", "resnet20"], "not used: --model, --normalize, --loss"),
    ],
)
def test_flags_of_what_a_problem_makes_itself_are_said_to_be_unused(words, said, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def problem(): return torch.nn.Linear(4, 1), [torch.ones(5, 4)], lambda model, x: model(x).square().mean()\n"
    )
    settings = COMMAND.parse(["--problem", f"{tmp_path / 'own.py'}:problem", *words])
    world = World()
    problem_and_files(settings, world, prepare_machine(settings.run, world))
    assert ("not used" in capsys.readouterr().out) is bool(said)
    problem_and_files(settings, world, prepare_machine(settings.run, world))
    assert said in capsys.readouterr().out
    again = COMMAND.parse([], defaults=settings.resolved())  # as of a result that is continued, which holds all
    problem_and_files(again, world, prepare_machine(again.run, world))
    assert ("not used" in capsys.readouterr().out) is bool(said)


def test_a_problem_by_a_tuple_of_too_many():
    parts = (torch.nn.Linear(3, 2), [(torch.ones(2, 3), torch.arange(2))], lambda model, batch: 0.0, print)
    for given in (parts, (*parts[:3], {"accuracy": print}), (*parts[:3], {}, 3)):
        with pytest.raises(UsageError, match=rf"returned {len(given)} values; a tuple holds .*metrics="):
            _as_problem(given, "own.py:problem")
    assert _as_problem((*parts[:3], {}), "own.py:problem").metrics == {}


def test_a_factory_of_problems_that_cannot_be_called_or_fails_is_named(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\ndef needs(a, b): ...\ndef fails(): return {}['x']\n"
        "def swapped(): return torch.nn.Linear(3, 2), [(torch.ones(2, 3), torch.arange(2))], "
        "torch.nn.functional.cross_entropy\n"
    )
    machine = Machine(torch.device("cpu"), torch.float32, None, 1, ())
    for name, text in (
        ("needs", "is called with nothing, which does not fit it: missing a required argument: 'a'"),
        ("fails", "own.py:fails fails: KeyError: 'x'"),
        ("swapped", "the loss is called with model and batch; one of outputs and targets is for"),
    ):
        with pytest.raises((UsageError, ValueError), match=text):
            problems_of(ModelSettings(), DataSettings(problem=f"{tmp_path / 'own.py'}:{name}"), machine)


def test_the_loss_of_a_limited_problem_is_the_mean_over_the_weights_of_its_own_samples(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch, lossmap\n"
        "def problem():\n"
        "    torch.manual_seed(0)\n"
        "    x, y = torch.randn(40, 4), torch.arange(40) % 3\n"
        "    y[:20] = -100\n"
        "    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]))\n"
        "    return lossmap.Problem.supervised(torch.nn.Linear(4, 3), loss, (x, y))\n"
    )
    settings = COMMAND.parse(["--problem", f"{tmp_path / 'own.py'}:problem", "--data-split", "4", "--split-idx", "2"])
    few = problems_of(settings.model, settings.data, prepare_machine(settings.run, World()))["train"]
    x, y = few.data.tensors
    with torch.no_grad():
        outputs = few.model(x)
        truth = torch.nn.functional.cross_entropy(outputs, y, weight=torch.tensor([1.0, 5.0, 0.1]))
        assert float(few.total((x, y))) / few.samples == pytest.approx(float(truth), rel=1e-6)
        accuracy = few.metrics["acc"].total(outputs, (x, y)) / few.samples
    assert float(accuracy) == pytest.approx(100 * float((outputs.argmax(1) == y).float().mean()))


@pytest.mark.parametrize(("model", "precision"), [("single", "float64"), ("half", "float32"), ("half", "float64")])
def test_data_keep_the_digits_of_the_precision_in_which_is_measured(tmp_path, monkeypatch, model, precision):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def single(): return torch.nn.Linear(2, 1)\n"
        "def half(): return single().bfloat16()\n"
        "def zero(outputs, targets): return (0 * outputs + targets - 1000).square().mean()\n"
        "def data(split):\n"
        "    x = torch.linspace(-1, 1, 20, dtype=torch.float64)\n"
        "    return torch.stack([x, x], 1), 1000 + x[:, None]\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--model", f"own.py:{model}", "--dataset", "own.py:data", "--loss", "own.py:zero", "--x=0:1:2"]
    assert main([*words, "--precision", precision, "--surf-file", "a.h5"]) == 0
    true = float(torch.linspace(-1, 1, 20, dtype=torch.float64).square().mean())
    assert read("a.h5")["train_loss"][0] == pytest.approx(true, rel=1e-9 if precision == "float64" else 1e-4)


@pytest.mark.parametrize(
    ("maker", "model", "precision"),
    [
        ("--model", "single", "float64"),
        ("--model", "half", "float32"),
        ("--model", "half", "float64"),
        ("--problem", "single", "float64"),
    ],
)
def test_checkpoints_keep_the_digits_of_the_precision_in_which_is_measured(
    tmp_path, monkeypatch, maker, model, precision
):
    (tmp_path / "own.py").write_text(
        "import lossmap, torch\n"
        "def single(): return torch.nn.Linear(2, 1)\n"
        "def half(): return single().bfloat16()\n"
        "def size(outputs, targets): return (1000 * (outputs - targets)).square().mean()\n"
        "def data(split): return torch.eye(2), torch.ones(2, 1) / 3\n"
        "def single_problem(): return lossmap.Problem.supervised(single(), size, data('train'))\n"
    )
    monkeypatch.chdir(tmp_path)
    target = torch.ones(1, dtype=torch.float32) / 3
    weights = {"weight": target.double() + torch.tensor([[1e-3, 2e-3]], dtype=torch.float64), "bias": torch.zeros(1)}
    weights["weight"] += 1e-9
    torch.save(weights, "a.pt")
    own = ["--model", f"own.py:{model}", "--dataset", "own.py:data", "--loss", "own.py:size"]
    words = own if maker == "--model" else ["--problem", f"own.py:{model}_problem"]
    words += ["--model-file", "a.pt", "--x=0:1:2", "--precision", precision, "--surf-file", "a.h5"]
    assert main(words) == 0
    true = float((1000 * (weights["weight"] - target)).square().mean())
    assert read("a.h5")["train_loss"][0] == pytest.approx(true, rel=1e-9 if precision == "float64" else 1e-3)
