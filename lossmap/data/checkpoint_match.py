"""Which tensors of a checkpoint are a model's: found by names and shapes, under whatever key and prefix they stand.

Trainers leave the weights under keys of their own (`state_dict`, `model_ema`, `generator`), with prefixes of their
wrappers (`module.`, `_orig_mod.`, `model.`), beside those of a criterion or of a second model; tied tensors may be
saved once, and an adapter alone without its base. What fits exactly one way is taken, and said where it is not evident;
what fits several ways, or leaves tensors over, is refused with the flag that decides.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lossmap.data.checkpoint_values import plain, refuse_meta
from lossmap.data.loading_rules import EXTRA_STATE, has_rules, loaded_by, state_to_load

State = dict[str, Tensor]


class NamedTensors(State):
    """A set of named tensors as a file holds it.

    versions  what its state dict says of each module, by the module's name
    extra     what modules keep beside tensors, by name
    """

    versions: Mapping[str, Any]
    extra: Mapping[str, Any]

    def __init__(self, tensors: State, versions: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.versions, self.extra = versions, extra


# The keys under which people's files hold the weights, the first of those that fit before the others.
USUAL_KEYS = ("state_dict", "model", "net", "params", "model_state_dict", "module", "weights")
MAX_DEPTH = 8  # of nested entries that are looked into
MAX_FRONTS = 8  # prefixes, the most frequent, behind which what the model's rules load is looked for
MAX_PARTS = 3  # of such a prefix
MAX_LISTED = 8  # names in one sentence
_AVERAGED = "n_averaged"  # beside `module.` in what AveragedModel saves: how many models it has averaged
_COUNTER = "num_batches_tracked"  # of batch norm: old checkpoints lack it, and no evaluation reads it
# Keys of what is no model beside it: an optimizer's moments have the weights' names and shapes in some files.
_NO_MODEL = re.compile(
    r"optimi[sz]er|schedulers?(?![a-z])|(?<![a-z])(optim|sched)(?![a-z])"
    r"|^(grads?|gradients?|momentum_buffers?|(max_)?exp_avg(_sq)?|square_avg)$",
    re.IGNORECASE,
)
_WITHIN = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")  # names of wrappers
_OF_STATE = re.compile(r"_(state_dict|state|params|weights)$")  # behind the name of a part, as `encoder_state_dict`
_PEFT = "base_model.model."  # before all names of a model with adapters
_MADE = {  # what stands in a file in the place of `weight`
    ("_orig", "_mask"): "{0} was pruned; call torch.nn.utils.prune.remove before it is saved, or prune the model alike",
    ("_g", "_v"): "{0} has weight norm; give the model the same, or call remove_weight_norm before it is saved",
    ("_orig", "_u"): "{0} has spectral norm; give the model the same, or call remove_spectral_norm before it is saved",
}
_UNSAVED = ".ranknum"  # of AdaLoRA: its rank, which PEFT does not save
_STAY = "stay as the model was made"
_ADAPTER = re.compile(r"(^|\.)(lora_\w+|modules_to_save)\.")


@dataclass(frozen=True)
class Selection:
    """Which of a checkpoint's tensors are meant, where they do not say so themselves.

    key               the entry that holds them, `model_ema` or `ema.model`; by default the one that fits
    prefix            what stands before the model's names there; by default the one that fits
    allow_unexpected  whether tensors that the model lacks are left out, and not refused
    or_the_only       whether of a file without key or prefix the only tensors that fit are read
    """

    key: str | None = None
    prefix: str | None = None
    allow_unexpected: bool = False
    or_the_only: bool = False


@dataclass(frozen=True)
class Fit:
    """A checkpoint's tensors under the model's own names.

    state      the tensors by the names of the model's state dict
    extra      names beside them that the model lacks
    elsewhere  names with another prefix, such as those of a criterion
    notes      sentences for the person who loads it
    prefix     what stands before the model's names in the file
    within     what the model has before the names of the file
    given      what the model's own rules load, where it has such; None: the state as it is
    """

    state: State
    extra: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    prefix: str = ""
    within: str = ""
    given: OrderedDict[str, Any] | None = field(default=None, repr=False)


class _SeveralPrefixes(ValueError):
    """What stands behind several prefixes of one set of tensors fits the model."""


def states_in(content: Any) -> dict[str, State]:
    """Every set of named tensors in what a file held, by the dotted key that it stands under; empty where plain."""
    return dict(_states(content, "", 0))


def learning_rate_in(content: Any) -> float:
    """The learning rate of the optimizer's first group of parameters in what a file held; NaN where there is none."""
    for name, value in content.items() if isinstance(content, Mapping) else ():
        is_list = isinstance(value, Sequence) and not isinstance(value, str)  # as Lightning's
        states = value if is_list else [value]
        for state in states if isinstance(name, str) and "optim" in name else ():
            groups = state.get("param_groups") if isinstance(state, Mapping) else None
            rate = groups[0].get("lr") if groups and isinstance(groups[0], Mapping) else None
            if isinstance(rate, (int, float, Tensor)):
                return float(rate)
    return nan


