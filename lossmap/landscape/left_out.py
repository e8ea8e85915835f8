"""How far an interpolation misses measured points that are left out of it: cross-validation of a picture.

Points are left out in turns, those of one turn never beside each other in the triangulation of all, and never the
corners of their convex hull, beyond which nothing is interpolated. The gap about a point that is left out is wider than
those of the picture, so that of smooth surfaces the miss is larger than the picture's error.

Letters: places (points, 2), or (points, 1) on a line. Price: some ten triangulations, 0.1 s of 1,000 points; as much
of the smoother interpolation.
Sources: Stone (1974), doi:10.1111/j.2517-6161.1974.tb00994.x; `scipy.interpolate.RBFInterpolator`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MIN_POINTS = 9  # from which some are left out
NEIGHBOURS = 40  # from which the smoother interpolation is made at each place
Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]  # places, heights -> places -> heights


def cubic(places: np.ndarray, heights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The picture's own interpolation: Clough and Tocher's piecewise cubic, on a line a cubic spline."""
    from scipy import interpolate  # loading it takes as long as a tenth of PyTorch: only where a picture is judged

    if places.shape[1] == 1:
        spline = interpolate.CubicSpline(places[:, 0], heights)
        return lambda at: np.asarray(spline(at[:, 0]))
    pieces: Callable[[np.ndarray], np.ndarray] = interpolate.CloughTocher2DInterpolator(places, heights)
    return pieces


def quintic(places: np.ndarray, heights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A smoother one: radial functions r^5 from the nearest places, on a line a spline of degree five.

    Raises LinAlgError where places nearest to one lie on two lines, as on a grid of two rows.
    """
    from scipy import interpolate

    if places.shape[1] == 1:
        spline = interpolate.make_interp_spline(places[:, 0], heights, k=5)
        return lambda at: np.asarray(spline(at[:, 0]))
    count = min(NEIGHBOURS, len(places))
    radial: Callable[[np.ndarray], np.ndarray] = interpolate.RBFInterpolator(
        places, heights, kernel="quintic", neighbors=count
    )
    return radial


def largest_miss(places: np.ndarray, heights: np.ndarray, fit: Fit = cubic) -> float | None:
    """The largest |interpolated - measured| at places left out, relative to the range; None of too few points."""
    if heights.size < MIN_POINTS:
        return None
    if places.shape[1] == 1:
        order = np.argsort(places[:, 0])
        places, heights = places[order], heights[order]
    turns, worst = turns_of(places), 0.0
    for turn in range(1, int(turns.max()) + 1):
        out = turns == turn
        guessed = fit(places[~out], heights[~out])(places[out])
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
