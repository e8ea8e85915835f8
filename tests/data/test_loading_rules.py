"""Checkpoints of models with loading rules of their own: loaded as PyTorch's `load_state_dict` does."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lossmap.data.checkpoint_match import Selection
from lossmap.data.checkpoints import load_checkpoint, load_into
from lossmap.data.checks import check_finite


class Doubled(nn.Linear):
    """Of version 2; what an older one saved is half as large."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") is None or metadata["version"] < 2:
            state[prefix + "weight"] *= 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Split(nn.Module):
    """Query and key, which older files have in one tensor."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(3, 2), nn.Linear(3, 2)
        self.register_load_state_dict_pre_hook(self.split)

    def split(self, module, state, prefix, *rest):
        if prefix + "both.weight" in state:
            state[prefix + "query.weight"], state[prefix + "key.weight"] = state.pop(prefix + "both.weight").chunk(2)


class Scaled(nn.Module):
    """With a scale that is no tensor."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]

    def forward(self, x):
        return self.layer(x) * self.scale


class Holder(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def outputs(model):
    model.eval()
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 12).reshape(4, 3))


@pytest.mark.parametrize("wrap", [lambda m: m, Holder, nn.DataParallel], ids=["bare", "held", "parallel"])
def test_the_versions_of_modules_are_kept(tmp_path, wrap):
    def make():
        return wrap(nn.Sequential(Doubled(3, 4), nn.Tanh(), nn.Linear(4, 2)))

    saved, model = make(), make()
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "new.pt")
    load_into(model, tmp_path / "new.pt")
    assert torch.equal(outputs(model), outputs(saved))
    first = next(k for k in saved.state_dict() if k.endswith("0.weight"))
    halved = {k: t / 2 if k == first else t for k, t in saved.state_dict().items()}
    torch.save(halved, tmp_path / "old.pt")  # a plain dict, which says no version
    checkpoint, again = load_checkpoint(tmp_path / "old.pt"), make()
    load_into(again, checkpoint)
    load_into(again, checkpoint)  # rules that write into what they are given find it as it was read
    assert torch.equal(outputs(again), outputs(saved))
    assert torch.equal(checkpoint.fit(again).state[first], saved.state_dict()[first])  # for directions to it


def test_the_prefix_of_a_file_is_taken_from_its_versions_too(tmp_path):
    saved, model = nn.Sequential(Doubled(3, 2)), nn.Sequential(Doubled(3, 2))
    torch.save(Holder(Holder(saved)).state_dict(), tmp_path / "a.pt")
    load_into(model, tmp_path / "a.pt")
    assert torch.equal(outputs(model), outputs(saved))


def test_tensors_that_a_hook_splits_are_found_and_misfits_are_refused(tmp_path):
    both = torch.randn(4, 3)
    state = {"both.weight": both, "query.bias": torch.ones(2), "key.bias": torch.zeros(2)}
    torch.save({"model": {f"module.{k}": t for k, t in state.items()}}, tmp_path / "a.pt")
    model = Split()
    load_into(model, tmp_path / "a.pt")
    assert torch.equal(torch.cat([model.query.weight, model.key.weight]), both)
    torch.save({**state, "more": both}, tmp_path / "more.pt")
    del state["key.bias"]
    torch.save(state, tmp_path / "less.pt")
    for name in ("more.pt", "less.pt"):
        with pytest.raises(ValueError, match="another architecture"):
            load_into(model, tmp_path / name)


def test_weight_norm_under_its_old_names(tmp_path):
    def make():
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))

    saved, model = make(), make()
    old = {"0.weight_g": saved[0].parametrizations.weight.original0, "0.bias": saved[0].bias}
    torch.save({**old, "0.weight_v": saved[0].parametrizations.weight.original1}, tmp_path / "a.pt")
    load_into(model, tmp_path / "a.pt")
    assert torch.equal(outputs(model), outputs(saved))


def test_what_modules_keep_beside_tensors_is_loaded_or_said_to_be_missing(tmp_path):
    saved, model = Scaled(), Scaled()
    saved.scale = 3.0
    torch.save({"net": {f"module.{k}": v for k, v in saved.state_dict().items()}}, tmp_path / "a.pt")
    assert load_into(model, tmp_path / "a.pt") == ()
    assert torch.equal(outputs(model), outputs(saved))
    check_finite(model, "here")
    torch.save({k: v for k, v in saved.state_dict().items() if k != "_extra_state"}, tmp_path / "b.pt")
    assert any("lacks the extra state of 1 modules" in note for note in load_into(Scaled(), tmp_path / "b.pt"))


