"""The spectrum of one checkpoint: of the whole matrix, by blocks, by layers, compared."""
