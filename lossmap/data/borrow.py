"""Borrow a model: what is done between two looks at it, so that it comes back exactly as it was given.

    with temporary_parameters(model, tensors):   the model with other tensors, in evaluation mode

What is kept and put back: the values of parameters and buffers (the model works on copies, so that a module which
writes into its own weights, as an embedding with `max_norm` does, writes into a copy), `.grad`, `requires_grad`, the
mode of every module, and what modules, their code and that of the loss keep besides, see `module_state`.

Evaluation mode is set by `eval()`. Some layers change their parameters there: those of LoRA merge their adapters into
the weight they adapt, which then no longer depends on them. That is found by comparing the parameters before and after;
such a layer keeps the mode it was given in, while all the others are in evaluation mode.

Price: a look at the attributes of every module, and a copy of parameters and buffers: of large ones when they are
written to (see `lossmap.copies`).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lossmap.copies import lazy_copies, lazy_copy, same_memory
from lossmap.data.module_state import STANDARD, ModuleState, is_plain
from lossmap.data.one_precision import origin
from lossmap.data.outside_state import accompany_as, modules_beside, originals_beside
from lossmap.data.silent_logging import silent_logging
from lossmap.module_walks import modules_of, named_tensors
from lossmap.numerics import numerics
from lossmap.rebound import rebind
from lossmap.shortcuts import shortcuts_off
from lossmap.sums import float64_device, has_float64

COPIED_BY_PYTORCH = (torch.strided, torch.sparse_coo)  # layouts that `deepcopy` knows; of others it raises

Named = Mapping[str, Tensor]

_borrowed: WeakKeyDictionary[nn.Module, _Loan] = WeakKeyDictionary()
_precisions: WeakKeyDictionary[nn.Module, torch.dtype] = WeakKeyDictionary()  # of copies in another one
_origins: WeakKeyDictionary[nn.Module, torch.dtype] = WeakKeyDictionary()  # of which these are copies
_originals: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
_in_training: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()  # modules to evaluate in that mode


@contextmanager
def temporary_parameters(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    copied: bool = True,
    differentiable: bool = True,
    left: Collection[str] = (),
) -> Iterator[nn.Module]:
    """The model with other parameters, in evaluation mode; given back untouched.

    tensors  values for parameters and buffers, by their names in the state dict; the others stay
    copied   whether the model works on copies of them; else on the tensors themselves, which nobody else may use
    left     names of tensors that are neither copied nor put back: the caller moves them, and does so
    differentiable  whether gradients may be taken, which cuDNN's recurrent layers do not give in evaluation mode

    Parameters and buffers are pointed at copies and pointed back afterwards, so that the model's own values return to
    the last bit and the given ones stay. Hooks on gradients of parameters rest meanwhile. Inside another one over the
    same model only the given tensors are moved. On a GPU passes are computed as `lossmap.numerics` says.

    Raises KeyError for a name that the model has not, and ValueError for a model whose adapters are merged.
    """
    own = named_tensors(model)
    unknown = [name for name in tensors if name not in own]
    if unknown:
        raise KeyError(f"the model has no tensor named {unknown[0]!r}")
    taken = _copies if copied else dict
    device = next((t.device for t in own.values()), torch.device("cpu"))
    recurrent = device.type == "cuda" and differentiable and is_recurrent(model)
    with numerics(device, recurrent), shortcuts_off(), _borrowed_with(model, own, tensors, taken, left):
        token = origin.set(_origins.get(model))
        try:
            yield model
        finally:
            origin.reset(token)


def is_recurrent(model: nn.Module) -> bool:
    """Whether some of a model's layers are PyTorch's recurrent ones."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


@contextmanager
def _borrowed_with(
    model: nn.Module,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    taken: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    left: Collection[str] = (),
) -> Iterator[None]:
    """As `temporary_parameters`, of a model with these tensors; `taken` gives what is put in for those given."""
    loan = _borrowed.get(model)
    if loan is not None and left:
        raise RuntimeError("a model that is borrowed already is not moved in place; its origin must be kept")
    if loan is not None:
        with loan.inner(own, tensors, taken):
            yield
        return
    with silent_logging([*modules_of(model), *modules_beside(model), *originals_beside(model)]):
        loan = _Loan(model, own, left)  # it keeps the silence, which what it puts back between passes includes
        _borrowed[model] = loan
        try:
            loan.begin(tensors)
            _point(own, taken(tensors))
            yield
        finally:
            del _borrowed[model]
            loan.end()


