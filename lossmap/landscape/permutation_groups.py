"""Which units of a network may change places without changing its function, derived from its traced graph.

A unit is an output of a linear layer, a channel of a convolution or an entry of an embedding. Units that are added to
one another (skip connections) move together: they are one group. A permutation P of a group moves the rows of the
layers that make its units (of an embedding the columns), entries of the norms that they pass and of parameters that
they are multiplied with or added to (LayerScale, an embedding of positions), and columns of the layers that read them.
What the trace passes through unknown ground (concatenation, attention, grouped convolutions, ...) is held where it is,
with the reason, so that the function stays the same whatever the network does. Source of the matching that uses the
groups: Ainsworth et al. (2023), arXiv:2209.04836, who wrote the groups of each network by hand.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem

OUTPUT = "units of the output"  # why the last layer's units stay


@dataclass(frozen=True)
class Use:
    """Where a group moves a tensor: dimension `dim` of `name`, `inner` neighbouring entries a unit."""

    name: str
    dim: int
    inner: int = 1


@dataclass(frozen=True)
class PermutationGroups:
    """Groups of units that may change places.

    sizes   by group, in the order of the forward pass: the number of its units
    uses    by group: the tensors that move with it
    fixed   by layer whose units have to stay: why
    layers  by group: those whose outputs its units are, along dimension 1 of a convolution and the last of any other
    """

    sizes: Mapping[str, int]
    uses: Mapping[str, tuple[Use, ...]]
    fixed: Mapping[str, str]
    layers: Mapping[str, tuple[str, ...]]

    def permuted(self, state: Mapping[str, Tensor], permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with unit permutations[group][i] of each group at place i."""
        moved = dict(state)
        for group, order in permutations.items():
            for use in self.uses[group]:
                tensor = moved[use.name]
                moved[use.name] = tensor.index_select(use.dim, spread(order, use.inner).to(tensor.device))
        return moved


def _why_unknown(module: nn.Module, inputs: int) -> str:
    """Why it is not known which of a module's tensors moves with its units; nothing where it is."""
    if is_parametrized(module) or any(_is_norm_of_weight(hook) for hook in module._forward_pre_hooks.values()):
        return "has parametrized weights, such as of weight_norm"
    if module._forward_hooks or module._forward_pre_hooks or inputs != 1:
        return "has hooks or several inputs"
    if not vars(module).keys().isdisjoint(_METHODS):
        return "has a forward of its own, set on the instance"
    if any(isinstance(vars(module).get(name, module._buffers.get(name)), Tensor) for name in ("weight", "bias")):
        return "has a weight or bias that is no parameter"
    return ""


def _why_not_followed(module: nn.Module, calls: int) -> str:
    """Why the units that a module makes are not followed."""
    if calls > 1:
        return f"called {calls} times"
    if type(module) in _CONVOLUTIONS and module.groups != 1:
        return f"a convolution in {module.groups} groups"
    return f"{type(module).__name__} is not followed"


_METHODS = ("forward", "_conv_forward")  # which a layer may be given in the place of its class's


def _is_norm_of_weight(hook: Any) -> bool:
    """Whether it is one of torch.nn.utils' older hooks, which make a weight before each call."""
    return type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def spread(order: Tensor, inner: int) -> Tensor:
    """(units,) -> (units inner,): the order of entries of which each unit has `inner` neighbouring ones."""
    if inner == 1:
        return order
    return (order[:, None] * inner + torch.arange(inner, device=order.device)).reshape(-1)


def permutation_groups(problem: Problem) -> PermutationGroups:
    """The groups of a problem's model, traced by torch.fx on the inputs of its first batch.

    Raises ValueError for a model that cannot be traced, or of which no unit may change its place.
    """
    model = problem.model
    with temporary_parameters(model, {}), torch.no_grad():  # traced as it is evaluated: modes decide branches
        bound = _inputs(problem)
        traced = _traced(model, bound)
        shapes = _Shapes(traced)
        shapes.run(*(bound.get(n.target) for n in traced.graph.nodes if n.op == "placeholder"))
    found = _Search(traced, shapes.shapes).groups(model)
    if not found.sizes:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(found.fixed.items())[:3])
        raise ValueError(
            f"no unit of {type(model).__name__} may change its place" + (f" ({reasons})" if reasons else "")
        )
    return found


