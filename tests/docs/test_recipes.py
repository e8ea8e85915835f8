"""The recipes of docs/your-model are run as they stand, and their numbers are those of formulas written out here.

Of every page the loss is compared with a formula of its own, and the largest eigenvalue with that of the dense Hessian
of this formula in float64: the Python way and the command line's.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import lossmap
from lossmap.cli.__main__ import main
from lossmap.data.batch_marks import marked
from lossmap.data.noise import batch_seed, noise_seed

DOCS = Path(__file__).resolve().parents[2] / "docs" / "your-model"
pytestmark = [
    pytest.mark.slow,
    # torch warns of its own compiler, with which products are traced; others of what PyTorch will change
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch_geometric"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
QUICK = "--density-steps 4 --density-probes 1 --top 1 --hvp-backend double-backward --no-probe"
SMALLER = (
    (r"--(x|y)=(-?[\d.]+):(-?[\d.]+):\d+", r"--\1=\2:\3:3"),
    (r"square\(-1, 1, \d+\)", "square(-1, 1, 3)"),
    (r"top=3", "top=1, density_error=None"),
    (r"^lossmap surface (.*) --plot", r"lossmap surface \1 --no-probe"),
    (r"^lossmap spectrum (.*) --plot", r"lossmap spectrum \1 " + QUICK),
    (r"^lossmap spectrum (.*)h5$", r"lossmap spectrum \1h5 " + QUICK),
)


def doubled(value):
    return value.double() if value.is_floating_point() else value


def nats(logits, labels):
    """The cross entropy of each row, written out."""
    return torch.logsumexp(logits, 1) - logits.gather(1, labels[:, None])[:, 0]


def mlp(net, page):
    inputs, values = map(doubled, page["data"]())
    return (net(inputs) - values).pow(2).sum() / values.numel()


def cnn(net, page):
    images, labels = map(doubled, page["data"]())
    return nats(net(images), labels).mean()


def segmentation(net, page):
    images, masks = map(doubled, page["data"]())
    logits = net(images).permute(0, 2, 3, 1)[masks != 255]
    return nats(logits, masks[masks != 255]).mean()


def multi_label(net, page):
    inputs, targets = map(doubled, page["data"]())
    p = torch.sigmoid(net(inputs))
    weight = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    return -(weight * targets * p.log() + (1 - targets) * (1 - p).log()).mean()


def lstm(net, page):
    series, labels = map(doubled, page["data"]())
    h = c = torch.zeros(len(series), 8, dtype=torch.float64)
    cell, out = net.lstm, net.out
    for t in range(series.shape[1]):
        gates = series[:, t] @ cell.weight_ih_l0.T + cell.bias_ih_l0 + h @ cell.weight_hh_l0.T + cell.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return nats(h @ out.weight.T + out.bias, labels).mean()


def transformer(net, page):
    """Each text alone, without its padding."""
    ids, labels = page["data"]()
    with sdpa_kernel(SDPBackend.MATH):
        logits = [net.out(net.layers(net.embed(row[row > 0][None])).mean(1)) for row in ids]
    return nats(torch.cat(logits), labels).mean()


def vae(net, page, seed=0):
    """With the draws of a seed for each batch; that of the only realization is 0, which the note names."""
    total = 0.0
    for x in marked(tuple(page["loader"])):
        chance = torch.Generator().manual_seed(batch_seed(seed, x, "forward"))
        draw = torch.randn(len(x), 3, generator=chance).double()
        x = x.double()
        mean, log_variance = net.encode(x).chunk(2, 1)
        p = torch.sigmoid(net.decode(mean + log_variance.exp().sqrt() * draw))
        total = total - (x * p.log() + (1 - x) * (1 - p).log()).sum()
        total = total + 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum()
    return total / 80


def pinn(net, page):
    """The derivatives by hand: u = w tanh(v x + b) + a."""
    inside, edge, values = (part.double() for part in page["batches"][0])
    t = torch.tanh(net[0](inside))
    v = net[0].weight[:, 0]
    second = (-2 * t * (1 - t**2) * v**2) @ net[2].weight.T
    return (second + net(inside)).pow(2).mean() + 10 * (net(edge) - values).pow(2).mean()


def graph(net, page):
    """With a dense matrix of the edges."""
    losses = []
    for g in page["data"]:
        nodes = len(g.x)
        adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
        for source, target in g.edge_index.T.tolist():
            adjacency[target, source] += 1
        h = torch.tanh((torch.eye(nodes, dtype=torch.float64) + adjacency) @ net.a(g.x.double()))
        losses.append(nats(net.b(h.mean(0, keepdim=True)), g.y))
    return torch.cat(losses).mean()


def lightning(net, page):
    x, y = page["loader"]().dataset.tensors
    first, _, last = net.model
    return nats(torch.tanh(x.double() @ first.weight.T + first.bias) @ last.weight.T + last.bias, y).mean()


def language_model(net, rows):
    """The mean over the tokens of all rows but the first of each."""
    net.set_attn_implementation("eager")
    logits = net(input_ids=rows, use_cache=False).logits
    return nats(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()).mean()


def huggingface(net, page):
    return language_model(net, page["tokens"].view(-1, 16))


def lora(net, page):
    rows = torch.tensor(page["datasets"].load_from_disk("tokens")["input_ids"][:])
    return language_model(net.get_base_model(), rows)


# page: the formula of its loss, and the parameters of its Hessian
RECIPES = {
    "mlp": (mlp, "weights"),
    "cnn": (cnn, "weights"),
    "segmentation": (segmentation, "weights"),
    "multi-label": (multi_label, "weights"),
    "lstm": (lstm, "weights"),
    "transformer": (transformer, "weights"),
    "vae": (vae, "weights"),
    "pinn": (pinn, "all"),
    "graph": (graph, "weights"),
    "lightning": (lightning, "weights"),
    "huggingface": (huggingface, "weights"),
    "lora": (lora, "trainable"),
}


def smaller(line):
    for pattern, replacement in SMALLER:
        line = re.sub(pattern, replacement, line)
    return line


def run_page(page, folder):
    """Write the files of a page, run its commands and its Python in their order; what its Python has named."""
    blocks = re.findall(
        r'^```(sh|python)(?: title="([\w.]+)")?\n(.*?)^```', (DOCS / f"{page}.md").read_text(), re.DOTALL | re.M
    )
    namespace = {"__name__": page}
    for language, name, text in blocks:
        if name:
            (folder / name).write_text(text)
        elif language == "python":
            exec(smaller(text), namespace)
        else:
            for line in text.splitlines():
                words = shlex.split(smaller(line))
                if words[0] == "python":
                    runpy.run_path(words[1], run_name="__main__")
                else:
                    assert words[0] == "lossmap" and main(words[1:]) == 0, line
    return namespace


class Formula(torch.nn.Module):
    """A function of the network as a module, so that `functional_call` reaches the network's tensors."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self):
        return self.function(self.net)


