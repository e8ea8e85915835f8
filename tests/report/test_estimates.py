"""Estimates in words."""

from lossmap.report.estimates import trace_text


def test_an_exact_trace_states_the_rounding_that_reaches_its_digits():
    assert trace_text(1.53397, 1e-7, (1.5, 1.6), "unit vectors", 64) == "1.53397 (exact: 64 unit vectors)"
    text = trace_text(1.53397, 0.03, (1.5, 1.6), "unit vectors", 64)
    assert text == "1.534 +- 0.03 (exact but for rounding: 64 unit vectors)"
