"""Checkpoints in every form, and a sentence for every file that is none."""

import argparse
import collections
import json
import logging
import os
import pickle
import re
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from lossmap.data import checkpoints
from lossmap.data.checkpoint_match import fitted, states_in
from lossmap.data.checkpoints import (
    checkpoints_in,
    file_sha256,
    finite_or_named,
    kind_of,
    load_checkpoint,
    load_into,
    load_state,
    sorted_as_people_count,
)


class Net(nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, outputs)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    with open(path, "wb") as file:
        pickle.dump(content, file)


def save_arrays(content, path):
    save_pickle({k: v.numpy() for k, v in content.items()}, path)


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (torch.save, "zip"),
        (save_legacy, "legacy"),
        (save_pickle, "pickle"),
        (save_arrays, "pickle"),
        (lambda content, path: save_file(dict(content), path), "safetensors"),
    ],
    ids=["zip", "legacy", "pickle", "arrays", "safetensors"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pkl", ".whatever"])
def test_every_form_is_read_whatever_its_suffix(net, tmp_path, save, kind, suffix):
    path = tmp_path / f"a{suffix}"
    save(net.state_dict(), path)
    assert kind_of(path) == kind
    state = load_state(path)
    assert all(torch.equal(state[k], t) for k, t in net.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "params"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_tensors_are_found_under_usual_keys_and_prefixes(net, tmp_path, key, prefix):
    state = net.state_dict()
    torch.save({"epoch": 3, key: {prefix + k: t for k, t in state.items()}}, tmp_path / "a.pt")
    assert same(load_state(tmp_path / "a.pt"), dict(state))


def test_a_compiled_part_of_a_model_is_renamed(tmp_path):
    torch.save({"a._orig_mod.weight": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pt")
    assert list(load_state(tmp_path / "a.pt")) == ["a.weight", "b"]


def test_namespaces_and_numpy_numbers_may_stand_beside_the_tensors(net, tmp_path):
    content = {
        "state_dict": collections.OrderedDict(net.state_dict()),
        "args": argparse.Namespace(lr=0.1),
        "acc": np.float64(91.5),
        "best": np.float32(0.1),
        "seen": np.int64(3),
        "curve": np.ones(3),
    }
    for save in (torch.save, save_legacy, save_pickle):
        save(content, tmp_path / "a.t7")
        assert same(load_state(tmp_path / "a.t7"), dict(net.state_dict()))


def test_parameters_in_a_pickle_are_read_as_tensors(net, tmp_path):
    save_pickle(dict(net.named_parameters()), tmp_path / "a.pkl")
    assert all(not t.requires_grad for t in load_state(tmp_path / "a.pkl").values())


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(net, tmp_path, monkeypatch, protocol, is_zip):
    monkeypatch.chdir(tmp_path)
    state = {**net.state_dict(), "half": torch.ones(2, dtype=torch.bfloat16), "epoch": 3}
    how = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
    torch.save({"state_dict": state}, "a.pt", **how)
    del state["epoch"]
    assert same(load_state("a.pt"), state)
    torch.save({"state_dict": state, "extra": Trap()}, "a.pt", **how)
    with pytest.raises(ValueError, match=r"holds more than tensors \(it asks for .*mkdir.*ask for --unsafe-load"):
        load_state("a.pt")
    assert not (tmp_path / "trap").exists()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap",)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_pickle], ids=["zip", "legacy", "pickle"])
def test_no_code_in_a_file_is_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": {"a": torch.ones(1)}, "extra": Trap()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors \(it asks for .*mkdir.*ask for --unsafe-load"):
        load_state(tmp_path / "a.pt")
    assert not (tmp_path / "trap").exists()


def test_a_whole_module_is_loaded_only_on_request_and_with_a_warning(tmp_path, caplog):
    module = nn.Linear(2, 2)
    for name, save in (("a", torch.save), ("b", save_legacy), ("c", save_pickle)):
        save(module, tmp_path / name)
        with pytest.raises(ValueError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
            load_state(tmp_path / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert same(load_state(tmp_path / name, unsafe=True), dict(module.state_dict()))
        assert "UNSAFE" in caplog.text and str(tmp_path / name) in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_loaded_only_on_request(tmp_path, caplog):
    module = nn.Linear(2, 2)
    torch.jit.script(module).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="it is a TorchScript archive"):
        load_state(tmp_path / "a.pt")
    assert same(load_state(tmp_path / "a.pt", unsafe=True), dict(module.state_dict()))
    assert "UNSAFE" in caplog.text


def test_a_safe_file_is_read_without_a_word_though_unsafe_is_allowed(net, tmp_path, caplog):
    torch.save(net.state_dict(), tmp_path / "a.pt")
    load_state(tmp_path / "a.pt", unsafe=True)
    assert not caplog.records


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize(
    "save",
    [torch.save, save_legacy, save_pickle, lambda c, p: save_file(dict(c), p)],
    ids=["zip", "legacy", "pickle", "safetensors"],
)
def test_a_file_that_is_cut_off_is_said_to_be(net, tmp_path, save, share):
    save(net.state_dict(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: max(12, int(len(whole) * share))])
    with pytest.raises(ValueError, match=r"a\.pt (cannot be read: it is cut off|is not a checkpoint)"):
        load_state(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"hello world, this is text", "is not a checkpoint: neither PyTorch's formats nor safetensors"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is not a checkpoint"),
        (struct.pack("<Q", 30) + b"{" + bytes(40), "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_gets_a_sentence(tmp_path, content, text):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=text) as raised:
        load_state(tmp_path / "a.pt")
    assert "\n" not in str(raised.value)


def test_an_archive_of_arrays_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_state(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {"a": "text"}}, [torch.ones(2)], {}])
def test_a_file_without_tensors_by_name_gets_a_sentence(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no state dict: neither tensors by name"):
        load_state(tmp_path / "a.pt")


def test_a_missing_file_is_answered_with_its_neighbors(tmp_path):
    (tmp_path / "model_300.t7").touch()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model_30\.t7; beside it: model_300\.t7"):
        load_state(tmp_path / "model_30.t7")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_state(tmp_path / "no" / "folder.pt")
    with pytest.raises(ValueError, match="is a folder; a checkpoint is one file"):
        load_state(tmp_path)


def test_another_architecture_is_reported_by_names_and_nothing_is_changed(net, tmp_path):
    state = Net(outputs=5).state_dict()
    state["extra"] = torch.ones(1)
    del state["conv.bias"]
    torch.save(state, tmp_path / "a.pt")
    before = {k: t.clone() for k, t in net.state_dict().items()}
    with pytest.raises(ValueError, match="is of another architecture than Net") as raised:
        load_into(net, tmp_path / "a.pt")
    text = str(raised.value)
    assert "missing: conv.bias;" in text and "unexpected: extra;" in text
    assert "other shapes: fc.weight is (5, 3) there and (2, 3) here, fc.bias is (5,) there and (2,) here" in text
    assert same(before, net.state_dict())


def test_a_long_list_of_names_is_cut(net):
    with pytest.raises(ValueError, match=r"unexpected: .*x7 and 22 more"):
        load_into(net, {**net.state_dict(), **{f"x{i}": torch.ones(1) for i in range(30)}})


def test_old_checkpoints_without_batch_counters_load(net):
    other = Net()
    nn.init.constant_(other.fc.weight, 3.0)
    load_into(net, {k: t for k, t in other.state_dict().items() if "num_batches" not in k})
    assert torch.equal(net.fc.weight, other.fc.weight)


def test_a_wrapped_model_takes_unwrapped_names(net):
    wrapped = nn.DataParallel(Net())
    load_into(wrapped, net.state_dict())
    assert torch.equal(wrapped.module.fc.weight, net.fc.weight)


def test_entries_that_are_not_finite_are_named(net, tmp_path):
    state = net.state_dict()
    state["fc.weight"] = torch.tensor([[1.0, float("nan"), float("inf")], [0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match=r"the checkpoint has entries that are not finite: fc\.weight \(2 of 6\)$"):
        finite_or_named(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt has entries that are not finite: fc\.weight"):
        load_into(net, tmp_path / "a.pt")
    load_into(net, tmp_path / "a.pt", finite=False)
    assert net.fc.weight.isnan().any()


def test_the_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_epoch_2_stands_before_epoch_10():
    shuffled = [
        "run/epoch_10.pt",
        "run/epoch_2.pt",
        "run/epoch_1.pt",
        "run/final.pt",
        "a9/epoch_3.pt",
        "a10/epoch_1.pt",
    ]
    assert [str(p) for p in sorted_as_people_count(shuffled)] == [
        "a9/epoch_3.pt",
        "a10/epoch_1.pt",
        "run/epoch_1.pt",
        "run/epoch_2.pt",
        "run/epoch_10.pt",
        "run/final.pt",
    ]


def test_the_one_folder_within_that_holds_checkpoints_is_read(net, tmp_path):
    for folder in ("version_0/checkpoints", "version_0/logs", "exp/weights"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"):
        torch.save(net.state_dict(), tmp_path / "version_0" / "checkpoints" / name)
    (tmp_path / "version_0" / "hparams.yaml").write_text("{}")
    found = checkpoints_in(tmp_path / "version_0")
    assert [p.name for p in found] == ["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"]
    assert found == checkpoints_in(tmp_path / "version_0" / "checkpoints")
    torch.save(net.state_dict(), tmp_path / "version_0" / "logs" / "other.pt")
    with pytest.raises(ValueError, match="several of its folders do: checkpoints, logs; name one"):
        checkpoints_in(tmp_path / "version_0")


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3)


@pytest.mark.parametrize(
    "kept",
    [
        lambda encoder, head: {"encoder": encoder, "head": head},
        lambda encoder, head: {"encoder_state_dict": encoder, "head_state_dict": head, "epoch": 3, "optimizer": {}},
        lambda encoder, head: {"model": {"encoder": {f"module.{k}": t for k, t in encoder.items()}, "head": head}},
        lambda encoder, head: {"encoder": encoder, "head": head, "critic": nn.Linear(2, 2).state_dict()},
    ],
)
def test_a_model_that_is_saved_part_by_part_is_put_together(kept, tmp_path):
    saved, model = Halves(), Halves()
    torch.save(kept(saved.encoder.state_dict(), saved.head.state_dict()), tmp_path / "net.pt")
    fit = fitted(states_in(torch.load(tmp_path / "net.pt")), model, "net.pt")
    assert all(torch.equal(fit.state[name], t) for name, t in saved.state_dict().items())
    assert len(fit.notes) == 1 and "encoder" in fit.notes[0] and " + " in fit.notes[0]


def test_parts_of_other_names_are_refused_with_the_set_that_was_compared(tmp_path):
    saved = Halves()
    torch.save({"enc": saved.encoder.state_dict(), "top": saved.head.state_dict()}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="compared was what stands under 'enc', the nearest of enc, top"):
        fitted(states_in(torch.load(tmp_path / "net.pt")), Halves(), "net.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 3), "0.weight was pruned; call torch.nn.utils.prune.rem"),
        (nn.utils.weight_norm, "0.weight has weight norm; give the model the same"),
        (nn.utils.spectral_norm, "0.weight has spectral norm; give the model the same"),
        (nn.utils.parametrizations.weight_norm, "0.weight is parametrized; give the model the same"),
    ],
)
def test_a_weight_that_is_made_of_others_is_named_as_such(change, why):
    model, other = (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(2))
    change(other[0])
    with pytest.raises(ValueError, match="net.pt is of a model whose weights are made of others: " + re.escape(why)):
        fitted({"": other.state_dict()}, model, "net.pt")


def test_a_folder_is_judged_by_content(net, tmp_path):
    for name in ("e10.pkl", "e2.pkl"):
        torch.save(net.state_dict(), tmp_path / name)
    (tmp_path / "log.pt").write_text("not a checkpoint")
    (tmp_path / "folder.pt").mkdir()
    assert [p.name for p in checkpoints_in(tmp_path)] == ["e2.pkl", "e10.pkl"]
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoints_in(tmp_path / "folder.pt")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        checkpoints_in(tmp_path / "none")


def test_the_header_of_safetensors_is_distinguished_from_text(tmp_path):
    header = json.dumps({}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header)
    assert kind_of(tmp_path / "a") == "safetensors"
    assert checkpoints.kind_of(str(tmp_path / "a")) == "safetensors"


def test_checkpoints_of_the_original_tool_are_read(reference):
    for name in ("small_a.t7", "small_b.t7"):
        path = reference / "original_tool" / name
        state = load_state(path)
        assert kind_of(path) == "legacy" and state["fc.weight"].shape == (10, 128) and "bn2.running_var" in state
        finite_or_named(state)


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_torch_export_is_named_and_its_tensors_are_read_as_the_sentence_says(tmp_path):
    net, path = torch.nn.Linear(3, 2), tmp_path / "net.pt2"
    # not strict, as is the default of later versions: PyTorch 2.6's compiler, which strict needs, gives a layer up that
    # the tests before have had it compile often
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3),), strict=False), path)
    with pytest.raises(ValueError, match=r"archive of torch\.export.*torch\.export\.load\(FILE\)\.state_dict"):
        load_into(net, path)
    torch.save(torch.export.load(path).state_dict, tmp_path / "net.pt")
    other = torch.nn.Linear(3, 2)
    load_into(other, tmp_path / "net.pt")
    assert torch.equal(other.weight, net.weight)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: (10 * t).to(torch.int8),
            r"holds whole or quantized numbers for .*: weight",
        ),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "holds whole or quantized numbers"),
        (lambda t: t + 1j, "holds complex numbers for real parameters: weight"),
        (lambda t: t.to("meta"), r"holds no values \(meta tensors\), only shapes: .*: weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_tensors_of_other_numbers_than_the_models_are_refused_by_name(change, message):
    model = nn.Linear(3, 2)
    before = model.weight.tolist()
    with pytest.raises(ValueError, match=message):
        load_into(model, {"weight": change(model.weight.detach()), "bias": torch.zeros(2)})
    assert model.weight.tolist() == before


@pytest.mark.parametrize(
    ("own", "given", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), torch.tensor([1.5, 2.0]), "cannot hold: table"),
        (torch.zeros(2, dtype=torch.int64), torch.tensor([1e30, 2.0]), "cannot hold: table"),
        (torch.zeros(2, dtype=torch.int8), torch.tensor([300, 2]), "cannot hold: table"),
        (torch.zeros(2, dtype=torch.uint8), torch.tensor([-1, 2]), "cannot hold: table"),
        (torch.zeros(2, dtype=torch.bool), torch.tensor([2, 0]), "cannot hold: table"),
        (torch.zeros(2, dtype=torch.float16), torch.tensor([1e6, 0.0]), "cannot hold: table"),
        (torch.zeros(2), torch.tensor([1 + 2j, 0]), "complex numbers for real buffers: table"),
        (torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 2.0]), None),
        (torch.zeros(2, dtype=torch.uint8), torch.tensor([255, 2]), None),
        (torch.zeros(2, dtype=torch.bool), torch.tensor([1.0, 0.0]), None),
        (torch.zeros(2), torch.tensor([0.1, 2.0], dtype=torch.float64), None),
        (torch.zeros(2), torch.tensor([True, False]), None),
    ],
)
def test_buffers_that_would_hold_other_numbers_are_refused_by_name(own, given, message):
    model = nn.Linear(1, 1)
    model.register_buffer("table", own.clone())
    state = {**model.state_dict(), "table": given}
    if message is None:
        assert not load_into(model, state)
        torch.testing.assert_close(model.table.double(), given.double(), rtol=1e-6, atol=0)
        return
    with pytest.raises(ValueError, match=message):
        load_into(model, state)
    assert torch.equal(model.table, own)


