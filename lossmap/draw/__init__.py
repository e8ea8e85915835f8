"""WHAT shows: figures, a page, VTK. Nothing here imports torch. `lossmap.draw(...)` is `figures.draw`."""

from lossmap import namesake

namesake(__name__)
