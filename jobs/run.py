"""Run the whole job: `ray job submit --working-dir . -- python jobs/run.py --storage URI`."""

from __future__ import annotations

import sys
from pathlib import Path

# Python searches the script's folder, not the working directory, and a cluster that was only sent the working directory
# has no mnist_ray installed. The package is one folder up; first in the path, it wins over one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
