"""Train a model on shards: `ray job submit --working-dir . -- python jobs/train.py SHARDS --storage URI`."""

from __future__ import annotations

import sys
from pathlib import Path

# Run the package beside this script; run.py explains why.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_ray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
