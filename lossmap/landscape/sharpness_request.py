"""What is measured of the sharpness of a checkpoint: the request, and how files hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lossmap.landscape.ball import DEFAULT_RADII, check_ball
from lossmap.linalg.trace import check_trace_request


@dataclass(frozen=True)
class SharpnessRequest:
    """What is measured at every checkpoint.

    balls           kind and radius of each
    draws           pairs of random points of an average; 0 for no averages
    steps, starts   of gradient ascents; 0 for none
    critical        whether critical sharpness is searched
    tol             of the largest eigenvalue, relative
    trace_products  of the trace; 0 for none
    parameters      that are displaced, and that the Hessian is of
    batch, batches  samples of each batch, and the number of batches, of batch sharpness; 0 samples for none
    preconditioned  whether the largest eigenvalue of P^-1/2 (H + W) P^-1/2 is searched, P of `problem.preconditioner`
    """

    balls: tuple[tuple[str, float], ...] = tuple(DEFAULT_RADII.items())
    draws: int = 20
    steps: int = 20
    starts: int = 2
    critical: bool = True
    tol: float = 1e-3
    trace_products: int = 60
    parameters: str = "weights"
    seed: int = 0
    batch: int = 0
    batches: int = 30
    preconditioned: bool = False

    def check(self) -> None:
        """Raise ValueError for what cannot be measured."""
        for kind, radius in self.balls:
            check_ball(kind, radius)
        if len(set(self.balls)) < len(self.balls):
            raise ValueError(f"each ball must be named once; got {', '.join(f'{k}:{r:g}' for k, r in self.balls)}")
        if self.draws < 0 or self.draws == 1:
            raise ValueError(f"--draws must be >= 2, for a standard error, or 0 for no averages; got {self.draws}")
        if self.steps < 0 or self.starts < 0:
            raise ValueError(f"--ascent-steps and --starts must be >= 0; got {self.steps} and {self.starts}")
        if self.batch < 0 or (self.batch and self.batches < 2):
            raise ValueError(
                f"--batch-sharpness must be >= 0, and --batches >= 2 for a standard error; got {self.batch} and "
                f"{self.batches}"
            )
        if not self.tol > 0.0:
            raise ValueError(f"--tol must be > 0, e.g. 1e-3; got {self.tol}")
        if self.trace_products:
            check_trace_request("xtrace", self.trace_products)

    def stored(self) -> dict[str, Any]:
        """As files hold it: what earlier versions did not know stands there only where it is asked for."""
        values = asdict(self)
        if not self.batch:
            del values["batch"], values["batches"]
        if not self.preconditioned:
            del values["preconditioned"]
        return values

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SharpnessRequest:
        """The request of a file's settings, where balls are `KIND:RADIUS`."""
        values = {f.name: settings[f.name] for f in fields(cls) if f.name in settings}
        pairs = (str(ball).rpartition(":") for ball in settings["balls"])
        return cls(**{**values, "balls": tuple((kind, float(radius)) for kind, _, radius in pairs)})
