"""Benchmarks: slabnorm beside PyTorch in one process, against the memory's limit. `python -m benchmarks`."""
