"""How fast a survey goes."""

import numpy as np

from lossmap.parallel.pace import means_by_rank


def test_the_slowest_rank_comes_first_and_points_of_no_known_rank_count_for_none():
    """As in a file from which the ranks are gone."""
    seconds, ranks = np.array([1.0, 3.0, 4.0, 9.0]), np.array([0, 0, 1, np.nan])
    assert means_by_rank(seconds, ranks) == [(4.0, 1, 1), (2.0, 0, 2)]
    assert means_by_rank(seconds, np.full(4, np.nan)) == []