def test_what_is_done_with_small_whole_numbers_and_with_counts_of_averages_is_said():
    model = nn.BatchNorm1d(2)
    averaged = {**model.state_dict(), "num_batches_tracked": torch.tensor(2.5)}
    (note,) = load_into(model, averaged)
    assert "num_batches_tracked has a fraction, which is left out" in note and model.num_batches_tracked == 2
    (note,) = load_into(model, {**model.state_dict(), "running_var": torch.tensor([3, 4], dtype=torch.int8)})
    assert "whole numbers are taken as they are for floating-point buffers: running_var" in note


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_buffer_that_is_sparse_stays_so(layout):
    """As the adjacency of a graph network: its module registers it so."""
    model, other = nn.Linear(3, 3), nn.Linear(3, 3)
    for net, scale in ((model, 1.0), (other, 2.0)):
        net.register_buffer("adjacency", (scale * torch.eye(3)).to_sparse(layout=layout))
    load_into(model, other.state_dict())
    assert model.adjacency.layout == layout and torch.equal(model.adjacency.to_dense(), 2 * torch.eye(3))


def test_sparse_and_complex_tensors_of_real_numbers_are_read():
    model, weight = nn.Linear(3, 2), torch.eye(3)[:2] * 2
    load_into(model, {"weight": weight.to_sparse(), "bias": torch.ones(2)})
    assert torch.equal(model.weight.detach(), weight)


