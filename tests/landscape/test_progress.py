"""Progress of a survey: plain lines, and a bar on a terminal."""

import io

import pytest

from lossmap.landscape.progress import _Lines, display, progress_line
from lossmap.landscape.survey_recorder import Progress
from lossmap.parallel.pace import duration_text
from lossmap.parallel.world import World


def event(done=10, failed=0, rate=2.0, seconds=8.0, note="", total=30):
    return Progress("loss", done, failed, total, rate, seconds, 4, note)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.6, "8 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (270_000, "3 days 3 h"),
        (float("inf"), "-"),
        (float("nan"), "-"),
    ],
)
def test_durations_are_written_as_people_read_them(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (event(), "losses: 10 of 30 points (33 %), 2 points/s, 10 s left"),
        (event(failed=2), "losses: 10 of 30 points (40 %), 2 failed, 2 points/s, 9 s left"),
        (event(rate=0.25), "losses: 10 of 30 points (33 %), 4 s/point, 1 min 20 s left"),
        (event(done=30), "losses: 30 of 30 points (100 %), 2 points/s in 8 s"),
        (event(done=30, rate=0.0), "losses: 30 of 30 points (100 %), all known before"),
        (event(done=0, rate=0.0), "losses: 0 of 30 points (0 %), 0 points/s, - left"),
        (event(done=0, rate=0.0, total=0), "losses: 0 of 0 points (100 %), 0 points/s in 8 s"),
    ],
)
def test_a_progress_line_has_the_fraction_the_rate_and_the_remaining_time(told, text):
    assert progress_line(told, "losses") == text


def test_lines_come_every_few_seconds_at_the_end_and_when_something_happens():
    file, now = io.StringIO(), [0.0]
    lines = _Lines("losses", file, every=5.0, now=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        lines(event(done=second, note="rank 3 has died" if second == 2 else ""))
    lines(event(done=30))
    lines(event(done=30))
    told = file.getvalue().splitlines()
    assert [text.split(" of")[0] for text in told] == [
        "losses: rank 3 has died",
        "losses: 5",
        "losses: 10",
        "losses: 30",
    ]


def test_without_a_terminal_there_are_lines():
    file = io.StringIO()
    with display(World(), "losses", file) as show:
        show(event(done=30))
    assert file.getvalue() == "losses: 30 of 30 points (100 %), 2 points/s in 8 s\n"


def test_on_a_terminal_there_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    with display(World(), "losses", file) as show:
        show(event(note="rank [3] has died"))
        show(event(done=30))
    assert "losses: rank [3] has died" in file.getvalue()
    assert "30 of 30 points (100 %)" in file.getvalue()


def test_other_ranks_show_nothing():
    world = World()
    world.rank = 1
    with display(world, "losses") as show:
        assert show is None