@contextmanager
def borrowed_once(model: nn.Module) -> Iterator[None]:
    """Inside, each `temporary_parameters` over the model is as if it stood alone, and cheaper by half.

    What modules keep is looked at once; after each of them it is put back, so that no pass sees what another has left.
    Between them the model is in evaluation mode, on copies of its tensors.
    """
    with temporary_parameters(model, {}):
        _borrowed[model].is_renewed = True
        yield


@contextmanager
def on_own_tensors(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside a borrow of the model: it works on its own tensors of these names, whose values the caller puts back.

    The copies that share their memory are let go of meanwhile, so that a write to a tensor makes no second one; what a
    pass has written to a copy is there again afterwards.
    """
    loan = _borrowed[model]
    own = {name: (loan.own[name], loan.values[name]) for name in names if name in loan.values}
    written = {name: t.data for name, (t, value) in own.items() if not same_memory(t.data, value)}
    try:
        for t, value in own.values():
            t.data = value
        yield
    finally:
        for name, (t, value) in own.items():
            t.data = written[name] if name in written else lazy_copy(value)


class _Loan:
    """What is put back at the end of a borrow: values, `.grad`, `requires_grad`, hooks, and what modules keep."""

    def __init__(self, model: nn.Module, own: Mapping[str, Tensor], left: Collection[str] = ()) -> None:
        self.model, self.own = model, own
        self.state = ModuleState(model)
        self.values = {name: t.data for name, t in own.items() if name not in left}
        self.gradients = [(t, t.grad, t.requires_grad) for t in own.values() if t.is_leaf]
        # such as those that clip gradients: of the training, not of the loss
        self.hooked = [(t, t._backward_hooks) for t, _, _ in self.gradients if t._backward_hooks]
        self.is_renewed = False
        self._depth = 0

    def begin(self, given: Mapping[str, Tensor]) -> None:
        """Evaluation mode, on copies of those tensors that are not given: a mode of a layer's own may change any."""
        if self.model in _precisions:
            self.state.convert_outside(_precisions[self.model], self._counterparts)
        for t, _, _ in self.gradients:
            t.grad = None
        for t, _ in self.hooked:
            t._backward_hooks = None
        copied = self.values
        if given and not sets_modes_itself(self.model):
            copied = {name: value for name, value in copied.items() if name not in given}
        _point(self.own, _copies(copied))
        set_evaluation_mode(self.model)

    def _counterparts(self) -> dict[int, Tensor]:
        """The tensors of a copy by the identity of those of the model that it is a copy of."""
        original = _originals.get(self.model, lambda: None)()
        former = {} if original is None else named_tensors(original)
        return {id(t): self.own[name] for name, t in former.items() if name in self.own}

    @contextmanager
    def inner(
        self,
        own: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        taken: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    ) -> Iterator[None]:
        """Other tensors inside of this borrow."""
        before = {name: own[name].data for name in tensors}
        self._depth += 1
        try:
            _point(own, taken(tensors))
            yield
        finally:
            self._depth -= 1
            _point(own, before)
            if self.is_renewed and not self._depth:
                self._renew(tensors)

    def _renew(self, given: Mapping[str, Tensor]) -> None:
        """All as it was at the beginning, after a pass over these tensors, which may have written into the others."""
        self.state.restore()
        self._restore_flags()
        self.begin(given)

    def _restore_flags(self) -> None:
        for t, _, required in self.gradients:
            if t.requires_grad != required:
                t.requires_grad_(required)

    def end(self) -> None:
        """Give everything back."""
        self.state.restore()
        _point(self.own, self.values)
        for t, gradient, _ in self.gradients:
            t.grad = gradient
        self._restore_flags()
        for t, hooks in self.hooked:
            t._backward_hooks = hooks


@contextmanager
def restored(model: nn.Module) -> Iterator[ModuleState]:
    """Behind it modules, and what their code keeps elsewhere, hold what they held before."""
    state = ModuleState(model)
    try:
        yield state
    finally:
        state.restore()


def copy_of(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """An independent copy, in another precision where one is given: parameters, buffers and what modules keep besides.

    What PyTorch does not copy, the weight that weight norm left with its graph, is copied without the graph.
    """
    copies: dict[int, Any] = {}
    state = ModuleState(model)
    for values in state.held_inside():
        for value in list(entries_of(values)):
            if is_plain(value):
                copies[id(value)] = value
                continue
            for t in entries_of(value):
                if isinstance(t, Tensor) and not isinstance(t, nn.Parameter):
                    copies |= _copied_tensor(t, dtype)
    # what holds nothing, as every module's dictionaries of hooks, `deepcopy` takes apart all the same: half of its time
    copies |= {id(container): container.copy() for container in state.empty}
    twin = copy.deepcopy(model, copies)
    for p in twin.parameters():
        if not p.is_leaf:  # of a script, whose copy would pass its gradients on to the model's own parameters
            p.detach_().requires_grad_()
    _copy_attributes(model, twin, copies)
    rebind(twin.modules(), copies)
    accompany_as(twin, model)
    _originals[twin] = _originals.get(model, ref(model))
    evaluate_in_training(twin, evaluated_in_training(model))
    return twin if dtype is None else to_precision(twin, dtype)


def _copy_attributes(model: nn.Module, twin: nn.Module, copies: dict[int, Any]) -> None:
    """Give the copy's parameters what is kept on the model's own, `p.scale = 0.5`, which PyTorch does not copy."""
    for (_, own), (_, copied) in zip(model.named_parameters(), twin.named_parameters(), strict=False):
        for name, value in vars(own).items():
            if name not in vars(copied):
                setattr(copied, name, copy.deepcopy(value, copies))


def to_precision(model: nn.Module, dtype: torch.dtype, device: torch.device | str | None = None) -> nn.Module:
    """The model itself, moved to another precision, in which it is to be the same function.

    An RMSNorm without an epsilon of its own takes the unit roundoff of its input's precision: in float64 it would be
    another function than in float32, visibly so where its input is small. It keeps the one it had. Complex tensors stay
    complex, in two numbers of the precision: `model.to(dtype)` drops their imaginary parts.
    """

    def moved(t: Tensor) -> Tensor:
        if device is None and dtype == torch.float64:
            t = t.to(float64_device(t.device))
        if t.is_complex():
            return t.to(device, dtype.to_complex())
        return t.to(device, dtype if t.is_floating_point() else None)

    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    if own != dtype:
        _precisions[model] = dtype
        _origins.setdefault(model, own)
        for module in model.modules():
            if isinstance(module, nn.RMSNorm) and module.eps is None:
                module.eps = torch.finfo(own).eps
    buffers = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    result: nn.Module = model._apply(moved)  # type: ignore[no-untyped-call]
    for held, name, buffer in buffers:  # which a loss may hold, `mean = model.bn.running_mean`; so parameters stay, too
        other = held[name]
        if other is not None and torch._has_compatible_shallow_copy_type(buffer, other):
            buffer.data = other
            held[name] = buffer
    return result


def entries_of(value: Any) -> Iterable[Any]:
    """What a dictionary or list holds; any other value by itself."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, (list, tuple, set, deque)) else [value]


def _copied_tensor(t: Tensor, dtype: torch.dtype | None) -> dict[int, Tensor]:
    """The copy of a kept tensor by the identity of the original; empty where it can be left to `deepcopy`."""
    leaves = dtype == torch.float64 and not has_float64(t.device)
    converted = dtype is not None and t.is_floating_point() and t.dtype != dtype
    if t.is_leaf and not (converted or leaves) and t.layout in COPIED_BY_PYTORCH:
        return {}
    copied = _copy(t.cpu() if leaves else t)
    return {id(t): copied.to(dtype) if converted else copied}


def evaluate_in_training(model: nn.Module, names: Iterable[str]) -> None:
    """Let these modules, without those inside them, be in training mode wherever the model is evaluated."""
    _in_training[model] = tuple(names)


def evaluated_in_training(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules that are in training mode wherever the model is evaluated."""
    return _in_training.get(model, ())


def _copy(value: Tensor) -> Tensor:
    """Of its own storage, and no inference tensor."""
    with torch.inference_mode(False):
        return value.detach().clone()


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each of its own storage, large ones from the first write on, and no inference tensor."""
    return lazy_copies(values)


def _point(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].data = value


def set_evaluation_mode(model: nn.Module) -> None:
    """All modules in evaluation mode, but those that change their parameters in `eval()`, which stay as they are.

    Raises ValueError where such a module has done so already.
    """
    modules = modules_of(model)
    own_modes = [m for m in modules if _sets_modes_itself(m)]
    if not own_modes:
        for module in modules:  # what `eval()` does; most of them are in that mode already
            if module.training:
                module.training = False
        _take_in_training(model)
        return
    chance = torch.get_rng_state()  # a mode's change may make layers, which draw their first weights
    try:
        _set_modes(model, own_modes)
        _take_in_training(model)
    finally:
        torch.set_rng_state(chance)


def _take_in_training(model: nn.Module) -> None:
    for name in evaluated_in_training(model):
        model.get_submodule(name).training = True


def _set_modes(model: nn.Module, own_modes: list[nn.Module]) -> None:
    merged = [m for m in own_modes if not m.training]
    changed = _changed_by(model, merged, True)
    if changed:
        layers = _layers_of(model, changed, merged)
        raise ValueError(
            f"eval() changes parameters of this model: {layers} (train() changes {_listed(changed)}), as layers do "
            "that merge their adapters into a weight, which no longer depends on them then; call model.train() first: "
            "it is evaluated unmerged, with dropout and batch norm in evaluation mode"
        )
    changed = _changed_by(model, [model], False)
    if not changed:
        model.eval()
        return
    owners = set(_owners(model, changed, own_modes))
    for module in model.modules():
        if module not in owners:
            module.training = False


def sets_modes_itself(model: nn.Module) -> bool:
    """Whether some module of the model has a `train` or `eval` of its own."""
    return any(map(_sets_modes_itself, modules_of(model)))


def _sets_modes_itself(module: nn.Module) -> bool:
    """Whether it has a `train` or `eval` of its own."""
    own = type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
    return own or "train" in module.__dict__ or "eval" in module.__dict__


def _changed_by(model: nn.Module, modules: list[nn.Module], mode: bool) -> list[str]:
    """The parameters and buffers that change where modules are put into a mode, and what is made of parameters then.

    Layers may keep in `eval()` a weight made of their parameters, which moves with them no longer. A table that is the
    same whatever the parameters are is none. All is as before afterwards.
    """
    names, made = _put_into(model, modules, mode, 1.0)
    if names or not made:
        return names
    moved = _put_into(model, modules, mode, 1.25)[1]
    return [name for name, value in made.items() if name not in moved or not _equal(value, moved[name])]


def _put_into(model: nn.Module, modules: list[nn.Module], mode: bool, factor: float) -> tuple[list[str], Named]:
    """(names of tensors that a mode changes, what modules keep in evaluation mode), of parameters times a factor."""
    own = named_tensors(model)
    values = {name: t.data for name, t in own.items()}
    state = ModuleState(model)
    required = [(t, t.requires_grad) for t in own.values() if t.is_leaf]
    try:
        start: Named = values
        if factor != 1.0:
            start = {name: v * factor if v.is_floating_point() else v for name, v in values.items()}
        _point(own, _copies(start))
        for module in modules:
            module.train(True) if mode else module.eval()
        now = named_tensors(model)
        names = [name for name, value in start.items() if name not in now or not _equal(now[name].data, value)]
        names += [name for name in now if name not in values]
        if mode:
            for module in modules:
                module.eval()
        return names, _made_by_modules(model)
    finally:
        state.restore()
        _point(own, values)
        for t, before in required:
            t.requires_grad_(before)


def _made_by_modules(model: nn.Module) -> Named:
    """The floating-point tensors among the attributes of modules that set their modes themselves, by name."""
    made: dict[str, Tensor] = {}
    own = {id(t) for t in named_tensors(model).values()}  # which a wrapper may list once more
    for prefix, module in model.named_modules():
        if not _sets_modes_itself(module):
            continue
        for name, value in module.__dict__.items():
            if name not in STANDARD:
                for i, t in enumerate(entries_of(value)):
                    if isinstance(t, Tensor) and t.is_floating_point() and id(t) not in own:
                        made[f"{prefix}.{name}{i or ''}".lstrip(".")] = t.detach().clone()
    return made


def _equal(a: Tensor, b: Tensor) -> bool:
    if same_memory(a, b):
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _owners(model: nn.Module, names: Iterable[str], modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Of each tensor the innermost of these modules that holds it."""
    inside = {name: m for name, m in model.named_modules() if any(m is each for each in modules)}
    owners: dict[nn.Module, None] = {}
    for name in names:
        holding = [n for n in inside if n == "" or name.startswith(f"{n}.")]
        if holding:
            owners[inside[max(holding, key=len)]] = None
    return list(owners)


def _layers_of(model: nn.Module, names: Iterable[str], modules: Iterable[nn.Module]) -> str:
    """The modules that hold these tensors, as a person would name them."""
    names_of = {m: n for n, m in model.named_modules()}
    return _listed([f"{type(m).__name__} {names_of[m]!r}" for m in _owners(model, names, modules)])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
