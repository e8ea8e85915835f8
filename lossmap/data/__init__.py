"""WHERE we stand: data, problem, vectors, directions, path, grid. Rooms are imported by name; this is light."""
