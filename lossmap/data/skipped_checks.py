"""What follows where a check of a model and its loss fails: user code may raise anything, and so may a device."""

from __future__ import annotations

import logging

from lossmap.data.batches import Batch, FixedBatches
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.device_errors import loses_gpu, out_of_memory

log = logging.getLogger(__name__)


def skip(check: str, error: Exception, problem: Problem, batch: Batch) -> None:
    """Leave a check out that has failed over this batch.

    Raises the error again where it says nothing of the model: a GPU that is lost, and memory that may suffice for fewer
    samples. Memory that does not suffice for the fewest is reported.
    """
    if loses_gpu(error):
        raise error
    if out_of_memory(error):
        if not isinstance(problem.data, FixedBatches) and samples_in(batch) > 2:
            raise error
        log.warning("memory ran out while it was looked at %s: nothing is known there", check)
