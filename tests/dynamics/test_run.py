"""A run of checkpoints: dense twins for its eigenpairs, resuming, failures, ranks, and words."""

from __future__ import annotations

import json
from itertools import zip_longest

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lossmap.cli.load_model import run_files
from lossmap.cli.setting_groups import ModelSettings
from lossmap.curvature.operators import CurvatureOperator
from lossmap.data.checkpoints import load_into, load_state
from lossmap.data.problem import Problem
from lossmap.dynamics.checkpoint_curvature import SHARES, CheckpointCurvature
from lossmap.dynamics.run import run_dynamics
from lossmap.io.eigenvector_store import VectorFolder, read_vectors, results_of
from lossmap.io.read import read
from lossmap.landscape.checkpoint_steps import find_checkpoints, found_checkpoints, numbered_in_order
from lossmap.linalg.operator import InterruptibleProduct

PLAIN = "double-backward"


def small(wide=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, wide), nn.Tanh(), nn.Linear(wide, 3))


def problem(wide=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator)
    return Problem.supervised(small(wide).eval(), "crossentropy", (x, torch.arange(40) % 3))


def turned(model, folder, steps, broken=()):
    """Checkpoints on a line away from the model's start."""
    folder.mkdir()
    away = {k: torch.randn(v.shape, generator=torch.Generator().manual_seed(2)) for k, v in model.state_dict().items()}
    for step in steps:
        state = {k: v + 0.02 * step * away[k] for k, v in model.state_dict().items()}
        if step in broken:
            state = {k: v * float("nan") for k, v in state.items()}
        torch.save(state, folder / f"epoch_{step}.pt")
    return folder


def dense(given, path, top):
    load_into(given.model, path)
    matrix = CurvatureOperator(given)
    whole = np.stack([(matrix @ torch.eye(matrix.size)[i]).double().numpy() for i in range(matrix.size)])
    values, vectors = np.linalg.eigh((whole + whole.T) / 2)
    return values[::-1][:top], vectors[:, ::-1][:, :top], values[0]


@pytest.mark.parametrize("wide", [6, 60])  # below and above what is made dense
def test_every_checkpoint_has_the_eigenpairs_of_its_dense_hessian(tmp_path, wide):
    given = problem(wide)
    folder = turned(given.model, tmp_path / "run", [0, 2, 10])
    run = run_dynamics([folder], given, path=tmp_path / "a.h5", top=3, tol=1e-5, progress=False)
    assert run.outcome == "complete" and "stable" in run.summary
    held, surface = read_vectors(tmp_path / "a.h5"), read(tmp_path / "a.h5")
    assert held.steps.tolist() == [0, 2, 10]
    rows = np.concatenate(list(held.blocks()), axis=1).reshape(3, 3, -1)
    for i, step in enumerate((0, 2, 10)):
        values, vectors, least = dense(given, folder / f"epoch_{step}.pt", 3)
        np.testing.assert_allclose(surface["eigenvalues"][i], values, atol=1e-4)
        assert surface["smallest_eigenvalue"][i] == pytest.approx(least, abs=2e-3)
        gaps = -np.diff(values)
        if gaps.min() > 1e-2 * values[0]:
            np.testing.assert_allclose(np.abs(np.sum(rows[i] * vectors.T, axis=1)), 1.0, atol=1e-4)
        cosines = np.linalg.svd(rows[i] @ vectors, compute_uv=False)
        assert cosines.min() > 0.99
    assert not VectorFolder.beside(tmp_path / "a.h5").path.exists()


def test_the_model_that_was_given_is_not_moved(tmp_path):
    given = problem()
    before = {k: v.clone() for k, v in given.model.state_dict().items()}
    run_dynamics([turned(given.model, tmp_path / "run", [1, 2])], given, path=tmp_path / "a.h5", top=2)
    assert all(torch.equal(v, before[k]) for k, v in given.model.state_dict().items())