def _states(content: Any, key: str, depth: int) -> Iterator[tuple[str, State]]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    is_list = isinstance(content, Sequence) and not isinstance(content, (str, bytes))
    if is_list:
        content = {str(i): value for i, value in enumerate(content)}
    if not isinstance(content, Mapping) or depth > MAX_DEPTH or "param_groups" in content:
        return
    extra = {k: v for k, v in content.items() if isinstance(k, str) and k.rpartition(".")[2] == EXTRA_STATE}
    tensors = {k: _tensor(v) for k, v in content.items() if isinstance(k, str) and not is_list and k not in extra}
    state = {k: t for k, t in tensors.items() if t is not None}
    if state:
        versions = getattr(content, "_metadata", None)
        yield key, NamedTensors(state, versions if isinstance(versions, Mapping) else {}, extra)
    for name, value in content.items():
        is_more = name not in state and name not in extra
        if isinstance(name, (str, int)) and is_more and not _NO_MODEL.search(str(name)):
            yield from _states(value, f"{key}.{name}".lstrip("."), depth + 1)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))  # an owned, writable copy
    return None


def fitted(states: Mapping[str, State], model: nn.Module, origin: str, selection: Selection | None = None) -> Fit:
    """The tensors that are the model's, among those of a checkpoint.

    states  by key, as `states_in` finds them
    origin  the file's name, for messages

    Raises ValueError, in one sentence: for another architecture, with the names that differ; where several keys or
    prefixes fit; where tensors are left over; where tied ones differ.
    """
    selection = selection or Selection()
    own = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    own = {name: t for name, t in own.items() if name.rpartition(".")[2] != EXTRA_STATE}
    _refuse_lazy(own, type(model).__name__)
    chosen, no_key = _under_key(states, selection.key, origin)
    prefix, no_prefix = _with_prefix(chosen, selection.prefix, origin)
    lack = "; ".join(filter(None, (no_key, no_prefix)))
    if lack and not selection.or_the_only:
        raise ValueError(f"{lack}; only the file of a second model may lack it")
    fits, unclear = _fits(chosen, model, own, prefix, origin)
    if not fits and not unclear:
        joined = _joined(chosen, _own_names(own))
        fits, unclear = _fits(joined, model, own, prefix, origin)
        chosen = {**chosen, **joined} if fits or unclear else chosen
    if not fits and not unclear:
        if has_rules(model):
            refuse_meta({name: t for state in chosen.values() for name, t in state.items()}, origin)
        raise ValueError(_differences(chosen, own, type(model).__name__, origin, prefix))
    if no_key and len(fits) + len(unclear) > 1:
        raise ValueError(no_key)
    key = _best_key([*fits, *unclear], origin)
    if key in unclear:
        raise unclear[key]
    fit = _with_rest(fits[key], chosen[key], model, origin)
    if fit.extra and not selection.allow_unexpected:
        raise ValueError(
            f"{origin} is of another architecture than {type(model).__name__}; unexpected: {listed(fit.extra)}; all "
            "that the model has is there: --allow-unexpected leaves these out"
        )
    _refuse_torn(fit.state, own, type(model).__name__, origin)
    notes = list(fit.notes)
    others = [other or "(the plain tensors)" for other in fits if other != key]
    others += [f"{other} with --strip-prefix" for other in unclear]
    if others:
        under = f"under {key!r}" if key else "that stand under no key"
        notes.append(f"{lack or origin}: read are the tensors {under}; --state-key takes {' or '.join(others)} instead")
    elif lack:
        notes.append(f"{lack}: read are {repr(key) if key else 'these'}, the only ones that fit the model")
    elif key and key.rpartition(".")[2] not in USUAL_KEYS and selection.key is None:
        notes.append(f"{origin}: read are the tensors under {key!r}, the only ones that fit the model")
    if fit.extra or fit.elsewhere:
        notes.append(f"{origin}: left out, since the model has no such tensors: {listed(fit.elsewhere + fit.extra)}")
    return replace(fit, notes=tuple(notes))


