"""The subjects of `lossmap spectrum`: each checkpoint, split and matrix, and what identifies their tasks in a file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.cli import load_problem
from lossmap.cli.device import Machine
from lossmap.cli.load_preconditioner import optimizer_file, preconditioner_from
from lossmap.cli.setting_groups import ModelSettings
from lossmap.cli.settings import Settings, UsageError
from lossmap.data import checkpoints, datasets
from lossmap.data.drawn_loss import Draws
from lossmap.io.read import read
from lossmap.parallel.world import World
from lossmap.report.stored import refuse_alike
from lossmap.spectra.budget import settings_of
from lossmap.spectra.request import Subject

if TYPE_CHECKING:
    from lossmap.curvature.hvp_plan import ProductCheck
    from lossmap.data.preconditioner import Preconditioner
    from lossmap.parallel.team import Team
    from lossmap.spectra.request import SpectrumRequest

PRODUCTS = 200  # about as many as a spectrum takes: ends, trace and density


def models_of(settings: Settings, compare: Sequence[str]) -> dict[str, ModelSettings]:
    """The checkpoints by label: that of the flags first, then those of --compare. Raises UsageError for bad labels."""
    model: ModelSettings = settings.model
    models = {own_label(settings) if compare else "": model}
    for text in compare:
        label, equals, source = text.partition("=")
        if not equals:
            label, source = Path(text.rpartition("@")[2]).stem, text
        name, at_sign, file = source.rpartition("@")
        if not label or not file:
            raise UsageError(f"--compare must be LABEL=FILE or LABEL=MODEL@FILE; got {text!r}")
        try:
            refuse_alike([*models, label], "--compare: two checkpoints")
        except ValueError as error:
            said, own = str(error).partition(";")[0], f"{_free_label(label, file, models)}={source}"
            raise UsageError(f"{said}; give it a label of its own: --compare {shlex.quote(own)}") from None
        if not at_sign:
            name = model.model
        models[label] = replace(model, model=name, model_file=file)
    return models


def _free_label(label: str, file: str, taken: Collection[str]) -> str:
    """A label like this one that no checkpoint has yet: with the file's folder before it, or a number behind it."""
    folder = re.sub("[=@]", "-", Path(file).resolve().parent.name)
    tries = (f"{folder}-{label}", *(f"{label}-{i}" for i in range(2, len(taken) + 3)))
    own = {name.replace("/", "_") for name in taken}
    return next(text for text in tries if text.replace("/", "_") not in own)


def own_label(settings: Settings) -> str:
    """The label of the checkpoint of the flags."""
    if settings.model.model_file:
        return Path(settings.model.model_file).stem
    return str(settings.data.problem or settings.model.model)


def make_subjects(settings: Settings, world: World, machine: Machine, team: Team) -> list[Subject]:
    """Every checkpoint, split and matrix of the settings. Every rank calls it."""
    matrix = settings.spectrum.matrix
    matrices = ("hessian", "gauss-newton") if matrix == "both" else (matrix,)
    subjects = []
    for title, model in models_of(settings, settings.spectrum.compare).items():
        problems = load_problem.problem_and_files(settings, world, machine, model=model)
        shares = load_problem.team_shares(problems, team, world)
        for split, problem in problems.items():
            for kind in matrices:
                if kind == "mc-fisher":
                    draws = Draws(settings.spectrum.seed, settings.spectrum.fisher_draws)
                    problem, shares[split] = (replace(p, draws=draws) for p in (problem, shares[split]))
                if kind == "preconditioned":
                    own = preconditioner_in(settings, model, problem)
                    problem, shares[split] = (replace(p, preconditioner=own) for p in (problem, shares[split]))
                parts = [title]
                if len(problems) > 1 or not title:
                    parts.append(split)
                if len(matrices) > 1:
                    parts.append(kind)
                subjects.append(Subject(" ".join(filter(None, parts)), shares[split], kind, problem))
    return subjects