def counted(monkeypatch):
    """Every product of a run, and every checkpoint that is begun."""
    products, begun = [], []
    multiply, measure = InterruptibleProduct.__call__, CheckpointCurvature.__call__
    monkeypatch.setattr(
        InterruptibleProduct,
        "__call__",
        lambda self, inner, v: (products.append(len(begun)), multiply(self, inner, v))[1],
    )
    monkeypatch.setattr(CheckpointCurvature, "__call__", lambda self, p: (begun.append(p[0]), measure(self, p))[1])
    return products, begun


def same(one, other):
    a, b = results_of(one), results_of(other)
    for name in b.arrays:
        if name != "along_seconds":
            np.testing.assert_array_equal(a[name], b[name])
    vectors = [np.concatenate(list(read_vectors(path).blocks()), axis=1) for path in (one, other)]
    np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize("wide", [6, 60])  # below and above what is made dense
def test_a_run_interrupted_within_checkpoints_resumes_to_the_same_bits(tmp_path, monkeypatch, wide):
    given = problem(wide)  # a probe may choose differently for two files
    folder = turned(given.model, tmp_path / "run", range(4))
    products, begun = counted(monkeypatch)
    whole = run_dynamics([folder], given, path=tmp_path / "b.h5", top=2, backend=PLAIN)
    assert begun == [0, 1, 2, 3]
    each = [products.count(k + 1) for k in range(4)]
    for most in (each[0] // 2, each[0] + each[1] // 2, each[1] + each[2] - 1):  # within 0; within 1; at the end of 2
        products.clear()
        begun.clear()
        part = run_dynamics(
            [folder], given, path=tmp_path / "a.h5", top=2, backend=PLAIN, stop=lambda most=most: len(products) > most
        )
        assert part.outcome == "unfinished" and part.summary == ""
    assert (read(tmp_path / "a.h5").status["along"] == 1).tolist() == [True, True, False, False]
    assert VectorFolder.beside(tmp_path / "a.h5").path.exists()
    begun.clear()
    assert run_dynamics(
        [folder], given, path=tmp_path / "a.h5", top=2, backend=PLAIN
    ).summary == whole.summary and begun == [2, 3]
    same(tmp_path / "a.h5", tmp_path / "b.h5")
    assert not VectorFolder.beside(tmp_path / "a.h5").path.exists()
    begun.clear()
    assert (
        run_dynamics([folder], given, path=tmp_path / "a.h5", top=2, backend=PLAIN).summary == whole.summary
        and not begun
    )


def test_vectors_left_by_a_run_that_was_killed_at_its_very_end_are_cleared(tmp_path, monkeypatch):
    given = problem()
    folder = turned(given.model, tmp_path / "run", range(3))
    monkeypatch.setattr(VectorFolder, "clear", lambda self: None)
    whole = run_dynamics([folder], given, path=tmp_path / "a.h5", top=2)
    monkeypatch.undo()
    assert VectorFolder.beside(tmp_path / "a.h5").path.exists()
    assert run_dynamics([folder], given, path=tmp_path / "a.h5", top=2).summary == whole.summary
    assert not VectorFolder.beside(tmp_path / "a.h5").path.exists()


def test_a_checkpoint_that_failed_is_measured_again_beside_the_vectors_in_the_file(tmp_path, monkeypatch):
    given = problem()
    folder = turned(given.model, tmp_path / "run", range(4))
    measure = CheckpointCurvature.__call__

    def without_memory(self, point):
        if point == (2.0,):
            raise RuntimeError("no memory today")
        return measure(self, point)

    monkeypatch.setattr(CheckpointCurvature, "__call__", without_memory)
    assert run_dynamics([folder], given, path=tmp_path / "a.h5", top=2).outcome == "failed"
    monkeypatch.undo()
    assert run_dynamics([folder], given, path=tmp_path / "a.h5", top=2).outcome == "failed"
    assert run_dynamics([folder], given, path=tmp_path / "a.h5", top=2, retry_failed=True).outcome == "complete"
    run_dynamics([folder], given, path=tmp_path / "b.h5", top=2)
    same(tmp_path / "a.h5", tmp_path / "b.h5")


def test_a_checkpoint_that_fails_is_reported_and_the_others_are_compared(tmp_path):
    given = problem()
    folder = turned(given.model, tmp_path / "run", range(5), broken=(3,))
    run = run_dynamics([folder], given, path=tmp_path / "a.h5", top=2)
    assert run.outcome == "failed" and len(run.failures) == 1 and "epoch_3.pt" in run.failures[0]
    assert results_of(tmp_path / "a.h5")["step"].tolist() == [0, 1, 2, 4]


def test_missing_vectors_are_reported_in_one_message(tmp_path):
    given = problem()
    folder = turned(given.model, tmp_path / "run", range(4))
    run_dynamics(
        [folder], given, path=tmp_path / "a.h5", top=2, stop=lambda: VectorFolder.beside(tmp_path / "a.h5").holds(1)
    )
    VectorFolder.beside(tmp_path / "a.h5").clear()
    with pytest.raises(ValueError, match="are missing from"):
        run_dynamics([folder], given, path=tmp_path / "a.h5", top=2)
    assert run_dynamics([folder], given, path=tmp_path / "a.h5", top=2, overwrite=True).outcome == "complete"


def test_another_run_is_not_mixed_into_a_file(tmp_path):
    given = problem()
    run_dynamics([turned(given.model, tmp_path / "run", range(3))], given, path=tmp_path / "a.h5", top=2)
    other = turned(small().eval(), tmp_path / "other", [0, 1, 2], broken=(1,))
    with pytest.raises(ValueError, match="run"):
        run_dynamics([other], given, path=tmp_path / "a.h5", top=2)


def test_a_file_is_not_continued_with_other_data_or_another_loss(tmp_path):
    given = problem()
    folder = turned(given.model, tmp_path / "run", range(2))
    run_dynamics([folder], given, path=tmp_path / "a.h5", top=2, backend=PLAIN)
    x = torch.randn(40, next(given.model.parameters()).shape[1])
    y = torch.arange(40) % 3
    others = {
        "data": Problem.supervised(given.model, "crossentropy", (x, y)),
        "loss": Problem.supervised(given.model, nn.CrossEntropyLoss(label_smoothing=0.3), (x, y)),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"holds another survey: .*along: {name}.* is "):
            run_dynamics([folder], other, path=tmp_path / "a.h5", top=2, backend=PLAIN)


def test_the_whole_reading_has_trace_and_negative_share_with_bounds(tmp_path):
    given = problem()
    run_dynamics([turned(given.model, tmp_path / "run", [0, 1])], given, path=tmp_path / "a.h5", top=2, whole=True)
    found = read(tmp_path / "a.h5")
    assert (found["negative_share_low"] <= found["negative_share_high"]).all() and np.isfinite(found["trace"]).all()
    assert np.isfinite(results_of(tmp_path / "a.h5")["negative_share"]).all()
    load_into(given.model, tmp_path / "run" / "epoch_1.pt")
    matrix = CurvatureOperator(given)
    whole = np.stack([(matrix @ torch.eye(matrix.size)[i]).double().numpy() for i in range(matrix.size)])
    values = np.linalg.eigvalsh((whole + whole.T) / 2)
    wanted = [values[int(np.ceil(share * len(values))) - 1] for share in SHARES]
    np.testing.assert_allclose(results_of(tmp_path / "a.h5")["quantiles"][1], wanted, atol=1e-5)


def test_checkpoints_are_sorted_as_people_count_and_judged_by_content(tmp_path):
    for name in ("epoch_10.pt", "epoch_2.pkl", "epoch_1.bin"):
        torch.save(small().state_dict(), tmp_path / name)
    (tmp_path / "notes_3.pt").write_text("no checkpoint")
    assert list(find_checkpoints([tmp_path])) == [1, 2, 10]
    assert list(find_checkpoints([tmp_path / "epoch_10.pt", tmp_path / "epoch_2.pkl", tmp_path / "epoch_2.pkl"])) == [
        2,
        10,
    ]
    with pytest.raises(ValueError, match=r"notes_3\.pt is not a checkpoint"):
        find_checkpoints([tmp_path / "notes_3.pt"])
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        find_checkpoints([tmp_path / "epoch_3.pt"])
    with pytest.raises(ValueError, match="there are no checkpoints to measure"):
        find_checkpoints([])


def test_folders_with_a_checkpoint_each_are_a_run_and_what_a_trainer_saved_at_last_is_left_out(tmp_path):
    net = small().state_dict()
    for name in ("checkpoint-5", "checkpoint-10", "final"):
        (tmp_path / "trainer" / name).mkdir(parents=True)
        (tmp_path / "trainer" / name / "config.json").write_text("{}")
        save_file(net, tmp_path / "trainer" / name / "model.safetensors")
    assert list(find_checkpoints([tmp_path / "trainer"])) == [5, 10]
    for name in ("epoch1", "epoch2", "epoch10"):
        (tmp_path / "loop" / name).mkdir(parents=True)
        torch.save(net, tmp_path / "loop" / name / "model.pt")
    assert list(find_checkpoints([tmp_path / "loop"])) == [1, 2, 10]
    torch.save(net, tmp_path / "loop" / "epoch1" / "other.pt")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_checkpoints([tmp_path / "loop"])


@pytest.mark.parametrize(
    ("names", "inside", "steps"),
    [
        (["epoch=1-val_loss=1.2e-04", "epoch=2-val_loss=8.0e-05", "epoch=3-val_loss=3.1e-06"], [], [1, 2, 3]),
        (["step=100-epoch=1", "step=200-epoch=1", "step=300-epoch=2"], [], [100, 200, 300]),
        (["model_step-10_lr1e-3", "model_step-20_lr1e-3"], [], [10, 20]),
        (["epoch=1-acc=71", "epoch=2-acc=70"], [10, 20], [1, 2]),
        (["epoch=1-acc=52", "epoch=2-acc=71", "epoch=10-acc=79"], [], [1, 2, 10]),
        (["run2_acc71", "run3_acc70"], [10, 20], [10, 20]),
        (["seed0_a", "seed0_b"], [], [0, 1]),
        (["ep1_v2", "ep2_v2"], [], [1, 2]),
        (["few-step-4_it10", "few-step-4_it20"], [], [10, 20]),
        (["epoch_1_3f2a91", "epoch_2_a0b1e2", "epoch_10_77d0c1"], [], [1, 2, 10]),
        (["step_1_000", "step_2_000"], [], [0, 1]),
        (["step_1,000", "step_2,000", "step_10,000"], [], [1000, 2000, 10000]),
        (["acc71", "acc72"], [10, 20], [10, 20]),
        (["acc71", "acc72"], [], [0, 1]),
        (["model-1-top1_72", "model-2-top1_71"], [], [1, 2]),
        (["resnet18_vit_b16_3", "resnet18_vit_b16_12"], [], [3, 12]),
        (["llama-7b_fold1_5", "llama-7b_fold2_9"], [], [5, 9]),
        (["3f2a91", "a0b1e2"], [], [0, 1]),
        (["step_1k", "step_2k", "step_10k"], [], [1000, 2000, 10000]),
        (["lr1_b-step=5", "lr0_a-step=7"], [], [5, 7]),
        (["epoch=0-step=4", "epoch=0-step=4-v1"], [], [0, 1]),
    ],
)
def test_exponents_are_no_steps_and_names_that_do_not_ascend_give_way_to_what_is_inside(tmp_path, names, inside, steps):
    for name, step in zip_longest(names, inside):
        extra = {} if step is None else {"global_step": step}
        torch.save({"state_dict": small().state_dict(), **extra}, tmp_path / f"{name}.ckpt")
    found = find_checkpoints([tmp_path])
    assert list(found) == steps and [path.stem for path in found.values()] == names


@pytest.mark.parametrize(
    ("names", "same", "steps", "stems"),
    [
        (["epoch0", "epoch10", "epoch20", "best", "last"], "epoch20", [0, 10, 20], ["epoch0", "epoch10", "epoch20"]),
        (["epoch0", "epoch10", "last"], "", [0, 10, 11], ["epoch0", "epoch10", "last"]),
        (["ckpt", "ckpt_09", "ckpt_19"], "ckpt_19", [9, 19], ["ckpt_09", "ckpt_19"]),
        (["ckpt1", "ckpt_best", "ckpt10", "ckpt_last"], "", [1, 10, 11], ["ckpt1", "ckpt10", "ckpt_last"]),
        (["best_map_epoch_2", "epoch_1", "epoch_12", "latest"], "epoch_12", [1, 12], ["epoch_1", "epoch_12"]),
        (["final", "step_000000", "step_000020"], "", [0, 20, 21], ["step_000000", "step_000020", "final"]),
        (["best-epoch=1", "best-epoch=2"], "", [1, 2], ["best-epoch=1", "best-epoch=2"]),
        (["best", "last"], "", [0, 1], ["best", "last"]),
        (["best_1", "best_5", "last"], "", [1, 5, 6], ["best_1", "best_5", "last"]),
        (["epoch_1", "epoch_2", "final", "init"], "", [0, 1, 2, 3], ["init", "epoch_1", "epoch_2", "final"]),
        (["pretrained", "step_100", "step_200"], "", [0, 100, 200], ["pretrained", "step_100", "step_200"]),
        (["a-3", "last-layer-5", "last-layer-6"], "", [3, 5, 6], ["a-3", "last-layer-5", "last-layer-6"]),
        (["epoch=0-step=10", "best-epoch=1-step=15"], "", [10, 15], ["epoch=0-step=10", "best-epoch=1-step=15"]),
        (["c_0.pth", "c_1.pth", "c.pth"], "", [0, 1, 2], ["c_0.pth", "c_1.pth", "c.pth"]),
    ],
)  # fmt: skip
def test_a_runs_best_has_no_place_in_its_path_and_its_last_stands_at_the_end(tmp_path, names, same, steps, stems):
    for i, name in enumerate(names):
        state = {k: v + i for k, v in small().state_dict().items()}
        torch.save({"model": state, "epoch": i}, tmp_path / f"{name}.pt")
    if same:  # the last once more, in another file
        end = next(name for name in names if name in ("last", "latest", "ckpt"))
        state = torch.load(tmp_path / f"{same}.pt")["model"]
        torch.save({"model": state, "optimizer": {}}, tmp_path / f"{end}.pt")
    found, notes = found_checkpoints([tmp_path])
    assert list(found) == steps and [path.stem for path in found.values()] == stems
    left = [name for name in names if name not in stems]
    assert all(any(note.startswith(f"{name}.pt is left out") for note in notes) for name in left)
    assert len(left) + len(stems) == len(names)
    assert list(found) == list(range(len(found))) or not any("numbered from 0" in note for note in notes)


def test_averages_of_weights_are_no_steps_of_a_run(tmp_path):
    for i, name in enumerate(["epoch_0", "epoch_0_ema", "epoch_1", "epoch_1_ema", "ema", "swa-model", "emark_2"]):
        torch.save({k: v + i for k, v in small().state_dict().items()}, tmp_path / f"{name}.pt")
    found, notes = found_checkpoints([tmp_path])
    assert sorted(path.stem for path in found.values()) == ["emark_2", "epoch_0", "epoch_1"]
    assert "left out of the run: ema.pt, epoch_0_ema.pt, epoch_1_ema.pt, ..." in notes[0]
    averages = sorted(tmp_path.glob("epoch_*_ema.pt"))  # by themselves they are a run
    assert list(found_checkpoints(averages)[0].values()) == averages


@pytest.mark.parametrize(
    ("names", "held", "end"),
    [
        ("epoch_{}", lambda epoch: {"epoch": epoch}, 7),
        ("epoch_{}", lambda epoch: {"epoch": epoch - 1, "iteration": 100 * epoch}, 7),  # counted from 0 inside
        ("ckpt_{}", lambda step: {"iter_num": step, "epoch": 0}, 7),
        ("iter_{}", lambda step: {"meta": {"iter": step, "epoch": 1}}, 7),
        ("epoch_{}", lambda epoch: {"iteration": 100 * epoch}, 5),  # in another unit: the next
        ("epoch_{}", lambda epoch: {"epoch": True}, 5),
        ("epoch_{}", lambda epoch: {}, 5),
    ],
)
def test_the_end_of_a_run_has_the_step_that_stands_in_it_where_that_counts_as_the_names_do(tmp_path, names, held, end):
    for step in (2, 4, 7):
        name = "final" if step == 7 else names.format(step)
        torch.save(
            {"model": {k: v + step for k, v in small().state_dict().items()}, **held(step)}, tmp_path / f"{name}.pt"
        )
    assert list(found_checkpoints([tmp_path])[0]) == [2, 4, end]


def test_a_folder_of_the_hugging_face_trainer_holds_the_weights_of_its_folders(tmp_path):
    net = small().state_dict()
    for step in (500, 1000, 1500):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
            torch.save({"state": {}}, folder / name)
        save_file(net, folder / "model.safetensors")
    save_file(net, tmp_path / "model.safetensors")  # as the Trainer leaves it in the end
    torch.save({}, tmp_path / "training_args.bin")
    found = find_checkpoints([tmp_path])
    assert [(step, path.parent.name) for step, path in found.items()] == [
        (step, f"checkpoint-{step}") for step in (500, 1000, 1500)
    ]
    assert found == find_checkpoints([path / "model.safetensors" for path in sorted(tmp_path.glob("checkpoint-*"))])
    assert found == find_checkpoints(sorted(tmp_path.glob("checkpoint-*")))
    assert run_files(ModelSettings(model_folder=str(tmp_path))) == list(found.values())
    torch.save(net, tmp_path / "init.pt")  # files of a run itself: none of them is left out
    assert [path.name for path in find_checkpoints([tmp_path]).values()] == [
        "init.pt",
        "model.safetensors",
        "training_args.bin",
    ]


def lightning(path, step, **beside):
    torch.save({"state_dict": small().state_dict(), "epoch": step // 4, **beside}, path)


@pytest.mark.parametrize("name", ["epoch={epoch}-step={step}.ckpt", "step={step}.ckpt", "a-{epoch}.ckpt"])
@pytest.mark.parametrize("last", [12, 14])
def test_the_last_checkpoint_of_lightning_has_the_step_that_stands_in_it(tmp_path, name, last):
    for step in (4, 8, 12):
        lightning(tmp_path / name.format(epoch=step // 4 - 1, step=step), step, global_step=step)
    lightning(tmp_path / "last.ckpt", last, global_step=last)
    found = find_checkpoints([tmp_path])
    if name.startswith("a") and last == 12:
        assert list(found) == [0, 1, 2]  # nothing but epochs is left, by which the names count
    else:
        assert list(found) == [4, 8, 12, 14][: 3 + (last > 12)]
    assert ("last.ckpt" in {path.name for path in found.values()}) == (last > 12)
    assert numbered_in_order(found) == ""
    assert run_files(ModelSettings(model_folder=str(tmp_path))) == list(found.values())  # without it where it is double


def test_a_last_checkpoint_that_says_no_step_and_is_the_last_once_more_is_left_out(tmp_path, caplog):
    for step in (4, 8):
        lightning(tmp_path / f"step={step}.ckpt", step, global_step=step)
    lightning(tmp_path / "last-v1.ckpt", 9)
    found = find_checkpoints([tmp_path])
    assert {step: path.name for step, path in found.items()} == {4: "step=4.ckpt", 8: "step=8.ckpt"}
    assert "last-v1.ckpt is left out: it is step=8.ckpt once more" in caplog.text


def test_an_index_of_shards_is_a_checkpoint_of_a_run(tmp_path):
    for step in (2, 10):
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        for i, (name, tensor) in enumerate(small().state_dict().items()):
            save_file({name: tensor}, folder / f"model-0000{i}-of-00004.safetensors")
        names = {name: f"model-0000{i}-of-00004.safetensors" for i, name in enumerate(small().state_dict())}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    indices = sorted(tmp_path.glob("*/*.index.json"))
    assert list(find_checkpoints(indices)) == list(find_checkpoints([tmp_path])) == [2, 10]
    assert set(load_state(indices[0])) == set(small().state_dict())


def test_files_without_numbers_are_counted(tmp_path):
    for name in ("early.pt", "late.pt"):
        torch.save(small().state_dict(), tmp_path / name)
    assert list(find_checkpoints([tmp_path])) == [0, 1]


def test_exponents_in_names_are_written_out(tmp_path):
    for name in ("step_1e3", "step_1e4", "step_2e3"):
        torch.save(small().state_dict(), tmp_path / f"{name}.pt")
    assert list(find_checkpoints([tmp_path])) == [1000, 2000, 10000]


def test_decimals_in_names_are_no_steps(tmp_path):
    names = ("epoch=2-acc=0.61", "epoch=5-acc=0.72", "epoch=11-acc=0.80")
    for name in names:
        torch.save(small().state_dict(), tmp_path / f"{name}.ckpt")
    assert [(step, path.stem) for step, path in find_checkpoints([tmp_path]).items()] == list(
        zip([2, 5, 11], names, strict=True)
    )


def test_an_order_that_names_do_not_give_is_reported(tmp_path, caplog):
    run = tmp_path / "run"
    turned(problem().model, run, [0, 1])
    named = sorted(run.iterdir())
    for old, new in zip(named, ("7_net.pt", "net_3.pt"), strict=True):
        old.rename(run / new)
    run_dynamics([run], problem(), path=tmp_path / "d.h5", top=1)
    assert "no ascending steps: they are numbered from 0 in the order 7_net.pt, net_3.pt" in caplog.text


def test_more_eigenvalues_than_parameters_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--top must be 1 to 48"):
        CheckpointCurvature(problem(), {}, store_vectors=lambda s, v: None, top=100)


def test_guessed_steps_and_two_formats_of_one_step_are_reported(tmp_path):
    for step in (1, 2):
        torch.save(small().state_dict(), tmp_path / f"step{step}.pt")
        save_file(small().state_dict(), tmp_path / f"step{step}.safetensors")
    found, notes = found_checkpoints([tmp_path])
    assert [(step, path.name) for step, path in found.items()] == [(1, "step1.safetensors"), (2, "step2.safetensors")]
    assert notes[0] == "step1.pt is left out: step1.safetensors stands beside it" and len(notes) == 2
    for step in (3, 9):
        torch.save(small().state_dict(), tmp_path / f"net_{step}_best.pt")
    _, notes = found_checkpoints(sorted(tmp_path.glob("net*")))
    assert notes == [
        "the steps of the checkpoints are guessed, as the last whole numbers of their files' names: 3 of net_3_best to "
        "9 of net_9_best"
    ]


def test_a_run_is_read_in_the_order_of_its_steps_where_a_metric_stands_first_in_its_names(tmp_path):
    for epoch, loss in enumerate((0.91, 0.7, 0.52, 0.4, 0.3, 0.21)):
        torch.save({"w": torch.ones(1)}, tmp_path / f"val_loss={loss}-epoch={epoch}.pt")
    files = run_files(ModelSettings(model_folder=str(tmp_path)))
    assert [file.stem.rpartition("=")[2] for file in files] == list("012345")


def test_checkpoints_whose_names_give_no_steps_are_said_to_be_numbered_in_order(tmp_path, caplog):
    for name in ("first", "second", "third"):
        torch.save({"w": torch.ones(1)}, tmp_path / f"{name}.pt")
    for _ in range(2):
        run_files(ModelSettings(model_folder=str(tmp_path)))
    assert sum("they are numbered from 0 in the order" in message for message in caplog.messages) == 1
