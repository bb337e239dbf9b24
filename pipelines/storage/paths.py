"""Paths as people give them: ~ is their home directory, file:// is a path, and no other URL is one."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["local_path"]

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def local_path(given: str | Path, what: str) -> Path:
    """A path of this machine, with ~ expanded, as it was given otherwise.

    Args:
        given: What was typed.
        what: The option that it was given to, for messages.

    Raises:
        ValueError: a URL of somewhere else, or the home directory of nobody.
    """
    text = str(given)
    if URL.match(text):
        url = urlsplit(text)
        if url.scheme.lower() != "file" or url.netloc not in ("", "localhost") or url.query or url.fragment:
            raise ValueError(
                f"{what} {text}: a URL is no place for files here; give a path (mount or copy what lies there)"
            )
        text = unquote(url.path)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{what} {text}: {str(error).rstrip('.')}; give the whole path") from None
