"""A location (local path, NFS, `s3://`, `gs://`) as a `pyarrow.fs` filesystem, with atomic writes and checksums.

Every file of a run is built in memory (each is bounded) and put under its final name in one step: a reader sees all of
it or nothing. Names that start with a dot are temporary, and whoever resumes a run may remove them.

We hold no credentials: each process finds them in its environment. None is in a pickle, a file or a log.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pyarrow import ArrowInvalid, fs

from mnist_ray.errors import InputError, NoSpaceError, RetryableError, SetupError, UserError, first_line
from mnist_ray.storage import disk, fence
from mnist_ray.storage.disk import ChangedMeanwhileError
from mnist_ray.storage.s3 import REQUESTS_AT_ONCE, S3, with_bounded_waits

_REFUSED = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_BAD_CREDENTIALS = ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE")
_REFUSED_BY_S3 = ("ACCESS_DENIED", "NO_SUCH_BUCKET", *_BAD_CREDENTIALS)
_READING = ("read", "list", "look at")  # actions after which another --storage does not help
_JSON_ATTEMPTS = 10
_SHORTENED = "Failed to flush response stream"  # pyarrow's words for an object that ended too early
_DELETE_ATTEMPTS = 10
_MOST_INDENTED = (
    1 << 20
)  # characters. Larger values are not for eyes, and Python takes ten times as long to indent them
_HASH_BLOCK = 8 << 20  # bytes


def sha256(data: bytes | memoryview) -> str:
    """The hex digest, as manifests hold it."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(file: Location) -> str:
    """The hex digest of a file of any size, which is read in blocks."""
    total = hashlib.sha256()
    with file.open_file() as opened:
        while block := opened.read(_HASH_BLOCK):
            total.update(block)
    return total.hexdigest()


