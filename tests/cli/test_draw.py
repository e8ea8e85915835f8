"""The commands `lossmap draw` and `lossmap watch`."""

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace

import h5py
import numpy as np
import pytest

from lossmap.callbacks.history import History
from lossmap.cli import draw as command
from lossmap.cli import legacy
from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import Group, Surface, SurfaceFile, read, write_surface
from lossmap.io.surface import TRAINING_PROCESS
from lossmap.plotting import save_next_to

GRID = Grid(np.linspace(-1, 1, 5), np.linspace(0, 1, 4))
X, Y = np.meshgrid(GRID.x, GRID.y)
FIELDS = (Field("train_loss", "nats", "mean loss"),)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.1.h5"
    write_surface(path, Surface(GRID, {"train_loss": 0.01 + X**2 + Y, "train_acc": 50 + X}))
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_drawn_beside_itself(file, tmp_path, capsys):
    assert command.main([str(file)]) == 0
    assert names(tmp_path) == ["run.1.h5", "run.1.pdf", "run.1.png"]
    assert f"picture: {tmp_path / 'run.1.pdf'}" in capsys.readouterr().out


def page_scale(folder):
    text = (folder / "a.html").read_text()
    content = text[text.index('id="data">') + len('id="data">') :]
    data, _ = json.JSONDecoder().raw_decode(content)
    return data["fields"][0]["name"], data["fields"][0]["scales"][0]["kind"]


def test_outputs_are_what_their_endings_say(file, tmp_path):
    outputs = [str(tmp_path / n) for n in ("a.svg", "a.html", "a.vtp")]
    assert command.main([str(file), "--output", *outputs, "--field", "train_acc", "--kind", "contour"]) == 0
    assert names(tmp_path) == ["a.html", "a.svg", "a.vtp", "run.1.h5"]
    assert command.main([str(file), "--vmin=0.1", "--vmax", "10", "--vlevel", "0.5", "-o", outputs[0]]) == 0
    assert command.main([str(file), "--linear", "-o", outputs[1]]) == 0 and page_scale(tmp_path)[1] == "linear"
    assert command.main([str(file), "-o", outputs[1]]) == 0 and page_scale(tmp_path) == ("train_loss", "log")
    assert command.main([str(file), "--log", "--width", "5", "--dpi", "50", "-o", str(tmp_path / "b.png")]) == 0


def test_several_files_stand_side_by_side(file, tmp_path, capsys):
    pair = str(tmp_path / "pair.pdf")
    assert command.main([str(file), str(file), "--titles", "one", "two", "--output", pair]) == 0
    assert command.main([str(file), str(file), "--kind", "3d", "--output", pair]) == 0
    assert command.main([str(file), str(file), "--output", str(tmp_path / "pair.html")]) == 0
    assert (tmp_path / "pair.html").read_text().count('"provenance":') == 2
    assert command.main([str(file), str(file), "--output", str(tmp_path / "pair.vts")]) == 2
    assert "pair.vts holds one surface; got 2 files" in capsys.readouterr().err


def test_a_training_path_is_taken_from_another_file(file, tmp_path, capsys):
    legacy = tmp_path / "proj.h5"
    with h5py.File(legacy, "w") as made:
        made["proj_xcoord"], made["proj_ycoord"] = np.zeros(2), np.ones(2)
    own = tmp_path / "own.h5"
    trail = Group({"x": np.zeros(2), "y": np.ones(2), "step": np.arange(2)})
    write_surface(own, Surface(GRID, {"train_loss": X}, groups={"trajectory": trail}))
    picture = ["-o", str(tmp_path / "a.png")]
    assert command.main([str(file), "--proj-file", str(legacy), *picture]) == 0
    assert command.main([str(file), "--proj_file", str(own), *picture]) == 0
    assert command.main([str(own), "--no-trajectory", *picture]) == 0
    assert command.main([str(own), "--proj-file", str(file), *picture]) == 2
    assert "run.1.h5 holds no training path" in capsys.readouterr().err


