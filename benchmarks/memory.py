"""Memory: eigenvectors of many checkpoints stored, compared and moved into the result file; a large language model.

    python benchmarks/memory.py                          100 checkpoints, n = 272,000 (ResNet-20), r = 20
    python benchmarks/memory.py --checkpoints 10 --size 5000 --pairs 5
    python benchmarks/memory.py --language-model         GPT-2 of 124 million parameters, random weights
    python benchmarks/memory.py --language-model --width 256 --layers 4

A slowly rotating subspace replaces the results of the solver, one checkpoint at a time, so that storing and comparing
are measured, not the solver. Each stage runs in its own process; its peak is the kernel's (VmHWM), and is also reported
relative to a process that has only imported lossmap.

Of the language model a plane of its loss surface, with its origin kept and read again from its file, and its largest
eigenvalue are computed over a few short sequences; their peaks above those of a model of next to no weights are counted
in copies of the weights, the model one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path


def peak() -> int:
    """The peak memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system has no VmHWM")


def reset_peak() -> None:
    """Let the peak be counted from here on, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def store(folder, count, size, pairs):
    """The ranks' part: the vectors of one snapshot at a time to the disk."""
    import numpy as np

    chance = np.random.default_rng(0)
    q = np.linalg.qr(chance.standard_normal((size, pairs), dtype=np.float32))[0]
    for step in range(count):
        folder.keep(float(step), np.ascontiguousarray(q.T))
        q += chance.standard_normal(q.shape, dtype=np.float32) * np.float32(0.1 / size**0.5)
        q = np.linalg.qr(q)[0]


def compare(folder, count, size, pairs, file):
    """The part of rank 0 at the end."""
    import numpy as np

    from lossmap.dynamics.eigenspaces import Snapshots, compare_eigenspaces
    from lossmap.dynamics.run import results
    from lossmap.dynamics.summary import summarize
    from lossmap.geometry.grid import Grid
    from lossmap.io.eigenvector_store import move_into_file
    from lossmap.io.read import write_surface
    from lossmap.io.surface import Surface

    steps = [float(step) for step in range(count)]
    values = np.tile(np.arange(pairs, 0, -1.0), (count, 1))
    run = compare_eigenspaces(Snapshots(np.array(steps), values, size, folder.blocks(steps)))
    answers = summarize(run)
    write_surface(file, Surface(Grid(np.array(steps)), {"loss": np.zeros(count)}))
    move_into_file(file, folder, steps, results(run, answers, {}), pairs)
    print(answers, file=sys.stderr)


def read_again(folder, count, size, pairs, file):
    """Reading the answers and drawing the figures."""
    from lossmap.plotting.dynamics import draw_evolution
    from lossmap.plotting.style import save

    save(draw_evolution(file), file.with_suffix(".png"), dpi=100)


def stage(name, directory, count, size, pairs):
    """One stage, in this process; prints its peak and seconds."""
    for module in ("lossmap.dynamics.run", "lossmap.plotting.dynamics"):  # every stage has the same imports
        import_module(module)
    from lossmap.io.eigenvector_store import VectorFolder

    file = Path(directory) / "run.h5"
    folder, began = VectorFolder.beside(file), time.perf_counter()
    if name == "store":
        store(folder, count, size, pairs)
    elif name == "compare and move":
        compare(folder, count, size, pairs, file)
    elif name == "read and draw":
        read_again(folder, count, size, pairs, file)
    values = {"bytes": peak(), "seconds": time.perf_counter() - began}
    print(json.dumps(values | {"file": file.stat().st_size if file.exists() else 0}))


