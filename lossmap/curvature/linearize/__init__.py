"""The linearized product: tracing, rules for tangents, graph building."""