def dense_truth(net, formula, parameters):
    """The loss and the eigenvalues (n,) of its Hessian by the parameters, in float64."""
    net = net.double().eval()
    state = {f"net.{name}": p.detach() for name, p in net.named_parameters()}
    names = [name for name, p in state.items() if parameters == "all" or p.dim() > 1]
    if parameters == "trainable":
        names = [f"net.{name}" for name, p in net.named_parameters() if p.requires_grad]
    sizes = [state[name].numel() for name in names]

    def loss(theta):
        parts = zip(names, torch.split(theta, sizes), strict=True)
        moved = {name: part.view_as(state[name]) for name, part in parts}
        return functional_call(Formula(net, formula), {**state, **moved}, ())

    theta = torch.cat([state[name].reshape(-1) for name in names])
    hessian = torch.autograd.functional.hessian(loss, theta, vectorize=True)
    return float(loss(theta).detach()), torch.linalg.eigvalsh(hessian)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, in which one is; modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    plt.close("all")


@pytest.mark.parametrize("page", RECIPES)
def test_a_recipe_runs_as_it_stands_and_its_numbers_are_right(page, folder):
    formula, parameters = RECIPES[page]
    names = run_page(page, folder)
    surface = names["surface"]
    loss, values = dense_truth(names["net"], lambda net: formula(net, names), parameters)
    assert surface["train_loss"][1, 1] == pytest.approx(loss, rel=2e-5)
    spectrum = lossmap.read("spectrum.h5")
    assert spectrum.loss == pytest.approx(loss, rel=2e-5)
    value, error = spectrum.largest
    assert abs(value - float(values[-1])) <= error + 1e-5 * float(values.abs().max())
    if page == "vae":  # the command asks for the mean over 4 draws
        loss = np.mean([vae(names["net"], names, noise_seed(0, r)).item() for r in range(4)])
    by_command = lossmap.read("line.h5" if Path("line.h5").exists() else "surface.h5")["train_loss"]
    assert by_command[(1,) * by_command.ndim] == pytest.approx(loss, rel=2e-5)
    assert np.isfinite(by_command).all()
