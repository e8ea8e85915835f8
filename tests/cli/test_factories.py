"""What the functions behind --dataset, --loss and --problem may return, as the help and the page on own models say."""

import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lossmap
from lossmap.cli.__main__ import main
from lossmap.cli.entry_point import guarded

FILE = """
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lossmap

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = X.argmax(1) % 2
TEXTS = [torch.arange(1, n) % 7 + 1 for n in (4, 6, 9, 5, 3)]


@dataclass
class Graph:
    x: torch.Tensor


def net():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.l = nn.Embedding(9, 4, padding_idx=0), nn.Linear(3, 2)

    def forward(self, given):
        if isinstance(given, Graph):
            return self.l(given.x.sum(0, keepdim=True))
        return self.e(given).sum(1)


class Samples(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


def padded(samples):
    ids = nn.utils.rnn.pad_sequence([s for s in samples], batch_first=True)
    return ids, torch.tensor([len(s) % 4 for s in samples])


FORMS = {
    "tensors": lambda: (X, Y),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "a Dataset": lambda: TensorDataset(X, Y),
    "a Dataset of dicts": lambda: Samples([{"input": x, "labels": y} for x, y in zip(X, Y)]),
    "an iterable Dataset": Stream,
    "a loader": lambda: DataLoader(TensorDataset(X, Y), 5, shuffle=True),
    "a list of batches": lambda: [(X[:7], Y[:7]), (X[7:], Y[7:])],
    "a generator": lambda: ((X[i::2], Y[i::2]) for i in (0, 1)),
    "a dict": lambda: {"input": X, "labels": Y},
    "a list of samples": lambda: [(x, int(y)) for x, y in zip(X, Y)],
    "a list of dicts": lambda: [{"input": x, "labels": y} for x, y in zip(X, Y)],
    "texts": lambda: [(t, len(t) % 4) for t in TEXTS],
    "a padding loader": lambda: DataLoader(TEXTS, 2, collate_fn=padded),
    "a Dataset of graphs": lambda: Samples([(Graph(X[:k]), torch.tensor([k % 2])) for k in (2, 3, 5)]),
    "graphs": lambda: [(Graph(X[:k]), torch.tensor([k % 2])) for k in (2, 3, 5)],
    "one graph to a batch": lambda: DataLoader([(Graph(X[:k]), torch.tensor([k % 2])) for k in (2, 3, 5)], 1,
                                               collate_fn=lambda batch: batch[0]),
}


def __getattr__(name):
    if not name.startswith("form"):
        raise AttributeError(name)
    made = list(FORMS.values())[int(name[4:])]
    return lambda split: made()


criterion = nn.CrossEntropyLoss()


def by_hand(outputs, targets):
    return -(outputs.log_softmax(1) * F.one_hot(targets, 2)).sum(1).mean()


def by_batch(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def weighted(model, batch):
    return by_batch(model, batch), len(batch[1])


def tuple_of(split="train"):
    return net(), [(X, Y)], by_batch


def keywords():
    return {"model": net(), "loss": weighted, "data": [(X[:7], Y[:7]), (X[7:], Y[7:])], "unit": "nats"}


def whole():
    return lossmap.Problem.supervised(net(), "crossentropy", (X, Y))


def wrong(split):
    return 3
"""
FORMS = 16
TEXTS, GRAPHS = (11, 12), (13, 14, 15)  # numbers of the forms that are not rows of X


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The path of the file, and its names."""
    path = tmp_path_factory.mktemp("factories") / "own.py"
    path.write_text(FILE)
    names = {"__name__": "own"}
    exec(FILE, names)
    return path, names


def loss_of(tmp_path, *flags):
    result = tmp_path / "result.h5"
    assert main(["surface", "--x=0:0:1", "--no-probe", "--surf-file", str(result), *flags]) == 0
    return float(lossmap.read(result)["train_loss"][0])


def truth(names, number):
    """The mean over samples of the cross entropy by hand, in float64."""
    x, y = names["X"].double(), names["Y"]
    if number in TEXTS:
        table = names["Pooled"]().e.weight.double()
        rows = [(table[text].sum(0), len(text) % 4) for text in names["TEXTS"]]
    elif number in GRAPHS:
        layer = names["Pooled"]().l.double()
        rows = [(layer(x[:k].sum(0)), k % 2) for k in (2, 3, 5)]
    else:
        rows = list(zip(names["net"]().double()(x), y, strict=True))
    return float(sum(row.logsumexp(0) - row[label] for row, label in rows).detach()) / len(rows)


@pytest.mark.parametrize("number", range(FORMS))
def test_every_form_of_a_data_set_has_the_mean_over_its_samples(made, number, tmp_path):
    path, names = made
    assert len(names["FORMS"]) == FORMS
    model = "Pooled" if number in (*TEXTS, *GRAPHS) else "net"
    loss = loss_of(tmp_path, "--model", f"{path}:{model}", "--dataset", f"{path}:form{number}")
    assert loss == pytest.approx(truth(names, number), rel=1e-5), list(names["FORMS"])[number]


def test_batches_that_are_not_cut_are_taken_whole_or_not_at_all(made, tmp_path, capsys):
    path, _ = made
    own = ["surface", "--model", f"{path}:Pooled", "--dataset", f"{path}:form14", "--dry-run"]
    for flags, text in (
        (["--samples", "2"], "--samples 2: these 3 samples are in batches that are not cut; take fewer batches"),
        (["--data-split", "2"], "--data-split 2: these 3 samples are in batches that are not cut"),
        (["--normalize", "0.5/0.5"], "gives batches that are not cut; let it normalize them"),
    ):
        assert main([*own, *flags]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["criterion", "by_hand"])
def test_a_loss_is_a_function_or_a_module(made, loss, tmp_path):
    path, names = made
    own = ("--model", f"{path}:net", "--dataset", f"{path}:form0", "--loss", f"{path}:{loss}")
    assert loss_of(tmp_path, *own) == pytest.approx(truth(names, 0), rel=1e-5)


@pytest.mark.parametrize("factory", ["tuple_of", "keywords", "whole"])
def test_a_problem_is_a_tuple_keywords_or_a_problem(made, factory, tmp_path):
    path, names = made
    assert loss_of(tmp_path, "--problem", f"{path}:{factory}") == pytest.approx(truth(names, 0), rel=1e-5)


def test_what_is_none_of_them_is_said_with_what_is_needed(made, capsys):
    path, _ = made
    own = ["surface", "--model", f"{path}:net", "--dry-run"]
    assert main([*own, "--dataset", f"{path}:wrong"]) == 2
    assert (
        "must return (x, y) tensors, a Dataset, a DataLoader or a list of batches; got int" in capsys.readouterr().err
    )
    assert main([*own, "--problem", f"{path}:net"]) == 2
    assert (
        "must return a Problem, or a tuple (model, batches, loss(model, batch)); got Linear" in capsys.readouterr().err
    )


def test_lists_of_samples_are_put_together_in_python_too():
    torch.manual_seed(0)
    net, x = torch.nn.Linear(3, 2), torch.randn(6, 3)
    plane = lossmap.random_plane(net, 1)
    listed = lossmap.Problem.supervised(net, "crossentropy", [(row, i % 2) for i, row in enumerate(x)])
    expected = float(F.cross_entropy(net(x), torch.arange(6) % 2).detach())
    assert lossmap.losses(listed, plane)((0.0,))["train_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("command", ["surface", "eigenmap", "spectrum", "dynamics", "health", "plane"])
def test_the_help_says_with_what_they_are_called(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "That of --model is called with the keywords of --model-args",
        '--dataset called with split="train" or "test"; returns (x, y)',
        "--loss called with (outputs, targets) of a batch",
        "returns the mean over the batch, or (mean, weight)",
    ):
        assert part in text


def test_what_a_persons_own_code_raises_is_one_sentence_with_its_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "raises.py").write_text(
        "import torch\nfrom torch.nn.functional import cross_entropy\n\n\n"
        "def net():\n    return torch.nn.Linear(2, 3)\n\n\n"
        "def data(split='train'):\n    y = torch.zeros(40).long()\n    y[20] = 3\n    return torch.ones(40, 2), y\n\n\n"
        "def loss(outputs, targets):\n    return cross_entropy(outputs, targets)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--model", "raises.py:net", "--dataset", "raises.py:data", "--loss", "raises.py:loss"]
    for command in ("surface", "spectrum"):
        assert main([command, *words, "--surf-file", "s.h5"]) == 2
        text = capsys.readouterr().err
        assert "lossmap: IndexError: Target 3 is out of bounds. (raises.py, line 16, in loss; LOSSMAP_DEBUG=1" in text


def test_of_several_ranks_what_own_code_raises_on_one_ends_the_others(tmp_path, monkeypatch):
    file = tmp_path / "raises.py"
    file.write_text("def forward():\n    raise IndexError('mine')\n")
    own = {}
    exec(compile(file.read_text(), str(file), "exec"), own)
    run = guarded(lambda: own["forward"]())
    assert run() == 2
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(IndexError):  # upon which the world's hook for errors aborts
        run()


def test_a_loss_that_couples_a_batch_is_read_on_the_batches_of_the_loader(tmp_path, monkeypatch):
    (tmp_path / "coupled.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n\n"
        "X = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))\nY = torch.zeros(20).long()\n\n\n"
        "def net():\n    torch.manual_seed(0)\n    return torch.nn.Linear(3, 2)\n\n\n"
        "def loader(split='train'):\n    return DataLoader(TensorDataset(X, Y), batch_size=8)\n\n\n"
        "def batches(split='train'):\n    return [(X[:5], Y[:5]), (X[5:17], Y[5:17]), (X[17:], Y[17:])]\n\n\n"
        "def spread(outputs, targets):\n    return outputs.mean(0).square().sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    names = {}
    exec((tmp_path / "coupled.py").read_text(), names)
    outputs = names["net"]()(names["X"]).detach().double()
    for form, cuts in (("loader", (8, 8, 4)), ("batches", (5, 12, 3))):
        words = ["--model", "coupled.py:net", "--dataset", f"coupled.py:{form}", "--loss", "coupled.py:spread"]
        assert main(["surface", *words, "--x=0:0:1", "--surf-file", f"{form}.h5"]) == 0
        truth = sum(len(part) * part.mean(0).square().sum() for part in outputs.split(cuts)) / 20
        assert lossmap.read(f"{form}.h5")["train_loss"][0] == pytest.approx(float(truth), rel=1e-5)


WRONG = """
import torch, torch.nn.functional as F
from torch import nn