def test_sparse_weights_that_are_tied_are_read_and_torn_ones_refused():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    load_into(model, {"0.weight": torch.eye(3).to_sparse(), "1.weight": torch.eye(3).to_sparse()})
    assert torch.equal(model[1].weight.detach(), torch.eye(3))
    with pytest.raises(ValueError, match="are one tensor in the model"):
        load_into(model, {"0.weight": torch.eye(3).to_sparse(), "1.weight": 2 * torch.eye(3).to_sparse()})


def test_a_pipe_is_refused_where_reading_it_would_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for look in (load_checkpoint, kind_of, file_sha256):
        with pytest.raises(ValueError, match=r"pipe\.pt must be a file on a disk; it is a pipe"):
            look(tmp_path / "pipe.pt")


def test_a_link_to_nothing_is_named_as_such(tmp_path):
    (tmp_path / "net.pt").symlink_to("gone.pt")
    with pytest.raises(FileNotFoundError, match=r"net\.pt is a link to gone\.pt, and there is no such file"):
        load_checkpoint(tmp_path / "net.pt")


def test_a_file_that_lacks_its_last_bytes_is_named(tmp_path):
    torch.save(nn.Sequential(*(nn.Linear(8, 8) for _ in range(8))).state_dict(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for missing in (1, 10, 60):
        (tmp_path / "a.pt").write_bytes(content[:-missing])
        with pytest.raises(ValueError, match=r"a\.pt cannot be read: it is cut off"):
            load_checkpoint(tmp_path / "a.pt")


def test_numbers_that_were_changed_in_a_copy_are_found_by_their_checksum(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[bytes(content).index(net.fc.weight.detach().numpy().tobytes())] ^= 0x10
    (tmp_path / "a.pt").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.pt cannot be read: it is cut off, damaged .*checksum of its record"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_file_that_was_saved_without_checksums_is_read(net, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net.state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_state(tmp_path / "a.pt")["fc.weight"], net.fc.weight)
