"""An origin that is read again from its file: the same readings, and the model back to the last bit."""

import copy
import gc
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from lossmap import Grid, Problem, losses, random_plane, survey
from lossmap.data import loss_check, memos, moved_weights, stored_tensors
from lossmap.data.borrow import temporary_parameters
from lossmap.data.moved_weights import MovedWeights, stored_origin
from lossmap.data.stored_tensors import ChangedModelError, StoredTensors
from lossmap.geometry import directions
from lossmap.geometry.directions import DrawnAxis, move_in_place, move_point
from lossmap.memory import trim_heap


def net(dtype=torch.float32):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(11, 6, max_norm=1.5), nn.Flatten(), nn.Linear(24, 9), nn.LayerNorm(9), nn.ReLU())
    model.append(nn.Linear(9, 5))
    return model.to(dtype)


def saved(model, folder, kind):
    file = folder / f"net.{kind}"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), file)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, file)
    else:
        torch.save(model.state_dict(), file, pickle_protocol=4 if kind == "protocol 4" else 2)
    return file


def problem_of(model):
    generator = torch.Generator().manual_seed(0)
    return Problem.supervised(
        model, "crossentropy", (torch.randint(11, (40, 4), generator=generator), torch.arange(40) % 5), batch_size=20
    )


@pytest.mark.parametrize("kind", ["pt", "protocol 4", "nested", "safetensors"])
@pytest.mark.parametrize("axes", [1, 2])
def test_the_losses_are_those_of_the_kept_origin_and_the_model_comes_back_bit_for_bit(tmp_path, kind, axes):
    model = net()
    before = copy.deepcopy(model.state_dict())
    model[2].weight.grad = torch.ones_like(model[2].weight)
    plan, grid = {"batch_size": 20}, Grid.square(-1, 1, 3) if axes == 2 else Grid.line(-1, 1, 5)
    kept = random_plane(model, axes=axes, seed=2)
    stored = random_plane(model, axes=axes, seed=2, origin=StoredTensors(model, saved(model, tmp_path, kind)))
    assert all(isinstance(axis, DrawnAxis) for axis in stored.axes) and stored.digest == kept.digest
    again = losses(problem_of(model), stored, plan=plan)
    one, other = survey(losses(problem_of(model), kept, plan=plan), grid), survey(again, grid, path=tmp_path / "a.h5")
    assert (one["train_loss"] == other["train_loss"]).all() and (one["train_acc"] == other["train_acc"]).all()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert (model[2].weight.grad == 1).all() and model.training and all(p.requires_grad for p in model.parameters())
    assert pickle.loads(pickle.dumps(stored)).digest == kept.digest


def test_a_name_is_looked_for_without_reading_or_drawing_its_tensor(tmp_path, monkeypatch):
    model = net()
    stored = StoredTensors(model, saved(model, tmp_path, "pt"))
    plane = random_plane(model, origin=stored)
    monkeypatch.setattr(StoredTensors, "__getitem__", lambda *_: pytest.fail("a tensor was read"))
    for named in (stored, *plane.axes):
        assert "2.weight" in named and "2.other" not in named


def test_a_forward_that_raises_leaves_the_model_as_it_was(tmp_path):
    model = net()
    before = copy.deepcopy(model.state_dict())
    plane = random_plane(model, axes=1, origin=StoredTensors(model, saved(model, tmp_path, "pt")))
    measure = losses(problem_of(model), plane)
    handle = model[5].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        measure((1.0,))
    handle.remove()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with temporary_parameters(model, {}), pytest.raises(RuntimeError, match="borrowed already"):
        measure((1.0,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", directions.NORMS)
def test_moving_in_place_gives_the_bits_of_the_stored_plane(dtype, norm):
    model = net(dtype)
    plane = random_plane(model, norm=norm, ignore="none")
    axes = tuple(DrawnAxis(plane.origin, 0, i, norm, "none") for i in range(2))
    for point in [(0.3, -0.7), (1.0, 0.0), (0.0, 0.0)]:
        tensors = {name: t.clone() for name, t in plane.origin.items()}
        move_in_place(tensors, axes, point)
        for name, value in move_point(plane.origin, plane.axes, point).items():
            assert torch.equal(value, tensors[name]) and value.dtype == dtype


@pytest.mark.parametrize("shape", [(40, 7), (1000, 3), (33, 16), (5, 3, 3, 3), (2, 1), (17, 1)])
@pytest.mark.parametrize("norm", ["filter", "dfilter", "weight", "none", "layer"])
def test_parts_of_a_tensor_are_drawn_as_the_whole(monkeypatch, shape, norm):
    monkeypatch.setattr(directions, "ENTRIES_AT_ONCE", 40)
    origin = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(1))}
    axes = tuple(DrawnAxis(origin, 5, i, norm, "biasbn") for i in range(2))
    moved = {"w": origin["w"].clone()}
    move_in_place(moved, axes, (0.4, -0.3))
    assert torch.equal(moved["w"], move_point(origin, axes, (0.4, -0.3))["w"])
    parts = list(directions._drawn_in_parts("w", origin["w"], axes[0]))
    assert len(parts) > 1 or norm == "layer" or shape != (1000, 3)