def test_a_training_path_of_another_plane_is_left_out_and_said_to_be(tmp_path, capsys, monkeypatch):
    drawn: list[object] = []
    for module in (command, legacy):
        own = module.draw
        monkeypatch.setattr(
            module, "draw", lambda *a, own=own, **k: (drawn.append(k.get("trajectory")), own(*a, **k))[1]
        )
    trail = Group({"x": np.zeros(2), "y": np.ones(2), "step": np.arange(2)})
    for name, digest in (("path", "a"), ("same", "a"), ("other", "b")):
        groups = {"directions/x": Group({}, {"kind": "random", "digest": digest}), "trajectory": trail}
        write_surface(tmp_path / f"{name}.h5", Surface(GRID, {"train_loss": X}, groups=groups))
    for name, is_left_out in (("same", False), ("other", True)):
        words = [str(tmp_path / f"{name}.h5"), "--proj-file", str(tmp_path / "path.h5"), "-o", str(tmp_path / "a.png")]
        assert command.main(words) == 0
        assert ("was projected onto another plane" in capsys.readouterr().out) is is_left_out
        assert (drawn[-1] is False) is is_left_out
        words = ["plot_2D", "--surf_file", str(tmp_path / f"{name}.h5"), "--proj_file", str(tmp_path / "path.h5")]
        assert legacy.main(words) == 0
        assert ("was projected onto another plane" in capsys.readouterr().out) is is_left_out
        assert (drawn[-1] is False) is is_left_out


def test_a_path_of_another_plane_that_an_earlier_version_stored_is_left_out(tmp_path, capsys):
    trail = Group({"x": np.zeros(2), "y": np.ones(2), "step": np.arange(2), "residual": np.ones(2)})
    directions = {d: Group({}, {"kind": "random", "digest": d}) for d in "ab"}
    made = {"settings": {"proj_file": "path.h5"}, "folder": str(tmp_path)}
    for name, digest in (("path", "a"), ("same", "a"), ("other", "b")):
        groups = {"directions/x": directions[digest], "trajectory": trail}
        own = Surface(GRID, {"train_loss": X}, groups=groups, attributes={"resolved_surface": made})
        write_surface(tmp_path / f"{name}.h5", own)
    for name, is_left_out in (("same", False), ("other", True)):
        file = tmp_path / f"{name}.h5"
        surface = command.without_other_path(command.read_any(file), file)
        assert ("trajectory" not in surface.groups) is is_left_out
        capsys.readouterr()
        assert command.main([str(file), "-o", str(tmp_path / "a.png")]) == 0
        assert ("the path is not drawn" in capsys.readouterr().out) is is_left_out
    (tmp_path / "path.h5").unlink()  # whose plane is not known then
    assert "trajectory" in command.without_other_path(command.read_any(file), file).groups


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "draw needs a result file, such as lossmap draw surface.h5"),
        (["nothing.h5"], "there is no file nothing.h5"),
        (["FILE", "--field", "hugo"], "no field 'hugo' here; there are: train_loss, train_acc"),
        (["FILE", "--kind", "eigen"], "this file holds no eigenvalues max_eig and min_eig"),
        (["FILE", "--output", "a.txt"], "a picture is one of pdf, png"),
        (["FILE", "--titles", "a", "b"], "titles must be one for each of 1 surfaces; got 2"),
        (["FILE", "--colour", "red"], "unknown flag --colour"),
        (["FILE", "--loss-max", "3"], "--loss-max changes nothing of a figure of the kind filled; the kinds"),
        (["FILE", "--kind", "3d", "--loss-max", "3"], "--loss-max changes nothing of a figure of the kind 3d"),
        (["FILE", "--log", "--linear"], "--log and --linear exclude each other"),
        (["FILE", "--dir-file", "d.h5"], "--dir-file goes with --proj-file"),
        (["FILE", "--vlevel", "1", "-o", "a.html"], "--vlevel changes nothing of an HTML page; the kinds that take it"),
        (
            ["FILE", "--vmin", "1", "-o", "a.vts"],
            "--vmin changes nothing of a file for ParaView; the kinds that take it",
        ),
        (["FILE", "--kind", "3d", "-o", "a.html"], "--kind 3d changes nothing of a.html"),
        (["FILE", "--titles", "a", "b", "-o", "a.html"], "titles must be one for each of 1 surfaces; got 2"),
    ],
)
def test_invalid_options_end_with_2_and_one_message(file, words, text, capsys):
    assert command.main([{"FILE": str(file)}.get(w, w) for w in words]) == 2
    output = capsys.readouterr().err
    assert text in output and len(output.splitlines()) == 1


