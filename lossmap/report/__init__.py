"""Text reports made from stored arrays, without torch."""
