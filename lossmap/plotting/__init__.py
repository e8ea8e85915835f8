"""Figures, an interactive page, and VTK files. Nothing here imports torch."""