@dataclass(frozen=True)
class Location:
    """A file or folder on some filesystem. Picklable; children are made with `/`."""

    filesystem: fs.FileSystem
    path: str
    scheme: str = ""

    @classmethod
    def parse(cls, uri: str | os.PathLike[str]) -> Location:
        """A path (made absolute: Train workers change directory) or a URI that pyarrow.fs opens.

        Raises InputError for an unknown scheme, an invalid path and a URI with credentials.
        """
        text = os.fspath(uri)
        if not text:
            raise InputError("an empty path; give a path or a URI such as s3://bucket/folder", see="storage.md")
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"the path {text!a} is not UTF-8; rename it", see="storage.md")
        if "://" not in text:
            try:
                return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
            except RuntimeError as error:  # ~USER, and there is no such user
                raise InputError(f"cannot expand {text!r}: {error}", see="storage.md") from error
        scheme = text.split("://")[0]
        try:
            filesystem, path = _open(text)
        except ImportError as error:  # fsspec has many more, such as hf://
            remedy = "install that on every node; or download the data and give their path"
            raise SetupError(
                f"cannot open {text.split('?')[0]!r}: {first_line(error)}; {remedy}", see="storage.md"
            ) from error
        except (ArrowInvalid, NotImplementedError, OSError) as error:
            kind: type[UserError] = SetupError if isinstance(error, OSError) else InputError
            if "NETWORK_CONNECTION" in str(error):
                kind = RetryableError
            raise kind(f"cannot open {text.split('?')[0]!r}: {first_line(error)}", see="storage.md") from error
        if not path.strip("/") and scheme != "file":
            raise InputError(f"{text!r} names no bucket; use {scheme}://BUCKET/FOLDER", see="storage.md")
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

    @property
    def reads_at_once(self) -> int:
        """How many small files to read at once."""
        return 16 if self.is_local else REQUESTS_AT_ONCE

    def exists(self) -> bool:
        return bool(self._info().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self._info().type == fs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self._info().type == fs.FileType.Directory)

    def size(self) -> int:
        """The size of a file in bytes."""
        return int(self._info().size or 0)

    def list(self) -> list[Location]:
        """The files and folders in a folder, sorted by name; an empty list where there is no such folder."""
        with io_errors(self, "list"):
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [self / info.base_name for info in sorted(infos, key=lambda info: str(info.base_name))]

    def read_bytes(self) -> bytes:
        """The whole file. Raises FileNotFoundError where it does not exist."""
        with io_errors(self, "read"):
            if self.is_local:  # in a third of the time that pyarrow takes for a small file
                return Path(self.path).read_bytes()
            with self.filesystem.open_input_stream(self.path, compression=None) as stream:
                return bytes(stream.read())

    def read_if_there(self) -> bytes | None:
        """The whole file; None where it does not exist."""
        try:
            return self.read_bytes()
        except FileNotFoundError:
            return None

    def read_json(self, parse: Callable[[bytes], Any] = json.loads) -> Any:
        """The file's value. Raises FileNotFoundError where it does not exist, InputError where it is not JSON.

        parse: bytes to the value; raises ValueError where they are not JSON. records.py has those that check it.

        On an object store, pyarrow asks for the size before it reads. An object that is replaced in between comes
        truncated, or cannot be read if the new one is shorter, so it is read again.
        """
        for retries_left in reversed(range(1 if self.is_local else _JSON_ATTEMPTS)):
            try:
                return parse(self.read_bytes())
            except InputError:  # it is JSON
                raise
            except RetryableError as error:
                if not retries_left or _SHORTENED not in str(error):
                    raise
            except (ValueError, RecursionError) as error:
                if not retries_left:
                    raise InputError(f"{self} is not JSON ({error}); it was not written by mnist-ray") from error
        raise AssertionError

    def open_file(self) -> Any:
        """A seekable pyarrow file for reading."""
        with io_errors(self, "read"):
            return self.filesystem.open_input_file(self.path)

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Put the file under its name in one atomic step, in place of an older one.

        On a local disk, this waits until the file would survive a power cut.
        """
        fence.check()
        with io_errors(self, "write"):
            if self.is_local:
                self.parent.make_dir()
                disk.write(Path(self.path), data)
            else:
                _upload(self, data)

    def write_over(self, data: bytes | memoryview, old: bytes | None) -> None:
        """The same, if the file still is `old`; None: if there is no such file. Of several writers one succeeds.

        Raises ChangedMeanwhileError. On S3 the write is conditional, so that it fails however late it comes. On a local
        disk and on NFS it is a hard link, or a lock on the old file. Elsewhere the file is only looked at before.
        """
        fence.check()
        with io_errors(self, "write"):
            if self.is_local:
                self.parent.make_dir()
                disk.write_over(Path(self.path), data, old)
            elif isinstance(self.filesystem, S3):
                _write_object_over(self, self.filesystem, data, old)
            elif self.read_if_there() == old:
                _upload(self, data)
            else:
                raise ChangedMeanwhileError

    def write_json(self, value: Any) -> None:
        text = json.dumps(value, allow_nan=False)
        if len(text) < _MOST_INDENTED:
            text = json.dumps(value, allow_nan=False, indent=1)
        self.write_bytes(text.encode() + b"\n")

    def make_dir(self) -> None:
        with io_errors(self, "make the folder"):
            self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Remove a file, or a folder with all that it holds. Does nothing where there is neither.

        What another process removes at the same moment is gone as well. A folder is then tried again, as not all of it
        may be gone yet.
        """
        fence.check()
        for retries_left in reversed(range(_DELETE_ATTEMPTS)):
            with io_errors(self, "remove"):
                try:
                    self._delete_once()
                    break
                except FileNotFoundError:
                    if not retries_left:
                        raise

    def _delete_once(self) -> None:
        kind = self._info().type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(self.path)

    def sweep(self, is_ours: Callable[[str], bool] = lambda name: True) -> None:
        """Remove what killed writers left directly in this folder: temporary files and unfinished uploads.

        `is_ours` tells by an object's name whether its upload is ours, in a bucket that others write to as well. The
        upload of one of our writers that is still alive fails, and its object stays as it was. So sweep where nobody
        waits for such a writer.
        """
        fence.check()
        if isinstance(self.filesystem, S3):
            self.filesystem.abort_uploads(self.path, is_ours)
        for file in self.list() if self.is_local else ():
            if disk.is_temporary(file.name):
                file.delete()

    def check_writable(self) -> None:
        """Write and remove a small file. Raises InputError where that is forbidden, RetryableError where it fails."""
        probe = self / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"mnist-ray")
        probe.delete()

    def _info(self) -> fs.FileInfo:
        with io_errors(self, "look at"):
            return self.filesystem.get_file_info(self.path)