def test_show_opens_the_figure_or_reports_that_no_viewer_exists(file, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(save_next_to.webbrowser, "open", lambda uri: bool(opened.append(uri)))
    assert command.main([str(file), "--show"]) == 0
    assert opened[0].startswith("file:///") and opened[0].endswith("run.1.png")
    assert "no viewer was found on this machine to show" in capsys.readouterr().out


@dataclass(frozen=True)
class Asked:
    page: bool = False
    vtk: bool = False
    show: bool = False
    log: bool = False
    linear: bool = False
    loss_max: float | None = None
    vmax: float | None = None
    vmin: float | None = None
    vlevel: float | None = None


def test_a_result_gets_its_pictures_beside_it(file, tmp_path, monkeypatch):
    monkeypatch.setattr(save_next_to.webbrowser, "open", lambda uri: True)
    made = save_next_to.draw_next_to(file, Asked(page=True, vtk=True, show=True))
    assert [p.name for p in made] == [
        "run.1.pdf", "run.1.png", "run.1_3d.pdf", "run.1_3d.png", "run.1.html", "run.1.vts",
    ]  # fmt: skip
    line = tmp_path / "line.h5"
    write_surface(line, Surface(Grid(GRID.x), {"train_loss": GRID.x**2}))
    assert [p.name for p in save_next_to.draw_next_to(line, Asked(log=True, vtk=True))] == ["line.pdf", "line.png"]


def begun(path, count):
    store = SurfaceFile.open(path, GRID, measures={"loss": (FIELDS, {})})
    for index in range(count):
        store.record("loss", index, {"train_loss": index / 10}, 0.1)
    return store


def test_watching_ends_with_the_survey(tmp_path, capsys):
    path = tmp_path / "s.h5"
    store = begun(path, 5)
    pages = []

    def go_on():
        for _ in range(400):
            if (tmp_path / "s.html").exists():
                break
            time.sleep(0.05)
        pages.append((tmp_path / "s.html").read_text())
        for index in range(5, 20):
            store.record("loss", index, {"train_loss": index / 10}, 0.1)
        store.close()

    worker = threading.Thread(target=go_on)
    worker.start()
    assert command.watch([str(path), "--page", "--interval", "0.1"]) == 0
    worker.join()
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("loss: 5 of 20 points, ") and "points/s" in output[0] and "s left" in output[0]
    assert output[0].endswith("smallest train_loss 0 at (-1, 0)")
    assert output[1].startswith("picture: ") and sum(line.startswith("picture") for line in output) == 1
    assert output[-1].startswith("loss: 20 of 20 points, smallest")
    assert names(tmp_path) == ["s.h5", "s.html", "s.pdf", "s.png"]
    assert '"reload":0.1,' in pages[0] and '"reload":null,' in (tmp_path / "s.html").read_text()


def test_watch_reports_that_no_process_writes(tmp_path, capsys):
    path = tmp_path / "s.h5"
    begun(path, 0).close()
    assert command.watch([str(path)]) == 75
    output = capsys.readouterr().out
    assert output.splitlines()[0] == "loss: 0 of 20 points" and "no process is writing" in output
    assert not (tmp_path / "s.pdf").exists()


def test_watch_reports_failures(tmp_path, capsys):
    from lossmap.io.read import Failure

    path = tmp_path / "s.h5"
    with begun(path, 19) as store:
        store.fail("loss", 19, Failure(19, 0, "h", "broke"))
    assert command.watch([str(path)]) == 3
    assert "loss: 19 of 20 points, 1 failed" in capsys.readouterr().out


def test_watch_waits_for_a_training_and_ends_with_it(tmp_path, capsys):
    path, history = tmp_path / "training.h5", History([Field("loss", "nats", "mean loss")])

    def train():
        for step in range(3):
            time.sleep(0.4)
            history.add(step, {"loss": 1.0 / (1 + step)}, 0.1)
            history.write(path)
        time.sleep(0.4)
        history.write(path, is_last=True)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert command.watch([str(path), "--page", "--interval", "0.1"]) == 0
    trainer.join()
    assert '"reload":null,' in (tmp_path / "training.html").read_text()  # it was drawn before, while it grew
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("waiting for ") and lines[1].startswith("training: 1 of 1 points")
    assert lines[-1].startswith("training: 3 of 3 points") and (tmp_path / "training.png").exists()


def test_watch_ends_with_a_training_that_was_killed_and_without_its_folder(tmp_path, capsys):
    path, history = tmp_path / "training.h5", History([Field("loss", "nats", "mean loss")])
    history.add(1, {"loss": 1.0}, 0.1)
    history.write(path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    process = {TRAINING_PROCESS: f"{socket.gethostname()} {ended.pid}"}
    write_surface(path, replace(read(path), attributes=process), overwrite=True)
    assert command.watch([str(path), "--interval", "0.1"]) == 0
    assert command.watch([str(tmp_path / "none" / "training.h5")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_watch_is_ended_by_an_interrupt(tmp_path, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupted)
    assert command.watch([str(tmp_path / "later.h5")]) == 75


def test_watch_needs_one_file_and_a_positive_interval(tmp_path, capsys):
    assert command.watch(["a.h5", "b.h5"]) == 2
    assert "watch needs one result file; got 2" in capsys.readouterr().err
    assert command.watch(["a.h5", "--every=0"]) == 2
    assert "--interval must be > 0; got 0" in capsys.readouterr().err