def test_bfloat16_is_rounded_once():
    model = net(torch.bfloat16)
    plane, more = random_plane(model, ignore="none"), 0
    for name, value in plane.at((0.3, -0.7)).items():
        a, b = (axis[name].float() for axis in plane.axes)
        exact = plane.origin[name].float() + 0.3 * a - 0.7 * b
        off = (value.float() - exact).abs()
        assert (off <= 1.001 * 2.0**-9 * 2 * exact.abs() + 1e-7).all()  # half a spacing
        twice = torch.add(
            torch.add(plane.origin[name], plane.axes[0][name], alpha=0.3), plane.axes[1][name], alpha=-0.7
        )
        more += int(((twice.float() - exact).abs() > off + 1e-7).sum())
    assert more > 0  # rounded at every step it is farther off


def test_what_is_no_file_of_the_weights_is_refused(tmp_path):
    model = net()
    file = saved(model, tmp_path, "pt")
    with torch.no_grad():
        model[5].bias[0] += 1e-3
    with pytest.raises(ValueError, match="other values than the model"):
        StoredTensors(model, file)
    with pytest.raises(ValueError, match="no tensor named"):
        StoredTensors(nn.Sequential(model), file)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="got legacy"):
        StoredTensors(model, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="without buffers"):
        random_plane(model, states=True, origin=StoredTensors(model, saved(model, tmp_path, "safetensors")))


def test_an_axis_of_a_large_model_is_not_stored_and_drawn_again_from_its_file(tmp_path, monkeypatch, capsys):
    from lossmap import read
    from lossmap.cli.surface import main as surface_command
    from lossmap.io.read import read_group

    flags = [*["--model", "mlp", "--dataset", "digits", "--samples", "64", "--no-probe"], "--x=-1:1:3", "--y=-1:1:3"]
    assert surface_command([*flags, "--surf-file", str(tmp_path / "held.h5")]) == 0
    monkeypatch.setattr(directions, "MAX_HELD_ENTRIES", 0)
    assert surface_command([*flags, "--surf-file", str(tmp_path / "drawn.h5")]) == 0
    again = [*flags, "--dir-file", str(tmp_path / "drawn.h5"), "--surf-file", str(tmp_path / "again.h5")]
    assert surface_command(again) == 0
    held, drawn, third = (read(tmp_path / f"{name}.h5") for name in ("held", "drawn", "again"))
    assert (held["train_loss"] == drawn["train_loss"]).all() and (held["train_loss"] == third["train_loss"]).all()
    assert held.attributes["directions_digest"] == drawn.attributes["directions_digest"]
    assert read_group(tmp_path / "held.h5", "directions/x").arrays
    assert not read_group(tmp_path / "drawn.h5", "directions/x").arrays
    capsys.readouterr()
    other = [*again[:-1], str(tmp_path / "other.h5"), "--model", "cnn"]
    assert surface_command(other) == 2 and "another model" in capsys.readouterr().err


