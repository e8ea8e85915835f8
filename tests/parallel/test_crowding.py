"""How much longer a rank computes while the others do: by works whose seconds are known."""

import pytest

from lossmap.parallel.crowding import measured_crowding


class OneOf:
    """Rank 0 of several, of whose others the times together are known."""

    def __init__(self, *others):
        self.rank, self.size, self.others, self.calls = 0, 1 + len(others), others, 0

    def gather(self, value):
        self.calls += 1
        # nobody computes; rank 0 alone; all together
        return [value, *(self.others if self.calls == 3 else [None] * len(self.others))]


def measured(together, others, computing=None):
    """The crowding where one rank's work takes 1 s alone, this one's so long while all compute, and the others' so."""
    ranks = OneOf(*others)
    ranks_that_compute = frozenset(range(ranks.size) if computing is None else computing)
    return measured_crowding(ranks, ranks_that_compute, lambda: together if ranks.calls == 2 else 1.0)


@pytest.mark.parametrize(
    ("together", "others", "crowding"),
    [(2.0, [2.0], 2.0), (1.0, [1.5, None], 1.5), (0.9, [0.9], 1.0), (1.0, [9.0, 9.0], 3.0)],
)
def test_the_slowest_of_all_decides_between_1_and_the_number_of_ranks(together, others, crowding):
    assert measured(together, others) == crowding


def test_a_single_rank_that_computes_is_never_crowded():
    assert measured(3.0, [None], computing=[1]) == 1.0
    assert measured(3.0, []) == 1.0