def test_the_network_within_the_model_saved_by_itself(tmp_path):
    saved = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.save(saved.state_dict(), tmp_path / "a.pt")
    model = Holder(Holder(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))))
    load_into(model, tmp_path / "a.pt")
    assert torch.equal(outputs(model), outputs(saved))
    averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    load_into(averaged, tmp_path / "a.pt")
    assert torch.equal(outputs(averaged), outputs(saved))
    torch.save({**saved.state_dict(), "2.weight": torch.ones(2, 2)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="another architecture"):
        load_into(model, tmp_path / "b.pt")


def test_a_module_without_shapes_is_refused_with_what_to_do(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="lazy modules"):
        load_into(nn.LazyLinear(2), tmp_path / "a.pt")


def test_a_number_as_old_files_have_it(tmp_path):
    model = nn.Linear(3, 2)
    model.temperature = nn.Parameter(torch.tensor(0.5))
    torch.save({**model.state_dict(), "temperature": torch.tensor([2.0])}, tmp_path / "a.pt")
    load_into(model, tmp_path / "a.pt")
    assert model.temperature.item() == 2.0


def test_float8_weights_are_read_and_those_with_scales_refused(tmp_path):
    exact = torch.tensor([[0.5, -1.0, 2.0]])
    state = {"weight": exact.to(torch.float8_e4m3fn), "bias": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    model = nn.Linear(3, 1)
    load_into(model, tmp_path / "a.pt")
    assert torch.equal(model.weight, exact)
    torch.save({**state, "weight_scale_inv": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="float8 weights with scales"):
        load_into(model, tmp_path / "b.pt", selection=Selection(allow_unexpected=True))


def test_each_tensor_comes_from_the_shard_that_the_index_names(tmp_path):
    model = nn.Linear(3, 2)
    weight, bias = torch.randn(2, 3), torch.randn(2)
    torch.save({"weight": weight}, tmp_path / "1.bin")
    torch.save({"bias": bias, "weight": torch.zeros(2, 3)}, tmp_path / "2.bin")  # an old copy
    for order in (["weight", "bias"], ["bias", "weight"]):
        places = {"weight": "1.bin", "bias": "2.bin"}
        index = tmp_path / "model.bin.index.json"
        index.write_text(json.dumps({"weight_map": {name: places[name] for name in order}}))
        load_into(model, index)
        assert torch.equal(model.weight, weight) and torch.equal(model.bias, bias)


def test_gradients_by_name_are_no_weights(tmp_path):
    model = nn.Linear(3, 2)
    torch.save({"grads": model.state_dict(), "step": 3}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no state dict"):
        load_into(model, tmp_path / "a.pt")


def test_a_folder_is_refused_with_what_to_name_instead(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"in it: model\.safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="format_utils dcp_to_torch"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("front", ["", "model."])
def test_what_is_beside_tensors_that_rules_convert_is_left_out_aloud(front):
    both = {
        f"{front}both.weight": torch.randn(4, 3),
        f"{front}query.bias": torch.ones(2),
        f"{front}key.bias": -torch.ones(2),
    }
    model, extra = Split(), {f"{front}position_ids": torch.arange(3)}
    with pytest.raises(ValueError, match=f"unexpected: {front}position_ids; all that the model has is there"):
        load_into(model, {**both, **extra})
    notes = load_into(model, {**both, **extra}, selection=Selection(allow_unexpected=True))
    assert notes == (f"the checkpoint: left out, since the model has no such tensors: {front}position_ids",)
    assert torch.equal(torch.cat([model.query.weight, model.key.weight]), both[f"{front}both.weight"])
    assert torch.equal(model.key.bias, -torch.ones(2))


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
def test_tensors_of_a_criterion_beside_those_that_rules_convert_are_left_out_aloud():
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    state = {**{f"model.{k}": t for k, t in old.state_dict().items()}, "criterion.weight": torch.ones(3)}
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    (note,) = load_into(model, state)
    assert "left out, since the model has no such tensors: criterion.weight" in note
    assert torch.equal(model(torch.eye(3)), old(torch.eye(3)))


def test_what_rules_do_not_make_of_a_file_is_another_architecture_all_the_same():
    with pytest.raises(ValueError, match="of another architecture than Split; missing"):
        load_into(Split(), {"both.weight": torch.randn(4, 3), "query.bias": torch.ones(2), "more": torch.ones(1)})


def test_tensors_without_values_are_named_where_rules_convert_them():
    both = {"both.weight": torch.empty(4, 3, device="meta"), "query.bias": torch.ones(2), "key.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=r"holds no values \(meta tensors\), only shapes: .*: both.weight"):
        load_into(Split(), both)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_weights_of_a_model_with_rules_are_read_and_a_sparse_buffer_stays_so(layout):
    model, other = (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))) for _ in range(2))
    for net in (model, other):
        net.register_buffer("adjacency", torch.eye(3).to_sparse(layout=layout))
    state = {
        k: t.to_sparse(layout=layout) if t.dim() == 2 and k != "adjacency" else t for k, t in other.state_dict().items()
    }
    load_into(model, state)
    assert torch.equal(model[0].weight, other[0].weight) and model.adjacency.layout == layout


class Fitting(nn.Module):
    """Loads what fits and leaves the rest, as many a published model does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def load_state_dict(self, state, strict=True, **more):
        own = self.state_dict()
        own.update({k: t for k, t in state.items() if k in own and t.shape == own[k].shape})
        return super().load_state_dict(own, strict, **more)


class Dequantizing(nn.Linear):
    """Multiplies its weights by a scale that stands beside them in the file."""

    def _load_from_state_dict(self, state, prefix, *rest):
        if prefix + "weight_scale" in state:
            state[prefix + "weight"] = state[prefix + "weight"] * state.pop(prefix + "weight_scale")
        super()._load_from_state_dict(state, prefix, *rest)


class Plain(nn.Linear):
    def load_state_dict(self, state):
        return super().load_state_dict(state)


class Renaming(nn.Linear):
    def load_state_dict(self, state, strict=True):
        return super().load_state_dict({k.replace("kernel", "weight"): t for k, t in state.items()}, strict)


def test_a_model_that_loads_what_fits_is_not_fitted_by_any_file():
    own = Fitting().state_dict()
    model = Fitting()
    load_into(model, own)
    assert all(torch.equal(t, own[k]) for k, t in model.state_dict().items())
    for wrong in ({"c.weight": torch.randn(9, 9)}, {**own, "b.weight": torch.randn(7, 4), "b.bias": torch.randn(7)}):
        with pytest.raises(ValueError, match="of another architecture than Fitting"):
            load_into(Fitting(), wrong)


@pytest.mark.parametrize("front", ["", "model."])
@pytest.mark.parametrize("allowed", [False, True])
def test_what_a_rule_converts_by_is_no_tensor_too_many(front, allowed):
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2), "weight_scale": torch.tensor(3.0)}
    model, state = Dequantizing(3, 2), {f"{front}{name}": t for name, t in state.items()}
    assert load_into(model, state, selection=Selection(allow_unexpected=allowed)) == ()
    assert torch.equal(model.weight.detach(), torch.full((2, 3), 3.0))
    more = {**state, f"{front}criterion": torch.ones(1)}
    (note,) = load_into(Dequantizing(3, 2), more, selection=Selection(allow_unexpected=True))
    assert note.endswith(f"the model has no such tensors: {front}criterion")


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
def test_of_two_networks_with_old_names_one_is_to_be_named():
    old = [nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))) for _ in range(2)]
    state = {f"{name}.{k}": t for name, net in zip(("G", "D"), old, strict=True) for k, t in net.state_dict().items()}
    for more in ({}, {"D.x": torch.ones(1)}):
        with pytest.raises(ValueError, match=r"under '[GD]\.' and '[GD]\.'; name one"):
            load_into(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))), {**state, **more})
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    load_into(model, state, selection=Selection(prefix="D"))
    assert torch.equal(model(torch.eye(3)), old[1](torch.eye(3)))


def test_a_load_state_dict_that_takes_less_than_that_of_pytorch_is_called_as_it_wants():
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    for model, given in ((Plain(3, 2), state), (Renaming(3, 2), {"kernel": state["weight"], "bias": state["bias"]})):
        load_into(model, given)
        assert torch.equal(model.weight.detach(), state["weight"])


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
def test_the_usual_key_goes_before_another_that_needs_no_leaving_out(tmp_path):
    old = [nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))) for _ in range(2)]
    content = {"state_dict": {**old[0].state_dict(), "criterion.w": torch.ones(1)}, "ema": old[1].state_dict()}
    torch.save(content, tmp_path / "a.pt")
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="--allow-unexpected leaves these out"):
        load_into(model, tmp_path / "a.pt")
    notes = load_into(model, tmp_path / "a.pt", selection=Selection(allow_unexpected=True))
    assert "--state-key takes ema instead" in notes[0]
    assert torch.equal(model(torch.eye(3)), old[0](torch.eye(3)))
