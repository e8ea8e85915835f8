"""Low-rank and scaling adapters of PEFT: the Hessian of what trains is that of a dense float64 twin."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap import Problem, losses, random_plane, spectrum

peft = pytest.importorskip("peft")

SAMPLES = 30


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.mix, self.down = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(torch.tanh(self.mix(torch.tanh(self.up(x)))))


CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=4, target_modules=["up", "mix"], lora_dropout=0.1),
    "ia3": lambda: peft.IA3Config(target_modules=["up", "mix"], feedforward_modules=["mix"]),
}


def adapted(kind):
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), CONFIGS[kind]())
    for name, p in model.named_parameters():
        if p.requires_grad:  # away from where adapters start, at which half of the Hessian vanishes
            torch.nn.init.normal_(p, 1.0 if "ia3" in name else 0.0, 0.5)
    return model


def data():
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 4), torch.arange(SAMPLES) % 3


def dense(model, names):
    """Eigenvalues and loss, by differences of the gradient in float64 over a copy, unmerged, without dropout."""
    twin = copy.deepcopy(model).double().eval()
    x, y = data()
    own = [dict(twin.named_parameters())[name] for name in names]
    for p in own:
        p.requires_grad_(True)

    def gradient():
        loss = F.cross_entropy(twin(x.double()), y)
        return loss, torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, own)])

    columns = []
    for p in own:
        flat = p.data.view(-1)
        for i in range(len(flat)):
            middle = float(flat[i])
            ends = []
            for h in (1e-5, -1e-5):
                flat[i] = middle + h
                ends.append(gradient()[1])
            flat[i] = middle
            columns.append((ends[0] - ends[1]) / 2e-5)
    matrix = torch.stack(columns)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2), float(gradient()[0].detach())


def state(model):
    tensors = {k: (t.clone(), t.requires_grad, t.grad) for k, t in model.named_parameters()}
    merged = {k: getattr(m, "merged", None) for k, m in model.named_modules()}
    return tensors, merged, {k: m.training for k, m in model.named_modules()}


def assert_same(before, after):
    assert before[1:] == after[1:] and before[0].keys() == after[0].keys()
    for name, (value, required, grad) in before[0].items():
        now, required_now, grad_now = after[0][name]
        assert torch.equal(value, now) and required == required_now and grad is grad_now, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_hessian_of_what_trains_is_that_of_the_dense_twin(kind, training):
    model = adapted(kind).train(training)
    names = [k for k, p in model.named_parameters() if p.requires_grad]
    truth, loss = dense(model, names)
    before = state(model)
    problem = Problem.supervised(model, "crossentropy", data())
    result = spectrum(problem, parameters="trainable", top=2, density_error=None)
    assert result.size == len(truth) and result.loss == pytest.approx(loss, rel=1e-5)
    for (value, error), exact in ((result.largest, truth[-1]), (result.smallest, truth[0])):
        assert abs(value - float(exact)) <= error + 1e-8 and error < 1e-4 * float(truth[-1])
    assert result.trace.value == pytest.approx(float(truth.sum()), rel=1e-4)
    assert_same(before, state(model))


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate")  # for IA3, where a factor is near 0
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_merged_is_refused_and_its_merged_weights_have_their_own_hessian(kind):
    model = adapted(kind).eval()
    unmerged = float(F.cross_entropy(model(data()[0]), data()[1]).detach())
    model.merge_adapter()
    before = state(model)
    problem = Problem.supervised(model, "crossentropy", data())
    with pytest.raises(ValueError, match=r"merged into the weights of .* and 1 more, .* call model.unmerge_adapter"):
        spectrum(problem, parameters="trainable")
    with pytest.raises(ValueError, match="adapters are merged"):
        losses(problem, random_plane(model, axes=1, parameters="trainable"))
    assert_same(before, state(model))
    model.unmerge_adapter()
    plain = model.merge_and_unload().requires_grad_(True)
    names = [k for k, p in plain.named_parameters() if p.dim() > 1]
    truth, loss = dense(plain, names)
    result = spectrum(Problem.supervised(plain, "crossentropy", data()), top=1, density_error=None)
    assert loss == pytest.approx(unmerged, rel=1e-5) and result.size == len(truth)
    assert abs(result.largest[0] - float(truth[-1])) <= result.largest[1] + 1e-8


def test_a_norm_that_is_taken_for_a_constant_is_named():
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["mix"], use_dora=True)
    model = peft.get_peft_model(Net(), config)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    with pytest.raises(
        ValueError, match=r"is not that of the loss .*Dora.* takes the norm of its weight for a constant"
    ):
        spectrum(Problem.supervised(model, "crossentropy", data()), parameters="trainable")
