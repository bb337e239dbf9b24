"""A manifest: a JSON document that vouches, by SHA-256, for the files beside it and for itself.

    {..., "schema": 1, "files": {"training.safetensors": SHA-256}, "sha256": SHA-256 of all this without this entry}

One bit that differs, in the document or in a file, is found when it is read. Documents from before there were manifests have no
"schema": they are read, and are not `checked`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.storage.files import sha256_of, write_text
from pipelines.storage.messages import one_line
from pipelines.storage.reading import parse_json, read_document

__all__ = ["DamagedError", "Manifest", "read_manifest", "write_manifest"]

SCHEMA = 1
OWN = ("schema", "files", "sha256")


class DamagedError(ValueError):
    """A document, or a file that it vouches for, is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a manifest says.

    Args:
        file: The document.
        content: Its entries, without those of the manifest itself.
        files: SHA-256 of the files beside it, by name.
        checked: Whether it had a checksum; False: written before there were any.
    """

    file: Path
    content: dict[str, Any]
    files: Mapping[str, str]
    checked: bool

    def verify(self) -> None:
        """Compares the files with their checksums; there are none to compare where it is not `checked`.

        Raises:
            DamagedError: a file that is missing or that differs.
        """
        for name, expected in self.files.items():
            file = self.file.with_name(name)
            try:
                found = sha256_of(file)
            except FileNotFoundError:
                raise DamagedError(f"{file} is missing") from None
            except ValueError as error:  # a directory, a FIFO, a device
                raise DamagedError(str(error)) from None
            if found != expected:
                raise DamagedError(f"{file} has SHA-256 {found[:12]}..., where {expected[:12]}... was written")


def write_manifest(file: Path, content: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Writes a manifest, whole or not at all.

    Args:
        file: The document.
        content: Entries that JSON can hold.
        files: SHA-256 of files beside it, by name.
    """
    document = {**content, "schema": SCHEMA, "files": dict(files)}
    write_text(file, _text({**document, "sha256": _digest(document)}))


def read_manifest(file: Path) -> Manifest:
    """Reads a manifest and compares it with its own checksum; its files are left to `Manifest.verify`.

    Raises:
        DamagedError: missing, no JSON object, or not what was written.
        ValueError: of a schema that this code does not read.
        OSError: it cannot be read.
    """
    try:
        text = read_document(file)
        document = parse_json(text)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{file} is missing") from None
    except ValueError as error:
        raise DamagedError(f"{file} is not the JSON that was written ({one_line(error, 200)})") from None
    if not isinstance(document, dict):
        raise DamagedError(f"{file} is no JSON object")
    if not any(name in document for name in OWN):
        return Manifest(file=file, content=document, files={}, checked=False)
    given = document.pop("sha256", None)
    if _digest(document) != given or _text({**document, "sha256": given}).encode() != text:
        raise DamagedError(f"{file} does not agree with its own SHA-256")
    if document.get("schema") != SCHEMA:
        schema = one_line(document.get("schema"), 60)
        raise ValueError(f"{file}: schema {schema}, this code reads {SCHEMA}; use the newer version")
    files = document.get("files")
    if not isinstance(files, dict) or not all(map(_vouches, files.items())):
        raise DamagedError(f"{file} does not name files beside it and their SHA-256")
    content = {name: value for name, value in document.items() if name not in OWN}
    return Manifest(file=file, content=content, files=files, checked=True)


def _vouches(entry: tuple[str, Any]) -> bool:
    """Whether an entry has the name of a file beside the manifest, and a checksum."""
    name, digest = entry
    return name not in ("", "..") and Path(name).name == name and "\0" not in name and isinstance(digest, str)


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(document).encode()).hexdigest()
