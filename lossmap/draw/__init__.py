"""WHAT shows: figures, a page, VTK. Nothing here imports torch."""
