"""Builds the pages of this folder: `make docs`. Nothing is fetched while it builds, and a page asks the network for nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "INDM"
copyright = "the authors of INDM; Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "INDM"
html_css_files = ["pages.css"]
html_static_path = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
highlight_language = "none"
myst_heading_anchors = 3
"""[text](page.md#a-heading) is checked down to this level of headings."""
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of PyTorch's classes are not for these pages
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]
"""A name that two modules have, as `sample`, the function and the module; no page links by one."""

SECTIONS = ("Args:", "Returns:", "Raises:", "References:")
BOLD = re.compile(r"\\\*\\\*([A-Z][^*]*\.)\\\*\\\*")
COLUMNS = re.compile(r"\S {3,}\S")
NAMES = re.compile(r"( {4}[\w, ]+: )(.*)")


def setup(app: Any) -> None:
    """Docstrings are plain text with equations, which reStructuredText would read as markup."""
    app.connect("autodoc-process-docstring", _as_rst, priority=400)  # before napoleon reads the sections


def _as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = list(_lines(lines))


def _lines(lines: list[str]) -> Iterator[str]:
    """Indented blocks, which are equations and tables, word by word; of the rest, what is markup quoted."""
    section, verbatim = "", False
    for line in lines:
        if line in SECTIONS:
            section, verbatim = line, False
            yield from ("", line)
        elif not line.strip():
            yield ""
        elif not section and (line.startswith(" ") or COLUMNS.search(line)):
            if not verbatim:
                yield from ("", "::", "")
            verbatim = True
            yield f"    {line}"
        else:
            if verbatim or (section and not line.startswith(" ")):
                yield ""
                section, verbatim = "", False
            named = NAMES.fullmatch(line) if section in ("Args:", "Raises:") else None
            if section == "References:" and line != section:
                line = f"    {line.strip()}"  # one paragraph: some continue a title on a deeper line
            yield named[1] + _quoted(named[2]) if named else _quoted(line)


def _quoted(text: str) -> str:
    """Text with code spans as they are meant, and no other markup."""
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        parts[i] = f"``{part}``" if i % 2 else re.sub(r"([\\*_|`])", r"\\\1", part)
    return BOLD.sub(r"**\1**", "".join(parts))