def _inputs(problem: Problem) -> dict[str, Any]:
    """The arguments of the model's forward by name, at the first batch."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = problem.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    try:
        problem.forward(problem.model, next(iter(problem.data)))
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(f"permutations need one forward of the model for each batch; there were {len(seen)}")
    return dict(inspect.signature(problem.model.forward).bind(*seen[0][0], **seen[0][1]).arguments)


def _traced(model: nn.Module, bound: Mapping[str, Any]) -> fx.GraphModule:
    if not vars(model).keys().isdisjoint(_METHODS):
        raise ValueError(
            f"{type(model).__name__} has a forward of its own, set on the instance, which torch.fx does not trace: its "
            "permutations are not known; make it a method of a class"
        )
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name in bound for p in parameters):
        raise ValueError(f"{type(model).__name__} takes any arguments (*args): its permutations cannot be traced")
    # what is not given, or is no tensor, is a constant of the trace: `if mask is None` is decided by it
    constants = {
        p.name: bound.get(p.name, p.default)
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not isinstance(bound.get(p.name), Tensor)
    }
    try:
        tracer = fx.Tracer()
        return fx.GraphModule(model, tracer.trace(model, concrete_args=constants or None))
    except Exception as error:  # user code may raise any exception under a tracer
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}, so that its permutations are not known: "
            f"{type(error).__name__}: {error}"
        ) from error


class _Shapes(fx.Interpreter):
    """Runs a traced model, and keeps the shape of every tensor on the way."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


@dataclass(frozen=True)
class _Axis:
    """The dimension of a value along which the units of a group lie, `inner` neighbouring entries each."""

    dim: int
    group: str
    inner: int = 1


