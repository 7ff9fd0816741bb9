"""Benchmarks, one command each: ``python -m benchmarks.load --help``."""