def language_model(width, layers, vocabulary):
    """A GPT-2 with random weights, and a problem over four sequences of 4 tokens, whose activations are small."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import lossmap

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=max(1, width // 64))
    ).eval()
    tokens = torch.randint(model.config.vocab_size, (4, 4))
    return model, lossmap.huggingface(model, {"input_ids": tokens}, batch_size=1)


def large_stage(name, width, layers, vocabulary, products):
    """One stage of the language model, in this process; prints its peak and what it computed."""
    import torch

    import lossmap
    from lossmap.landscape.loss import ForwardPlan

    for module in ("transformers", "lossmap.landscape.run_survey", "lossmap.curvature.product_check", "torch.fx"):
        import_module(module)
    began = time.perf_counter()
    model, problem = language_model(width, layers, vocabulary)
    values = {"n": sum(p.numel() for p in model.parameters()), "model": peak()}
    reset_peak()  # creating a model takes more than having it
    if name == "surface":
        plane = lossmap.random_plane(model)
        measure = lossmap.losses(problem, plane, plan=ForwardPlan(1))
        values["losses"] = [measure((x, x))["train_loss"] for x in (-0.5, 0.0, 0.5)]
    elif name == STORED:
        from lossmap.data.stored_tensors import StoredTensors
        from lossmap.memory import trim_heap

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.pt"
            torch.save(model.state_dict(), file)
            reset_peak()
            plane = lossmap.random_plane(model, origin=StoredTensors(model, file))
            values["plane"] = peak()
            measure = lossmap.losses(problem, plane, plan=ForwardPlan(1))
            values["check"] = peak()  # of the loss, at the beginning: at the model's weights, and at moved ones
            trim_heap()
            reset_peak()
            values["losses"] = [measure((x, x))["train_loss"] for x in (-0.5, 0.0, 0.5)]
    elif name == "largest eigenvalue":
        operator = lossmap.hessian(problem, parameters="all")
        values["before"] = peak()
        pairs = lossmap.eigenpairs(operator, "top:1", tol=0.1, memory=1 << 20, max_products=products)
        values |= {"value": float(pairs.values[0]), "error": float(pairs.residuals[0]), "products": pairs.products}
    values |= {"bytes": peak(), "seconds": time.perf_counter() - began, "torch": torch.__version__}
    print(json.dumps(values))


STORED = "surface, origin from its file"
SMALL = {"width": 64, "layers": 2, "vocabulary": 100}  # a model of next to no weights


def measure_language_model(args):
    """The peaks of the language model's stages, in copies of its weights, above those of a model of next to none."""
    rows = []
    stages = ("model", "surface", STORED, "largest eigenvalue")[: 3 if args.surface else 4]
    for name in stages:
        row, least = (
            peak_of_stage(name, args.products, **shape)
            for shape in ({"width": args.width, "layers": args.layers, "vocabulary": args.vocabulary}, SMALL)
        )
        row |= {"stage": name, "copies": (row["bytes"] - least["bytes"]) / (4 * row["n"])}
        if "check" in row:
            row["check_copies"] = (row["check"] - least["check"]) / (4 * row["n"])
        rows.append(row)
        print(
            f"{name:31} n = {row['n']:,}, peak {row['bytes'] / 1e6:7.0f} MB, of a small model "
            f"{least['bytes'] / 1e6:5.0f} MB, {row['copies']:5.2f} copies of the weights"
            + (f"; {row['check_copies']:.2f} while the loss is checked" if "check" in row else "")
        )
        print(f"    {row}", flush=True)
    return rows


def peak_of_stage(name, products, *, width, layers, vocabulary):
    """What a stage reports, run in a process of its own."""
    words = [sys.executable, __file__, "--language-model", "--stage", name, "--width", str(width)]
    words += ["--layers", str(layers), "--products", str(products), "--vocabulary", str(vocabulary)]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--size", type=int, default=272_000)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--language-model", action="store_true")
    parser.add_argument("--surface", action="store_true", help="of the language model no eigenvalue")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--products", type=int, default=12, help="products that the largest eigenvalue may take")
    args = parser.parse_args(argv)
    if args.language_model and args.stage:
        large_stage(args.stage, args.width, args.layers, args.vocabulary, args.products)
        return []
    if args.language_model:
        return measure_language_model(args)
    if args.stage:
        stage(args.stage, args.directory, args.checkpoints, args.size, args.pairs)
        return []
    whole = 4 * args.checkpoints * args.size * args.pairs
    print(f"{args.checkpoints} checkpoints, n = {args.size:,}, r = {args.pairs}: {whole / 1e6:,.0f} MB of vectors")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ("import", "store", "compare and move", "read and draw"):
            words = [sys.executable, __file__, "--stage", name, "--directory", directory]
            for flag in ("checkpoints", "size", "pairs"):
                words += [f"--{flag}", str(getattr(args, flag))]
            out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            values = json.loads(out.splitlines()[-1])
            rows.append({"stage": name, **values})
            above = (values["bytes"] - rows[0]["bytes"]) / 1e6
            print(f"{name:18} peak {values['bytes'] / 1e6:7.0f} MB, {above:6.0f} above import, "
                  f"{values['seconds']:6.1f} s, file {values['file'] / 1e6:,.0f} MB")  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
