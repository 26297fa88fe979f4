"""The whole job: `ray job submit --working-dir . -- python jobs/run.py` is `mnist-ray run` on the cluster."""

from __future__ import annotations

import sys
from pathlib import Path

# Python searches this script's folder, not the working directory, and a cluster that was only sent the working
# directory has no mnist_ray installed. One folder up it is: what was sent is what runs, whatever the image holds.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
