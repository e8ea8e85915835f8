"""What the ranks of a team, each with its share of the samples, decide on products together.

    check = check_by_all(total, device, look)      look() -> ProductCheck of this rank's share

A kink, or a branch of the model that only some samples take, may be in one rank's share alone. A rank that gave up a
backend by itself, or raised by itself, would leave the others waiting in their next sum. So a backend that one rank
rejects is rejected by all, error bars hold the largest of their disagreements, and where one raises all do.

Price: one sum over the team of seven numbers; none where one rank holds all samples, whose total is `single_rank`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lossmap.curvature.hvp_plan import BACKENDS, ProductCheck
from lossmap.curvature.operators import Total, single_rank, total_or_raise
from lossmap.sums import float64_device

POWER = 32  # (sum_r d_r^p)^(1/p) is no less than the largest of the ranks' d, and 11 % more with 32 equal ones
UNCHECKED = "not compared on another rank of the team"
REJECTED = "another rank of the team rejects it"


def check_by_all(total: Total, device: torch.device, look: Callable[[], ProductCheck]) -> ProductCheck:
    """What all ranks of a team say of the backends: the same on each but for the reasons in words.

    total   adds a tensor up over the ranks
    device  of the message
    look    what this rank says; all ranks call, whatever they find

    Raises what `look` raises, and RuntimeError on the ranks on which it did not.
    """
    if is_alone(total):
        return look()
    own: list[ProductCheck] = []
    message = torch.zeros(len(BACKENDS) + 3, dtype=torch.float64, device=float64_device(device))

    def fill(numbers: torch.Tensor) -> None:
        check = look()
        own.append(check)
        numbers[: len(BACKENDS)] = torch.tensor([float(b in check.rejected) for b in BACKENDS])
        numbers[len(BACKENDS)] = min(check.disagreement, 1e6) ** POWER
        numbers[len(BACKENDS) + 1] = float(bool(check.unchecked))

    numbers = total_or_raise(total, message, fill, "check of products").tolist()
    rejected = {b: own[0].rejected.get(b, REJECTED) for b, count in zip(BACKENDS, numbers, strict=False) if count > 0}
    disagreement = max(own[0].disagreement, numbers[len(BACKENDS)] ** (1 / POWER))
    unchecked = own[0].unchecked
    if numbers[len(BACKENDS) + 1] > 0:
        unchecked = unchecked or UNCHECKED
    return ProductCheck(rejected, disagreement, unchecked)


def is_alone(total: Total) -> bool:
    """Whether one rank holds all samples, and there is nothing to agree on; a stand-in for a team says so itself."""
    return total is single_rank or getattr(total, "is_alone", False)


def any_of_all(total: Total, device: torch.device, flag: bool) -> bool:
    """Whether the flag is set on any rank of the team."""
    if is_alone(total):
        return flag
    return float(total(torch.tensor([float(flag)], dtype=torch.float64, device=float64_device(device)))[0]) > 0