@contextmanager
def io_errors(where: Location, action: str) -> Iterator[None]:
    """Turn what the filesystem raises into one line that names the place and the remedy.

    `action` is a verb for the message: "read", "write", "list"… A missing file stays a FileNotFoundError where it is
    read: what it means, the caller knows.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and action == "read":
            raise
        code, text = error.errno, first_line(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"no space left to {action} {where}; make room or choose another --storage", see="storage.md"
            ) from error
        if code in _REFUSED or any(word in text for word in _REFUSED_BY_S3):
            remedy = "correct the path" if action in _READING else "choose another --storage, or correct the path"
            remedy += " or its permissions"
            if any(word in text for word in _BAD_CREDENTIALS):
                remedy = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on every node"
            raise SetupError(f"cannot {action} {where}: {text}; {remedy}", see="storage.md") from error
        raise RetryableError(f"cannot {action} {where}: {text}", see="storage.md") from error


def _write_object_over(file: Location, s3: S3, data: bytes | memoryview, old: bytes | None) -> None:
    etag = None
    if old is not None:
        content, etag = s3.read_with_etag(file.path)
        if etag is None or content != old:
            raise ChangedMeanwhileError
    try:
        s3.write_if_unchanged(file.path, data, etag)
    except ChangedMeanwhileError:
        # Where the answer to a write is lost, the client repeats it, and meets its own first success.
        if s3.read_with_etag(file.path)[0] != data:
            raise


_failed_streams: list[Any] = []
"""Kept alive on purpose: a stream's destructor closes it, and closing one whose upload has failed could replace the old
object by an empty one. pyarrow cannot abort a stream: https://github.com/apache/arrow/issues/40502."""


def _upload(file: Location, data: bytes | memoryview) -> None:
    """Write an object, which the store shows once its upload is complete.

    Above 10 MB, an upload has several parts. Those of a killed process stay invisible until `sweep` removes them.
    """
    stream = file.filesystem.open_output_stream(file.path, compression=None)
    try:
        stream.write(data)
        stream.close()
    except BaseException:
        _failed_streams.append(stream)
        raise


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    """What pyarrow opens, but S3 with bounded waits, and with `?anonymous=true`, which pyarrow does not know."""
    try:
        address = urlsplit(uri)
        password = address.password
    except ValueError as error:
        raise ArrowInvalid(str(error)) from error
    if address.scheme in ("http", "https"):
        plain = f"{address.scheme}://{address.hostname}{address.path}"  # without secrets
        raise InputError(f"{plain} is a web address; download it and give its path", see="storage.md")
    if password is not None:
        raise InputError(
            f"a URI with a password ({address.scheme}://...@{address.hostname}) would be stored and shown; put it into"
            " the environment",
            see="errors.md#passwords",
        )
    options = dict(parse_qsl(address.query))
    anonymous = options.pop("anonymous", None)
    if anonymous and address.scheme == "s3":
        uri = address._replace(query=urlencode(options)).geturl()
    filesystem, path = fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        filesystem = with_bounded_waits(filesystem, anonymous=anonymous == "true")
    return filesystem, path
