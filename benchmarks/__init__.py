"""Benchmarks: numbers, not pass or fail. `make bench` runs them and writes benchmarks/results, with facts about the machine."""
