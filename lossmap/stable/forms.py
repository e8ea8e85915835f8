"""Forms that do not cancel in the place of PyTorch's functions, for all that runs inside a context.

    with stable_forms():      cross entropy, softmax, attention, tanh, sigmoid and compositions of them do not cancel

Functions, methods and modules alike; the model and its criterion stay as they are. What one function does by itself is
in `losses`, what several do one after the other, such as the logarithm of a softmax, in `composed`. Price:
a look at the name of every function that a model calls.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lossmap.stable.composed import NAMES, composed, is_composed
from lossmap.stable.losses import (
    Form,
    attention_form,
    cross_entropy_form,
    is_covered,
    log_sigmoid_form,
    log_softmax_form,
    logistic_loss_form,
    sigmoid_form,
    softmax_form,
    softplus_form,
    tanh_form,
    traced_cross_entropy_form,
)

LOGISTIC_FORMS: Mapping[str, Form] = {
    "binary_cross_entropy_with_logits": logistic_loss_form,
    "log_sigmoid": log_sigmoid_form,
    "softplus": softplus_form,
}
TRACED_FORMS: Mapping[str, Form] = {**LOGISTIC_FORMS, "cross_entropy_loss": traced_cross_entropy_form}
LOSS_FORMS: Mapping[str, Form] = {
    **LOGISTIC_FORMS,
    "cross_entropy_loss": cross_entropy_form,
    "log_softmax": log_softmax_form,
    "special_log_softmax": log_softmax_form,
}
ALL_FORMS: Mapping[str, Form] = {
    **LOSS_FORMS,
    "softmax": softmax_form,
    "special_softmax": softmax_form,
    "scaled_dot_product_attention": attention_form,
    "tanh": tanh_form,
    "sigmoid": sigmoid_form,
    "special_expit": sigmoid_form,
}
FORMS: Mapping[str, Mapping[str, Form]] = {"logistic": TRACED_FORMS, "losses": LOSS_FORMS, "all": ALL_FORMS}

# functions of torch.nn.functional, written in Python, inside which such functions are called
COMPOSITES = (
    "binary_cross_entropy_with_logits", "cross_entropy", "gumbel_softmax", "log_softmax",
    "multi_head_attention_forward", "multilabel_soft_margin_loss", "softmax", "softmin",
)  # fmt: skip


def _never(*_: Any) -> bool:
    """In the place of `has_torch_function`: no."""
    return False


def _unchecked(function: types.FunctionType) -> types.FunctionType:
    """The same function without its own look for modes, which would lead back to the mode that runs it."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**function.__globals__, **dict.fromkeys(checks, _never)}
    copied = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


UNCHECKED = {getattr(F, name): _unchecked(getattr(F, name)) for name in COMPOSITES}


class StableForms(TorchFunctionMode):
    """Runs a function's stable form in its place, wherever in a model it is called."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        super().__init__()
        self.forms = forms
        self.names = {*forms, *COMPOSITES, *NAMES}  # of functions that may be computed otherwise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in self.names:  # most calls
            return func(*args, **kwargs)
        if func in UNCHECKED:
            with self:
                return UNCHECKED[func](*args, **kwargs)
        if is_composed(name, args):
            return composed(name, args, kwargs, lambda: self._single(func, name, args, kwargs))
        return self._single(func, name, args, kwargs)

    def _single(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A function by its own form, where it has one that applies."""
        form = self.forms.get(name)
        if form is None or not is_covered(args[0] if args else kwargs.get("input", kwargs.get("query"))):
            return func(*args, **kwargs)
        if kwargs.get("out") is not None or (form is attention_form and not _is_plain_attention(*args, **kwargs)):
            return func(*args, **kwargs)
        return form(*args, **{name: value for name, value in kwargs.items() if name != "out"})


def _is_plain_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether the formula applies: without dropout."""
    dropout = args[1] if len(args) > 1 else kwargs.get("dropout_p", 0.0)
    return not dropout and query.shape[-1] > 0


@contextmanager
def stable_forms(forms: str = "all") -> Iterator[None]:
    """Inside, functions that saturate are computed by forms that do not cancel.

    forms  `all`: values and derivatives of losses, softmax, attention, tanh and sigmoid; `losses`: losses alone, for
           passes without derivatives; `logistic`: those losses for which the linearized product has no rules of its own
    """
    with StableForms(FORMS[forms]):
        yield