def _fits(
    states: Mapping[str, State], model: nn.Module, own: Mapping[str, Tensor], prefix: str | None, origin: str
) -> tuple[dict[str, Fit], dict[str, _SeveralPrefixes]]:
    """What fits the model, by key; and why under other keys it is not known what does."""
    rules = has_rules(model)
    fits: dict[str, Fit] = {}
    unclear: dict[str, _SeveralPrefixes] = {}
    for name, state in states.items():
        try:
            fit = _fit(state, own, prefix, origin) or (_by_rules(state, model, prefix, origin) if rules else None)
        except _SeveralPrefixes as error:
            unclear[name] = error
        else:
            fits |= {} if fit is None else {name: fit}
    return fits, unclear


def _joined(states: Mapping[str, State], own: Iterable[str]) -> dict[str, State]:
    """Sets that stand side by side as one, of a model saved part by part: `0.weight` under `enc` as `enc.0.weight`.

    own  the model's names: sets of other parts, as a critic's, are none of it
    """
    beside: dict[str, list[str]] = {}
    for key in states:
        beside.setdefault(key.rpartition(".")[0], []).append(key)
    found: dict[str, State] = {}
    for keys in beside.values():
        names = {key: _OF_STATE.sub("", key.rpartition(".")[2]) for key in keys}
        names = {key: name for key, name in names.items() if any(each.startswith(f"{name}.") for each in own)}
        if len(names) < 2 or len(set(names.values())) < len(names):
            continue
        tensors, versions, extra = dict[str, Tensor](), dict[str, Any](), dict[str, Any]()
        for key, name in names.items():
            tensors |= {f"{name}.{k}": t for k, t in states[key].items()}
            versions |= {f"{name}.{k}".rstrip("."): v for k, v in _versions(states[key], "").items()}
            extra |= {f"{name}.{k}": v for k, v in _extra(states[key]).items()}
        found[" + ".join(names)] = NamedTensors(tensors, versions, extra)
    return found


def _refuse_lazy(own: Mapping[str, Tensor], model: str) -> None:
    """Raises ValueError where the shapes of parameters are not known before a first batch."""
    lazy = [name for name, t in own.items() if is_lazy(t)]
    if lazy:
        raise ValueError(
            f"{model} has parameters without a shape (lazy modules): {listed(lazy)}; let the function that makes it "
            "put one batch through it"
        )


def _by_rules(state: State, model: nn.Module, prefix: str | None, origin: str) -> Fit | None:
    """What the model's own rules make of the tensors, whether or not some are left over."""
    return _fit_by_rules(state, model, prefix) or _fit_in_part(state, model, prefix, origin)


def _fit_by_rules(state: State, model: nn.Module, prefix: str | None) -> Fit | None:
    """What the model's own rules make of the tensors, where they leave none missing and none over."""
    for front in _as_given(prefix) if prefix is not None else _common_beginnings(state):
        given = _behind(front, state)
        found = loaded_by(model, state_to_load(given, _versions(state, front)), strict=True)
        if found is not None:
            elsewhere = tuple(k for k in state if not k.startswith(front))
            return Fit(found.tensors, elsewhere=elsewhere, prefix=front, given=given)
    return None


