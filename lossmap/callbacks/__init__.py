"""Curvature while a network trains: for a loop of one's own, for Lightning, and for the Trainer of Hugging Face.

    CurvatureMonitor     monitor.step() after every optimizer.step()
    LightningCurvature   a callback of Lightning's Trainer
    HuggingFaceCurvature  a callback of transformers' Trainer

The trainers' own libraries are imported when their callback is first asked for.
"""

from typing import Any

from lossmap.callbacks.monitor import CurvatureMonitor

__all__ = ["CurvatureMonitor", "HuggingFaceCurvature", "LightningCurvature"]


def __getattr__(name: str) -> Any:
    if name == "LightningCurvature":
        from lossmap.callbacks.with_lightning import LightningCurvature

        return LightningCurvature
    if name == "HuggingFaceCurvature":
        from lossmap.callbacks.with_transformers import HuggingFaceCurvature

        return HuggingFaceCurvature
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
