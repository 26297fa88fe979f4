"""`python -m mnist_ray` is `mnist-ray`."""

from __future__ import annotations

import sys

from mnist_ray.shadows import shadow


def main() -> None:
    """Run the command line, or say why it cannot be imported: `python -m` looks in the working directory first."""
    try:
        from mnist_ray.cli import main as run
    except Exception:
        if (message := shadow()) is None:
            raise
        sys.stderr.write(f"mnist-ray: {message}\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
