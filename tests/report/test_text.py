"""Sentences of reports: none may contradict its own numbers."""

from math import inf

import pytest

from lossmap.report.blocks import BlockSummary, block_text
from lossmap.report.text import filled, percent_with_error, raised_error, table, wrapped


@pytest.mark.parametrize(
    "share, error, text",
    [
        (0.25, 0.125, "25 +- 12 %"),
        (0.0833, 0.08, "8.3 +- 8.0 %"),
        (0.5, 0.0412, "50.0 +- 4.1 %"),
        (1.0, 0.0, "100 +- 0 %"),
    ],
)
def test_shares_with_errors_are_written_in_plain_digits(share, error, text):
    assert percent_with_error(share, error) == text


def test_negative_counts_beside_a_smallest_eigenvalue_that_is_not_resolved_from_them():
    """A density sees negative eigenvalues where the extreme one found lies within its error of zero."""
    block = BlockSummary(
        "1.weight", "1", 1536, 4e-5, 9e-10, 4e-5, inf, 2e-8, 4e-11, 2e-7, True, (515, 1533), (2, 922), (0, 1019),
        "indefinite", "",
    )  # fmt: skip
    text = block_text(block)
    assert "2-922 eigenvalues negative (the smallest found, 9e-10 +- 2e-08, is not resolved from them)" in text


def test_lines_are_filled_to_a_terminal_and_numbers_stay_with_their_errors():
    text = ", ".join(f"{i + 0.125:.3f} +- 0.002 (95 % interval)" for i in range(12))
    lines = wrapped("largest", text)
    assert max(map(len, lines)) <= 80 and len(lines) > 3
    assert not any(line.rstrip().endswith("+-") or line.lstrip().startswith(("+-", "%")) for line in lines)
    assert " ".join(line.strip() for line in lines).removeprefix("largest").strip() == text


def test_a_label_longer_than_its_column_has_a_line_of_its_own():
    assert wrapped("a.very.long.name.of.a.tensor", "zero") == ["  a.very.long.name.of.a.tensor", " " * 16 + "zero"]


def test_a_word_longer_than_a_line_is_not_cut():
    assert filled("short " + "x" * 90 + " short", 40) == ["short", "x" * 90, "short"]


def test_columns_that_find_no_room_go_below_behind_the_same_names():
    rows = [["block", *(f"column {i}" for i in range(12))], *([name, *["1234"] * 12] for name in ("fc1", "fc2"))]
    assert "column 3" in table(rows, breaks=[5])[0] and "column 4" not in table(rows, breaks=[5])[0]
    lines = table(rows, right=range(1, 13))
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if "block" in line]
    assert len(heads) == 2 and all(head[0] == "block" for head in heads)
    assert sum(line.count("column") for line in lines) == 12 and sum("fc2" in line for line in lines) == 2


def test_of_a_traceback_the_first_line_of_the_message_is_told():
    frame = 'Traceback (most recent call last):\n  File "net.py", line 3, in forward\n    raise X\n    ^^^^^^^\n'
    assert raised_error(f"{frame}CheckpointError: 9 tensors, then 5.\n\nTip: see\n  there for examples.\n") == (
        "CheckpointError: 9 tensors, then 5."
    )
    assert raised_error(f"{frame}RuntimeError: Error(s) in loading Net:\n\tmissing keys: a\n\tmore") == (
        "RuntimeError: Error(s) in loading Net: missing keys: a"
    )
    assert raised_error(f"{frame}KeyError: 'a'\n\nDuring that:\n\n{frame}ValueError: b\n") == "ValueError: b"
    assert raised_error(f"{frame}KeyError") == "KeyError" and raised_error("") == ""
    assert raised_error("rank 1 left\nno answer for 10 s\n") == "no answer for 10 s"
