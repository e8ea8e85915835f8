"""The command `lossmap surface`: results, refused options, resumed files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import lossmap
from lossmap import zoo
from lossmap.cli.surface import main
from lossmap.import_by_name import resolve_callable
from lossmap.plotting.quantities import axis_labels

ROOT = Path(__file__).resolve().parents[2]

NET = """
import os
import random

import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Small(nn.Module):  # the net of the sample files
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).flatten(1))


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def impatient():
    raise RuntimeError("no time")


def broken():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            raise KeyError("my forward is broken")

    return Broken()


def number():
    return 3


def pair():
    return flat(), squared


def two_problems():
    return {"train": 1, "test": 2}


def squared(outputs, targets):
    return (outputs.softmax(1) - F.one_hot(targets, 10)).square().mean()


def data(split):
    torch.manual_seed(len(split))
    return torch.randn(30, 1, 8, 8), torch.randint(10, (30,))


def fails_far_away(outputs, targets):
    if outputs.abs().max() > 60:
        raise ArithmeticError("the outputs are too large for me")
    return F.cross_entropy(outputs, targets)


def by_chance(split):  # a whole problem with weights, points and an order that nobody has seeded
    net = flat()
    x = torch.from_numpy(numpy.random.rand(20, 1, 8, 8)).float()
    y = torch.tensor([random.randrange(10) for _ in range(20)])
    return net, DataLoader(TensorDataset(x, y), 6, shuffle=True), lambda m, b: F.cross_entropy(m(b[0]), b[1])


def of_each_rank(split):
    return torch.full((4, 1, 8, 8), float(os.getpid())), torch.zeros(4, dtype=torch.int64)


def whole(split):
    from lossmap import Problem

    net = flat()
    return Problem.custom(net, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), data(split))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(line):
    return main(line.split())


def in_ranks(ranks, line, folder, timeout=120, code=0):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    from lossmap.cli.demo import environment

    command = [mpirun, "-n", str(ranks), sys.executable, "-m", "lossmap.cli", "surface", *line.split()]
    environ = {**environment(), "TMPDIR": "/tmp"}
    done = subprocess.run(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr if code else done.stdout


def test_losses_of_the_original_tool_are_reproduced_on_its_plane(here, reference):
    theirs = reference / "original_tool"
    line = f"--model net.py:Small --model-file {theirs}/small_a.t7 --dataset npz:{theirs}/digits500.npz"
    assert run(f"{line} --dir-file {theirs}/plane_dir.h5 --x=-1:1:7 --y=-1:1:7 --surf-file plane.h5") == 0
    ours, stored = lossmap.read("plane.h5"), lossmap.read(theirs / "plane_surf.h5")
    np.testing.assert_allclose(ours["train_loss"], stored["train_loss"], rtol=1e-4)
    np.testing.assert_array_equal(ours["train_acc"], stored["train_acc"])


def test_losses_of_the_original_tool_are_reproduced_on_its_line_of_states_nan_included(here, reference):
    theirs = reference / "original_tool"
    line = f"--model net.py:Small --model-file {theirs}/small_a.t7 --dataset npz:{theirs}/digits500.npz"
    line += " --dir-type states --x=-0.5:1.5:9 "
    stored = lossmap.read(theirs / "line_surf.h5")
    for how in (f"--dir-file {theirs}/line_dir.h5", f"--model-file2 {theirs}/small_b.t7"):
        assert run(f"{line} {how} --surf-file line.h5 --overwrite") == 0
        ours = lossmap.read("line.h5")
        assert np.isnan(stored["train_loss"][-2:]).all()
        np.testing.assert_array_equal(np.isnan(ours["train_loss"]), np.isnan(stored["train_loss"]))
        np.testing.assert_allclose(ours["train_loss"], stored["train_loss"], rtol=1e-4)
        np.testing.assert_array_equal(ours["train_acc"][:-2], stored["train_acc"][:-2])


SPY = """\
import os
import sys

def spy(event, args):
    if event == "open" and str(args[0]).endswith(("m.pt", "data.npz")):
        with open("opened." + os.environ.get("OMPI_COMM_WORLD_RANK", "none"), "a") as file:
            file.write(f"{args[0]}\\n")

sys.addaudithook(spy)
"""


def test_checkpoint_and_data_are_read_by_one_rank_of_a_node_alone(here, monkeypatch):
    (here / "sitecustomize.py").write_text(SPY)
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    torch.save(zoo.build("mlp", seed=1).state_dict(), "m.pt")
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(20, 1, 8, 8)), y=np.arange(20) % 10)
    line = "--model mlp --model-file m.pt --dataset npz:data.npz --x=-1:1:4 --no-probe --surf-file a.h5"
    in_ranks(2, line, here)
    assert {Path(name).name for name in (here / "opened.0").read_text().split()} == {"m.pt", "data.npz"}
    assert not (here / "opened.1").exists()


