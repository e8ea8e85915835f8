"""The spectra of all diagonal blocks of a matrix beside those of the whole: a value, and what a file keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

import numpy as np

from lossmap.diagnostics.layer_signals import Signal
from lossmap.keywords import checked_init
from lossmap.linalg.block_norms import OffDiagonalEnergy
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.report import blocks as report_blocks
from lossmap.report import layer_hessian as report_layer_hessian
from lossmap.report import signals as report_signals
from lossmap.report.stored import REPORT_VERSION, StoredReport, columns_of, names_in_file
from lossmap.spectra.block import Block
from lossmap.spectra.layer_hessian import LayerHessian
from lossmap.values import DrawnResult


@checked_init
@dataclass(frozen=True, eq=False)
class BlockSpectra(DrawnResult):
    """The spectra of all diagonal blocks, and the whole matrix beside them: the result of `layer_spectra`.

    Print it for the report; `result["conv1.weight"]` is one block.

    Attributes:
        blocks: one for each layer, tensor or group.
        by: how they were cut: tensor, module, pattern, or given.
        matrix: hessian, gauss-newton, fisher or mc-fisher.
        label: what the report calls it.
        whole: the largest and the smallest eigenvalue over all parameters; None where not computed.
        off_diagonal_energy: what the blocks leave out; None where not computed.
        signals: by module, what passes through it.
        layer_hessians: per-layer output Hessians: each layer with its activation as a function by itself.
        notes: what else a reader of the report should know.
        seconds: spent.
        unit: of the loss; empty where it is not known.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> lossmap.layer_spectra(problem, "module", probes=0)["0"].size
        15

    """

    blocks: tuple[Block, ...]
    by: str
    matrix: str = "hessian"
    label: str = ""
    whole: EigenPairs | None = None
    off_diagonal_energy: OffDiagonalEnergy | None = None
    signals: Mapping[str, Signal] = field(default_factory=dict)
    layer_hessians: tuple[LayerHessian, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = nan
    unit: str = ""

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(f"there is no block {name!r}; there are {', '.join(b.name for b in self.blocks)}")

    @property
    def products(self) -> int:
        """Products spent: with blocks, and with the whole matrix."""
        extra = (self.whole, self.off_diagonal_energy)
        return sum(b.products for b in self.blocks) + sum(e.products for e in extra if e is not None)

    @property
    def verdict(self) -> str:
        """What the blocks together say of the network."""
        return report_blocks.network_text(_report_of(self))

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        return stored_layers(self)

    def __repr__(self) -> str:
        return report_blocks.blocks_report(_report_of(self))


def stored_layers(spectra: BlockSpectra) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """One row a block; for each block its eigenvalues, and its matrix or its density, named after it."""
    report = _report_of(spectra)
    arrays, attributes = dict(report.arrays), dict(report.attributes)
    arrays["verdict"] = np.array([b.verdict for b in spectra.blocks], dtype=object)
    own = names_in_file(b.name for b in spectra.blocks)
    for b in spectra.blocks:
        if b.density is not None:
            arrays[f"nodes:{own[b.name]}"], arrays[f"weights:{own[b.name]}"] = b.density.nodes
    if spectra.off_diagonal_energy is not None:
        arrays["outside"] = np.array([spectra.off_diagonal_energy.by_block[b.name] for b in spectra.blocks])
    pieces = names_in_file(dict.fromkeys(p.name for p in spectra.layer_hessians))
    for p in spectra.layer_hessians:
        if not p.skipped:
            arrays[f"piece_{p.at}:{pieces[p.name]}"] = p.values
    attributes |= {
        "by": spectra.by,
        "notes": "; ".join(spectra.notes),
        "verdict": spectra.verdict,
        "report": repr(spectra),
    }
    return arrays, attributes


def _report_of(spectra: BlockSpectra) -> StoredReport:
    """The part of what is stored that the report is rendered from."""
    arrays = columns_of([b.summary() for b in spectra.blocks], report_blocks.ARRAYS)
    arrays |= columns_of([p.summary() for p in spectra.layer_hessians], report_layer_hessian.ARRAYS)
    arrays |= columns_of([s.summary() for s in spectra.signals.values()], report_signals.ARRAYS)
    arrays["note"] = np.array(spectra.notes, dtype=object)
    own = names_in_file(b.name for b in spectra.blocks)
    for b in spectra.blocks:
        arrays[f"eigenvalues:{own[b.name]}"] = b.values
        if b.entries is not None:
            arrays[f"matrix:{own[b.name]}"] = b.entries
    attributes: dict[str, object] = {
        "label": spectra.label, "matrix": spectra.matrix, "products": spectra.products, "seconds": spectra.seconds,
        "report_version": REPORT_VERSION,
    }  # fmt: skip
    if spectra.unit:
        attributes["unit"] = spectra.unit
    if spectra.off_diagonal_energy is not None:
        low, high = spectra.off_diagonal_energy.interval()
        attributes |= {"outside_low": low, "outside_high": high}
        attributes |= {"outside": spectra.off_diagonal_energy.share, "outside_error": spectra.off_diagonal_energy.error}
    if spectra.whole is not None:
        attributes |= {"whole_largest": spectra.whole.values[0], "whole_smallest": spectra.whole.values[1]}
        attributes |= {"whole_highest": spectra.whole.limits[0], "whole_lowest": spectra.whole.limits[1]}
        largest_error, smallest_error = spectra.whole.residuals
        attributes |= {"whole_largest_error": largest_error, "whole_smallest_error": smallest_error}
    return StoredReport(arrays, attributes)
