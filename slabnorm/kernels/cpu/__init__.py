"""Numba on the CPU: bridge.py takes a call; the other files go from the tensor down to one element."""