def _fit_in_part(state: State, model: nn.Module, prefix: str | None, origin: str) -> Fit | None:
    """The same where tensors are left over, behind the prefix or with another one, such as those of a criterion.

    Raises ValueError where what stands behind several prefixes fits.
    """
    parts = [name.split(".")[:-1][:MAX_PARTS] for name in state]
    fronts = Counter(".".join(p[: i + 1]) + "." for p in parts for i in range(len(p)))
    common = [front for front, _ in fronts.most_common(MAX_FRONTS)]
    fits: dict[str, Fit] = {}
    for front in _as_given(prefix) if prefix is not None else ["", *common]:
        given = _behind(front, state)
        found = loaded_by(model, state_to_load(given, _versions(state, front)), strict=False)
        if found is not None and not found.missing and found.unexpected is not None:
            elsewhere = tuple(k for k in state if not k.startswith(front))
            extra = tuple(front + name for name in found.unexpected)
            kept = _without(given, found.unexpected)
            fits[front] = Fit(found.tensors, extra, elsewhere, prefix=front, given=kept)
    return _only(fits, origin) if fits else None


def _only(fits: Mapping[str, Fit], origin: str) -> Fit:
    """The fit behind no prefix, or the only one. Raises ValueError where there are several others."""
    if len(fits) > 1 and "" not in fits:
        shown = " and ".join(repr(p) for p in fits)
        raise _SeveralPrefixes(f"{origin} holds tensors that fit the model under {shown}; name one with --strip-prefix")
    return fits.get("", next(iter(fits.values())))


def _without(given: OrderedDict[str, Any], names: Iterable[str]) -> OrderedDict[str, Any]:
    """A state dict without some names; what it says of modules stays."""
    names = set(names)
    return state_to_load({k: t for k, t in given.items() if k not in names}, getattr(given, "_metadata", None))


def _behind(front: str, state: State) -> OrderedDict[str, Any]:
    """What stands behind a prefix, under the names that it has there."""
    entries = {**state, **_extra(state)}
    here = {k.removeprefix(front): t for k, t in entries.items() if k.startswith(front)}
    return state_to_load(here, _versions(state, front))


def _common_beginnings(names: Iterable[str]) -> list[str]:
    """Nothing, and what all names begin with, part by part, such as `module.` and `module.model.`."""
    parts = [name.split(".")[:-1] for name in names]
    beginnings, shared = [""], 0
    while all(len(p) > shared and p[: shared + 1] == parts[0][: shared + 1] for p in parts):
        shared += 1
        beginnings.append(".".join(parts[0][:shared]) + ".")
    return beginnings


def _extra(state: State) -> Mapping[str, Any]:
    return state.extra if isinstance(state, NamedTensors) else {}


def _versions(state: State, prefix: str) -> dict[str, Any]:
    """What a state dict says of each module, by the names that they have behind a prefix."""
    versions = state.versions if isinstance(state, NamedTensors) else {}
    front = prefix.removesuffix(".")
    return {
        name.removeprefix(front).removeprefix("."): value
        for name, value in versions.items()
        if not front or name == front or name.startswith(f"{front}.")
    }


def _with_rest(fit: Fit, state: State, model: nn.Module, origin: str) -> Fit:
    """A fit with what the file says beside tensors, and what the model's own rules make of it."""
    names = set(model.state_dict())
    setters = [n for n, m in model.named_modules() if type(m).set_extra_state is not nn.Module.set_extra_state]
    kept = [name for n in setters if (name := f"{n}.{EXTRA_STATE}".lstrip(".")) in names]
    extra = _renamed(_extra(state), kept, fit)
    notes = fit.notes
    if len(extra) < len(kept) and fit.given is None:
        count = len(kept) - len(extra)
        notes += (f"{origin} lacks the extra state of {count} modules, which stays as the model was made",)
    if fit.given is None and has_rules(model):
        of_modules = {f"{name}.".lstrip("."): value for name, value in _versions(state, "").items()}
        modules = [f"{name}.".lstrip(".") for name, _ in model.named_modules()]
        versions = {name.removesuffix("."): value for name, value in _renamed(of_modules, modules, fit).items()}
        there = {_clean(name): t for name, t in state.items()}
        # what the model has no tensor for may be what a rule converts others by, such as a scale
        beside = {name.removeprefix(fit.prefix): there[name] for name in fit.extra if name in there}
        given = state_to_load({**fit.state, **beside, **extra}, versions)
        found = loaded_by(model, state_to_load(given, versions), strict=False)
        if found is not None:
            unused = set(beside if found.unexpected is None else found.unexpected)
            over = tuple(n for n in fit.extra if n not in there or n.removeprefix(fit.prefix) in unused)
            if left := [n for n in found.missing if n in fit.state]:
                notes += (f"{origin}: left out by the model's own rules, so as the model was made: {listed(left)}",)
            return replace(fit, state=found.tensors, extra=over, given=_without(given, unused), notes=notes)
    if extra:
        return replace(fit, given=state_to_load({**fit.state, **extra}), notes=notes)
    return replace(fit, notes=notes)