def test_a_grid_that_is_not_square_is_stored_row_by_row(here):
    assert run("--model net.py:flat --dataset net.py:data --x=-1:0:3 --y=2:0:4 --surf-file a.h5 --batch-size 30") == 0
    surface = lossmap.read("a.h5")
    assert surface["train_loss"].shape == (4, 3)
    from lossmap.cli.load_problem import model_of
    from lossmap.cli.setting_groups import ModelSettings

    net = model_of(ModelSettings(model="net.py:flat"))
    plane = lossmap.random_plane(net, seed=0)
    namespace: dict = {}
    exec(NET, namespace)
    x, y = namespace["data"]("train")
    for r, c in ((0, 2), (3, 0), (2, 1)):
        moved = plane.at((surface.grid.x[c], surface.grid.y[r]))
        twin = torch.nn.functional.cross_entropy(torch.func.functional_call(net, moved, (x,)), y)
        assert surface["train_loss"][r, c] == pytest.approx(float(twin), rel=1e-5)


@pytest.mark.slow
def test_one_two_and_three_ranks_give_the_same_bits_and_so_does_going_on(here):
    line = "--model resnet20-w8 --samples 40 --x=-1:1:4 --y=-1:1:3 --split both --no-probe --surf-file"
    assert run(f"{line} one.h5") == 0
    one = lossmap.read("one.h5")
    for ranks in (2, 3):
        in_ranks(ranks, f"{line} {ranks}.h5", here)
    assert run(f"{line} stopped.h5 --stop-after 0") == 75
    with pytest.MonkeyPatch.context() as patch:
        # stop after five points: the clock is asked before each
        from lossmap.parallel.shutdown import Stop

        asked = iter(range(10_000))
        patch.setattr(Stop, "allows", lambda self, seconds: next(asked) < 5 or bool(self.request("enough")))
        assert run(f"{line} stopped.h5") == 75
    assert 0 < lossmap.read("stopped.h5").counts("loss")["done"] < 12
    assert run(f"{line} stopped.h5") == 0
    for name in ("2.h5", "3.h5", "stopped.h5"):
        other = lossmap.read(name)
        for field in ("train_loss", "train_acc", "test_loss", "test_acc"):
            assert np.array_equal(other[field], one[field]), (name, field)


