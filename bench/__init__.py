"""Measurements of speed and memory, beside the programs that people would use otherwise: `make bench`."""
