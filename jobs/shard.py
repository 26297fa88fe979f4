"""Write images as Parquet shards: `ray job submit --working-dir . -- python jobs/shard.py SRC DEST`."""

from __future__ import annotations

import sys
from pathlib import Path

# Run the package beside this script; run.py explains why.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_ray.cli import main

if __name__ == "__main__":
    main(["shard", *sys.argv[1:]])
