"""The preconditioner of an adaptive optimizer, from its state in FILE[:KEY], for every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lossmap.cli.settings import UsageError
from lossmap.data import checkpoints

if TYPE_CHECKING:
    from lossmap.data.preconditioner import Preconditioner
    from lossmap.data.problem import Problem


def preconditioner_from(
    named: str, problem: Problem, unsafe: bool, wanted_by: str, adapt: Callable[[Any], None] = lambda _: None
) -> Preconditioner:
    """P of the optimizer of a problem's model whose state stands in FILE[:KEY].

    wanted_by  what an error begins with
    adapt      what changes the optimizer before

    Raises UsageError where there is none, or where it is none of this model.
    """
    from lossmap.diagnostics.step_rule import optimizer_of_state, preconditioner_of

    try:
        optimizer = optimizer_of_state(checkpoints.optimizer_state(named, unsafe), problem.model)
        adapt(optimizer)
        return preconditioner_of(optimizer, dict(problem.model.named_parameters()), problem)
    except (ValueError, OSError) as error:
        raise UsageError(f"{wanted_by}: {error}") from error


def optimizer_file(named: str) -> dict[str, str]:
    """What identifies an optimizer's state in FILE[:KEY]."""
    path, key = checkpoints.file_and_key(named)
    return {"optimizer state": f"{checkpoints.file_sha256(path)}:{key}"}
