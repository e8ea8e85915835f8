"""The zoo: the nets of the papers and a few small ones, by name.

The nets of Li et al., "Visualizing the loss landscape of neural nets" (2018, arXiv:1712.09913), carry the
tensor names and shapes under which their checkpoints were published; they take 3x32x32 images. The small
ones (`mlp`, `cnn`, `resnet20-w8`, ...) take the packaged digits, 1x8x8. Hyphens and underscores in names are one.

Listing the names imports no torch; building a net does.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# name -> (module, factory, the settings that the name fixes)
_NETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mlp": ("small", "mlp", {}),
    "cnn": ("small", "cnn", {}),
    "vgg9": ("vgg", "vgg9", {}),
    "densenet121": ("densenet", "densenet121", {}),
}
for _skip, _end in ((True, ""), (False, "-noshort")):
    for _depth in (18, 34, 50, 101, 152):  # the ImageNet family, on small images
        _NETS[f"resnet{_depth}{_end}"] = ("residual", "wide_stem", {"depth": _depth, "skip": _skip})
    for _depth in (20, 32, 44, 56, 110):  # the CIFAR family of He et al., depth 6m + 2
        _NETS[f"resnet{_depth}{_end}"] = ("residual", "thin", {"depth": _depth, "skip": _skip})
    # depth 50 of the thin family, whose plain name the ImageNet family holds
    _NETS[f"resnet50-16{_end}"] = ("residual", "thin", {"depth": 50, "skip": _skip})
    for _depth in (56, 110):
        for _factor in (2, 4, 8):
            _NETS[f"wrn{_depth}-{_factor}{_end}"] = (
                "residual",
                "thin",
                {"depth": _depth, "skip": _skip, "width": 16 * _factor},
            )
    for _depth in (20, 32):
        _NETS[f"resnet{_depth}-w8{_end}"] = (
            "residual",
            "thin",
            {"depth": _depth, "skip": _skip, "width": 8, "channels": 1},
        )


def names() -> tuple[str, ...]:
    """The names of all nets, sorted, spelt with hyphens."""
    return tuple(sorted(_NETS))


def known(name: str) -> str:
    """The name of a net as `names()` spells it. Raises ValueError for an unknown one, with the nearest."""
    plain = _plain(name)
    if plain not in _NETS:
        hint = ""
        near = difflib.get_close_matches(plain, _NETS, n=3, cutoff=0.5)
        if name.endswith(".py"):
            hint = f"; in that file, name the factory: {name}:factory"
        elif near:
            hint = f"; nearest: {', '.join(near)}"
        raise ValueError(
            f"no net is named {name!r}{hint}. names() of lossmap.zoo lists all; a net of your own is given as "
            "package.module:factory or path/file.py:factory"
        )
    return plain


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def of_the_papers(name: str) -> bool:
    """Whether this is a net of the papers, made for CIFAR's 3x32x32 images; of the small ones False, as of no net."""
    module, _, fixed = _NETS.get(_plain(name), ("small", "", {}))
    return module != "small" and "channels" not in fixed


def build(name: str, *, seed: int | None = None, **settings: Any) -> nn.Module:
    """A net by its name, with PyTorch's usual initialisation.

    seed      draws the weights from this seed and leaves the global generator alone; without it the global
              generator is drawn from, as with any net
    settings  what the factory takes: `classes`, `channels`, and `width`, `depth` or `skip` where it has them

    Raises ValueError for an unknown name, with the nearest ones, and for a setting that the net does not have.
    """
    import torch

    plain = known(name)
    module, factory, fixed = _NETS[plain]
    make: Callable[..., nn.Module] = getattr(import_module(f"lossmap.zoo.{module}"), factory)
    accepted = inspect.signature(make).parameters
    for setting in settings:
        if setting not in accepted:
            raise ValueError(f"{plain} has no setting {setting!r}; it takes {', '.join(accepted)}")
    if seed is None:
        return make(**{**fixed, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**{**fixed, **settings})
