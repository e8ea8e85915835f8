"""Results that a model overwrites in place although their own derivative needs them, named for people.

`torch.tanh(x).mul_(2)` is right as a value, and has no gradient: the derivative of tanh is made of its result, which is
gone by then. PyTorch raises a RuntimeError on versions of tensors; here it becomes a sentence on the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

MESSAGE = "modified by an inplace operation"


def overwritten_result(error: BaseException) -> str | None:
    """The sentence for such an error, with the operation whose result is gone; None for any other error."""
    text = str(error)
    if MESSAGE not in text:
        return None
    tensor = re.search(r"\[torch\.\w+ \[([\d, ]*)\]\]", text)
    of_shape = f" (a tensor of shape [{tensor[1]}])" if tensor else ""
    operation = re.search(r"is output \d+ of (\w+?)(?:Backward\d*)?[,\s]", text)
    if operation is None:
        what = f"a tensor{of_shape} in place, which a derivative needs"
    else:
        what = f"the result of {operation[1]}{of_shape} in place, of which the derivative of {operation[1]} is made"
    return (
        f"the loss has no gradient: the model or the loss overwrites {what}; write such an operation out of place, "
        "h = 2 * h for h.mul_(2) or h *= 2, and torch.where or torch.cat for h[...] = ..."
    )


@contextmanager
def overwriting_named() -> Iterator[None]:
    """Raises ValueError with that sentence for such an error of the block."""
    try:
        yield
    except RuntimeError as error:
        sentence = overwritten_result(error)
        if sentence is None:
            raise
        raise ValueError(sentence) from error
