"""The MLflow store: its address, and whether it answers.

The store is MLFLOW_TRACKING_URI, else an sqlite file in the output directory. Its address is absolute, so that it means the
same store in every process, whatever the directory that it runs in. MLflow tries a store that cannot be had for minutes, and
prints a stack trace for each try; `reach` finds out in seconds and says why.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow  # noqa: F401  (it sets up its loggers when it is imported)
from sqlalchemy import make_url

__all__ = ["environment", "named", "reach", "tracking_uri"]

VARIABLE = "MLFLOW_TRACKING_URI"
HTTP_SECONDS = 5.0
LOCKED_SECONDS = 15.0
"""For which a locked sqlite file is waited for: the first command that uses one holds it for about ten."""
for logger in ("mlflow", "alembic"):
    logging.getLogger(logger).setLevel(
        logging.CRITICAL
    )  # what goes wrong is raised; stack traces are not for the terminal


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI with an absolute path, else an sqlite store in the output directory.

    Raises:
        ValueError: an sqlite store in memory, which other processes do not see.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return _sqlite(root.resolve() / "mlflow.db")
    scheme, _, rest = given.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return given
    path, _, query = rest.removeprefix("/").partition("?")
    if path in ("", ":memory:"):
        raise ValueError(
            f"{VARIABLE}={given}: a store in memory is lost; give sqlite:///PATH.db or the URL of a server"
        )
    return _sqlite(Path(unquote(path)).expanduser().absolute(), query)


def _sqlite(file: Path, query: str = "") -> str:
    """The address of an sqlite file. Where its path has characters that mean something in an address, all of it is quoted:
    MLflow makes the directories of the path as it stands there, and in a path that is quoted whole it finds none to make."""
    path = str(file)
    if set(path) & set("%?#"):
        path = "/" + quote(path[1:], safe="")
    uri = f"sqlite:///{path}" + (f"?{query}" if query else "")
    if make_url(uri).database != str(file):
        raise ValueError(f"{file}: this name cannot be that of a tracking store; give another --out, or set {VARIABLE}")
    return uri


def environment(root: Path) -> dict[str, str]:
    """Environment variables that make a worker write to the same store."""
    names = ("MLFLOW_DISABLE_TELEMETRY", "GIT_PYTHON_REFRESH")
    return {VARIABLE: tracking_uri(root)} | {name: os.environ[name] for name in names}


def named(uri: str) -> str:
    """An address as it may be printed: without a password."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def reach(uri: str, patience: float = LOCKED_SECONDS) -> None:
    """Finds out whether a store answers: of sqlite, whether its file can be written; of a server, whether anything comes
    back. Of other stores MLflow itself finds out.

    Args:
        uri: Of the store.
        patience: Seconds for which a locked sqlite file is waited for.

    Raises:
        ValueError: it does not answer; why, without the address.
    """
    try:
        if uri.startswith("sqlite"):
            _open(Path(make_url(uri).database or ""), patience)
        elif uri.startswith(("http://", "https://")):
            _ask(uri)
    except (OSError, sqlite3.Error, HTTPException) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _open(file: Path, patience: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=patience, isolation_level=None)) as connection:
        connection.execute("PRAGMA schema_version")  # what is no database shows here
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _ask(uri: str) -> None:
    parts = urlsplit(uri)
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], f"{parts.path.rstrip('/')}/health", "", ""))
    try:
        with urllib.request.urlopen(address, timeout=HTTP_SECONDS):
            pass
    except (
        urllib.error.HTTPError
    ) as error:  # a server that wants credentials answers, a gateway without a server does not
        if error.code >= 500:
            raise OSError(f"the server answers {error.code} {error.reason}") from None
    except (TimeoutError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise OSError(f"no answer within {HTTP_SECONDS:.0f} s") from None
        if not isinstance(reason, ssl.SSLError):  # a certificate that MLflow may have been told to trust
            raise OSError(str(reason)) from None
