"""Engines: what maps shards to tallies, on one machine or many. An engine owns nothing else."""
