"""Losses and functions written so that nothing in their value or their derivatives cancels."""
