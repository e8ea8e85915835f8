"""Storage: the result file, its journal, merging, files of the original tool."""
