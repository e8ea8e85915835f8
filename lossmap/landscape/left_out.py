"""How far an interpolation misses measured points that are left out of it: cross-validation of a picture.

Points are left out in turns, those of one turn never beside each other in the triangulation of all, and never the
corners of their convex hull, beyond which nothing is interpolated. The gap about a point that is left out is wider than
those of the picture, so that of smooth surfaces the miss is larger than the picture's error.

Letters: places (points, 2), or (points, 1) on a line. Price: some ten triangulations, 0.1 s of 1,000 points.
Source: Stone (1974), doi:10.1111/j.2517-6161.1974.tb00994.x.
"""

from __future__ import annotations

import numpy as np

MIN_POINTS = 9  # from which some are left out


def largest_miss(places: np.ndarray, heights: np.ndarray) -> float | None:
    """The largest |interpolated - measured| at places left out, relative to the range; None of too few points."""
    if heights.size < MIN_POINTS:
        return None
    from scipy import interpolate  # loading it takes as long as a tenth of PyTorch: only where a picture is judged

    is_line = places.shape[1] == 1
    if is_line:
        order = np.argsort(places[:, 0])
        places, heights = places[order], heights[order]
    turns, worst = turns_of(places), 0.0
    for turn in range(1, int(turns.max()) + 1):
        out = turns == turn
        if is_line:
            guessed = interpolate.CubicSpline(places[~out, 0], heights[~out])(places[out, 0])
        else:
            guessed = interpolate.CloughTocher2DInterpolator(places[~out], heights[~out])(places[out])
        worst = max(worst, float(np.abs(guessed - heights[out]).max()))
    return worst / (float(np.ptp(heights)) or 1.0)


def turns_of(places: np.ndarray) -> np.ndarray:
    """In which turn each place is left out, from 1 on; 0: in none. On a line places must ascend."""
    count, dimension = places.shape
    if dimension == 1:
        turns = 1 + np.arange(count) % 2
        turns[[0, -1]] = 0
        return turns
    from scipy import spatial

    turns = np.zeros(count, dtype=np.int64)
    starts, neighbours = spatial.Delaunay(places).vertex_neighbor_vertices
    corners = set(spatial.ConvexHull(places).vertices.tolist())
    for i in range(count):
        if i not in corners:
            beside = set(turns[neighbours[starts[i] : starts[i + 1]]].tolist())
            turns[i] = next(turn for turn in range(1, count + 1) if turn not in beside)
    return turns
