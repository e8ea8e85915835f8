"""A tour of the forms in which people's trainers leave a checkpoint: each is read right, or refused by its flag."""

import copy
import importlib
import json
import sys

import lightning
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lossmap.data.checkpoint_match import Selection
from lossmap.data.checkpoints import file_sha256, load_checkpoint, load_into, load_state
from lossmap.import_by_name import resolve_callable


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


class LowRank(nn.Module):
    """A layer as PEFT makes it: the base within, and the adapter's tensors under the adapter's name."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(4, 3)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})


class Around(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


def net():
    return Tied()


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return Tied().state_dict()


@pytest.fixture
def other():
    torch.manual_seed(2)
    return Tied().state_dict()


def with_optimizer(state, other):
    return {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": other["norm.bias"]}}}}


def with_criterion(state, other):
    return {"state_dict": under("net.", state) | {"criterion.weight": other["norm.bias"]}}


FORMS = {
    "plain": lambda s, o: s,
    "under state_dict": with_optimizer,
    "under a key of one's own": lambda s, o: {"epoch": 3, "my_weights": s},
    "nested": lambda s, o: {"checkpoint": {"network": {"params": s}}, "args": {"lr": 0.1}},
    "DataParallel": lambda s, o: under("module.", s),
    "compiled": lambda s, o: under("_orig_mod.", s),
    "DistributedDataParallel of a compiled net": lambda s, o: under("module._orig_mod.", s),
    "a compiled part": lambda s, o: {k.replace("norm.", "norm._orig_mod."): t for k, t in s.items()},
    "Lightning": lambda s, o: {"state_dict": under("model.", s), "hyper_parameters": {"lr": 1}, "callbacks": {}},
    "Lightning, a criterion beside": with_criterion,
    "Lightning, a compiled net": lambda s, o: {"state_dict": under("model._orig_mod.", s)},
    "Hugging Face, the body in a task's model": lambda s, o: under("bert.", s) | {"classifier.weight": o["norm.bias"]},
    "averaged weights": lambda s, o: {"n_averaged": torch.tensor(3)} | under("module.", s),
    "model before its average": lambda s, o: {"state_dict_ema": o, "state_dict": s},
    "the average alone": lambda s, o: {"ema_model": s, "step": 7},
    "a tied head saved once": lambda s, o: {k: t for k, t in s.items() if k != "head.weight"},
    "a tied embedding saved once": lambda s, o: {k: t for k, t in s.items() if k != "embedding.weight"},
    "without the counters of batch norm": lambda s, o: {k: t for k, t in s.items() if "batches" not in k},
    "an epoch beside the tensors": lambda s, o: {**s, "epoch": 3, "args": {"lr": 0.1}},
    "the state of a module beside the tensors": lambda s, o: {**s, "norm._extra_state": {"scale": 1}},
    "by the number of the epoch": lambda s, o: {12: s},
    "a key like that of an optimizer": lambda s, o: {"optimal_model": s, "optimizer": {"m": s}, "optim_G": {"m": s}},
    "six keys deep": lambda s, o: {"a": {"b": {"c": {"d": {"e": {"f": s}}}}}},
    "a part in DataParallel": lambda s, o: {k.replace("norm.", "norm.module."): t for k, t in s.items()},
    "parts in FSDP and checkpointing": lambda s, o: {
        k.replace("norm.", "norm._fsdp_wrapped_module._checkpoint_wrapped_module."): t for k, t in s.items()
    },
    "a tuple": lambda s, o: (s, {"epoch": 2}),
    "a list of dicts": lambda s, o: [{"model": s}, {"loss": 0.5}],
    "generator and discriminator": lambda s, o: {"generator": s, "discriminator": {"0.weight": o["norm.bias"]}},
    "in float64": lambda s, o: {k: t.double() if t.is_floating_point() else t for k, t in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_trained_weights(form, trained, other, tmp_path):
    torch.save(FORMS[form](trained, other), tmp_path / "c.pt")
    model = net()
    load_into(model, tmp_path / "c.pt")
    for name, tensor in model.state_dict().items():
        if "batches" not in name:
            assert torch.equal(tensor, trained[name]), name
    assert model.head.weight is model.embedding.weight


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=lambda w: w.__name__)
def test_plain_weights_load_into_a_wrapped_model(wrap, trained, tmp_path):
    torch.save(trained, tmp_path / "c.pt")
    inner = net()
    load_into(wrap(inner), tmp_path / "c.pt")
    assert torch.equal(inner.embedding.weight, trained["embedding.weight"])


def test_what_is_no_models_is_not_read_as_one(trained, other, tmp_path):
    moments = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"adam": moments, "lr_scheduler": {"m": trained}, "epoch": 1}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_into(net(), tmp_path / "c.pt")
    torch.save({"epoch": torch.tensor(3), "model": trained}, tmp_path / "d.pt")
    assert load_state(tmp_path / "d.pt").keys() == trained.keys()


class WithExtraState(nn.Linear):
    """A layer that keeps more than tensors in its state dict, and takes nothing of it back."""

    def get_extra_state(self):
        return {"scale": 1}


def test_a_module_may_have_more_than_tensors_in_its_state_dict(tmp_path):
    saved, model = WithExtraState(2, 2), WithExtraState(2, 2)
    torch.save(saved.state_dict(), tmp_path / "c.pt")
    load_into(model, tmp_path / "c.pt")
    assert torch.equal(model.weight, saved.weight)


def test_what_was_chosen_and_what_was_left_out_is_said(trained, other, tmp_path):
    torch.save({"state_dict_ema": other, "state_dict": trained}, tmp_path / "both.pt")
    (note,) = load_into(net(), tmp_path / "both.pt")
    assert "under 'state_dict'; --state-key takes state_dict_ema instead" in note
    torch.save({"state_dict": under("net.", trained) | {"criterion.weight": torch.ones(3)}}, tmp_path / "beside.pt")
    (note,) = load_into(net(), tmp_path / "beside.pt")
    assert note.endswith("left out, since the model has no such tensors: criterion.weight")
    torch.save(trained, tmp_path / "plain.pt")
    assert load_into(net(), tmp_path / "plain.pt") == ()


def test_a_key_chooses_among_several(trained, other, tmp_path):
    torch.save({"model": other, "ema": {"model": trained}}, tmp_path / "c.pt")
    model = net()
    load_into(model, tmp_path / "c.pt", selection=Selection(key="ema.model"))
    assert torch.equal(model.embedding.weight, trained["embedding.weight"])
    with pytest.raises(ValueError, match=r"holds no tensors under 'swa'; it has model, ema.model"):
        load_into(model, tmp_path / "c.pt", selection=Selection(key="swa"))


def test_two_that_fit_equally_well_are_refused_by_the_flag_that_decides(trained, other, tmp_path):
    torch.save({"student": trained, "teacher": other}, tmp_path / "keys.pt")
    with pytest.raises(ValueError, match=r"several sets .* student, teacher; name one with --state-key"):
        load_into(net(), tmp_path / "keys.pt")
    torch.save(under("student.", trained) | under("teacher.", other), tmp_path / "prefixes.pt")
    with pytest.raises(ValueError, match=r"under 'student.' and 'teacher.'; name one with --strip-prefix"):
        load_into(net(), tmp_path / "prefixes.pt")
    for prefix in ("student.", "student"):
        model = net()
        load_into(model, tmp_path / "prefixes.pt", selection=Selection(prefix=prefix))
        assert torch.equal(model.embedding.weight, trained["embedding.weight"])


def test_an_average_with_the_network_that_it_averages_stands_behind_the_usual_key(trained, other, tmp_path):
    pair = under("online_model.", trained) | under("ema_model.", other) | {"initted": torch.tensor(True)}
    torch.save({"step": 3, "model": trained, "ema": pair}, tmp_path / "c.pt")
    model = net()
    (note,) = load_into(model, tmp_path / "c.pt")
    assert "read are the tensors under 'model'; --state-key takes ema with --strip-prefix instead" in note
    assert torch.equal(model.embedding.weight, trained["embedding.weight"])
    load_into(model, tmp_path / "c.pt", selection=Selection(key="ema", prefix="ema_model.", allow_unexpected=True))
    assert torch.equal(model.embedding.weight, other["embedding.weight"])
    torch.save({"ema": pair, "student": trained}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"several sets .* student, ema; name one with --state-key"):
        load_into(net(), tmp_path / "d.pt")
    for content in ({"ema": pair}, {"model": pair, "student": trained}):
        torch.save(content, tmp_path / "e.pt")
        with pytest.raises(ValueError, match="name one with --strip-prefix"):
            load_into(net(), tmp_path / "e.pt")


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "_orig_mod.module", "module.", "module"])
def test_a_prefix_may_be_named_as_the_file_spells_it(trained, tmp_path, prefix):
    torch.save(under("_orig_mod.module.", trained), tmp_path / "c.pt")
    model = net()
    load_into(model, tmp_path / "c.pt", selection=Selection(prefix=prefix))
    assert torch.equal(model.embedding.weight, trained["embedding.weight"])


def test_a_prefix_that_no_name_has_is_said_to_be_missing(trained, other, tmp_path):
    torch.save(under("student.", trained) | under("teacher.", other), tmp_path / "c.pt")
    torch.save(trained, tmp_path / "plain.pt")
    for file, first in (("c.pt", "student, teacher;"), ("plain.pt", "embedding, ")):
        with pytest.raises(ValueError, match=rf"{file} has no tensor whose name begins with 'pupil.'.* with {first}"):
            load_into(net(), tmp_path / file, selection=Selection(prefix="pupil."))
    torch.save({"model": under("student.", trained), "ema": under("teacher.", other)}, tmp_path / "two.pt")
    notes = load_into(net(), tmp_path / "two.pt", selection=Selection(prefix="pupil.", or_the_only=True))
    assert any("begins with 'pupil.'" in note and "--state-key takes ema instead" in note for note in notes)


def test_a_velocity_network_is_a_model_and_beside_one_of_the_usual_keys_the_second(trained, other, tmp_path):
    """As of flow matching; some optimizers keep moments under that name."""
    torch.save({"velocity": trained, "step": 3}, tmp_path / "flow.pt")
    torch.save({"model": trained, "velocity": other}, tmp_path / "both.pt")
    for file in ("flow.pt", "both.pt"):
        model = net()
        load_into(model, tmp_path / file)
        assert torch.equal(model.embedding.weight, trained["embedding.weight"])


def test_tensors_over_are_refused_but_where_they_are_allowed(trained, tmp_path):
    torch.save(trained | {"embedding.position_ids": torch.arange(4)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"unexpected: embedding.position_ids; .* --allow-unexpected leaves these out"):
        load_into(net(), tmp_path / "c.pt")
    (note,) = load_into(net(), tmp_path / "c.pt", selection=Selection(allow_unexpected=True))
    assert "left out, since the model has no such tensors: embedding.position_ids" in note


def test_a_missing_or_misshapen_tensor_is_another_architecture_under_any_key(trained, tmp_path):
    torch.save({"net": under("module.", {k: t for k, t in trained.items() if k != "norm.weight"})}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"another architecture than Tied; missing: norm.weight$"):
        load_into(net(), tmp_path / "a.pt")
    torch.save({"ema": trained | {"norm.bias": torch.ones(9)}}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"other shapes: norm.bias is \(9,\) there and \(4,\) here$"):
        load_into(net(), tmp_path / "b.pt")


def test_tied_tensors_that_differ_belong_to_another_architecture(trained, tmp_path):
    torch.save(trained | {"head.weight": trained["head.weight"] + 1}, tmp_path / "c.pt")
    model = net()
    before = model.head.weight.clone()
    with pytest.raises(ValueError, match=r"embedding.weight and head.weight are one tensor in the model \(tied\)"):
        load_into(model, tmp_path / "c.pt")
    assert torch.equal(model.head.weight, before)


def test_shards_are_read_by_their_index_and_belong_to_its_digest(trained, tmp_path):
    first = {k: t.clone() for k, t in trained.items() if k.startswith("norm")}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file({"embedding.weight": trained["embedding.weight"].clone()}, tmp_path / "model-2.safetensors")
    table = dict.fromkeys(first, "model-1.safetensors") | {"embedding.weight": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    model = net()
    load_into(model, index)
    assert torch.equal(model.head.weight, trained["embedding.weight"])
    before = file_sha256(index)
    save_file({"embedding.weight": trained["embedding.weight"] + 1}, tmp_path / "model-2.safetensors")
    assert file_sha256(index) != before
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*model-2.safetensors; beside it: model-1.safetensors"):
        load_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="names files outside of its folder"):
        load_checkpoint(index)
    (tmp_path / "part").mkdir()
    save_file({"embedding.weight": trained["embedding.weight"]}, tmp_path / "part/model.safetensors")
    index.write_text(json.dumps({"weight_map": {"embedding.weight": "part/model.safetensors"}}))
    assert torch.equal(load_checkpoint(index).states[""]["embedding.weight"], trained["embedding.weight"])
    index.write_text(json.dumps({"weight_map": {"a": None}}))
    with pytest.raises(ValueError, match="a tensor in its `weight_map` has no file"):
        load_checkpoint(index)
    index.write_text("{}")
    with pytest.raises(ValueError, match="is no index of a checkpoint"):
        load_checkpoint(index)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_an_adapter_alone_is_put_onto_the_base_as_it_was_made(prefix, tmp_path):
    torch.manual_seed(3)
    model = Around(LowRank())
    base = copy.deepcopy(model.model.base_layer.state_dict())
    own = {k: torch.randn_like(t) for k, t in model.state_dict().items() if "lora" in k}
    save_file({prefix + k.replace(".default", ""): t for k, t in own.items()}, tmp_path / "adapter_model.safetensors")
    (note,) = load_into(model, tmp_path / "adapter_model.safetensors")
    assert note == "an adapter of 2 tensors is read; the 2 others stay as the model was made"
    state = model.state_dict()
    assert all(torch.equal(state[k], t) for k, t in own.items())
    assert all(torch.equal(model.model.base_layer.state_dict()[k], t) for k, t in base.items())


def some_layers():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))


PEFT_KINDS = {
    "whole modules beside": ("LoraConfig", {"r": 2, "target_modules": ["0"], "modules_to_save": ["3"]}),
    "biases": ("LoraConfig", {"r": 2, "target_modules": ["0"], "bias": "all"}),
    "ia3": ("IA3Config", {"target_modules": ["0", "2"], "feedforward_modules": ["2"]}),
    "dora": ("LoraConfig", {"r": 2, "target_modules": ["0"], "use_dora": True}),
    "lokr": ("LoKrConfig", {"r": 2, "target_modules": ["0"]}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 2, "target_modules": ["0"], "use_cayley_neumann": False}),
    "hra": ("HRAConfig", {"r": 2, "target_modules": ["0"]}),
    "fourier": ("FourierFTConfig", {"n_frequency": 5, "target_modules": ["0"]}),
    "adalora": ("AdaLoraConfig", {"target_modules": ["0"], "total_step": 10}),
    "loha": ("LoHaConfig", {"r": 2, "target_modules": ["0"]}),
    "vera": ("VeraConfig", {"r": 2, "target_modules": ["0", "2"]}),
}


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_adapters_of_every_kind_are_read_from_what_peft_saves(kind, tmp_path):
    peft = pytest.importorskip("peft")
    name, options = PEFT_KINDS[kind]
    trained = peft.get_peft_model(some_layers(), getattr(peft, name)(**options))
    with torch.no_grad():
        for p in trained.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    saved = peft.get_peft_model_state_dict(trained)
    save_file({k: t.contiguous() for k, t in saved.items()}, tmp_path / "adapter_model.safetensors")
    model = peft.get_peft_model(some_layers(), getattr(peft, name)(**options))
    (note,) = load_into(model, tmp_path / "adapter_model.safetensors")
    assert f"an adapter of {len(saved)} tensors is read" in note
    x = torch.randn(5, 4)
    assert torch.equal(model(x), trained(x))
    with pytest.raises(
        ValueError, match=r"is of a model with an adapter of PEFT, and Sequential has none: name a function"
    ):
        load_into(some_layers(), tmp_path / "adapter_model.safetensors")


def test_an_adapter_of_other_layers_is_refused(tmp_path):
    torch.save({"elsewhere.lora_A.weight": torch.ones(2, 4)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="another architecture"):
        load_into(Around(LowRank()), tmp_path / "a.pt")


def average(trained, folder, home):
    model = torch.optim.swa_utils.AveragedModel(net())
    model.module.load_state_dict(trained)
    torch.save({"swa": model.state_dict(), "epoch": 3}, folder / "c.pt")
    return folder / "c.pt"


def trainer(trained, folder, home):
    """As Lightning's Trainer writes it, by Lightning itself."""

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 4})
            self.model = net()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    task = Task()
    task.model.load_state_dict(trained)
    task.training_step = lambda batch, index: task.model.head(batch[0]).sum() * 0
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    fit = lightning.Trainer(max_steps=0, enable_checkpointing=False, default_root_dir=folder, **quiet)
    fit.fit(task, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 4))))
    fit.save_checkpoint(folder / "c.ckpt")
    return folder / "c.ckpt"