def _renamed(entries: Mapping[str, Any], names: Iterable[str], fit: Fit) -> dict[str, Any]:
    """The entries of a file by the model's own names, of those among them that it has."""
    there = {_clean(name): value for name, value in entries.items()}
    bare = {_without_module(name): value for name, value in there.items()}
    found = {}
    for name in names:
        clean = _clean(name).removeprefix(fit.within)
        wanted = [fit.prefix + clean, fit.prefix + clean.removeprefix("module.")]
        hits = [there[w] for w in wanted if w in there] or [bare[w] for w in map(_without_module, wanted) if w in bare]
        if hits:
            found[name] = hits[0]
    return found


def _refuse_torn(state: State, own: Mapping[str, Tensor], model: str, origin: str) -> None:
    """Raises ValueError where tensors differ that are one tensor in the model: the last would be taken, in silence."""
    first: dict[int, str] = {}
    for name, tensor in state.items():
        other = first.setdefault(id(own[name]), name)
        if other != name and not torch.equal(plain(state[other]), plain(tensor)):
            raise ValueError(
                f"{origin} is of another architecture than {model}; {other} and {name} are one tensor in the model "
                "(tied), and differ there"
            )


def _under_key(states: Mapping[str, State], key: str | None, origin: str) -> tuple[Mapping[str, State], str]:
    """The sets of tensors under a key, and nothing; of a file without it all, and the sentence that says so."""
    if key is None:
        return states, ""
    chosen = {k: s for k, s in states.items() if k == key or k.endswith(f".{key}")}
    have = ", ".join(k for k in states if k)
    what = f"it has {have}" if have else "its tensors stand under no key"
    return (chosen, "") if chosen else (states, f"{origin} holds no tensors under {key!r}; {what}")


def _with_prefix(states: Mapping[str, State], prefix: str | None, origin: str) -> tuple[str | None, str]:
    """A prefix that was named, and nothing; of a file without it none, and the sentence that says so."""
    names = [name for state in states.values() for name in state]
    spelt = (n for name in names for n in (name, _clean(name), _without_module(_clean(name))))
    if not prefix or not names or any(name.startswith(prefix) for name in spelt):
        return prefix, ""
    first = dict.fromkeys(name.partition(".")[0] for name in names)
    return None, f"{origin} has no tensor whose name begins with {prefix!r}; they begin with {listed(list(first))}"


def _best_key(keys: Sequence[str], origin: str) -> str:
    """The key to take of those that fit. Raises ValueError where none goes before the others."""
    if len(keys) == 1:
        return keys[0]
    for usual in ("", *USUAL_KEYS):
        same = [key for key in keys if key.rpartition(".")[2] == usual]
        if len(same) == 1:
            return same[0]
    raise ValueError(
        f"{origin} holds several sets of tensors that fit the model: {', '.join(keys)}; name one with --state-key"
    )


def _clean(name: str) -> str:
    """A name without what torch.compile and wrappers of a part write into it."""
    return _WITHIN.sub(r"\1", name)


def _own_names(own: Mapping[str, Tensor], tensors: Iterable[str] = ()) -> dict[str, str]:
    """The model's names by the names that they have without its wrapper."""
    names = {_clean(name): name for name in own}
    if _AVERAGED in names and _AVERAGED not in tensors:
        del names[_AVERAGED]
        names = {name.removeprefix("module."): full for name, full in names.items()}
    return names


