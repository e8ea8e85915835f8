"""WHAT we read at a point: loss, curvature, eigenvalues, spectra, evolution, weights, health."""
