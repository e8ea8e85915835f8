"""The nets of the papers, by name."""
