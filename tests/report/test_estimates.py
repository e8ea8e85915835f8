"""Estimates in words."""

from lossmap.report.estimates import diagonal_text, trace_text


def test_an_exact_trace_states_the_rounding_that_reaches_its_digits():
    assert trace_text(1.53397, 1e-7, (1.5, 1.6), "unit vectors", 64) == "1.53397 (exact: all unit vectors, 64 products)"
    text = trace_text(1.53397, 0.03, (1.5, 1.6), "unit vectors", 64)
    assert text == "1.534 +- 0.03 (exact but for rounding: all unit vectors, 64 products)"


def test_an_estimate_and_its_interval_have_the_digits_of_the_error():
    text = trace_text(4.2567568, 8.4e-6, (4.2567403, 4.2567733), "hutch++", 30)
    assert text.startswith("4.2567568 +- 8.4e-06 (standard error; 95 % interval 4.25674 to 4.256773; hutch++")
    assert "estimates from 1.0986123 to 4.2567568; " in diagonal_text(3, 1.0986123, 4.2567568, 8.4e-6, "hutchinson")
