"""Traces by our own dispatch mode: what a graph holds, what it refuses; and what is spent before the first product."""

from __future__ import annotations

import operator
import subprocess
import sys

import pytest
import torch
from torch import nn

from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.linearize import mutations, trace
from lossmap.curvature.linearize.record import recorded
from lossmap.curvature.operators import CurvatureOperator
from lossmap.data.problem import Problem


def test_a_graph_is_right_at_other_inputs():
    table = torch.arange(3.0)

    def function(x, y):
        a, b = (x @ y).split(2, dim=1)  # an operation with several results
        return (a * table[:2]).sum() + b.relu().mean(), torch.tensor([1.0, 2.0]) * b[0]

    graph = recorded(function, [torch.randn(3, 5), torch.randn(5, 4)])
    x, y = torch.randn(3, 5), torch.randn(5, 4)
    for got, expected in zip(graph(x, y), function(x, y), strict=True):
        assert torch.equal(got, expected)


def test_shapes_are_noted_of_every_tensor():
    graph = recorded(lambda x: x.relu().sum(0).topk(2).values, [torch.randn(4, 3)])
    likes = {str(node.target): node.meta.get("like") for node in graph.graph.nodes if node.op == "call_function"}
    assert likes["aten.relu.default"] == ((4, 3), torch.float32, torch.device("cpu"))
    assert likes["aten.topk.default"] is None and likes[str(operator.getitem)][0] == (2,)


def test_writing_into_tensors_is_taken_out_of_a_graph():
    def function(x):
        y = x.clone()
        y[:, 0] = 0.0
        y.mul_(2.0)
        return y.sum(1)

    x = torch.randn(4, 3)
    graph = trace.pure(function, [torch.randn(4, 3)])
    assert not any(mutations.writes(node) for node in graph.graph.nodes)
    assert torch.equal(graph(x), function(x))


def test_a_gradient_taken_inside_is_part_of_the_graph():
    def function(x):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(x.sin().sum(), x, create_graph=True)
        return slope.square().sum()

    x = torch.randn(5)
    torch.testing.assert_close(recorded(function, [torch.randn(5)])(x), x.cos().square().sum())


@pytest.mark.parametrize(
    "function", [lambda x: x * float(x.sum()), lambda x: x if x.sum() > 0 else -x, lambda x: x * x.max().item()]
)
def test_a_number_read_off_an_input_is_refused(function):
    with pytest.raises(RuntimeError, match="depends on the inputs"):
        recorded(function, [torch.ones(3)])


def test_a_number_read_off_a_constant_is_not():
    half = torch.tensor(0.5)
    assert recorded(lambda x: x * half.item() * float(torch.tensor(2.0) * 2), [torch.ones(3)])(torch.ones(3))[0] == 2.0


def test_under_inference_mode_operations_are_taken_apart_too():
    with torch.inference_mode():
        graph = recorded(lambda x: torch.nn.functional.linear(x, torch.ones(2, 3)), [torch.ones(4, 3)])
    assert "linear" not in {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert any("mm" in str(node.target) for node in graph.graph.nodes)


@pytest.fixture
def traces(monkeypatch):
    """The traces that were taken, each by the number of its inputs."""
    taken = []

    def counted(function, inputs):
        taken.append(len(inputs))
        return recorded(function, inputs)

    monkeypatch.setattr(trace, "recorded", counted)
    return taken


def small_problem(samples=300):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    return Problem.supervised(net, "crossentropy", (torch.randn(samples, 6), torch.randint(0, 3, (samples,))))


def test_for_few_products_nothing_is_traced(traces):
    problem = small_problem()
    matrix = prepare(problem, products=10).at()
    v = torch.randn(matrix.size)
    torch.testing.assert_close(matrix @ v, CurvatureOperator(problem) @ v)
    build_operator(small_problem(60), "hessian", "weights", backend="auto")
    assert not traces


def test_however_many_batch_sizes_are_probed_two_programs_are_traced(traces):
    # a check's, and that of the batch size that was chosen; each of the loss and of its gradient
    factory = prepare(small_problem())
    assert len(traces) == 4
    assert len({label.split()[1] for label in factory.plan.seconds_per_sample}) > 1
    again = prepare(factory.problem, plan=factory.plan, like=factory, check=factory.check)
    again.at() @ torch.ones(again.size)
    assert len(traces) == 4 or factory.plan.backend != "linearized"


def test_traces_of_another_loss_are_not_taken_over():
    factory = prepare(small_problem())
    other = Problem.supervised(factory.problem.model, nn.CrossEntropyLoss(label_smoothing=0.1), factory.problem.data)
    assert prepare(other, plan=factory.plan, like=factory).programs is not factory.programs
    assert prepare(factory.problem, plan=factory.plan, like=factory).programs is factory.programs


def test_products_do_not_import_the_compiler():
    code = """
import sys, torch
from lossmap.curvature.autotune import prepare
from lossmap.curvature.operators import gauss_newton, hessian
from lossmap.data.problem import Problem
LSTM = type("LSTM", (torch.nn.LSTM,), {"forward": lambda self, x: super(LSTM, self).forward(x)[0]})
for inner in torch.nn.Tanh(), torch.nn.ReLU(inplace=True), LSTM(100, 100):  # that write into what they have made, too
    net = torch.nn.Sequential(torch.nn.Linear(4, 100), inner, torch.nn.Linear(100, 3))
    problem = Problem.supervised(net, "crossentropy", (torch.randn(50, 4), torch.randint(0, 3, (50,))))
    for matrix in hessian, gauss_newton:
        for backend in "linearized", "double-backward":
            operator = prepare(problem, product=matrix, backend=backend).at()
            operator @ torch.ones(operator.size)
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules, "imported"
"""
    own = "import sys, torch; torch.vmap(torch.sin)(torch.ones(1)); sys.exit('torch._dynamo' in sys.modules)"
    if subprocess.run([sys.executable, "-c", own], check=False).returncode:
        pytest.skip("this PyTorch's vmap imports its compiler")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