_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
_WITHOUT_UNITS = (*_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)  # of their own
_CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_SAME_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Identity, nn.Softmax,
    nn.LogSoftmax, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POOLS = {
    getattr(nn, f"{kind}Pool{n}d"): n + 2 for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for n in (1, 2, 3)
}
_SAME_NAMES = frozenset((
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "softmax", "log_softmax",
    "dropout", "contiguous", "clone", "detach", "neg", "abs", "exp", "sqrt", "rsqrt", "square", "pow",
    "clamp", "float", "double", "half", "bfloat16", "cpu", "cuda",
))  # fmt: skip
_CASTS = frozenset(("to", "type", "type_as"))
_POOL_NAMES = {f"{kind}_pool{n}d": n + 2 for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
_PAIRED = frozenset(("add", "add_", "iadd", "sub", "mul", "imul", "mul_", "div", "truediv", "maximum", "minimum"))
_NORM_NAMES = frozenset(("batch_norm", "instance_norm", "layer_norm", "rms_norm"))
_VIEWS = frozenset(("view", "reshape", "unsqueeze"))  # as of a vector that is multiplied into channels
_REDUCTIONS = frozenset(("mean", "sum", "amax", "amin"))
_ASKS = frozenset((  # answers that are no tensors, and depend on no values: dtypes, devices, sizes
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "get_device",
    "type", "getattr",
))  # fmt: skip


class _Search:
    """One walk through a traced graph. Groups are joined where their units meet."""

    def __init__(self, traced: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.traced, self.shapes = traced, shapes
        self.modules = dict(traced.named_modules())
        self.parent: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.reasons: dict[str, str] = {}
        self.axes: dict[fx.Node, _Axis | None] = {}
        self.unknown: dict[str, str] = {}  # layers whose weights are not what moves, and why
        self.followed: Counter[str] = Counter()  # how often a tensor is read as entries of units

    def root(self, group: str) -> str:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def join(self, a: str, b: str) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self.parent[b] = a
            if b in self.reasons:
                self.reasons.setdefault(a, self.reasons[b])

    def hold(self, why: str, *axes: _Axis | None) -> None:
        """Let the units of these stay where they are."""
        for axis in axes:
            if axis is not None:
                self.reasons.setdefault(self.root(axis.group), why)

    def groups(self, model: nn.Module) -> PermutationGroups:
        """The groups after a walk through the whole graph."""
        calls = Counter(n.target for n in self.traced.graph.nodes if n.op == "call_module")
        reads = Counter(str(n.target) for n in self.traced.graph.nodes if n.op == "get_attr" for _ in self._readers(n))
        for node in self.traced.graph.nodes:
            self.axes[node] = self._visit(node, calls)
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        uses_of = Counter(use.name for uses in self.uses.values() for use in uses)
        direct = {name for name, n in reads.items() if not n == self.followed[name] == uses_of[name] == 1}
        tied = {n for n, p in model.named_parameters(remove_duplicate=False) if owners[id(p)] > 1}
        for group, uses in list(self.uses.items()):
            for use in uses:
                if use.name in tied or use.name in direct:
                    self.reasons.setdefault(self.root(group), f"{use.name} is used in several places")
        sizes: dict[str, int] = {}
        kept: dict[str, list[Use]] = defaultdict(list)
        layers: dict[str, list[str]] = defaultdict(list)
        fixed = dict(self.unknown)
        for group in self.parent:
            root = self.root(group)
            if root in self.reasons:
                fixed[group] = self.reasons[root]
                continue
            sizes.setdefault(root, self.sizes[root])
            kept[root] += self.uses[group]
            layers[root].append(group)  # a group is named after the layer that makes its units
        fixed |= self._others(model, calls, direct)
        moving = {g: tuple(dict.fromkeys(kept[g])) for g in sizes}
        return PermutationGroups(sizes, moving, fixed, {g: tuple(layers[g]) for g in sizes})

    def _readers(self, tensor: fx.Node) -> list[fx.Node]:
        """What uses the values of a tensor, not only its dtype, its device or its sizes."""
        return [
            user
            for user in tensor.users
            if not (_name(user) in _ASKS and user.name not in self.shapes)
            and (not _is_cast(user) or user.args[0] is tensor)
        ]

    def _own_entries(self, node: fx.Node, dim: int) -> tuple[str, int] | None:
        """Of which parameter or buffer, and along which of its dimensions, the entries along one of a node are.

        None where they are of something else, or are read more than once on the way.
        """
        source = node
        while source.op != "get_attr":
            before = source.args[0] if source.args else None
            if not _is_view(source) or not isinstance(before, fx.Node) or len(self._readers(before)) != 1:
                return None
            source = before
        if not {node.name, source.name} <= self.shapes.keys():
            return None
        own, shape = self.shapes[source.name], self.shapes[node.name]
        long = [d for d, n in enumerate(own) if n > 1]
        if own == shape:
            return str(source.target), dim
        if prod(own) == prod(shape) and len(long) == 1 and shape[dim] == own[long[0]]:
            return str(source.target), long[0]
        return None

    def _follow(self, node: fx.Node, dim: int, axis: _Axis) -> bool:
        """Whether a parameter or buffer that is read as it is has an entry for each of an axis: it moves with it."""
        own = self._own_entries(node, dim)
        if own is None:
            return False
        name, place = own
        self.uses[axis.group].append(Use(name, place, axis.inner))
        self.followed[name] += 1
        return True

    def _others(self, model: nn.Module, calls: Mapping[Any, int], direct: Collection[str]) -> dict[str, str]:
        """Why layers with matrices stay of which the walk follows no unit, such as an LSTM."""
        moved = {u.name for uses in self.uses.values() for u in uses}
        known = {*self.parent, *self.unknown, *(name.rpartition(".")[0] for name in moved - self.followed.keys())}
        known |= {name for name, module in self.modules.items() if isinstance(module, _WITHOUT_UNITS)}
        found = {}
        for name, p in model.named_parameters():
            around = [name[:i] for i, letter in enumerate(name) if letter == "."]  # from the outermost module on
            if p.dim() < 2 or name in self.followed or not known.isdisjoint(around):
                continue
            called = next((n for n in around if calls[n]), None)
            if called is not None:
                found[called] = _why_not_followed(self.modules[called], calls[called])
            elif name in direct:
                found[name] = "used as a tensor"
            else:
                found[around[-1] if around else name] = "not called"
        return found

    def _visit(self, node: fx.Node, calls: Mapping[Any, int]) -> _Axis | None:
        inputs = [self.axes[n] for n in node.all_input_nodes]
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.op == "output":
            self.hold(OUTPUT, *inputs)
            return None
        if node.name not in self.shapes:
            name = _name(node)
            if name not in _ASKS:  # several tensors, or a number made of one
                self.hold(f"read by {name}", *inputs)
            return None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if calls[node.target] > 1 and (*module.parameters(), *module.buffers()):
                self.hold(f"{node.target} is called {calls[node.target]} times", *inputs)
                return None
            if why := _why_unknown(module, len(node.all_input_nodes)):
                self.hold(f"{node.target} {why}", *inputs)
                if any(True for _ in module.parameters()):
                    self.unknown[str(node.target)] = why
                return None
            return self._module(str(node.target), module, node.all_input_nodes[0])
        return self._function(node, inputs)

    def _module(self, name: str, module: Any, source: fx.Node) -> _Axis | None:
        axis, shape, kind = self.axes[source], self.shapes[source.name], type(module)
        if kind is nn.Linear:
            return self._layer(name, module, axis, len(shape) - 1, len(shape) - 1)
        if kind in _CONVOLUTIONS and len(shape) == _CONVOLUTIONS[kind]:
            return self._convolution(name, module, axis)
        if kind is nn.Embedding and axis is None:
            return self._made(name, module.embedding_dim, [Use(f"{name}.weight", 1)], len(shape))
        if kind in _SAME_MODULES or axis is None:
            return axis
        if kind in _POOLS and len(shape) == _POOLS[kind] and axis.dim == 1:
            return axis
        if kind in _NORMS or (kind is nn.PReLU and module.num_parameters > 1):
            if axis.dim == 1:
                return self._entries(name, module, axis)
        elif kind is nn.PReLU:
            return axis
        elif kind is nn.GroupNorm and module.num_groups == 1 and axis.dim == 1:
            return self._entries(name, module, axis)
        elif kind in (nn.LayerNorm, nn.RMSNorm) and len(module.normalized_shape) == 1:
            return self._entries(name, module, axis) if axis.dim == len(shape) - 1 else axis
        elif kind is nn.Flatten:
            return self._flattened(axis, shape, module.start_dim, module.end_dim)
        self.hold(f"read by {name} ({kind.__name__})", axis)
        return None

    def _layer(self, name: str, module: Any, axis: _Axis | None, dim: int, out: int) -> _Axis:
        """A layer whose weight is (outputs, inputs, ...), over dimension `dim` of its input."""
        if axis is not None and axis.dim == dim:
            self.uses[axis.group].append(Use(f"{name}.weight", 1, axis.inner))
        else:
            self.hold(f"{name} reads another dimension of it", axis)
        own = [Use(f"{name}.{n}", 0) for n, _ in module.named_parameters()]
        return self._made(name, module.weight.shape[0], own, out)

    def _made(self, name: str, units: int, uses: list[Use], dim: int) -> _Axis:
        """Units that a layer makes, along this dimension of its output."""
        self.parent[name], self.sizes[name] = name, units
        self.uses[name] += uses
        return _Axis(dim, name)

    def _convolution(self, name: str, module: Any, axis: _Axis | None) -> _Axis | None:
        if module.groups == 1:
            if axis is not None and axis.inner > 1:
                self.hold(f"{name} reads units of {axis.inner} channels", axis)
                axis = None
            return self._layer(name, module, axis, 1, 1)
        if axis is not None and axis.dim == 1 and module.groups == module.in_channels == module.out_channels:
            return self._entries(name, module, axis)  # depthwise: a channel stays by itself
        self.hold(f"{name} is a convolution in {module.groups} groups", axis)
        return None

    def _entries(self, name: str, module: nn.Module, axis: _Axis) -> _Axis:
        """A module of which every tensor has one entry (or row) for each entry of its input's axis."""
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self.uses[axis.group] += [Use(f"{name}.{n}", 0, axis.inner) for n, t in tensors if t.dim()]
        return axis

    def _function(self, node: fx.Node, inputs: list[_Axis | None]) -> _Axis | None:
        if not any(inputs):
            return None
        name, first = _name(node), node.all_input_nodes[0]
        if name in _PAIRED:
            return self._paired(node)
        if name in _NORM_NAMES and inputs[0] is not None and self._is_normed(node, name, inputs[0]):
            return inputs[0]
        if _is_cast(node) and isinstance(node.args[0], fx.Node):
            return self.axes[node.args[0]]
        axis, shape = inputs[0], self.shapes.get(first.name)
        if axis is not None and shape is not None and not any(inputs[1:]) and node.args and node.args[0] is first:
            alone = sum(n.name in self.shapes for n in node.all_input_nodes) == 1
            moved = self._alone(node, name, axis, shape) if alone else None
            if moved is not None:
                return moved[0]
        self.hold(f"read by {name}", *inputs)
        return None

    def _is_normed(self, node: fx.Node, name: str, axis: _Axis) -> bool:
        """Whether the axis stays one behind a norm that is called as a function, with its tensors."""
        source, *tensors = node.all_input_nodes
        rank = len(self.shapes[source.name])
        if name in ("layer_norm", "rms_norm"):
            shape = _argument(node, 1, "normalized_shape")
            if not isinstance(shape, (tuple, list, torch.Size)) or len(shape) != 1:
                return False
            if axis.dim != rank - 1:
                return True
        elif axis.dim != 1:
            return False
        return node.args[:1] == (source,) and all(self._follow(t, 0, axis) for t in tensors)

    def _alone(self, node: fx.Node, name: str, axis: _Axis, shape: tuple[int, ...]) -> tuple[_Axis | None] | None:
        """The axis after a function of one tensor, in a tuple; None where it is not known what becomes of it."""
        after = self.shapes[node.name]
        if len(node.all_input_nodes) > 1:  # numbers that hang on data, such as sizes
            return self._reshaped(name, axis, shape, after)
        if name in _SAME_NAMES and after == shape:
            return (axis,)
        if name in _POOL_NAMES and len(shape) == _POOL_NAMES[name] and axis.dim == 1:
            return (axis,)
        if name in _REDUCTIONS:
            dims, keep = _argument(node, 1, "dim", "axis"), bool(_argument(node, 2, "keepdim", "keepdims"))
            whole = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
            reduced = {d % len(shape) for d in whole} or set(range(len(shape)))
            if axis.dim in reduced:
                return (None,)  # the order of what is summed says nothing
            return (axis if keep else replace(axis, dim=axis.dim - sum(d < axis.dim for d in reduced)),)
        if name == "transpose":
            swap = [_argument(node, i, f"dim{i - 1}") % len(shape) for i in (1, 2)]
            return (replace(axis, dim={swap[0]: swap[1], swap[1]: swap[0]}.get(axis.dim, axis.dim)),)
        if name == "permute":
            order: Any = _argument(node, 1, "dims")
            order = node.args[1:] if isinstance(order, int) else order  # x.permute(0, 2, 1)
            return (replace(axis, dim=[d % len(shape) for d in order].index(axis.dim)),)
        return self._reshaped(name, axis, shape, after)

    @staticmethod
    def _reshaped(name: str, axis: _Axis, shape: tuple[int, ...], after: tuple[int, ...]) -> tuple[_Axis] | None:
        d = axis.dim  # all from the units on are flattened into one dimension
        if name in ("flatten", "reshape", "view") and after == (*shape[:d], prod(shape[d:])):
            return (replace(axis, inner=axis.inner * prod(shape[d + 1 :])),)
        return None

    def _flattened(self, axis: _Axis, shape: tuple[int, ...], start: int, end: int) -> _Axis | None:
        start, end = start % len(shape), end % len(shape)
        if axis.dim == start:
            return replace(axis, inner=axis.inner * prod(shape[start + 1 : end + 1]))
        if axis.dim < start:
            return axis
        self.hold("flattened behind another dimension", axis)
        return None

    def _paired(self, node: fx.Node) -> _Axis | None:
        """Element by element, of two tensors or of one and a number: units that meet are joined."""
        rank = len(self.shapes[node.name])
        merged: _Axis | None = None
        tensors = [n for n in node.all_input_nodes if n.name in self.shapes]
        for n in tensors:
            axis = self.axes[n]
            if axis is None:
                continue
            axis = replace(axis, dim=axis.dim + rank - len(self.shapes[n.name]))  # of the result, broadcast
            if merged is None:
                merged = axis
            elif (merged.dim, merged.inner) == (axis.dim, axis.inner) and self._size(merged) == self._size(axis):
                self.join(merged.group, axis.group)
            else:
                self.hold(f"meet other units at {node.name}", *(self.axes[i] for i in tensors))
                return None
        for n in tensors:
            own = merged.dim - rank + len(self.shapes[n.name]) if merged is not None else -1
            if self.axes[n] is None and merged is not None and own >= 0 and self.shapes[n.name][own] > 1:
                if self._follow(n, own, merged):
                    continue
                self.hold(f"meet what cannot move at {node.name}", merged)
                return None
        return merged

    def _size(self, axis: _Axis) -> int:
        return self.sizes[self.root(axis.group)]


def _name(node: fx.Node) -> str:
    """The name of a function or a method that a node calls."""
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", node.target))


def _is_cast(node: fx.Node) -> bool:
    """Whether it gives its first tensor in another dtype or on another device; of others it reads no values."""
    return node.op == "call_method" and node.target in _CASTS


def _is_view(node: fx.Node) -> bool:
    """Whether it gives the entries of its first tensor in their order, in another shape or dtype, or a part of them."""
    if _name(node) != "getitem":
        return _name(node) in _VIEWS or _is_cast(node)
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(i is None or i is ... or (isinstance(i, slice) and i.step in (None, 1)) for i in index)


def _argument(node: fx.Node, place: int, *names: str) -> Any:
    """What a function was called with at a place or by one of these names; None where it was not."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)