def shards(trained, folder, home):
    first = {k: t.clone() for k, t in trained.items() if k.startswith("norm")}
    save_file(first, folder / "model-1.safetensors")
    save_file({"embedding.weight": trained["embedding.weight"].clone()}, folder / "model-2.safetensors")
    table = dict.fromkeys(first, "model-1.safetensors") | {"embedding.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder / "model.safetensors.index.json"


def whole(module):
    """A whole model pickled, its class in the model's own module, or said to be of the program that wrote it."""

    def save(trained, folder, home):
        model = home.Own()
        model.load_state_dict(trained)
        kept, home.Own.__module__ = home.Own.__module__, module or home.__name__
        main = sys.modules["__main__"]
        try:
            if module:
                main.Own = home.Own
            torch.save(model, folder / "c.pt")
        finally:
            home.Own.__module__ = kept
            if module:
                del main.Own
        return folder / "c.pt"

    return save


def script(trained, folder, home):
    torch.jit.script(Traced(trained)).save(folder / "c.pt")
    return folder / "c.pt"


class Traced(nn.Module):
    """The same tensors with a forward that can be compiled."""

    def __init__(self, trained):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 7, bias=False)
        self.load_state_dict(trained)
        self.eval()

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


UNSAFE = "holds more than tensors .* ask for --unsafe-load"
# form: how it is saved, and what it is refused with where it is not to run any code
FILES = {
    "SWA's AveragedModel": (average, None),
    "Lightning's Trainer": (trainer, None),
    "sharded safetensors": (shards, None),
    "a whole model, its module named": (whole(None), UNSAFE),
    "a whole model of a script": (whole("__main__"), UNSAFE),
    "TorchScript": (script, UNSAFE),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The module of the model, as --model imports it."""
    (tmp_path / "ownmodel.py").write_text(
        "from torch import nn\n\n\nclass Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.embedding, self.norm = nn.Embedding(7, 4), nn.BatchNorm1d(4)\n"
        "        self.head = nn.Linear(4, 7, bias=False)\n        self.head.weight = self.embedding.weight\n"
    )
    monkeypatch.chdir(tmp_path)
    return importlib.import_module(resolve_callable("ownmodel.py:Own").__module__)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", FILES)
def test_files_as_libraries_write_them_give_the_trained_weights(form, trained, home, tmp_path):
    save, refusal = FILES[form]
    path, model = save(trained, tmp_path, home), net()
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            load_checkpoint(path, homes=(home.__name__,))
    checkpoint = load_checkpoint(path, unsafe=bool(refusal), homes=(home.__name__,))
    load_into(model, checkpoint)
    for name, tensor in model.state_dict().items():
        if "batches" not in name:
            assert torch.equal(tensor, trained[name]), name


def test_the_tour_has_twenty_forms():
    assert len(FORMS) + len(FILES) >= 20


def test_one_tensor_inside_and_outside_of_a_wrapper_is_read_where_both_are_the_same(trained, other, tmp_path):
    for wrapped, is_read in ((trained, True), (other, False)):
        for state in ({**trained, **under("_orig_mod.", wrapped)}, {**under("_orig_mod.", wrapped), **trained}):
            torch.save(state, tmp_path / "a.pt")
            model = Tied()
            if is_read:
                load_into(model, tmp_path / "a.pt")
                assert torch.equal(model.norm.weight, trained["norm.weight"])
                continue
            with pytest.raises(ValueError, match=r"_orig_mod\.embedding.weight.*inside and outside of a wrapper"):
                load_into(model, tmp_path / "a.pt")