class Plain(nn.Module):
    """Images of 16 numbers, by an embedding that rescales its rows in place in every pass, and a head of zeros."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(11, 6, max_norm=0.5)
        self.inner, self.head = nn.Linear(24, 9), nn.Linear(9, 5)
        nn.init.zeros_(self.head.weight)

    def features(self, x):
        return self.inner(self.table(x).flatten(1))

    def forward(self, x):
        return self.head(self.features(x))


class Dropping(Plain):
    """Draws at random where its head is not 0."""

    def features(self, x):
        return nn.functional.dropout(super().features(x), 0.5, training=bool(self.head.weight.any()))


class Coupling(Plain):
    """Depends on the whole batch, which shows at moved weights alone."""

    def features(self, x):
        y = super().features(x)
        return y - y.mean(0)


class Remembering(Plain):
    """Keeps what an earlier pass made of its weights."""

    kept = None

    def features(self, x):
        if self.kept is None:
            self.kept = self.inner.weight.detach() * 2
        return self.table(x).flatten(1) @ self.kept.T


class Failing(Plain):
    """Raises at other weights than its own."""

    def forward(self, x):
        if self.head.weight.any():
            raise RuntimeError("the head is to be 0")
        return super().forward(x)


KINDS = {Plain: "", Dropping: "draws at random", Coupling: "not a mean", Remembering: "keeps kept", Failing: ""}


def bits(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_the_loss_moves_the_model_itself_and_says_the_same(tmp_path, monkeypatch, kind):
    for module in (loss_check, memos):  # what a large model gets: no copy in float64
        monkeypatch.setattr(module, "MAX_COPIED", 0)
    monkeypatch.setattr(moved_weights, "BLOCK", 32)
    said, made, whole = [], [], moved_weights.moved_weights
    monkeypatch.setattr(moved_weights, "moved_weights", lambda m: made.append(m) or whole(m))
    for is_stored in (False, True):
        model = kind()
        if kind is Remembering:
            model(torch.zeros(2, 4, dtype=torch.long))
        model.inner.weight.grad = torch.ones(9, 24)
        before = bits(model)
        origin = StoredTensors(model, saved(model, tmp_path, "pt")) if is_stored else None
        plane = random_plane(model, axes=1, **({"origin": origin} if is_stored else {}))
        made.clear()
        try:
            measure = losses(problem_of(model), plane, plan={"batch_size": 20})
            said.append((measure.problems["train"].notes, measure((0.0,))))
        except ValueError as error:
            said.append(str(error))
        assert bits(model) == before and (model.inner.weight.grad == 1).all() and model.training
        assert bool(made) != is_stored
    assert said[0] == said[1] and KINDS[kind] in str(said[0])


def test_a_model_moved_in_place_has_the_bits_of_one_that_is_held(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(33, 17), nn.Linear(17, 1), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    expected = moved_weights.moved_weights(model)
    before = bits(model)
    monkeypatch.setattr(moved_weights, "BLOCK", 32)
    with stored_origin(model, StoredTensors(model, saved(model, tmp_path, "pt"))), temporary_parameters(model, {}):
        with MovedWeights(model).borrowed():
            assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
        assert bits(model) == before
    assert bits(model) == before


@pytest.mark.parametrize("where", ["forward", "put back"])
def test_ctrl_c_at_moved_weights_leaves_the_model_as_it_was(tmp_path, monkeypatch, where):
    monkeypatch.setattr(loss_check, "MAX_COPIED", 0)
    model = Plain()
    before = bits(model)
    origin = StoredTensors(model, saved(model, tmp_path, "pt"))
    plane, problem = random_plane(model, axes=1, origin=origin), problem_of(model)
    interrupts = []

    def interrupt(*_):
        if (where == "put back" or model.head.weight.any()) and not interrupts:
            interrupts.append(1)
            raise KeyboardInterrupt

    if where == "forward":
        model.register_forward_pre_hook(interrupt)
    else:
        whole = StoredTensors._parts

        def parts(self, name, tensor):
            if name == "head.weight" and tensor.any():
                interrupt()
            return whole(self, name, tensor)

        monkeypatch.setattr(StoredTensors, "_parts", parts)
    with pytest.raises(KeyboardInterrupt):
        losses(problem, plane)
    assert interrupts and bits(model) == before


def test_a_model_that_was_trained_on_since_is_not_overwritten(tmp_path):
    model = net()
    origin = StoredTensors(model, saved(model, tmp_path, "pt"))
    plane, problem = random_plane(model, axes=1, origin=origin), problem_of(model)
    measure = losses(problem, plane)
    with torch.no_grad():
        model[5].bias[0] += 1e-3
        model[2].bias[0] = -0.0
    changed = bits(model)
    for call in (lambda: losses(problem, plane), lambda: measure((1.0,)), lambda: measure((0.0,))):
        with pytest.raises(ChangedModelError, match="has changed since"):
            call()
        assert bits(model) == changed
    origin.put_into({name: p.data for name, p in model.named_parameters()})
    assert measure((0.0,))
    (tmp_path / "net.pt").unlink()
    with pytest.raises(OSError, match=r"net\.pt"):
        measure((1.0,))


def peak_of_check(model, plane):
    """Bytes that the check of the loss takes at most, beside what there was before."""

    def number(key):
        return next(int(s.split()[1]) * 1024 for s in Path("/proc/self/status").read_text().splitlines() if key in s)

    data = (torch.randn(4, 700), torch.arange(4) % 5)
    problem = Problem.supervised(model, "crossentropy", data, batch_size=4)
    losses(problem, plane, plan={"batch_size": 4})  # what a first time loads
    gc.collect()
    trim_heap()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = number("VmRSS")
    if number("VmHWM") > before + (1 << 24):
        pytest.skip("this system does not let a peak be counted from here on")
    losses(problem, plane, plan={"batch_size": 4})
    return number("VmHWM") - before


def test_the_check_of_a_stored_origin_takes_no_second_set_of_weights(tmp_path, monkeypatch):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    for module in (loss_check, memos):
        monkeypatch.setattr(module, "MAX_COPIED", 0)
    monkeypatch.setattr(stored_tensors, "MAX_READ", 1 << 22)  # pages of the file count while it is open
    model = nn.Sequential(*(nn.Linear(700, 700) for _ in range(12)), nn.Linear(700, 5))
    size = sum(p.nbytes for p in model.parameters())
    kept = peak_of_check(model, random_plane(model, axes=1))
    stored = peak_of_check(
        model, random_plane(model, axes=1, origin=StoredTensors(model, saved(model, tmp_path, "pt")))
    )
    # relative to each other, since the heap of a process that has run many tests gives back less of what is freed
    assert kept > 0.9 * size and stored < 0.6 * kept, (kept / size, stored / size)
