"""Which parameters the groups of an optimizer's state are of, where it does not name them."""

import pytest
import torch
from torch import nn

from lossmap.data.checkpoints import optimizer_state
from lossmap.diagnostics.parameter_groups import parameters_of_groups
from lossmap.diagnostics.step_rule import optimizer_of_state, preconditioner_of


class Block(nn.Module):
    """With a norm that is known by its type, one by its name, and batch norm, whose two tensors have one shape."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.ln = nn.Embedding(7, 5), nn.Linear(5, 5), nn.LayerNorm(5)
        self.q_norm, self.last = nn.RMSNorm(5), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.last(self.q_norm(self.ln(self.first(self.embed(x)))))


def stepped(groups, **options):
    optimizer = torch.optim.AdamW(groups, lr=0.01, **options)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


def same_preconditioner(optimizer, model):
    own = preconditioner_of(optimizer, dict(model.named_parameters()))
    again = preconditioner_of(optimizer_of_state(optimizer.state_dict(), model), dict(model.named_parameters()))
    assert own.root.keys() == again.root.keys()
    return all(torch.equal(root, again.root[name]) for name, root in own.root.items())


def split(model, without_decay, decay=0.1):
    pairs = list(model.named_parameters())
    return [
        {"params": [p for name, p in pairs if name not in without_decay], "weight_decay": decay},
        {"params": [p for name, p in pairs if name in without_decay], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_the_state_of_the_trainer_is_read_as_transformers_groups_it(decay):
    norms = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    of_norms = {"0.bias", "1.bias", "2.bias", "3.bias"}  # as its get_decay_parameter_names leaves them out
    of_block = {"first.bias", "ln.weight", "ln.bias", "q_norm.weight"}
    for model, spared in ((Block(), of_block), (norms, of_norms)):
        assert same_preconditioner(stepped(split(model, spared, decay)), model)


def test_any_groups_in_the_order_of_the_model_are_read_where_shapes_leave_one_order():
    model = Block()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    for groups in ([matrices, vectors], [vectors, matrices], [matrices[:1], matrices[1:], vectors]):
        assert same_preconditioner(stepped([{"params": group} for group in groups]), model)
    head = [model.last.weight]
    rest = [p for p in model.parameters() if p is not head[0]]
    assert same_preconditioner(stepped([{"params": head}, {"params": rest, "lr": 0.001}]), model)
    model.embed.weight.requires_grad_(False)  # frozen, as under an adapter
    assert same_preconditioner(stepped([{"params": matrices[1:]}, {"params": vectors}]), model)


def test_shapes_that_fit_several_orders_or_none_are_refused():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    layers = [{"params": list(layer.parameters())} for layer in (model[2], model[0], model[1])]
    with pytest.raises(ValueError, match=r"fit several orders .* named_parameters\(\), or give the optimizer itself"):
        optimizer_of_state(stepped(layers).state_dict(), model)
    several = [
        {"params": [p], "weight_decay": 0.0} for p in nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)]).parameters()
    ]
    many = nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)])
    with pytest.raises(ValueError, match="fit several orders"):  # 40! of them are not tried one by one
        optimizer_of_state(stepped(several).state_dict(), many)
    other = Block()
    other.last = nn.Linear(5, 4, bias=False)
    groups = [{"params": [p for p in other.parameters() if p.ndim == n]} for n in (1, 2)]
    with pytest.raises(ValueError, match="do not fit the model's order"):
        optimizer_of_state(stepped(groups).state_dict(), Block())


def test_where_two_orders_fit_that_of_the_trainer_is_taken_only_with_its_decays():
    norms = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    biases = [name for name, _ in norms.named_parameters() if name.endswith("bias")]
    groups = split(norms, biases)
    state = stepped(groups).state_dict()
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    found = parameters_of_groups(state["param_groups"], shapes, norms)
    assert all(a is b for a, b in zip(found, [p for group in groups for p in group["params"]], strict=True))
    state["param_groups"][1]["weight_decay"] = 0.3
    with pytest.raises(ValueError, match="fit several orders"):
        parameters_of_groups(state["param_groups"], shapes, norms)


def test_a_checkpoint_folder_names_the_file_of_its_optimizer(tmp_path):
    (tmp_path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a folder; .* its optimizer is in .*optimizer\.pt"):
        optimizer_state(str(tmp_path))
