"""A page of figures and tables that needs nothing beside it, and its tables as Markdown.

Figures come first, then tables. Rows of papers on other data than the runs' are folded: they can be looked up, not compared.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.config.cli import options
from pipelines.reporting.diagnose import Drawing
from pipelines.reporting.tables import Printed, Row, Run, Table
from pipelines.storage.files import write_text

__all__ = ["is_picture", "write_pages"]


def write_pages(
    stem: str, tables: Sequence[Table], drawings: Sequence[Drawing], runs: Sequence[Run], out: Path
) -> Path:
    """Writes STEM.md and STEM.html into a directory; returns the page."""
    title = ", ".join(run.name for run in runs)
    write_text(out / f"{stem}.md", _markdown(title, tables))
    write_text(out / f"{stem}.html", _page(title, tables, drawings, runs))
    return out / f"{stem}.html"


def is_picture(file: Path, inside: Path) -> bool:
    """Whether a picture is there to be embedded; one that lies outside of a directory, or is no PNG, is named and left out."""
    if not file.is_file():
        return False
    if not file.resolve().is_relative_to(inside.resolve()):
        print(f"{file}: left out, it is a link to {file.resolve()}, outside of {inside}", flush=True)
        return False
    with file.open("rb") as stream:
        found = stream.read(len(PNG)) == PNG
    if not found:
        print(f"{file}: left out, it is no PNG picture", flush=True)
    return found


def _markdown(title: str, tables: Sequence[Table]) -> str:
    """The tables; Markdown passes HTML on, so that what came from files is escaped as it is on the page."""
    parts = [f"# {_marked(title)}"]
    for name, head, rows in tables:
        lines = ["| " + " | ".join(map(_marked, row)) + " |" for row in (head, *rows)]
        lines.insert(1, "|" + "---|" * len(head))
        parts.append(f"## {_marked(name)}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _marked(text: str) -> str:
    """A text on one line of Markdown: no HTML, no picture or link, no end of a cell."""
    return re.sub(r"([\\|\[\]`])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


PNG = b"\x89PNG\r\n\x1a\n"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13.5px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left; vertical-align: top }
th { background: #f4f4f6 } tr.paper td { color: #777 } figure { margin: 1.5rem 0 } img { max-width: 100% }
.figures { display: flex; flex-wrap: wrap; gap: 0 2rem } .figures section { max-width: 100% } figcaption { max-width: 44rem }
figcaption { color: #555; font-size: 13.5px } summary { cursor: pointer; color: #336 }
pre { background: #f6f6f8; padding: 1rem; overflow-x: auto; font-size: 12.5px }
"""


def _page(title: str, tables: Sequence[Table], drawings: Sequence[Drawing], runs: Sequence[Run]) -> str:
    """One HTML page; pictures are embedded, and everything that came from files is escaped."""
    parts = [f"<h1>{html.escape(title)}</h1>", "<div class='figures'>", *map(_figure, drawings), "</div>"]
    for name, head, rows in tables:
        parts.append(f"<h2>{html.escape(name)}</h2>")
        near = [row for row in rows if not isinstance(row, Printed) or _on(row, runs[0].spec.name)]
        parts.append(_html_table(head, near))
        if far := [row for row in rows if row not in near]:
            inner = _html_table(head, far)
            parts.append(f"<details><summary>{len(far)} rows of papers on other data</summary>{inner}</details>")
    for run in runs:
        text = "\n".join(f"{option.path} = {option.plain}" for option in options(run.config))
        parts.append(
            f"<details><summary>Configuration of {html.escape(run.name)}</summary><pre>{html.escape(text)}</pre></details>"
        )
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _figure(drawing: Drawing) -> str:
    encoded = base64.b64encode(drawing.file.read_bytes()).decode()
    return (
        f"<section><h2>{html.escape(drawing.title)}</h2><figure><img alt='{html.escape(drawing.title, quote=True)}' "
        f"src='data:image/png;base64,{encoded}'><figcaption>{html.escape(drawing.caption)}</figcaption></figure></section>"
    )


def _on(row: Row, data: str) -> bool:
    """Whether a paper's row is on the data set of a name: CIFAR-10 is cifar10."""
    given, theirs = ("".join(filter(str.isalnum, name)).lower() for name in (data, row[1].partition(",")[0]))
    return given == theirs


def _html_table(head: Row, rows: Sequence[Row]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        kind = " class='paper'" if isinstance(row, Printed) else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"