def _fit(state: State, own: Mapping[str, Tensor], prefix: str | None, origin: str) -> Fit | None:
    """The tensors that are the model's; None where some are missing, or of other shapes."""
    tensors = _without_wrappers(state, origin)
    names = _own_names(own, tensors)
    prefixes = [*map(_clean, _as_given(prefix))] if prefix is not None else _prefixes(tensors, names)
    fits = {p: fit for p in prefixes if (fit := _fit_under(tensors, names, own, p))}
    if not fits:
        return (
            _fit_parts(tensors, names, own, prefix or "")
            or _fit_within(tensors, names, own)
            or _fit_adapter(tensors, names, own)
        )
    return _only(fits, origin)


def _without_wrappers(state: State, origin: str) -> State:
    """The tensors by names without wrappers. Raises ValueError where two have one name then, and differ."""
    tensors: State = {}
    full: dict[str, str] = {}
    for name, tensor in state.items():
        clean = _clean(name)
        other = full.setdefault(clean, name)
        if other != name and not (
            tensor.shape == tensors[clean].shape and torch.equal(plain(tensors[clean]), plain(tensor))
        ):
            raise ValueError(
                f"{origin} holds {other} and {name}, which are one tensor's names inside and outside of a wrapper, and "
                "differ: save those that are meant alone"
            )
        tensors[clean] = tensor
    return tensors


def _as_given(prefix: str) -> list[str]:
    """A prefix that was named, and with the dot that stands behind a module's name."""
    return [prefix] if not prefix or prefix.endswith(".") else [prefix, f"{prefix}."]


def _prefixes(tensors: State, names: Mapping[str, str]) -> list[str]:
    """What may stand before the model's names: read off wherever one of the first of them ends a name of the file."""
    # several, since one alone may be tied, and saved under its other name
    some = [name for name in names if name.rpartition(".")[2] != _COUNTER][:MAX_LISTED]
    prefixes = {k[: -len(name)] for name in some for k in tensors if k == name or k.endswith(f".{name}")}
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))


def _fit_under(tensors: State, names: Mapping[str, str], own: Mapping[str, Tensor], prefix: str) -> Fit | None:
    here = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    saved = {id(own[full]): name for name, full in names.items() if name in here}  # a tied tensor may be saved once
    state: State = {}
    for name, full in names.items():
        source = name if name in here else saved.get(id(own[full]))
        if source is None:
            if name.rpartition(".")[2] == _COUNTER:
                continue
            return None
        tensor = here[source]
        if own[full].dim() == 0 and tensor.shape == (1,):  # a number, as PyTorch wrote it before it knew scalars
            tensor = tensor[0]
        if tensor.shape != own[full].shape:
            return None
        state[full] = tensor
    extra = tuple(prefix + k for k in here if k not in names and k.rpartition(".")[2] != _COUNTER)
    elsewhere = tuple(k for k in tensors if not k.startswith(prefix))
    return Fit(state, extra, elsewhere, prefix=prefix)


def _fit_parts(tensors: State, names: Mapping[str, str], own: Mapping[str, Tensor], prefix: str) -> Fit | None:
    """Tensors of a model some of whose parts were in DataParallel, such as `features.module.0.weight`."""
    bare = {_without_module(name): t for name, t in tensors.items()}
    bare_names = {_without_module(name): full for name, full in names.items()}
    if len(bare) < len(tensors) or len(bare_names) < len(names):
        return None
    return _fit_under(bare, bare_names, own, prefix)


def _fit_within(tensors: State, names: Mapping[str, str], own: Mapping[str, Tensor]) -> Fit | None:
    """Tensors of the network that the model has within, such as a Lightning module its `model`, saved by itself."""
    for front in _common_beginnings(names)[1:]:
        inner = {name.removeprefix(front): full for name, full in names.items()}
        fit = _fit_under(tensors, inner, own, "")
        if fit is not None and not fit.extra:
            return replace(fit, within=front)
    return None


def _without_module(name: str) -> str:
    return re.sub(r"(^|\.)module\.", r"\1", name)


