"""The callbacks of Lightning and of the Trainer of Hugging Face: the same weights to the bit, readings, errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lossmap
from lossmap.io.surface import TRAINING_PROCESS

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3


def noisy_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning.pytorch")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def lightning_run(lightning, callbacks_of, folder, **options):
    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = noisy_net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    lightning.seed_everything(5, verbose=False)
    model = Classifier()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=callbacks_of(model), enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder, **{"logger": False, **options},
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(X, Y), 16, shuffle=True))
    return model, trainer


def test_lightning_trains_to_the_same_bits(lightning, tmp_path):
    from lossmap.callbacks import LightningCurvature

    def watched(model):
        problem = lossmap.Problem.supervised(model, "crossentropy", DataLoader(TensorDataset(X, Y), 24, shuffle=True))
        options = {"every": 3, "path": tmp_path / "training.h5", "max_overhead": None, "checkpoints": tmp_path / "run"}
        return [LightningCurvature(problem, **options)]

    plain, _ = lightning_run(lightning, lambda model: [], tmp_path)
    model, trainer = lightning_run(lightning, watched, tmp_path, logger=lightning.loggers.CSVLogger(tmp_path))
    for name, t in plain.state_dict().items():
        assert torch.equal(t, model.state_dict()[name]), name
    surface = lossmap.read(tmp_path / "training.h5")
    assert surface.grid.x.tolist() == [3, 6, 9]
    assert surface["stability_threshold"] == pytest.approx(38 / 1e-2)
    assert (surface["max_eig"] > 0).all() and np.isfinite(surface["preconditioned_max_eig"]).all()
    trainer.logger.save()
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "curvature/max_eig" in metrics.read_text()
    assert [f.name for f in sorted((tmp_path / "run").iterdir())] == [f"step_00000{i}.pt" for i in (3, 6, 9)]


def test_lightning_logs_the_same_means_where_its_own_step_is_evaluated(lightning, tmp_path):
    from lossmap.callbacks import LightningCurvature

    class Logs(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.net = nn.Linear(5, 3)

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train_loss", loss, on_epoch=True, on_step=False)
            self.log_dict({"twice": 2 * loss}, on_epoch=True, on_step=False)
            if self.logger is not None:
                self.logger.log_metrics({"written": float(loss)})
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.05)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss"}}

    def fitted(folder, watched):
        model = Logs()
        problem = lossmap.Problem.custom(model, lambda model, batch: model.training_step(batch, 0), (X[:16], Y[:16]))
        options = {"every": 2, "max_overhead": None, "trace_products": 0, "loggers": ()}
        logger = lightning.loggers.CSVLogger(folder)
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[LightningCurvature(problem, **options)] if watched else [],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=logger,
        )  # fmt: skip
        trainer.fit(model, DataLoader(TensorDataset(X, Y), 16))
        (written,) = folder.rglob("metrics.csv")
        return model, trainer, problem, written.read_text()

    plain, trainer, _, written = fitted(tmp_path / "plain", False)
    model, watched, problem, written_watched = fitted(tmp_path / "watched", True)
    assert watched.callback_metrics == trainer.callback_metrics and written == written_watched
    assert torch.equal(plain.net.weight, model.net.weight)
    assert "log" not in vars(model) and watched.loggers[0].__class__.__name__ == "CSVLogger"
    reading = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), lossmap.Grid.line(-1, 1, 3))
    loss = nn.functional.cross_entropy(X[:16] @ model.net.weight.T + model.net.bias, Y[:16])
    assert reading["train_loss"][1] == pytest.approx(loss.item(), rel=1e-5)


def test_a_lightning_step_that_trains_is_refused(lightning, tmp_path):
    class Manual(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = nn.Linear(5, 3), False

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
            return loss

    model = Manual()
    problem = lossmap.Problem.custom(model, lambda model, batch: model.training_step(batch, 0), (X, Y))
    with pytest.raises(ValueError, match="takes steps of the optimizers itself"):
        lossmap.spectrum(problem, top=1)


def test_a_training_that_ends_early_ends_its_file_too(lightning, tmp_path):
    from lossmap.callbacks import LightningCurvature

    class Ends(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                raise RuntimeError("enough")

    def watched(model):
        problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
        options = {"every": 3, "path": tmp_path / "training.h5", "max_overhead": None, "trace_products": 0}
        return [LightningCurvature(problem, **options), Ends()]

    with pytest.raises(RuntimeError, match="enough"):
        lightning_run(lightning, watched, tmp_path)
    surface = lossmap.read(tmp_path / "training.h5")
    assert surface.grid.x.tolist() == [3] and TRAINING_PROCESS not in surface.attributes


def test_a_problem_of_another_model_is_refused_when_training_begins(lightning, tmp_path):
    from lossmap.callbacks import LightningCurvature

    problem = lossmap.Problem.supervised(noisy_net(), "crossentropy", (X, Y))
    with pytest.raises(ValueError, match="is not the one that is trained"):
        lightning_run(lightning, lambda model: [LightningCurvature(problem)], tmp_path)


class WithLoss(nn.Module):
    """A model in the form that the Trainer takes: keywords in, a dict with its loss out."""

    def __init__(self):
        super().__init__()
        self.net = noisy_net()

    def forward(self, x=None, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer_run(transformers, callbacks_of, folder, **options):
    model = WithLoss()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=16, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", learning_rate=1e-2, disable_tqdm=True, seed=5, **options,
    )  # fmt: skip
    samples = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=samples, callbacks=callbacks_of(model))
    trainer.train()
    return model, trainer


def watched_problem(model):
    return lossmap.Problem.custom(
        model, lambda model, batch: model(**batch)["loss"], {"x": X[:24], "labels": Y[:24]}, unit="nats"
    )


def test_the_trainer_of_hugging_face_trains_to_the_same_bits(transformers, tmp_path):
    from lossmap.callbacks import HuggingFaceCurvature

    def watched(model):
        return [HuggingFaceCurvature(watched_problem(model), every=3, path=tmp_path / "t.h5", max_overhead=None)]

    plain, _ = trainer_run(transformers, lambda model: [], tmp_path)
    model, trainer = trainer_run(transformers, watched, tmp_path)
    for name, t in plain.state_dict().items():
        assert torch.equal(t, model.state_dict()[name]), name
    surface = lossmap.read(tmp_path / "t.h5")
    assert surface.grid.x.tolist() == [3, 6, 9]
    assert (surface["stability_ratio"][:2] > 0).all()  # AdamW inside Accelerate's wrapper
    assert surface["stability_threshold"][2] == np.inf  # the schedule ends at a rate of 0
    logged = [row["curvature/max_eig"] for row in trainer.state.log_history if "curvature/max_eig" in row]
    assert logged == surface["max_eig"].tolist()


def test_in_mixed_precision_curvature_is_that_of_the_model_in_its_own(transformers, tmp_path):
    from lossmap.callbacks import HuggingFaceCurvature

    readings = []

    def watched(model):
        callback = HuggingFaceCurvature(watched_problem(model), every=3, max_overhead=None, tol=1e-3)
        readings.append((callback, model))
        return [callback]

    model, _ = trainer_run(transformers, watched, tmp_path, bf16=True)
    callback, _ = readings[0]
    assert "_original_forward" in model.__dict__  # Accelerate has put an autocast around it
    last = callback.monitor.surface["max_eig"][-1]
    twin = WithLoss()
    twin.load_state_dict(model.state_dict())
    own = lossmap.eigenpairs(lossmap.hessian(watched_problem(twin), parameters="all"), tol=1e-6).values[0]
    assert last == pytest.approx(own, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "hidden", "words"),
    [
        ("LightningCurvature", ("lightning", "pytorch_lightning"), "pip install lightning"),
        ("HuggingFaceCurvature", ("transformers",), r"lossmap\[huggingface\]"),
    ],
)
def test_without_its_library_a_callback_says_what_to_install(name, hidden, words, monkeypatch):
    import lossmap.callbacks

    for module in [m for m in sys.modules if m.split(".")[0] in hidden or m.startswith("lossmap.callbacks.with_")]:
        monkeypatch.delitem(sys.modules, module)
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("with_lightning", "with_transformers"):
        monkeypatch.delattr(lossmap.callbacks, module, raising=False)
    with pytest.raises(ImportError, match=words):
        getattr(lossmap.callbacks, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lossmap.callbacks.nothing


def test_the_callbacks_package_imports_no_trainer():
    trainers = {"lightning", "pytorch_lightning", "transformers"}
    code = f"import sys, lossmap.callbacks; assert not {trainers} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
