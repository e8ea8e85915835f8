"""Functions that stand in a copy of a model, hooks or a `forward` put in the place of a method's, see the copy.

    model.head.register_forward_hook(lambda module, inputs, outputs: model.kept.append(outputs))

`copy.deepcopy` leaves functions as they are: such a hook would write into the model itself whenever its copy runs, and
a `forward` that closes over a layer would run that layer. What a function takes from globals stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any


def rebind(modules: Iterable[Any], copies: Mapping[int, Any]) -> None:
    """Give the modules of a model's copy functions of their own.

    copies  what the copy holds in the place of each of the model's objects, by their identity: deepcopy's memo
    """
    for module in modules:
        for held in (module.__dict__, *(v for v in module.__dict__.values() if isinstance(v, dict))):
            functions = [(k, v) for k, v in held.items() if isinstance(v, FunctionType) and v.__closure__]
            held.update({k: _rebound(v, copies, {}) for k, v in functions})


def _rebound(value: Any, copies: Mapping[int, Any], made: dict[int, Any]) -> Any:
    """A value as the copy has it: a function over copies where it closes over some of the model's objects."""
    if id(value) in copies or id(value) in made:
        return copies.get(id(value), made.get(id(value)))
    if isinstance(value, MethodType):
        owner = _rebound(value.__self__, copies, made)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if not isinstance(value, FunctionType) or not value.__closure__:
        return value
    made[id(value)] = value  # where another function sees it once more
    itself = CellType()
    cells = [itself if _content(c) is value else _rebound_cell(c, copies, made) for c in value.__closure__]
    if all(a is b or a is itself for a, b in zip(cells, value.__closure__, strict=True)):
        return value
    result = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells))
    result.__kwdefaults__ = value.__kwdefaults__
    result.__dict__.update(value.__dict__)
    itself.cell_contents = made[id(value)] = result
    return result


def _rebound_cell(cell: CellType, copies: Mapping[int, Any], made: dict[int, Any]) -> CellType:
    before = _content(cell)
    after = _rebound(before, copies, made)
    return cell if after is before else CellType(after)


def _content(cell: CellType) -> Any:
    """What a variable of a closure holds; None where nothing stands in it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


__all__ = ["rebind"]
