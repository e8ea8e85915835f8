"""The price of a command as one line, and the spans of time that a person types."""

import pytest

from lossmap.report.price import Price, seconds_of


def test_a_price_is_one_line_with_products_seconds_and_memory():
    assert str(Price(2318, 28.0, 140_000_000)) == "about 2,300 products of 12.1 ms: 28 s, 140 MB"
    shared = Price(51, 5.1, 10**9, "pass", workers=4, longest=0.1)
    assert str(shared) == "about 51 passes of 100 ms: 1.27 s with 4 at a time, 1 GB"
    beside = Price(380, 4.2, 140_000_000, beside=4.0)
    assert str(beside) == "about 380 products of 526 µs, and 4 s beside them: 4.2 s, 140 MB"
    spread = Price(200, 4.0, 140_000_000, more=352, more_seconds=7.0)
    assert str(spread) == "about 200 products of 20 ms: 4 s, 140 MB; up to 350 more, 7 s, where eigenvalues spread out"
    assert str(Price(1, 3e-4, 2_000_000, "point")) == "about 1 point of 300 µs: 0.0003 s, 2 MB"


def test_what_no_worker_shares_is_added_to_their_time():
    price = Price(20, 10.0, 2_000_000, "point", workers=5, fixed=3.0)
    assert price.wall == 5.0 and price.slowed(2.0).wall == 10.0
    assert str(price) == "about 20 points of 500 ms, and 3 s beside them: 5 s with 5 at a time, 2 MB"


def test_a_single_long_part_bounds_the_time_of_many_workers():
    assert Price(100, 100.0, 0, workers=50, longest=30.0).wall == 30.0


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("90", 90)])
def test_a_span_is_read_as_people_write_it(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10q", "-3m", "0s", "5m later"])
def test_what_is_no_span_is_named(text):
    with pytest.raises(ValueError, match="--budget must be a time > 0, such as 90s"):
        seconds_of(text)
