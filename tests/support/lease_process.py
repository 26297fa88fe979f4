"""A process that holds a lease and writes: `python -m tests.support.lease_process FOLDER RENEW DOUBTFUL TAKEOVER`.

It prints `held` or `refused`, then what its first failed write says.
"""

from __future__ import annotations

import sys
import time

from mnist_ray.errors import UserError
from mnist_ray.storage import lease
from mnist_ray.storage.location import Location


def main(uri: str, *seconds: str) -> None:
    lease.RENEW_SECONDS, lease.DOUBTFUL_SECONDS, lease.TAKEOVER_SECONDS = map(float, seconds)
    folder = Location.parse(uri)
    try:
        held = lease.acquire(folder, wait_seconds=0.5)
    except lease.HeldError:
        print("refused", flush=True)
        return
    print("held", flush=True)
    count = 0
    try:
        while True:
            count += 1
            (folder / "written.json").write_json({"token": held.holder.token, "count": count})
            time.sleep(0.3)  # so that a signal does not meet it while it writes
    except (UserError, KeyboardInterrupt) as error:
        print(type(held.lost or error).__name__, count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