made = nn.Linear(3, 2)
Entropy = nn.CrossEntropyLoss


def net():
    return nn.Linear(3, 2)


def data(split="train"):
    return torch.randn(8, 3), torch.arange(8) % 2


def missing(split="train"):
    raise OSError("no such disk")


def absolute(outputs, targets):
    return (outputs - targets).abs().mean()
"""


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--model w.py:made --dataset w.py:data", "is a module already"),
        ("--model w.py:net --dataset w.py:missing", "--dataset w.py:missing fails: OSError: no such disk"),
        ("--model w.py:net --dataset w.py:data --loss w.py:Entropy", "loss CrossEntropyLoss is a class"),
        ("--model w.py:net --dataset w.py:data --metric w.py:Entropy", "metric CrossEntropyLoss is a class"),
        ("--model w.py:net --dataset w.py:data --loss w.py:absolute", "fails on 3 train samples, and not on one"),
    ],
)
def test_a_function_that_is_none_or_fails_is_named_with_what_to_do(flags, text, tmp_path, monkeypatch, capsys):
    (tmp_path / "w.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    assert guarded(main)(["surface", *flags.split(), "--x=-1:1:3"]) == 2
    assert text in capsys.readouterr().err and not list(tmp_path.glob("*.h5"))


@pytest.mark.parametrize("leave", ["sys.exit(0)", "sys.exit(3)", "sys.exit('no licence')", "exit()", "os._exit(7)"])
def test_a_persons_code_that_ends_the_program_ends_in_one_sentence_and_no_number_of_a_result(
    leave, tmp_path, monkeypatch, capsys
):
    (tmp_path / "leaves.py").write_text(f"import os, sys\n\n\ndef net():\n    {leave}\n")
    monkeypatch.chdir(tmp_path)
    for command in ("surface", "spectrum", "health"):
        assert main([command, "--model", "leaves.py:net", "--samples", "8"]) == 2
        assert "lossmap: leaves.py, line 5, in net: the program is ended there" in capsys.readouterr().err


def test_what_a_persons_code_raises_to_end_the_program_is_an_error_of_that_code(tmp_path, monkeypatch, capsys):
    """KeyboardInterrupt and the like: one sentence, where a Ctrl-C that strikes in that code still ends the command."""
    (tmp_path / "raises.py").write_text(
        "import os, signal\nfrom torch import nn\n\nclass Own(BaseException):\n    pass\n\n"
        "def keys():\n    raise KeyboardInterrupt\n\ndef own():\n    raise Own('mine')\n\n"
        "def closes():\n    raise GeneratorExit\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n\n"
        "def loss(outputs, targets):\n    raise KeyboardInterrupt\n\n"
        "def pressed():\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    while True:\n        pass\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, line, kind in (("keys", 8, "KeyboardInterrupt"), ("own", 11, "Own"), ("closes", 14, "GeneratorExit")):
        assert main(["surface", "--model", f"raises.py:{name}", "--samples", "8"]) == 2
        assert f"lossmap: raises.py, line {line}, in {name}: {kind} is raised there" in capsys.readouterr().err
    assert main(["spectrum", "--model", "raises.py:net", "--loss", "raises.py:loss", "--samples", "8"]) == 2
    assert "line 20, in loss: KeyboardInterrupt is raised there" in capsys.readouterr().err
    former = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            main(["surface", "--model", "raises.py:pressed", "--samples", "8"])
    finally:
        signal.signal(signal.SIGINT, former)


def test_code_that_changes_the_current_folder_changes_no_path_of_a_command(tmp_path, monkeypatch, capsys):
    """As scripts do, to find what lies beside them: result, checkpoint and data are where they were named."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "moves.py").write_text(
        "import os\nfrom pathlib import Path\nimport torch\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n\n\n"
        "def net():\n    return torch.nn.Sequential(torch.nn.Linear(2, int(Path('width.txt').read_text())))\n\n\n"
        "def data(split):\n    targets = torch.tensor([0, 1]) + int(Path('width.txt').read_text()) - 3\n"
        "    return torch.ones(2, 2), targets\n\n\n"
        "def loss(outputs, targets):\n    return torch.nn.functional.cross_entropy(outputs, targets)\n\n\n"
        "def problem():\n    x, y = data('train')\n    return {'model': net(), 'data': [(x, y)], "
        "'loss': lambda model, batch: loss(model(batch[0]), batch[1])}\n"
    )
    (tmp_path / "src" / "width.txt").write_text("3")
    torch.save({"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}, tmp_path / "net.pt")
    torch.save({"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}, tmp_path / "src" / "net.pt")
    monkeypatch.chdir(tmp_path)
    asked = [
        "--model=src/moves.py:net --dataset=src/moves.py:data --loss=src/moves.py:loss --model-file net.pt",
        "--problem=src/moves.py:problem --model-file net.pt",
    ]
    for count, flags in enumerate(asked):
        assert main(["surface", *flags.split(), "--x=-1:1:3", "--surf-file", f"{count}.h5", "--device=cpu"]) == 0
        capsys.readouterr()
        assert Path.cwd() == tmp_path
        assert len(set(lossmap.read(tmp_path / f"{count}.h5")["train_loss"].tolist())) > 1  # of weights that are not 0
