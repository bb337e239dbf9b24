"""A page as Markdown: its tables, terms and notes. Pictures stay in the HTML page.

Markdown passes HTML on, so that what came from files is escaped as it is on that page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import assert_never

from pipelines.reporting.page.parts import Folded, Gallery, Listing, Meanings, Note, Page, Part, Table

__all__ = ["markdown"]


def markdown(page: Page) -> str:
    """The text of a page."""
    parts = [f"# {_marked(page.title)}", *map(_marked, page.said)]
    for section in page.sections:
        found = [text for part in section.parts for text in _part(part)]
        parts += [f"## {_marked(section.title)}", *found] if found else []
    return "\n\n".join(parts) + "\n"


def _part(part: Part) -> Iterator[str]:
    """The paragraphs of a part."""
    match part:
        case Table():
            if part.title:
                yield f"### {_marked(part.title)}"
            lines = ["| " + " | ".join(map(_marked, row)) + " |" for row in (part.head, *part.rows)]
            lines.insert(1, "|" + "---|" * len(part.head))
            yield "\n".join(lines)
            if part.note:
                yield _marked(part.note)
        case Meanings():
            yield "\n".join(f"- {_marked(term)}: {_marked(meaning)}" for term, meaning in part.terms)
        case Note():
            yield _marked(part.text)
        case Listing():
            yield "\n".join(f"    {html.escape(line, quote=False)}" for line in part.text.splitlines())
        case Folded():
            yield f"### {_marked(part.title)}"
            for inner in part.parts:
                yield from _part(inner)
        case Gallery():
            return
        case _:
            assert_never(part)


def _marked(text: str) -> str:
    """A text on one line of Markdown: no HTML, no picture or link, no end of a cell."""
    line = " ".join(text.replace("\n", "; ").split())
    return re.sub(r"([\\|\[\]`])", r"\\\1", html.escape(line, quote=False))
