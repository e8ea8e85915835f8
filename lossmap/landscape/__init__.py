"""Measures at a point of a plane, the survey loop and the audit."""