@pytest.mark.parametrize("subcommand", ["surface", "eigenmap"])
def test_a_signal_during_setup_interrupts_the_command_resumably(here, capsys, subcommand):
    Path("signalled.py").write_text(
        "import os, signal\nfrom lossmap import zoo\n"
        "def net():\n"
        "    if 'ASKED' in os.environ:\n        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return zoo.build('mlp', seed=0)\n"
    )
    line = [subcommand, *["--model", "signalled.py:net", "--samples", "20", "--x=-1:1:3", "--surf-file", "a.h5"]]
    if subcommand == "eigenmap":
        line += ["--hvp-backend", "double-backward", "--certify", "none"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    told: dict = {"capture_output": True, "text": True, "timeout": 240}
    left = subprocess.run([sys.executable, "-m", "lossmap.cli", *line], env={**environ, "ASKED": "1"}, **told)
    assert left.returncode == 75, left.stderr
    assert "USR1: no new points" in left.stderr
    assert lossmap.read("a.h5").outcome == "unfinished"
    assert subprocess.run([sys.executable, "-m", "lossmap.cli", *line], env=environ, **told).returncode == 0


def test_three_shards_cover_the_grid_once(here):
    line = "--model mlp --samples 50 --x=-1:1:4 --y=-1:1:3 --no-probe --surf-file a.h5"
    assert run(line) == 0
    seen = np.zeros((3, 4), int)
    for i in (1, 2, 3):
        assert run(f"{line} --shard {i}/3") == 0
        shard = lossmap.read(f"a.shard-{i}-of-3.h5")
        seen += shard.status["loss"]
        done = shard.status["loss"] == 1
        assert np.array_equal(shard["train_loss"][done], lossmap.read("a.h5")["train_loss"][done])
    assert (seen == 1).all()


def test_failed_points_are_listed_with_their_reason_and_evaluated_again_on_request(here, capsys):
    line = "--model mlp --samples 20 --loss net.py:fails_far_away --x=0:300:3 --surf-file a.h5"
    assert run(line) == 3
    out = capsys.readouterr().out
    assert "failed: point (300) on rank 0" in out
    assert "the outputs are too large for me" in out
    assert run(line) == 3
    assert lossmap.read("a.h5").counts("loss") == {"done": 1, "failed": 2, "left": 0}
    Path("net.py").write_text(NET)
    assert run(line + " --retry-failed") == 3


def test_a_whole_problem_obeys_the_number_of_samples(here):
    assert run("--problem net.py:whole --samples 12 --x=-1:1:3 --surf-file few.h5") == 0
    assert lossmap.read("few.h5", lossmap.Surface).settings["measures"]["loss"]["samples"] == {"train": 12}


def test_a_whole_problem_of_your_own_is_surveyed(here):
    assert run("--problem net.py:whole --split both --x=-1:1:3 --surf-file a.h5") == 0
    assert set(lossmap.read("a.h5").measures["loss"]) == {"train_loss", "test_loss"}


def test_what_a_function_draws_by_chance_is_the_same_on_every_rank_and_in_every_run(here):
    grid = "--x=-1:1:4 --no-probe"
    in_ranks(2, f"--problem net.py:by_chance {grid} --surf-file two.h5", here)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert run(f"--problem net.py:by_chance {grid} --surf-file one.h5") == 0
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()
    assert np.array_equal(lossmap.read("one.h5")["train_loss"], lossmap.read("two.h5")["train_loss"])


def test_data_that_differ_between_ranks_are_refused(here):
    line = "--model net.py:flat --dataset net.py:of_each_rank --x=-1:1:4 --surf-file a.h5"
    said = in_ranks(2, line, here, code=2)
    assert "the data differ between the ranks: " in said and "a generator with a seed of its own" in said
    assert not Path("a.h5").exists()


def test_own_loss_and_mse_are_the_same_for_whole_number_targets(here):
    line = "--model mlp --samples 20 --x=-1:1:3 --batch-size 20"
    assert run(f"{line} --loss net.py:squared --surf-file a.h5") == 0
    assert run(f"{line} --loss mse --surf-file b.h5") == 0
    np.testing.assert_allclose(lossmap.read("a.h5")["train_loss"], lossmap.read("b.h5")["train_loss"], rtol=1e-6)


def test_a_changed_setting_is_refused_by_name_and_nothing_is_changed(here, capsys):
    line = "--model mlp --samples 20 --x=-1:1:3 --surf-file a.h5"
    assert run(line) == 0
    capsys.readouterr()
    before = Path("a.h5").read_bytes()
    for more, name in (("--seed 1", "seed"), ("--loss mse", "loss"), ("--samples 21", "samples"), ("--x=-1:1:4", "x")):
        assert run(f"{line} {more}") == 2
        text = capsys.readouterr().err
        assert name in text and "--overwrite" in text
        assert text.count("\n") == 1
    assert Path("a.h5").read_bytes() == before
    assert run(f"{line} --seed 1 --overwrite") == 0


def test_precisions_agree_within_their_rounding(here):
    readings = {}
    for precision in ("float32", "float64", "bfloat16"):
        line = f"--model cnn --samples 64 --x=-1:1:3 --surf-file {precision}.h5 --precision {precision}"
        assert run(line) == 0
        readings[precision] = lossmap.read(f"{precision}.h5")["train_loss"]
    np.testing.assert_allclose(readings["float32"], readings["float64"], rtol=1e-5)
    np.testing.assert_allclose(readings["bfloat16"], readings["float64"], rtol=5e-2)
    assert not np.array_equal(readings["bfloat16"], readings["float32"])


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(here, capsys):
    before = set(here.iterdir())
    assert run("--model mlp --x=-1:1:5 --y=-1:1:4 --dry-run") == 0
    out = capsys.readouterr().out
    assert "20 points" in out and "nothing was written" in out and "3,466 parameters" in out
    assert set(here.iterdir()) == before


def test_a_dry_run_looks_into_the_file_that_is_there(here, capsys):
    line = "--model mlp --samples 20 --x=-1:1:3 --surf-file a.h5"
    assert run(line) == run(line + " --dry-run") == 0
    assert "would be continued (loss: 3 points done)" in capsys.readouterr().out
    assert run(line + " --overwrite --dry-run") == 0
    assert "would be started anew" in capsys.readouterr().out
    for changed in ("--x=-1:1:4", "--seed 1", "--samples 30"):
        assert run(f"{line} {changed} --dry-run") == 2
        assert "holds another survey" in capsys.readouterr().err


def test_a_result_without_a_name_is_named_after_what_it_holds_also_in_a_folder(here, capsys):
    (here / "results").mkdir()
    assert run("--model mlp --samples 20 --x=-1:1:3 --y=0:1:2 --idx 2 --surf-file results") == 0
    assert "result: results/mlp_random_s0.2_-1to1x3_0to1x2.h5" in capsys.readouterr().out
    assert run("--model mlp --samples 20 --x=-1:1:3 --surf-file results/line") == 0
    assert [p.name for p in sorted((here / "results").iterdir())] == ["line.h5", "mlp_random_s0.2_-1to1x3_0to1x2.h5"]


def test_a_picture_that_cannot_be_drawn_hides_no_result(here, capsys):
    (here / "a.pdf").mkdir()
    assert run("--model mlp --samples 20 --x=-1:1:3 --surf-file a.h5 --plot") == 0
    told = capsys.readouterr()
    assert told.out.endswith("result: a.h5\n") and "no picture was drawn: " in told.err


def test_the_file_carries_where_it_came_from(here, capsys):
    torch.save(zoo.build("mlp", seed=1).state_dict(), "m.pt")
    assert run("--model mlp --model-file m.pt --samples 20 --x=-1:1:3 --y=0:1:2 --surf-file a.h5") == 0
    assert "computing on cpu; " in capsys.readouterr().out
    with h5py.File("a.h5") as file:
        assert (file.attrs["format"], file.attrs["device"]) == ("lossmap", "cpu")
        for name in ("torch_version", "lossmap_version", "device", "history", "directions_cosine", "start", "end"):
            assert name in file.attrs, name
        assert file["directions/x/1.weight"].shape == (32, 64)
    import hashlib

    digest = hashlib.sha256(Path("m.pt").read_bytes()).hexdigest()
    assert lossmap.read("a.h5").settings["file"]["model_file (SHA-256)"] == digest


MISTAKES = [
    ("--model mlp --model-file nowhere.pt", "there is no file nowhere.pt"),
    ("--model resnet21", "no net is named 'resnet21'; nearest: resnet"),
    ("--model mlp --x=1", "--x must be low:high:count, such as --x=-1:1:51; got '1'"),
    ("--model mlp --x=-1:1:0", "with a count of 1 or more; got '-1:1:0'"),
    ("--model mlp --x=1:1:3", "3 points need two different ends"),
    ("--model mlp --surf-file nowhere/a.h5", "nowhere does not exist: make it first"),
    ("--model mlp --model-file cut.pt", "cut.pt cannot be read: it is cut off"),
    ("--model cnn --model-file mlp.pt", "mlp.pt is of another architecture"),
    ("--model mlp --model-file nan.pt", "nan.pt has entries that are not finite: 1.weight"),
    ("--model net.py:broken", "'my forward is broken'"),
    ("--model net.py:number", "must return an nn.Module; got int"),
    ("--model net.py:nothing", "net.py has nothing named 'nothing'"),
    ("--model nowhere.py:net", "there is no file nowhere.py"),
    ("--model mlp --model-args 3", "--model-args must be a JSON object; got '3'"),
    ("--model mlp --model-args {", "--model-args must be JSON"),
    ('--model net.py:flat --model-args {"a":1}', "could not be called"),
    ("--model net.py:impatient", "--model net.py:impatient fails: RuntimeError: no time"),
    ("--model net.py", "in that file, name the factory: net.py:factory"),
    ("--model resnet20", "cifar10 is not in ., data, cifar10/data"),
    ("--model resnet20 --dataset digits", "does the data set fit the model?"),
    ("--model mlp --samples 0", "--samples must be >= 1; got 0"),
    ("--model mlp --surf-file foreign.h5 --overwrite", "foreign.h5 is not a surface file, so it is not overwritten"),
    ("--model mlp --surf-file nowhere/a.h5 --dry-run", "nowhere does not exist: make it first"),
    ("--dataset digitz", "no data set is named 'digitz'; nearest: digits"),
    ("--dataset bad.npz", "a file of arrays is named npz:bad.npz"),
    ("--model mlp --dataset npz:bad.npz", "one y for each x"),
    ("--model mlp --surf-file text.h5", "text.h5 is no HDF5 file"),
    ("--model mlp --surf-file foreign.h5", "foreign.h5"),
    ("--model mlp --device cuda", "--device cuda"),
    ("--model mlp --team 2", "start 2 ranks"),
    ("--model mlp --xdir blah", "unknown direction 'blah'"),
    ("--model mlp --ydir random", "--ydir random needs ticks along y too"),
    ("--model mlp --y=0:1:2 --proj-file nowhere.h5", "there is no file nowhere.h5"),
    ("--model mlp --xdir pca:1", "--model-folder"),
    ("--model mlp --xdir pca:1 --model-folder nowhere", "--model-folder nowhere is not a folder"),
    ("--model mlp --xdir pca:2 --model-folder .", "span 0 dimensions"),
    ("--model mlp --xdir to:nowhere.pt", "there is no file nowhere.pt"),
    ("--model mlp --xnorm filters", "norm must be one of filter, layer, weight, dfilter, dlayer, none; got 'filters'"),
    ("--model mlp --xignore bn", "ignore must be one of biasbn, none; got 'bn'"),
    ("--model mlp --loss foo", "unknown loss 'foo'"),
    ("--model mlp --precision tf32", "--precision tf32 is a mode of CUDA's GPUs"),
    ("--model mlp --shard 4/3", "--shard must be I/N"),
    ("--model mlp --x 0:1:2 --shard 3/3", "--shard 3/3 holds no point"),
    ("--model mlp --trainloader loader.pkl", "--unsafe-load if you trust it"),
    ("--model mlp --trainloader data.npz", "--dataset npz:data.npz"),
    ("--model mlp --point-timeout 0", "--point-timeout must be > 0; got 0"),
    ("--problem net.py:number", "must return a Problem, or a tuple"),
    ("--problem net.py:two_problems", "(model, loss, data, reduction, batch_size, unit); missing a required argument"),
    ("--problem net.py:pair", "must return a Problem, or a tuple (model, batches, loss(model, batch)); got tuple"),
    ("--problem net.py:flat --split both", "must return a Problem, or a tuple"),
]


@pytest.mark.parametrize(("line", "text"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_each_mistake_is_one_clear_sentence_and_exit_code_2(here, capsys, line, text):
    torch.save(zoo.build("mlp", seed=1).state_dict(), "mlp.pt")
    Path("cut.pt").write_bytes(Path("mlp.pt").read_bytes()[:3000])
    state = torch.load("mlp.pt")
    state["1.weight"][0, 0] = float("nan")
    torch.save(state, "nan.pt")
    np.savez("bad.npz", x=np.zeros((5, 3)), y=np.zeros(4, int))
    Path("text.h5").write_text("hello\n")
    with h5py.File("foreign.h5", "w") as file:
        file["a"] = 3
    for name in ("nan.pt", "cut.pt"):
        if "--model-folder ." in line:
            Path(name).unlink()
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.startswith("lossmap: ") and said.count("\n") == 1 and "Traceback" not in said
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file() and "__pycache__" not in str(p)} == {
        p: b for p, b in before.items() if "__pycache__" not in str(p)
    }


def test_a_file_that_another_run_writes_is_left_alone(here, capsys):
    line = "--model mlp --samples 20 --x=-1:1:3 --surf-file a.h5"
    assert run(line + " --stop-after 0") == 75
    import fcntl

    with open("a.h5.journal", "rb+") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        assert run(line) == 2
    assert "another process" in capsys.readouterr().err
    assert run(line) == 0


def test_repeats_and_same_directions_do_what_they_say(here):
    line = "--model mlp --samples 20 --x=0:1:2 --batch-size 20"
    for more, name in (("", "a"), ("--idx 1", "b"), ("--seed 1", "c")):
        assert run(f"{line} {more} --surf-file {name}.h5") == 0
    ends = {name: lossmap.read(f"{name}.h5")["train_loss"][1] for name in "abc"}
    assert len(set(ends.values())) == 3
    assert run(f"{line} --y=0:1:2 --same-dir --surf-file d.h5") == 0
    surface = lossmap.read("d.h5")
    assert surface["train_loss"][0, 1] == surface["train_loss"][1, 0]
    assert surface.attributes["directions_cosine"] == pytest.approx(1.0)


def test_two_directions_that_are_one_are_refused(here, capsys):
    for seed, name in ((1, "a"), (2, "b")):
        torch.save(zoo.build("mlp", seed=seed).state_dict(), f"{name}.pt")
    state = {k: 3 * v - 2 * torch.load("a.pt")[k] for k, v in torch.load("b.pt").items()}
    torch.save(state, "c.pt")  # on the line from a through b
    line = "--model mlp --model-file a.pt --model-file2 b.pt --samples 20 --x=0:1:2 --y=0:1:2 --surf-file d.h5"
    for other in ("b.pt", "c.pt"):
        assert run(f"{line} --model-file3 {other}") == 2
        assert f"to:b.pt and to:{other} are one and the same (cosine 1.000000)" in capsys.readouterr().err
    assert not Path("d.h5").exists()
    near = {k: v + 1e-4 * torch.rand_like(v) for k, v in torch.load("b.pt").items()}
    torch.save(near, "near.pt")
    assert run(f"{line} --model-file3 near.pt") == 0
    assert lossmap.read("d.h5").attributes["directions_cosine"] > 1 - 1e-6
    torch.save({k: torch.zeros_like(v) for k, v in near.items()}, "zeros.pt")
    assert run("--model mlp --model-file zeros.pt --samples 20 --x=0:1:2 --surf-file z.h5") == 2
    assert "nothing moves along a random direction of norm 'filter'" in capsys.readouterr().err


def test_directions_of_every_kind_lead_where_they_say(here):
    a, b = zoo.build("mlp", seed=1), zoo.build("mlp", seed=2)
    Path("run").mkdir()
    for i, net in enumerate((b, zoo.build("mlp", seed=3), a)):
        torch.save(net.state_dict(), f"run/{i}.pt")
    line = "--model mlp --model-file run/2.pt --samples 30 --batch-size 30"
    assert run(f"{line} --xdir to:run/0.pt --x=0:1:2 --surf-file to.h5") == 0
    assert run("--model mlp --model-file run/0.pt --samples 30 --batch-size 30 --x=0:0:1 --surf-file b.h5") == 0
    assert lossmap.read("to.h5")["train_loss"][1] == pytest.approx(lossmap.read("b.h5")["train_loss"][0], rel=1e-5)
    assert run(f"{line} --xdir gradient --x=-0.001:0.001:2 --surf-file g.h5") == 0
    low, high = lossmap.read("g.h5")["train_loss"]
    assert high > low
    more = "--xdir pca:1 --ydir hessian:max --model-folder run --x=-1:1:2 --y=-1:1:2"
    assert run(f"{line} {more} --surf-file p.h5") == 0
    assert run(f"{line} --xdir file:p.h5:y --x=-1:1:2 --surf-file f.h5") == 0
    from lossmap.io.read import read_group

    stored, again = read_group("p.h5", "directions/y"), read_group("f.h5", "directions/x")
    for name in stored.arrays:
        assert np.array_equal(stored[name], again[name])


def test_a_path_lies_on_the_surface_through_the_end_of_its_run(here, capsys):
    from lossmap.cli import plane

    Path("run").mkdir()
    for i in range(4):
        torch.save(zoo.build("mlp", seed=i).state_dict(), f"run/{i}.pt")
    line = "--model mlp --model-folder run --samples 30"
    assert plane.main(f"{line} --xdir pca:1 --ydir pca:2 --proj-file path.h5".split()) == 0
    printed = capsys.readouterr()
    assert "lossmap surface ... --dir-file path.h5 --proj-file path.h5 --x=" in printed.out
    assert "path: about 4 points of" in printed.err
    ends = [f"{end:.3g}" for axis in "xy" for end in lossmap.read("path.h5").grid.__dict__[axis][[0, -1]]]
    assert run(f"{line} --dir-file path.h5 --x=auto --y=auto --surf-file s.h5") == 2
    assert "--x=auto needs --proj-file" in capsys.readouterr().err
    assert run(f"{line} --dir-file path.h5 --proj-file path.h5 --x=auto:3 --y=auto:2 --surf-file w.h5") == 0
    window = lossmap.read("w.h5").grid
    assert window.shape == (2, 3) and [f"{end:.3g}" for t in (window.x, window.y) for end in t[[0, -1]]] == ends
    kept = lossmap.read("w.h5")
    shares = kept.groups["trajectory"]["explained_variance_ratio"]
    labels = [f"{axis}, principal component {i} ({100 * shares[i - 1]:.0f} %)" for axis, i in (("x", 1), ("y", 2))]
    assert list(axis_labels(kept)) == labels and "made_as" not in str(kept.settings)
    assert window.x[0] < lossmap.read("path.h5").groups["trajectory"]["x"].min()
    capsys.readouterr()
    assert run(f"{line} --dir-file path.h5 --proj-file path.h5 --x=0:1:2 --y=0:1:2 --surf-file s.h5") == 0
    assert "the run's last checkpoint is taken, run/3.pt" in capsys.readouterr().out
    surface, path = lossmap.read("s.h5"), lossmap.read("path.h5").groups["trajectory"]
    assert np.array_equal(surface.groups["trajectory"]["x"], path["x"])
    assert surface["train_loss"][0, 0] == pytest.approx(path["loss"][-1], rel=1e-5)


@pytest.mark.parametrize("command", ["surface", "eigenmap", "estimate"])
def test_a_file_of_directions_that_is_not_there_is_refused(here, capsys, command):
    from lossmap.cli.__main__ import main as lossmap_command

    words = ["estimate", "--", "surface"] if command == "estimate" else [command]
    line = "--model mlp --samples 10 --x=0:1:2 --dir-file missing.h5 --surf-file s.h5"
    for flags in ("", " --dry-run") if command != "estimate" else ("",):
        assert lossmap_command([*words, *(line + flags).split()]) == 2
        assert "there is no missing.h5 to read directions of: a result that goes on needs" in capsys.readouterr().err
    assert not Path("missing.h5").exists() and not Path("s.h5").exists()


def test_an_axis_with_running_statistics_that_stand_still_is_said_to_have_them(here, caplog):
    from lossmap.cli import plane

    torch.manual_seed(0)
    net = resolve_callable("net.py:Small")()
    torch.save(net.state_dict(), "a.pt")
    for name, moved in (("same", net.fc.weight), ("other", net.bn1.running_mean)):
        moved.data += 1.0
        torch.save(net.state_dict(), f"{name}.pt")
    own = "--model net.py:Small --model-file a.pt"
    sentence = "other.dir.h5: along x running statistics move too; --dir-type states moves them"
    for name, flags, is_said in (
        ("same", "", False),
        ("other", "", True),
        ("other", " --dir-type states", False),
        ("other", " --xdir file:other.dir.h5:x", True),
    ):
        made = f"{name}.dir.h5"
        assert plane.main(f"{own} --xdir to:{name}.pt --dir-type states --dir-file {made} --overwrite".split()) == 0
        caplog.clear()
        which = flags if "--xdir" in flags else f"--dir-file {made}{flags}"
        assert run(f"{own} {which} --samples 10 --x=0:1:2 --surf-file s.h5 --overwrite") == 0
        assert (sentence in caplog.text) is is_said
    assert "changes nothing" not in caplog.text
    assert run(f"{own} --dir-file {made} --xdir to:same.pt --xnorm layer --x=0:1:2 --surf-file t.h5 --dry-run") == 0
    assert f"are those of --dir-file {made}, of which --xdir, --xnorm changes nothing" in caplog.text


def test_an_axis_that_is_drawn_with_running_statistics_is_refused_without_them(here, capsys, monkeypatch):
    from lossmap.cli import plane
    from lossmap.geometry import directions

    monkeypatch.setattr(directions, "MAX_HELD_ENTRIES", 0)
    own = "--model net.py:Small --dir-file d.h5"
    assert plane.main(f"{own} --dir-type states --xignore none".split()) == 0
    capsys.readouterr()
    assert run(f"{own} --samples 10 --x=0:1:2 --surf-file s.h5") == 2
    sentence = "d.h5: the direction x is drawn with the running statistics: --dir-type states moves them"
    assert sentence in capsys.readouterr().err
    assert run(f"{own} --samples 10 --x=0:1:2 --surf-file s.h5 --dir-type states") == 0


def test_a_path_that_does_not_name_its_plane_is_taken_and_said_not_to(here, caplog):
    with h5py.File("proj.h5", "w") as made:  # of the original tool
        made["proj_xcoord"], made["proj_ycoord"] = np.zeros(2), np.ones(2)
    assert run("--model mlp --samples 10 --x=0:1:2 --y=0:1:2 --proj-file proj.h5 --surf-file s.h5") == 0
    assert "proj.h5 does not name the plane of its path, which is taken to be that of the surface" in caplog.text
    assert list(lossmap.read("s.h5").groups["trajectory"]["y"]) == [1, 1]


def test_a_line_between_checkpoints_says_where_it_leaves_the_running_statistics(here, caplog, capsys):
    torch.manual_seed(0)
    net = resolve_callable("net.py:Small")()
    net.bn1.bias.data += 2.0
    torch.save(net.state_dict(), "a.pt")
    net.bn1.running_mean += 1.0
    for weight in net.parameters():
        weight.data += 1.0
    torch.save(net.state_dict(), "b.pt")
    line = "--model net.py:Small --model-file a.pt --xdir to:b.pt --samples 10 --x=0:1:2 --surf-file"
    assert run(f"{line} weights.h5") == 0
    assert "at 1 are the weights of b.pt, but the running statistics of the model; --dir-type states" in caplog.text
    caplog.clear()
    where = "all along the axis to b.pt are the running statistics of the model; --dir-type states moves them"
    for number, changed in enumerate(("--xnorm filter", "--xignore biasbn", "--parameters bn1")):  # leads elsewhere
        assert run(f"{line} changed{number}.h5 {changed}") == 0
        assert where in caplog.text
        assert "at 1" not in caplog.text
        drawn = lossmap.draw(f"changed{number}.h5").axes[0]
        assert drawn.get_xlabel() == "x, to b.pt"
        assert 1.0 not in {mark.get_xdata()[0] for mark in drawn.lines if mark.get_linestyle() == ":"}
        caplog.clear()
    assert run(f"{line} states.h5 --dir-type states") == 0
    assert not caplog.text
    drawn = lossmap.draw("states.h5").axes[0]
    assert drawn.get_xlabel() == "x, 0: model, 1: b.pt"
    assert {0.0, 1.0} <= {mark.get_xdata()[0] for mark in drawn.lines if mark.get_linestyle() == ":"}
    drawn = lossmap.draw("weights.h5").axes[0]
    assert drawn.get_xlabel() == "x, 0: model, 1: weights of b.pt"
    assert run("--model net.py:Small --samples 10 --x=0:1:2 --dry-run") == 0
    assert "no --model-file: the weights are as net.py:Small initializes them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("made", "label"),
    [
        ("", "x, 0: model, 1: b.pt"),
        ("--xnorm none --parameters .*", "x, 0: model, 1: b.pt"),
        ("--xnorm filter", "x, to b.pt"),
        ("--xignore biasbn", "x, to b.pt"),
        ("--parameters weights", "x, to b.pt"),
        ("--parameters trainable", "x, 0: model, 1: b.pt"),
    ],
)
def test_an_axis_read_back_ends_where_it_did_and_from_another_origin_nowhere_known(here, made, label):
    from lossmap.cli import plane

    a, b, c = (zoo.build("mlp", seed=i).state_dict() for i in range(3))
    for name, state in (("a", a), ("b", b), ("c", c)):
        torch.save(state, f"{name}.pt")
    assert plane.main(f"--model mlp --model-file a.pt --xdir to:b.pt {made} --dir-file p.h5 --y=0:1:2".split()) == 0
    again = "--model mlp --dir-file p.h5 --samples 10 --x=0:1:2 --surf-file"
    truth = "--model mlp --samples 10 --x=0:0:1 --model-file b.pt --surf-file"
    assert run(f"{truth} b.h5") == 0
    at_b = lossmap.read("b.h5")["train_loss"].item()
    for origin, ticks, file in (("a", "", "line.h5"), ("a", "--y=0:1:2", "plane.h5"), ("c", "", "other.h5")):
        assert run(f"{again} {file} --model-file {origin}.pt {ticks}") == 0
        surface = lossmap.read(file)
        stands = surface["train_loss"].reshape(-1)[1] == pytest.approx(at_b, rel=1e-5)
        assert stands == (label.endswith("1: b.pt") and origin == "a")
        assert axis_labels(surface)[0] == (label if stands else "x, to b.pt")
        assert "ends_at" not in str(surface.settings)


def test_a_frozen_layer_that_differs_is_left_behind_by_a_line_of_the_trainable_parameters(here):
    Path("frozen.py").write_text(
        "import torch\n\n\ndef net():\n    net = torch.nn.Sequential(torch.nn.Linear(64, 5), torch.nn.Linear(5, 10))\n"
        "    net[0].requires_grad_(False)\n    return torch.nn.Sequential(torch.nn.Flatten(), *net)\n"
    )
    net = resolve_callable("frozen.py:net")()
    for name, moved in (("a", ()), ("same", (2,)), ("other", (1, 2))):
        for layer in moved:
            net[layer].weight.data += 0.5
        torch.save(net.state_dict(), f"{name}.pt")
        if name == "same":
            net[2].weight.data -= 0.5
    line = "--model frozen.py:net --model-file a.pt --parameters trainable --samples 10 --x=0:1:2"
    for name, label in (("same", "x, 0: model, 1: same.pt"), ("other", "x, to other.pt")):
        assert run(f"{line} --xdir to:{name}.pt --surf-file {name}.h5") == 0
        assert axis_labels(lossmap.read(f"{name}.h5"))[0] == label


def test_buffers_that_stand_still_are_called_what_they_are(here, caplog, capsys):
    Path("masked.py").write_text(
        """import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.register_buffer("mask", torch.ones(10))

    def forward(self, x):
        return self.fc(x.flatten(1)) * self.mask
"""
    )
    torch.manual_seed(0)
    net = resolve_callable("masked.py:Masked")()
    torch.save(net.state_dict(), "a.pt")
    net.mask[3] = 0.0
    torch.save(net.state_dict(), "mask.pt")
    net.fc.bias.data += 1.0
    torch.save(net.state_dict(), "b.pt")
    own = "--model masked.py:Masked --model-file a.pt --samples 10 --x=0:1:2 --surf-file"
    assert run(f"{own} s.h5 --xdir to:b.pt") == 0
    assert "at 1 are the weights of b.pt, but the buffers such as 'mask' of the model" in caplog.text
    assert run(f"{own} t.h5 --xdir to:mask.pt") == 2
    assert "; its buffers such as 'mask' differ: --dir-type states moves them" in capsys.readouterr().err
    assert run(f"{own} u.h5 --xdir to:b.pt --dir-type states") == 0
    caplog.clear()
    assert run(f"{own} v.h5 --xdir file:u.h5:x") == 0
    assert "u.h5: along x buffers such as 'mask' move too; --dir-type states moves them" in caplog.text
    assert "running statistics" not in caplog.text


def test_a_direction_along_which_no_weight_moves_is_refused(here, capsys):
    torch.manual_seed(0)
    net = resolve_callable("net.py:Small")()
    torch.save(net.state_dict(), "a.pt")
    net.bn1.num_batches_tracked += 5
    torch.save(net.state_dict(), "same.pt")
    net.bn1.running_mean += 1.0
    torch.save(net.state_dict(), "statistics.pt")
    net.bn1.bias.data += 1.0
    torch.save(net.state_dict(), "bias.pt")
    line = "--model net.py:Small --model-file a.pt --samples 10 --x=0:1:2 --surf-file s.h5 --xdir"
    for directions, sentence in (
        ("to:same.pt", "same.pt has the weights of the model at the origin: there is no direction to it\n"),
        ("to:same.pt --dir-type states", "there is no direction to it\n"),
        ("to:statistics.pt", "its running statistics differ: --dir-type states moves them\n"),
        ("to:bias.pt --ydir to:statistics.pt --y=0:1:2", "its running statistics differ: --dir-type states"),
        ("to:bias.pt --xignore biasbn", "nothing moves along the direction to:bias.pt of norm 'none' and ignore 'bias"),
    ):
        assert run(f"{line} {directions}") == 2
        assert sentence in capsys.readouterr().err
    assert not Path("s.h5").exists()
    assert run(f"{line} to:statistics.pt --dir-type states") == 0


def test_a_result_without_directions_keeps_their_recipe_and_digest(here, capsys):
    line = "--model mlp --samples 20 --x=0:1:2 --no-store-directions --surf-file a.h5"
    assert run(line) == 0
    from lossmap.io.read import read_group

    group = read_group("a.h5", "directions/x")
    assert not group.arrays and group.attributes["kind"] == "random" and len(group.attributes["digest"]) == 64
    assert run(line) == 0
    assert run("--model mlp --samples 20 --x=0:1:2 --dir-file a.h5 --surf-file b.h5") == 2
    assert "holds only the recipe of the direction x" in capsys.readouterr().err
