"""Curvature along a training run: eigenspaces at its checkpoints, compared and summarized."""
