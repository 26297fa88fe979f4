"""`python -m mnist_ray` is `mnist-ray`."""

from __future__ import annotations

from mnist_ray.cli import main

if __name__ == "__main__":
    main()
