"""What `--working-dir` sends to the cluster: which files, how much, and whether Ray takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnist_ray.cluster import ray_private
from mnist_ray.errors import InputError

SEE = "clusters.md#submit-a-job"


@dataclass(frozen=True)
class Upload:
    """The files of a folder that Ray would send, with their sizes in bytes."""

    folder: Path
    sizes: dict[str, int]

    @classmethod
    def of(cls, folder: str) -> Upload:
        """Raises InputError where there is no such folder, or where it is larger than Ray takes."""
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise InputError(f"--working-dir {path} is not a folder", see=SEE)
        try:
            upload = cls(path, ray_private.packaged_files(path))
        except OSError as error:
            raise InputError(f"--working-dir {path} cannot be read: {error}", see=SEE) from error
        if upload.num_bytes >= (limit := ray_private.upload_limit()):
            largest = ", ".join(
                f"{name} ({_size(size)})" for name, size in sorted(upload.sizes.items(), key=lambda each: -each[1])[:3]
            )
            raise InputError(
                f"--working-dir {path} is {_size(upload.num_bytes)}, more than the {_size(limit)} that Ray takes; the"
                f" largest files are {largest}: name them in a .rayignore, or choose a smaller folder",
                see=SEE,
            )
        return upload

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def require_module(self, module: str) -> None:
        """Raise InputError where a module lies in the folder, but is not sent because an ignore file names it."""
        stem = module.replace(".", "/")
        for name in (f"{stem}.py", f"{stem}/__init__.py"):
            if (self.folder / name).is_file() and name not in self.sizes:
                raise InputError(
                    f"{self.folder / name} would not be sent: .gitignore or .rayignore names it; take it out there",
                    see=SEE,
                )

    def __str__(self) -> str:
        count = len(self.sizes)
        return f"{self.folder}: {count:,} file{'' if count == 1 else 's'}, {_size(self.num_bytes)}"


def _size(num_bytes: int) -> str:
    """In the largest unit that gives a number of at least 1."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >> shift:
            return f"{num_bytes / (1 << shift):.1f} {unit}"
    return f"{num_bytes} bytes"
