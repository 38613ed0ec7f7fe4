"""Fuzzing of every parser that faces the network: it refuses by its own error or understands, and keeps no memory.

`make fuzz` is the long form. A new parser becomes a target in `targets.py`.
"""
