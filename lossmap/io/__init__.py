"""WHAT remembers: the surface file, its journal, files of the original tool."""
