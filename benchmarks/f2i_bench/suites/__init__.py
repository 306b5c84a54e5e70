"""Benchmarks of this project itself, each a command: `python -m f2i_bench.suites.NAME`."""
