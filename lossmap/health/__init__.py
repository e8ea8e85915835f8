"""The health of a network: measurements, the rules that turn them into findings, the diagnosis."""
