"""The work of benchmarks/trivial.py for Flower."""
