"""Run the benchmarks and write one JSON file each to benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import commands
from benchmarks.machine import facts

RESULTS = Path(__file__).with_name("results")

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    for benchmark in (commands,):
        name = benchmark.__name__.rpartition(".")[2]
        result = {"machine": facts(), "results": benchmark.run()}
        text = json.dumps(result, indent=2) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}\n{text}")
