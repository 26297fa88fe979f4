"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

import importlib

for name in (
    "ring",
    "step",
    "recipe",
    "job",
    "accuracy",
    "scoring",
    "folders",
    "many_files",
    "row_groups",
    "whole",
    "precision",
    "models",
    "engines",
    "distant",
):
    print(f"\n# python -m tests.benchmarks.{name}", flush=True)
    importlib.import_module(f"tests.benchmarks.{name}").main()