def identity_of(settings: Settings, request: SpectrumRequest, subjects: Sequence[Subject]) -> dict[str, Any]:
    """What the tasks depend on: stored with them, and compared when a run resumes."""
    models = models_of(settings, settings.spectrum.compare)
    return {
        **settings_of(request),
        **identity_of_models(settings, models),
        "data (SHA-256)": {s.label: datasets.digest(s.samples_of.data) for s in subjects},
        "matrix": settings.spectrum.matrix,
        **draws_of(settings),
        **optimizer_files(settings),
    }


def draws_of(settings: Settings) -> dict[str, int]:
    """How many targets are drawn for a sample, where any are; their seed stands with the request's."""
    if settings.spectrum.matrix != "mc-fisher":
        return {}
    return {"draws of a sample": settings.spectrum.fisher_draws}


def preconditioner_in(settings: Settings, model: ModelSettings, problem: Any) -> Preconditioner:
    """P of the optimizer whose state stands in the file of --optimizer-state, or in the checkpoint.

    Raises UsageError where there is none, or where it is none of this model.
    """
    named = settings.spectrum.optimizer_state or model.model_file
    if not named:
        raise UsageError("--matrix preconditioned needs an optimizer's state: --optimizer-state, or a --model-file")
    return preconditioner_from(named, problem, settings.model.unsafe_load, "--matrix preconditioned")


def optimizer_files(settings: Settings) -> dict[str, str]:
    """What identifies the optimizer's state, where a file of its own is named; else it is in the checkpoint."""
    named = settings.spectrum.optimizer_state
    return optimizer_file(named) if settings.spectrum.matrix == "preconditioned" and named else {}


def identity_of_models(settings: Settings, models: Mapping[str, ModelSettings]) -> dict[str, Any]:
    """What tasks over several checkpoints depend on, beside what is measured, and the samples."""
    files = {label: m.model_file for label, m in models.items() if m.model_file}
    return {
        "model": settings.data.problem or settings.model.model,
        **load_problem.folder_digest(settings.model),
        "files (SHA-256)": {label: checkpoints.file_sha256(f) for label, f in files.items()},
        "dataset": settings.data.problem or settings.data.dataset,
        "loss": settings.data.loss,
        "precision": settings.run.precision,
    }


def backend_choices(
    settings: Settings, subjects: Sequence[Subject], path: Path, memory: int | None = None
) -> list[dict[str, Any]]:
    """The backend of each subject's products: as an earlier run of this file chose, or as a probe chooses now.

    path    the result
    memory  bytes for values that a backend keeps

    Empty choices mean double backward, which needs no preparation.
    """
    from lossmap.curvature.autotune import prepare
    from lossmap.curvature.build import product_of

    options = settings.spectrum
    if options.hvp_backend == "double-backward":
        return []
    if path.exists() and not settings.run.overwrite:
        earlier = read(path).settings.get("measures", {}).get("spectrum", {}).get("chosen", {}).get("ways")
        if earlier is not None and len(earlier) == len(subjects):
            return list(earlier)
    chosen = []
    for subject in subjects:
        own = (
            subject.problem if subject.problem.weight else subject.samples_of
        )  # a share without weight has no products
        problem, product = product_of(own, subject.matrix)
        factory = prepare(
            problem,
            options.parameters,
            product,
            backend=options.hvp_backend,
            memory=memory,
            distant=False,
            products=PRODUCTS,
        )
        chosen.append(factory.plan.stored())
    return chosen


def product_checks(
    request: SpectrumRequest, subjects: Sequence[Subject], choices: Sequence[Mapping[str, Any]], memory: int | None
) -> list[ProductCheck]:
    """What is known of each subject's products: rank 0 looks, and all ranks follow.

    choices  of backends, as `backend_choices` made them
    """
    from lossmap.curvature.autotune import prepare
    from lossmap.curvature.build import product_of
    from lossmap.curvature.product_check import check_product

    checks = []
    for i, subject in enumerate(subjects):
        problem, product = product_of(subject.samples_of, subject.matrix)
        parameters = request.block_parameters if request.layerwise else request.parameters
        if choices:
            checks.append(prepare(problem, parameters, product, plan=choices[i], memory=memory, distant=False).check)
        else:
            checks.append(check_product(problem, parameters, product, distant=False))
    return checks
