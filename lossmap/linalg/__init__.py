"""Lanczos, deflation, bounds, trace and spectral density, for any symmetric operator known by its products."""
