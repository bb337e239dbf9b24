"""A page as one HTML file that needs nothing beside it: pictures are embedded, and what came from files is escaped.

It is read without scripts, on a wide screen and on a telephone: tables and wide pictures scroll by themselves, `details` fold.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import assert_never

from pipelines.reporting.page.markdown import markdown
from pipelines.reporting.page.parts import (
    Drawing,
    Folded,
    Gallery,
    Listing,
    Meanings,
    Note,
    Page,
    Part,
    Row,
    Section,
    Table,
)
from pipelines.storage.files import write_text

__all__ = ["is_picture", "write_page"]

PNG = b"\x89PNG\r\n\x1a\n"
GRID, WIDE = 440, 800
"""Pixels: a grid of images is no wider; above the second a picture scrolls on a narrow screen, where it would be too small."""


def write_page(stem: str, page: Page, out: Path) -> Path:
    """Writes STEM.html and, of its tables, STEM.md into a directory; returns the page."""
    write_text(out / f"{stem}.md", markdown(page))
    write_text(out / f"{stem}.html", _html(page))
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


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: .8rem auto 3rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.45rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 1.5rem 0 .3rem }
h3 { font-size: 1rem; margin: .9rem 0 .2rem; overflow-wrap: anywhere } figure h3 { margin: .2rem 0; font-size: .93rem }
p { margin: .1rem 0; max-width: 76rem; overflow-wrap: anywhere } header p, .note { color: #555; font-size: 13px }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; margin: .3rem 0; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; min-width: 3.5rem }
th { border-bottom-color: #888; white-space: nowrap } td { max-width: 20rem; overflow-wrap: break-word }
small { color: #666; font-size: 11.5px; line-height: 1.3; display: block; min-width: 7rem }
td span { white-space: nowrap }
.gallery { display: flex; flex-wrap: wrap; gap: .6rem 1.6rem } img { max-width: 100%; height: auto; display: block }
figure { margin: 0; max-width: min(100%, 37rem) } figure.wide { max-width: 100% } .top figure { max-width: min(100%, 24rem) }
.top img { width: 23rem }
.top figure.large { max-width: min(100%, 37rem) } .top .large img { width: auto }
.top figure.wide { max-width: 100% } .top h2 { margin-top: .7rem }
figcaption { color: #555; font-size: 12.5px; max-width: 38rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .3rem 0; font-size: 13.5px }
dt { font-weight: 600 } dd { margin: 0 } summary { cursor: pointer; color: #336; margin: .3rem 0; overflow-wrap: anywhere }
pre { background: #f6f6f8; padding: .7rem; overflow-x: auto; font-size: 12.5px; margin: .3rem 0 }
@media (max-width: 640px) {
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .4rem } .wide img { max-width: none; width: 42rem }
  .top .gallery { gap: .6rem; flex-wrap: nowrap; overflow-x: auto } .top figure { flex: 0 0 46% } .top .large { flex: 0 0 92% }
}
"""


def _html(page: Page) -> str:
    first, *others = [section for section in page.sections if section.parts]
    said = "".join(f"<p>{escape(line)}</p>" for line in page.said)
    body = "\n".join(
        [
            f"<header><h1>{escape(page.title)}</h1>{said}</header>",
            f"<div class='top'>{_section(first)}</div>",
            *map(_section, others),
        ]
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><title>{escape(page.title)}</title>"
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _section(section: Section) -> str:
    return f"<section><h2>{escape(section.title)}</h2>{''.join(map(_part, section.parts))}</section>"


def _part(part: Part) -> str:
    match part:
        case Table():
            title = f"<h3>{escape(part.title)}</h3>" if part.title else ""
            note = f"<p class='note'>{escape(part.note)}</p>" if part.note else ""
            return f"{title}{_table(part.head, part.rows)}{note}"
        case Gallery():
            return f"<div class='gallery'>{''.join(map(_figure, part.drawings))}</div>"
        case Meanings():
            return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in part.terms)}</dl>"
        case Listing():
            return f"<pre>{escape(part.text)}</pre>"
        case Note():
            return f"<p class='note'>{escape(part.text)}</p>"
        case Folded():
            return f"<details><summary>{escape(part.title)}</summary>{''.join(map(_part, part.parts))}</details>"
        case _:
            assert_never(part)


def _figure(drawing: Drawing) -> str:
    content = drawing.file.read_bytes()
    width = int.from_bytes(content[16:20])
    title = f"<h3>{escape(drawing.title)}</h3>" if drawing.title else ""
    encoded = base64.b64encode(content).decode()
    return (
        f"<figure{_size(width)}>{title}<div class='scroll'>"
        f"<img alt='{escape(drawing.title or drawing.caption)}' src='data:image/png;base64,{encoded}'></div>"
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


def _size(width: int) -> str:
    """The class of a picture that is wider than a grid of images."""
    return f" class='{'wide large' if width > WIDE else 'large'}'" if width > GRID else ""


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def _cell(text: str) -> str:
    """A figure, and below it in small letters how it came about."""
    figure, _, how = text.partition("\n")
    return f"<span>{escape(figure)}</span><small>{escape(how)}</small>" if how else escape(figure)
