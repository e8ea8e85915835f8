"""What needs no second derivative: activations, signals, singular values, neural collapse, label noise."""
