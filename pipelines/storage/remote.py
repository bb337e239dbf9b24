"""Files of an object store by their URLs (s3://, gs://), through fsspec: reading, listing, and copying there and back.

An object store has no locks, no renaming and no links: nothing is worked on there. Data are read from it and copied to it, the
document that vouches for the others last. Credentials are those of the store's own library (environment, ~/.aws, the machine's
role), fsspec's settings (FSSPEC_S3_ENDPOINT_URL, FSSPEC_S3_ANON=true) included; none is taken from a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipelines.storage.messages import FailedError, one_line
from pipelines.storage.reading import open_regular

__all__ = ["Entry", "Place", "RemotePath", "is_remote", "opened_place", "place_at", "size_of", "store_at"]

STORES = ("s3", "gs", "memory", "local")
"""The last two are fsspec's own: this process's memory, and a disk looked at as a store."""
EXTRA = "install it: python -m pip install --editable '.[remote]'"
REMEDIES = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true reads what is public, and "
    "FSSPEC_S3_ENDPOINT_URL names a store that is not Amazon's",
    "gs": "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon reads what is "
    "public",
}
URL = re.compile(rf"({'|'.join(STORES)})://([^/].*|/.+)")
FORBIDDEN = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ClientError", "HttpError")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file below a folder: its place, its length, and a mark that changes with its content."""

    place: RemotePath
    size: int
    mark: str


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder of an object store, by its URL: of `pathlib.Path`, what readers ask for."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def relative_to(self, root: RemotePath) -> PurePosixPath:
        """The path below a folder."""
        return PurePosixPath(self.url.removeprefix(f"{root.url}/"))

    def exists(self) -> bool:
        return bool(self._kind())

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def size(self) -> int:
        """Bytes of a file."""
        with _asking(self.url) as (store, path):
            return int(store.info(path)["size"])

    def open(self) -> IO[bytes]:
        """A file that is read where it lies, a few MiB at a time."""
        with _asking(self.url) as (store, path):
            return store.open(path, "rb")

    def read_bytes(self) -> bytes:
        """All of a file.

        Raises:
            FailedError: it cannot be read now, which says nothing of what it holds.
        """
        try:
            with _asking(self.url) as (store, path):
                return store.cat_file(path)
        except ValueError as error:
            raise FailedError(str(error)) from None

    def iterdir(self) -> list[RemotePath]:
        """What lies directly in a folder."""
        with _asking(self.url) as (store, path):
            names = [str(found).rstrip("/").rpartition("/")[2] for found in store.ls(path, detail=False)]
        return [self / name for name in names]

    def entries(self) -> list[Entry]:
        """All files below a folder, sorted by name, or the file alone. They are listed, not read; what marks an empty folder is
        none."""
        with _asking(self.url) as (store, path):
            found = store.find(path, detail=True)
        root = path.rstrip("/")
        return [
            Entry(place=RemotePath(self.url + name[len(root) :]), size=int(about["size"]), mark=_mark(about))
            for name, about in sorted(found.items())
            if about["type"] == "file" and not name.endswith("/")
        ]

    def put(self, file: Path) -> None:
        """Copies a file of this machine here; whoever reads it finds the old content or the new one.

        Raises:
            FileNotFoundError: the file is not there, or not any more.
        """
        try:
            with _asking(self.url) as (store, path):
                store.makedirs(path.rpartition("/")[0], exist_ok=True)
                store.put_file(str(file), path)
        except ValueError:
            file.stat()
            raise

    def get(self, file: Path) -> None:
        """Copies the file to this machine."""
        with _asking(self.url) as (store, path):
            store.get_file(path, str(file))

    def refuse_unwritable(self) -> None:
        """Writes a file below this folder and removes it, before the work whose results go there.

        Raises:
            ValueError: it cannot be written.
        """
        with _asking(self.url) as (store, path):
            store.makedirs(path, exist_ok=True)
            store.pipe_file(f"{path}/.probe", b"indm")
            store.rm_file(f"{path}/.probe")

    def remove(self) -> None:
        """Removes a file, if it is there."""
        with _asking(self.url) as (store, path):
            if store.exists(path):
                store.rm_file(path)

    def _kind(self) -> str:
        with _asking(self.url) as (store, path):
            try:
                return str(store.info(path)["type"])
            except (FileNotFoundError, NotADirectoryError):
                return ""


Place = Path | RemotePath
"""Where readers find a file or a folder."""


def is_remote(given: object) -> bool:
    """Whether what was given is the URL of an object store."""
    return URL.fullmatch(str(given)) is not None


def place_at(given: str | Path) -> Place:
    """Where a canonical source lies.

    Raises:
        ValueError: a URL with credentials, or of several parts.
    """
    if not is_remote(given):
        return Path(given)
    text = str(given).rstrip("/")
    scheme, _, rest = text.partition("://")
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            f"{scheme}://...@...: credentials do not belong in a URL; {REMEDIES.get(scheme, 'leave them out')}"
        )
    if "::" in rest:
        raise ValueError(f"{one_line(text, 200)}: one URL, without ::")
    return RemotePath(text)


def store_at(given: str, what: str) -> RemotePath | None:
    """A folder of an object store that an option names; None where it names none.

    Raises:
        ValueError: another place.
    """
    if not given:
        return None
    if not is_remote(given):
        raise ValueError(f"{what}={given!r}: not a place in an object store; give --{what} s3://BUCKET/FOLDER")
    return RemotePath(str(place_at(given)))


def opened_place(place: Place) -> IO[bytes]:
    """A file opened for reading, wherever it lies."""
    return RemotePath(str(place)).open() if is_remote(place) else open_regular(Path(str(place)))


def size_of(place: Place) -> int:
    """Bytes of a file, wherever it lies."""
    return RemotePath(str(place)).size() if is_remote(place) else Path(str(place)).stat().st_size


@contextmanager
def _asking(url: str) -> Iterator[tuple[Any, str]]:
    """The store of a URL, and the path in it; what goes wrong in the block is told in one line, without secrets.

    Raises:
        ValueError: it cannot be had; the message has the remedy.
    """
    scheme = url.partition("://")[0]
    try:
        import fsspec

        store = fsspec.filesystem(scheme, use_listings_cache=False)
        yield store, store._strip_protocol(url)
    except ImportError as error:
        missing = error.name or "s3fs" if scheme == "s3" else error.name or "gcsfs"
        raise ValueError(f"{url}: {scheme}:// needs {missing}, which is not installed; {EXTRA}") from None
    except FileNotFoundError:
        raise ValueError(f"{url}: no such file, folder or bucket; mend the name, or make it") from None
    except Exception as error:  # each store's library has errors of its own
        denied = isinstance(error, PermissionError) or type(error).__name__ in FORBIDDEN
        remedy = f"; {REMEDIES[scheme]}" if denied and scheme in REMEDIES else ""
        what = "no access" if denied else "cannot be reached or read"
        raise ValueError(f"{url}: {what} ({_without_query(one_line(error, 200))}){remedy}") from None


def _without_query(said: str) -> str:
    """A message without the queries of its URLs, in which signatures are."""
    return re.sub(r"\?[^\s\"']+", "?...", said)


def _mark(about: dict[str, Any]) -> str:
    """What a store says of a file that changes with its content: its tag, else its time."""
    names = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
    return next((str(about[name]) for name in names if about.get(name)), "")
