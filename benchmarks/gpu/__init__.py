"""What a GPU has to prove: `make gpu`. See `benchmarks/gpu/__main__.py`."""
