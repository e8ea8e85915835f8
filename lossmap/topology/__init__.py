"""Minima, basins, persistence and merge tree of a computed surface. NumPy alone: neither model nor torch."""
