"""A location (local path, NFS, `s3://`, `gs://`) as a `pyarrow.fs` filesystem, with atomic commits and checksums.

Every file of a run is made whole in memory (each is bounded) and put under its final name in one step, so a reader
sees all of it or nothing. Names that start with a dot are ours, temporary, and may be removed by anyone who resumes.

Credentials are never ours: each process finds its own in its environment, and none is in a pickle, a file or a log.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pyarrow import ArrowInvalid, fs

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.storage.s3 import S3, made


def sha256(data: bytes | memoryview) -> str:
    """Hex digest, as manifests hold it."""
    return hashlib.sha256(data).hexdigest()


_REFUSED = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_LOOKING = ("read", "list", "look at")
_REFUSED_BY_S3 = (
    "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE",
)  # fmt: skip
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


_abandoned: list[Any] = []
"""Streams that have failed. Closing one, as its destructor does, could put an empty object in the old one's place, as
Arrow takes it for one that nothing was written to."""


@dataclass(frozen=True)
class Location:
    """A file or folder on some filesystem. Picklable; children are made with `/`."""

    filesystem: fs.FileSystem
    path: str
    scheme: str = ""

    @classmethod
    def parse(cls, uri: str | os.PathLike[str]) -> Location:
        """A path (made absolute: Train workers change directory) or a URI that pyarrow.fs opens.

        Raises InputError for a scheme that pyarrow does not know, for what can be no path, and for credentials.
        """
        text = os.fspath(uri)
        if not text:
            raise InputError("an empty path; give a path or a URI such as s3://bucket/folder", see="storage.md")
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"the path {text!a} is not UTF-8; rename it", see="storage.md")
        if "://" not in text:
            try:
                return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
            except RuntimeError as error:  # ~ of nobody
                raise InputError(f"cannot tell what {text!r} is: {error}", see="storage.md") from error
        scheme = text.split("://")[0]
        try:
            filesystem, path = _opened(text)
        except (ArrowInvalid, NotImplementedError, OSError) as error:
            kind = RetryableError if "NETWORK_CONNECTION" in str(error) else InputError
            raise kind(f"cannot open {text.split('?')[0]!r}: {first_line(error)}", see="storage.md") from error
        return cls(filesystem, path, "" if scheme == "file" else f"{scheme}://")

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", self.scheme)

    def __str__(self) -> str:
        return f"{self.scheme}{self.path}"

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        return Location(self.filesystem, self.path.rstrip("/").rsplit("/", 1)[0] or "/", self.scheme)

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def exists(self) -> bool:
        return bool(self._info().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self._info().type == fs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self._info().type == fs.FileType.Directory)

    def size(self) -> int:
        """Bytes of a file."""
        return int(self._info().size or 0)

    def list(self) -> list[Location]:
        """What a folder holds, sorted by name; nothing where there is no folder."""
        with io_errors(self, "list"):
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [self / info.base_name for info in sorted(infos, key=lambda info: str(info.base_name))]

    def read_bytes(self) -> bytes:
        """The whole file. Raises FileNotFoundError where there is none."""
        with io_errors(self, "read"):
            if self.is_local:  # a third of the time that pyarrow takes for a small file
                return Path(self.path).read_bytes()
            with self.filesystem.open_input_stream(self.path, compression=None) as stream:
                return bytes(stream.read())

    def read_json(self) -> Any:
        """Raises InputError where the file is no JSON.

        pyarrow asks an object store for the size first: where the object is replaced before it is read, a longer one
        comes torn. So it is read again.
        """
        for left in reversed(range(1 if self.is_local else 10)):
            try:
                return json.loads(self.read_bytes())
            except ValueError as error:
                if not left:
                    raise InputError(f"{self} is not JSON ({error}); it was not written by mnist-ray") from error
        raise AssertionError

    def open_file(self) -> Any:
        """A seekable pyarrow file for reading."""
        with io_errors(self, "read"):
            return self.filesystem.open_input_file(self.path)

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Put the file under its name in one atomic step; an older one is replaced whole.

        On a local disk it is there to stay, also after a power cut: that waits for the disk.
        """
        with io_errors(self, "write"):
            if self.is_local:
                temporary = self.parent / f".{self.name}.{uuid.uuid4().hex[:8]}.tmp"
                self.parent.make_dir()
                try:
                    with Path(temporary.path).open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())  # or a power cut could leave the name without the data
                    Path(temporary.path).replace(self.path)
                    _sync(self.parent.path)
                except BaseException:
                    Path(temporary.path).unlink(missing_ok=True)
                    raise
            else:
                # An object store shows an object when its upload completes. Above 10 MB the upload has several parts:
                # what a killed process leaves of those nobody sees, and `sweep` removes.
                stream = self.filesystem.open_output_stream(self.path, compression=None)
                try:
                    stream.write(data)
                    stream.close()
                except BaseException:
                    _abandoned.append(stream)
                    raise

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")

    def make_dir(self) -> None:
        with io_errors(self, "make the folder"):
            self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Remove a file or a folder with all it holds; nothing happens where there is none."""
        with io_errors(self, "remove"):
            info = self._info()
            if info.type == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif info.type == fs.FileType.File:
                self.filesystem.delete_file(self.path)

    def sweep(self, is_ours: Callable[[str], bool] = lambda name: True) -> None:
        """Remove from a folder, not from those in it, what killed writers left: temporary files, unfinished uploads.

        is_ours: whether objects of a name are ours, where others may be uploading theirs. A writer of ours that lives
        yet fails, and its object stays as it was: call it where nobody waits for one.
        """
        if isinstance(self.filesystem, S3):
            self.filesystem.abort_uploads(self.path, is_ours)
        for file in self.list() if self.is_local else ():
            if _TEMPORARY.fullmatch(file.name):
                file.delete()

    def check_writable(self) -> None:
        """Write and remove a small file. Raises InputError where that is not allowed, RetryableError where it fails."""
        probe = self / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"mnist-ray")
        probe.delete()

    def _info(self) -> fs.FileInfo:
        with io_errors(self, "look at"):
            return self.filesystem.get_file_info(self.path)


@contextmanager
def io_errors(where: Location, doing: str) -> Iterator[None]:
    """Turn what the filesystem raises into one line that names the place and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and doing == "read":
            raise  # what a missing file means, the reader knows
        code, text = error.errno, first_line(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise RetryableError(
                f"no space left to {doing} {where}; make room or choose another --storage", see="storage.md"
            ) from error
        if code in _REFUSED or any(word in text for word in _REFUSED_BY_S3):
            remedy = "mend the path" if doing in _LOOKING else "choose another --storage, or mend the path"
            raise InputError(
                f"cannot {doing} {where}: {text}; {remedy} or its permissions", see="storage.md"
            ) from error
        raise RetryableError(f"cannot {doing} {where}: {text}", see="storage.md") from error


def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """As pyarrow opens it, but S3 with bounded waits, and with `?anonymous=true`, which pyarrow knows no word for."""
    try:
        address = urlsplit(uri)
        secret = address.password
    except ValueError as error:
        raise ArrowInvalid(str(error)) from error
    if secret is not None:
        raise InputError(
            f"a URI with a password ({address.scheme}://...@{address.hostname}) would be kept and shown;"
            " give credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile",
            see="storage.md",
        )
    options = dict(parse_qsl(address.query))
    anonymous = options.pop("anonymous", None)
    if anonymous and address.scheme == "s3":
        uri = address._replace(query=urlencode(options)).geturl()
    filesystem, path = fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        filesystem = made(filesystem.__reduce__()[1][0] | {"anonymous": anonymous == "true"})
    return filesystem, path


def _sync(folder: str) -> None:
    """Make a rename in it last. Some network filesystems cannot, and have no need to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().split("\n")[0]


_HASH_BLOCK = 8 << 20


def file_sha256(file: Location) -> str:
    """Of a file of any size, a block at a time."""
    total = hashlib.sha256()
    with file.open_file() as opened:
        while block := opened.read(_HASH_BLOCK):
            total.update(block)
    return total.hexdigest()
