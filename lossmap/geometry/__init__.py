"""Grids, directions, parameter vectors and training paths."""