def _fit_adapter(tensors: State, names: Mapping[str, str], own: Mapping[str, Tensor]) -> Fit | None:
    """An adapter alone, as PEFT saves it: without its base, and without the adapter's name in the tensors' names.

    Biases of the base that were trained with it, and modules that were trained whole (`modules_to_save`), are with it.
    """
    if not _is_adapter(tensors):
        return None
    here = {_in_adapter(name): t for name, t in tensors.items()}
    for adapter in dict.fromkeys(part for name in names for part in name.split(".")):
        adapters = {_in_adapter(name, adapter): full for name, full in names.items() if adapter in name.split(".")}
        biases = {_in_adapter(name): full for name, full in names.items() if name.endswith(".bias")}
        state = {full: t for k, t in here.items() if (full := adapters.get(k) or biases.get(k))}
        known, saved = (
            len(state),
            {id(own[full]): t for full, t in state.items()},
        )  # what several layers share is saved once
        state |= {full: saved[id(own[full])] for full in adapters.values() if id(own[full]) in saved}
        if (
            known == len(here)
            and state.keys() >= {full for k, full in adapters.items() if not k.endswith(_UNSAVED)}
            and all(t.shape == own[full].shape for full, t in state.items())
        ):
            others = len(own) - len(state)
            return Fit(state, notes=(f"an adapter of {len(here)} tensors is read; the {others} others {_STAY}",))
    return None


def _is_adapter(tensors: Iterable[str]) -> bool:
    """Whether these are the names of an adapter's tensors, as PEFT saves it."""
    names = list(tensors)
    return bool(names) and (
        all(k.startswith("base_model.") for k in names) or all(_ADAPTER.search(f".{k}") for k in names)
    )


def _in_adapter(name: str, adapter: str = "default") -> str:
    """The name of a model's tensor in the file of an adapter of this name."""
    parts = name.removeprefix(_PEFT).split(".")
    if parts[-1] == "weight" and "lora_magnitude_vector" in parts:  # of DoRA, which PEFT saves without
        parts.pop()
    return ".".join(part for part in parts if part not in (adapter, "modules_to_save"))


def _differences(
    states: Mapping[str, State], own: Mapping[str, Tensor], model: str, origin: str, prefix: str | None
) -> str:
    """What keeps the nearest set of tensors from being the model's."""
    names = _own_names(own)
    key, state = max(states.items(), key=lambda item: len({_stripped(k) for k in item[1]} & set(names)))
    tensors = {_stripped(_clean(k)).removeprefix(prefix or ""): t for k, t in state.items()}
    missing = [k for k in names if k not in tensors and k.rpartition(".")[2] != _COUNTER]
    unexpected = [k for k in tensors if k not in names and k.rpartition(".")[2] != _COUNTER]
    shapes = [
        f"{k} is {tuple(tensors[k].shape)} there and {tuple(own[full].shape)} here"
        for k, full in names.items()
        if k in tensors and tensors[k].shape != own[full].shape
    ]
    texts = (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
    differences = [f"{what}: {listed(different)}" for what, different in texts if different]
    if _is_adapter(state) and not any(name.startswith(_PEFT) or _ADAPTER.search(name) for name in names):
        return (
            f"{origin} is of a model with an adapter of PEFT, and {model} has none: name a function that returns "
            "get_peft_model(...), or of a model of Hugging Face the adapter's folder, --model hf:FOLDER"
        )
    if not differences:
        differences = ["its names have prefixes that differ from each other"]
    if len(states) > 1:
        differences.append(f"compared was what stands under {key!r}, the nearest of {listed(list(states))}")
    if made := _made_otherwise(missing, unexpected):
        return f"{origin} is of a model whose weights are made of others: {made}; {'; '.join(differences)}"
    return f"{origin} is of another architecture than {model}; {'; '.join(differences)}"


def _made_otherwise(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Why a file has other tensors in the place of a weight, as pruning and norms of weights leave it; else empty."""
    for name in missing:
        for ends, why in _MADE.items():
            if all(f"{name}{end}" in unexpected for end in ends):
                return why.format(name)
        module, _, tensor = name.rpartition(".")
        if any(each.startswith(f"{module}.parametrizations.{tensor}.".lstrip(".")) for each in unexpected):
            return (
                f"{name} is parametrized; give the model the same, or call remove_parametrizations before it is saved"
            )
    return ""


def _stripped(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name


def listed(names: Sequence[str]) -> str:
    """Names with commas, the first few."""
    text = ", ".join(names[:MAX_LISTED])
    if len(names) > MAX_LISTED:
        text += f" and {len(names) - MAX_LISTED} more"
    return text
