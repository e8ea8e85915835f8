"""The classic studies of loss landscapes as campaigns of small nets: `lossmap study`."""
