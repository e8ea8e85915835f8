"""Control characters of files are not printed: not in a terminal, on a page, or in a figure's title."""

import json

import h5py
import numpy as np
import pytest

from lossmap import results
from lossmap.cli.status import main as status
from lossmap.geometry.grid import Field, Grid
from lossmap.io.printable import printable, printable_value
from lossmap.io.read import Damaged, Failure, Group, SurfaceFile, read, read_group

EVIL = "\x1b]0;owned\x07\x1b[2Jgood\x9b31m\u202egood"
GRID = Grid(np.linspace(-1, 1, 3))


def evil_file(path, finished=True):
    """A result in which every text has control characters."""
    fields = (Field("train_loss", EVIL, EVIL),)
    groups = {"spectrum/train": Group({"label": np.array([EVIL], object)}, {"report": EVIL, "table": {"a": EVIL}})}
    attributes = {"start": EVIL, "note": {"text": EVIL}}
    with SurfaceFile.open(
        path, GRID, measures={"loss": (fields, {"split": EVIL})}, identity={"model": EVIL}, groups=groups,
        attributes=attributes,
    ) as store:  # fmt: skip
        store.record("loss", 0, {"train_loss": 1.0}, 0.1)
        store.fail("loss", 1, Failure(1, 0, EVIL, EVIL))
        if finished:
            store.record("loss", 2, {"train_loss": 2.0}, 0.1)
    return path


def texts_in(value):
    """All texts in a value."""
    return json.dumps(value, default=str, ensure_ascii=False) + repr(value)


@pytest.mark.parametrize("finished", [True, False])
def test_nothing_that_is_read_commands_a_terminal(tmp_path, capsys, finished):
    path = evil_file(tmp_path / "s.h5", finished)
    surface = read(path)
    for value in (
        surface.attributes, surface.settings, surface.about, surface.failures, read_group(path, "spectrum/train"),
    ):  # fmt: skip
        text = texts_in(value)
        assert "good" in text and not any(mark in text for mark in ("\x1b", "\x9b", "\u202e", "\\u001b", "\\x1b"))
    assert status([str(path)]) in (3, 75)
    out = capsys.readouterr().out
    assert "good" in out and "\x1b" not in out and "\u202e" not in out


def test_an_error_about_a_file_is_printable(tmp_path, capsys):
    assert status([str(tmp_path / "\x1b[2Jnone.h5")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_name_with_control_characters_is_refused(tmp_path):
    path = evil_file(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        file.create_group("\x1b[2Jgroup")
    with pytest.raises(Damaged, match="an object has control characters"):
        read(path)


def test_a_value_and_a_page_hold_no_commands_and_no_tags(tmp_path):
    assert results.decode(Group({}, {"kind": "str", "structure": json.dumps(EVIL)})) == "]0;owned[2Jgood31mgood"
    from lossmap.plotting.html import page

    surface = read(evil_file(tmp_path / "s.h5"))
    out = page(surface, tmp_path / "p.html", title=f"{EVIL}<a href='http://example.org'>here</a>")
    text = out.read_text()
    assert "\x1b" not in text and "\\u001b" not in text and "&lt;a href=" in text and "<a href" not in text
    assert "]0;owned" in text


def test_a_title_of_a_figure_is_printable(tmp_path):
    from lossmap.plotting.figures import draw

    surface = read(evil_file(tmp_path / "s.h5"))
    figure = draw([surface, surface], titles=[EVIL, "b"])
    texts = [text.get_text() for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    legends = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    shown = " ".join(texts + legends)
    assert "good" in shown and "\x1b" not in shown and "\u202e" not in shown


def test_a_moved_run_is_not_looked_for_where_its_file_says(tmp_path):
    from lossmap.dynamics.run import RunDynamics

    run = RunDynamics(tmp_path / "somebody's.h5", "unfinished", "")
    run.save(tmp_path / "mine.h5")
    assert results.read(tmp_path / "mine.h5").path == tmp_path / "mine.h5"


def test_text_keeps_lines_tabs_and_letters():
    assert printable("ä\tβ\n漢") == "ä\tβ\n漢"
    assert printable('{"a": "\\u001b[2J", "b": 1.5}') == '{"a": "[2J", "b": 1.5}'
    assert printable_value({"a\x1b": ["\x07b", 1, None]}) == {"a": ["b", 1, None]}
