"""`lossmap init`: a commented file with model, data and loss to start from, and the commands to type then.

The file runs as it is, on invented data; put your own network and samples in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.settings import UsageError, setting

SHADOWED = {"torch", "numpy", "scipy", "h5py", "matplotlib", "lossmap", "safetensors", "torchvision", "transformers"}
HEAD = '''"""{what}, as lossmap reads it. Try it as it is:

    {command}
"""

import torch
from torch import nn
'''
MODEL = '''

def model():
    """Your network, with the architecture of the checkpoint that --model-file names. It may be in any mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, {outputs}))
'''
DATA = '''

def data(split="train"):
    """The samples of a split, "train" or "test": (inputs, targets) tensors, a Dataset or a DataLoader.

    Without augmentation, and in the normalization that the network was trained with: every pass must read the same.
    """
    generator = torch.Generator().manual_seed({{"train": 1, "test": 2}}[split])
    inputs = torch.randn(200, 20, generator=generator)
    {targets}
    return inputs, targets
'''
LOSS = '''

def loss(outputs, targets):
    """The mean over the batch's samples, for --loss. Leave this out for crossentropy or mse, which have names."""
    return {loss}
'''
PROBLEM = '''

def loss(model, batch):
    """Any loss of model and batch: the mean over the batch's samples.

    Return (mean, weight) where a batch's weight is not its number of samples, such as the tokens of a text.
    """
    points, edge = batch
    points = points.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
    inside = (slope[:, 0] - model(points)[:, 0]).square().mean()  # u' = u
    return inside + (model(edge) - 1).square().mean()  # u(0) = 1


def problem():
    """(model, batches, loss): what --problem calls. Batches that cannot be cut stay as they are given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    points, edge = torch.linspace(0, 1, 50)[:, None], torch.zeros(1, 1)
    return model, [(points, edge)], loss
'''
CLASSES = "targets = torch.randint(3, (200,), generator=generator)  # class labels, int64"
VALUES = "targets = inputs[:, :1].sin()  # (samples, outputs), as the network's outputs"
KINDS = {
    "classifier": ("A classifier", MODEL.format(outputs=3) + DATA.format(targets=CLASSES)),
    "regression": ("A regression", MODEL.format(outputs=1) + DATA.format(targets=VALUES) + LOSS),
    "problem": ("A network with a loss of its own, here of a differential equation", PROBLEM),
}


@dataclass(frozen=True)
class InitSettings:
    """File options."""

    file: str = setting("mymodel.py", "file to write", metavar="FILE", positional=True)
    kind: str = setting(
        "classifier", "what it begins with: inputs and class labels, inputs and values, or a loss of model and batch",
        choices=tuple(KINDS),
    )  # fmt: skip
    overwrite: bool = setting(False, "replacement of a file that exists")


COMMAND = Command(
    "init",
    __doc__ or "",
    (InitSettings,),
    ("lossmap init", "lossmap init pinn.py --kind problem"),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and print what to type: 0 done, 2 usage error."""
    options = COMMAND.parse(argv).init
    path = Path(options.file)
    if path.suffix != ".py":
        raise UsageError(f"the file must end with .py, so that its functions can be named; got {path}")
    if path.stem in SHADOWED or path.stem in sys.stdlib_module_names - {"test"}:
        raise UsageError(f"{path} would be imported in the place of Python's module {path.stem}: give another name")
    if path.exists() and not options.overwrite:
        raise UsageError(f"{path} exists; --overwrite replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    path.write_text(text_of(options.kind, path))
    own = source_of(options.kind, path)
    print(
        f"{path}: written, with comments; put your network and your data in its place. Then:\n\n"
        f"  lossmap surface {own} --x=-1:1:25 --y=-1:1:25 --surf-file surface.h5 --plot\n"
        f"  lossmap spectrum {own} --surf-file spectrum.h5 --plot\n\n"
        "--model-file FILE names the checkpoint, --dry-run says what would be read, and lossmap surface --help lists "
        "the rest"
    )
    return 0


def source_of(kind: str, path: Path) -> str:
    """The flags by which a command reads a file of this kind."""
    if kind == "problem":
        return f"--problem {quote(f'{path}:problem')}"
    own = f"--model {quote(f'{path}:model')} --dataset {quote(f'{path}:data')}"
    if kind == "regression":
        own += f" --loss {quote(f'{path}:loss')}"
    return own


def text_of(kind: str, path: Path) -> str:
    """The file's text."""
    what, body = KINDS[kind]
    command = f"lossmap surface {source_of(kind, Path(path.name))} --x=-1:1:25 --plot"
    return HEAD.format(what=what, command=command) + body.replace(
        "{loss}", "nn.functional.huber_loss(outputs, targets)"
    )
