"""Truths that owe nothing to lossmap: dense float64 Hessians by autograd of a reference function, and finite differences."""

import copy

import torch
from torch.func import functional_call


def named(model, which="weights"):
    """The parameters that count: dimension > 1, all, or those whose name holds a word."""
    return {
        k: p
        for k, p in model.named_parameters()
        if which == "all" or (which == "weights" and p.dim() > 1) or which in k
    }


def dense(model, loss, which="weights"):
    """(n, n) float64 Hessian of loss(call), where call(*a) is the model with the parameters as variables."""
    model = copy.deepcopy(model).double().eval()
    held = named(model, which)
    flat = torch.cat([p.detach().reshape(-1) for p in held.values()])

    def at(v):
        given, i = {}, 0
        for k, p in held.items():
            given[k] = v[i : i + p.numel()].view_as(p)
            i += p.numel()
        return loss(lambda *a, **k: functional_call(model, given, a, k))

    v = flat.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(at(v), v, create_graph=True)
    rows = [torch.autograd.grad(g[i], v, retain_graph=True)[0] for i in range(len(v))]
    h = torch.stack(rows)
    return ((h + h.T) / 2).detach()


def differenced(model, loss, which="weights", step=1e-5):
    """(n, n) Hessian by central differences of the gradient: needs first derivatives alone. loss(model) -> scalar."""
    model = copy.deepcopy(model).double().eval()
    held = list(named(model, which).values())

    def gradient():
        g = torch.autograd.grad(loss(model), held, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in zip(g, held)]).detach()

    columns = []
    for p in held:
        flat = p.data.view(-1)
        for i in range(p.numel()):
            old = float(flat[i])
            flat[i] = old + step
            up = gradient()
            flat[i] = old - step
            down = gradient()
            flat[i] = old
            columns.append((up - down) / (2 * step))
    h = torch.stack(columns)
    return (h + h.T) / 2


def ends(h):
    """(largest, smallest, trace)."""
    e = torch.linalg.eigvalsh(h)
    return float(e[-1]), float(e[0]), float(h.trace())
