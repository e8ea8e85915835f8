"""The memory of products of a language model with a large vocabulary: chunked cross entropy, and the usual forms.

    python benchmarks/vocabulary.py [--vocabulary 50000] [--tokens 512] [--width 32] [--prepare] [--quick]

A table of words and a layer back to the words, random weights, in float32: all memory is that of the logits, (tokens,
vocabulary). In a process of its own for each product, loss and way: the largest memory (VmHWM) while the trace is taken
and values are computed, and in three products, above that before, in arrays of the logits' size; seconds of the third
product; and the product's difference from the other way's, relative to it. `prepare` is all that a command does before
its first product, with checks, rounding and probe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import peak, reset_peak

KINDS = ("hessian", "gauss-newton")
LOSSES = {"labels": 0.0, "label smoothing": 0.1}


def measure(kind: str, loss: str, way: str, args: argparse.Namespace, file: str) -> dict[str, float]:
    """In a process of its own: the largest memory above that before, in bytes, and seconds of a product."""
    import torch
    from torch import nn

    import lossmap
    from lossmap.curvature.autotune import prepare
    from lossmap.curvature.hvp_plan import HvpPlan
    from lossmap.curvature.linearized_operator import OperatorFactory
    from lossmap.curvature.operators import gauss_newton, hessian
    from lossmap.stable import chunked_entropy

    if way == "usual":
        chunked_entropy.MIN_CLASSES = sys.maxsize
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(args.vocabulary, args.width), nn.Linear(args.width, args.vocabulary, bias=False))
    x, y = torch.randint(args.vocabulary, (2, 4, args.tokens // 4))
    criterion = nn.CrossEntropyLoss(label_smoothing=LOSSES[loss])
    problem = lossmap.Problem.supervised(
        model, lambda f, t: criterion(f.flatten(0, 1), t.flatten()), (x, y), batch_size=4
    )
    product = {"hessian": hessian, "gauss-newton": gauss_newton}[kind]
    v = torch.randn(sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(1))
    torch.ones(4, 4) @ torch.ones(4, 4)  # what the libraries take for themselves
    reset_peak()
    before = peak()
    found: dict[str, float] = {}
    if args.prepare:
        prepare(problem, "weights", product)
        return {"prepare": peak() - before}
    operator = OperatorFactory(problem, "weights", product, lambda t: t, HvpPlan("linearized", 4), 1 << 40).at()
    operator.loss()
    found["values"] = peak() - before
    reset_peak()
    for _ in range(3):
        start = time.perf_counter()
        result = operator @ v
        found["seconds"] = time.perf_counter() - start
    found["products"] = peak() - before
    torch.save(result, file)
    return found


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """A row for each product and loss, with both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--prepare", action="store_true", help="the peak of all that comes before the first product")
    parser.add_argument("--one", nargs=4, metavar=("PRODUCT", "LOSS", "WAY", "FILE"), help="in this process")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.vocabulary, args.tokens = 5000, 64
    if args.one:
        print(json.dumps(measure(*args.one[:3], args, args.one[3])))
        return []
    import torch

    logits, rows = 4 * args.tokens * args.vocabulary, []
    print(f"arrays of {logits / 1e6:,.0f} MB: {args.tokens} tokens, {args.vocabulary:,} words")
    with tempfile.TemporaryDirectory() as directory:
        for kind in KINDS:
            for loss in LOSSES:
                of: dict[str, dict[str, float]] = {}
                for way in ("usual", "chunked"):
                    words = [sys.executable, __file__, "--one", kind, loss, way]
                    words += [str(Path(directory) / way), "--vocabulary", str(args.vocabulary)]
                    words += ["--tokens", str(args.tokens), "--width", str(args.width)]
                    words += ["--prepare"] if args.prepare else []
                    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                    of[way] = json.loads(out.splitlines()[-1])
                row: dict[str, object] = {"product": kind, "loss": loss}
                for name in of["usual"]:
                    unit = 1.0 if name == "seconds" else logits
                    a, b = of["usual"][name] / unit, of["chunked"][name] / unit
                    row[name] = f"{a:.2f} -> {b:.2f} ({b / a:.2f})"
                if not args.prepare:
                    a, b = (torch.load(Path(directory) / way) for way in ("usual", "chunked"))
                    row["difference"] = float((a - b).double().norm() / a.double().norm())
                rows.append(row)
                print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
