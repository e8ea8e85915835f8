"""Operations that write into a tensor: replaced one by one, or by PyTorch; what the graph returns is the same."""

import pytest
import torch
from torch import nn

from lossmap.curvature.linearize import mutations
from lossmap.curvature.linearize.record import recorded

X = torch.linspace(-2, 2, 12).reshape(3, 4)


def activated(x):
    y = x * 2
    y.relu_()
    y.add_(x).mul_(0.5)
    return y.sigmoid_() + y


def of_a_part_that_is_read_later(x):
    y = x * 2
    y[0].tanh_()
    return y + 1


def of_the_whole_below_a_part(x):
    y = x * 2
    part = y[0]
    y.tanh_()
    return part + 1


def of_a_view_alone(x):
    return (x * 2).t().tanh_() @ x


def view_made_afterwards(x):
    y = x * 2
    y.exp_()
    rows = y.view(4, 3)
    y2 = y.sum()
    return rows, y2


def twice_with_itself(x):
    y = x + 1
    y.mul_(y)
    y.add_(y.t().reshape(3, 4))
    return y


def filled(x):
    y = torch.zeros_like(x)
    y[1] = x[0]
    y.masked_fill_(x > 1, 7.0)
    return y.clone().zero_() + y.copy_(x)


def of_other_types(x):
    counts = torch.arange(4)
    counts.add_(1)
    y = x * 2
    y.mul_(counts).add_(x > 0)
    return y.clamp_(-1, 1).index_add_(0, torch.tensor([0, 0]), x[:2])


def of_parts_that_share_nothing(x):
    a, b = torch.unsafe_chunk(x * 2, 2, 1)
    return a.sigmoid_() * b.tanh_()


def of_parts_that_share(x):
    a, b = torch.chunk(x * 2, 2, 1)
    return a.sigmoid_() * b.tanh_()


def of_memory_read_in_its_order(x):
    y = (x * 2).t()
    y.exp_()
    return y.as_strided((2, 2), (1, 4)) + 1


def into_another_type(x):
    return x.double().add_(x).float().mul_(torch.ones(3, 4, dtype=torch.float64))


ONE_BY_ONE = (activated, of_a_view_alone, view_made_afterwards, twice_with_itself, of_parts_that_share_nothing)
OTHERS = (
    of_a_part_that_is_read_later,
    of_the_whole_below_a_part,
    filled,
    of_other_types,
    of_parts_that_share,
    of_memory_read_in_its_order,
    into_another_type,
)


@pytest.mark.parametrize("function", [*ONE_BY_ONE, *OTHERS], ids=lambda f: f.__name__)
def test_a_graph_without_writes_returns_what_the_function_does(function, monkeypatch):
    functionalized = []
    own = mutations.functionalize
    monkeypatch.setattr(mutations, "functionalize", lambda *a, **k: functionalized.append(a) or own(*a, **k))
    graph = recorded(function, [X.clone()])
    assert any(mutations.writes(node) for node in graph.graph.nodes)
    graph = mutations.without_mutations(graph, [X.clone()])
    assert not any(mutations.writes(node) for node in graph.graph.nodes)
    assert not (functionalized and function in ONE_BY_ONE)
    for seed in range(3):  # not only where it was recorded
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        expected, given = function(x.clone()), x.clone()
        results = graph(given)
        assert torch.equal(given, x)
        for a, b in zip(
            results if isinstance(results, tuple) else (results,),
            expected if isinstance(expected, tuple) else (expected,),
            strict=True,
        ):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    graph.graph.lint()


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.Hardtanh(inplace=True)),
        nn.Sequential(nn.Linear(4, 5), nn.SELU(inplace=True), nn.ELU(inplace=True), nn.LeakyReLU(inplace=True)),
        nn.Sequential(nn.Linear(4, 5), nn.CELU(inplace=True), nn.SiLU(inplace=True), nn.Threshold(0.1, 0.2, True)),
        nn.Sequential(nn.Linear(4, 5), nn.ReLU6(inplace=True), nn.Mish(inplace=True), nn.Hardsigmoid(inplace=True)),
        nn.LSTM(4, 5),
        nn.GRU(4, 5, 2, bidirectional=True),
        nn.RNN(4, 5, nonlinearity="relu"),
    ],
    ids=lambda net: "-".join(m._get_name() for m in net) if isinstance(net, nn.Sequential) else net._get_name(),
)
def test_one_by_one_gives_the_operations_that_pytorch_gives(net, monkeypatch):
    def run(x, *parameters):
        state = dict(zip(dict(net.named_parameters()), parameters, strict=True))
        result = torch.func.functional_call(net, state, (x,))
        return result if isinstance(result, torch.Tensor) else result[0]

    inputs = [X.clone(), *(p.detach() for p in net.parameters())]
    ours = mutations.without_mutations(recorded(run, inputs), inputs)
    monkeypatch.setattr(mutations, "_replaced", lambda graph: False)
    theirs = mutations.without_mutations(recorded(run, inputs), inputs)
    assert [n.target for n in ours.graph.nodes if n.op == "call_function"] == [
        n.target for n in theirs.graph.nodes if n.op == "call_function"
    ]
    likes = [n.meta.get("like") for n in ours.graph.nodes if n.op == "call_function"]
    assert likes == [n.meta.get("like") for n in theirs.graph.nodes if n.op == "call_function"]
    assert torch.equal(ours(*inputs), run(*inputs))
