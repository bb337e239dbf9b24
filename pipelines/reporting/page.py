"""The report: one page that needs nothing beside it, and its tables as Markdown."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch

from indm_core.likelihood import dequantise
from pipelines.config.cli import options
from pipelines.config.store import load
from pipelines.data.card import load_card
from pipelines.data.ingest import ensure
from pipelines.data.shards import read_all
from pipelines.reporting.diagnose import Drawing, diagnose, norms
from pipelines.reporting.tables import (
    Printed,
    Row,
    Run,
    Table,
    difference_tables,
    environment,
    main_table,
    sampler_tables,
)
from pipelines.runs.job import read_metrics
from pipelines.runs.pictures import learning_curve
from pipelines.storage.files import write_text
from pipelines.storage.outputs import output_root

__all__ = ["ReportOptions", "report"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is reported.

    Args:
        images: Test images that the diagnostics are taken on; 0 leaves them out.
        out: Directory of the report; RUN/report of the first run where it is empty.
        traceback: Show where an error came from.
    """

    images: int = 64
    out: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.images < 0 or self.images == 1:
            raise ValueError(f"images={self.images} must be 0 or at least 2")


def report(directories: Sequence[Path], wanted: ReportOptions) -> Path:
    """Writes the report of runs; returns the page.

    Raises:
        ValueError: a directory that holds no run.
    """
    runs = [Run.read(directory) for directory in directories]
    for run in runs[1:]:
        if run.spec != runs[0].spec or run.config.data.source != runs[0].config.data.source:
            names = f"{run.spec.name} and {runs[0].spec.name}"
            raise ValueError(f"{run.directory} and {directories[0]} are on other data ({names}): report them apart")
    out = output_root(wanted.out or str(directories[0] / "report"))
    drawings = _drawings(runs, out, wanted.images)
    tables = [("Likelihood and distance", *main_table(runs)), *difference_tables(runs), *sampler_tables(runs)]
    if wanted.images:
        tables.append(_norm_table(runs, wanted.images))
    tables.append(("Environment", ("what", "value"), environment()))
    title = ", ".join(run.name for run in runs)
    write_text(out / "report.md", _markdown(title, tables))
    write_text(out / "report.html", _page(title, tables, drawings, runs))
    return out / "report.html"


def _norm_table(runs: Sequence[Run], images: int) -> Table:
    models = [(run.name, load(run.directory)) for run in runs]
    found = norms(models, _data(runs[0], images))
    rows = [(name, *(f"{m:.2f} ± {e:.2f}" for m, e in row.values())) for name, row in found.items()]
    return ("Mean squared norms (Table 2)", ("model", "data", "latent", "prior"), rows)


def _data(run: Run, images: int) -> torch.Tensor:
    """Test data, dequantised."""
    place = ensure(run.config.data.source, output_root(None) / "data", run.config.data.options)
    k = torch.from_numpy(read_all(place, load_card(place), "test", images)["x"].astype("float32"))
    return dequantise(k, run.spec.levels, run.spec.low, run.spec.high, torch.Generator().manual_seed(0))


def _drawings(runs: Sequence[Run], out: Path, images: int) -> list[Drawing]:
    """Samples and learning curves that are there, and the diagnostics."""
    found = []
    for run in runs:
        for file, title in (("samples.png", "Samples"), ("compare.png", "Samplers")):
            if (run.directory / file).is_file():
                found.append(Drawing(run.directory / file, f"{title} of {run.name}", ""))
    series = {run.name: [r for r in read_metrics(run.directory) if "nelbo" in r.terms] for run in runs}
    unit = next((r.unit for records in series.values() for r in records), "")
    if any(series.values()):
        learning_curve(series, unit, out / "learning_curve.png")
        found.append(
            Drawing(out / "learning_curve.png", "Learning curves", "Training NELBO; dotted: end of pre-training.")
        )
    if images:
        models = [(run.name, load(run.directory)) for run in runs]
        found += diagnose(models, _data(runs[0], images), runs[0].spec, out)
    return found


def _markdown(title: str, tables: Sequence[Table]) -> str:
    parts = [f"# {title}"]
    for name, head, rows in tables:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
        lines.insert(1, "|" + "---|" * len(head))
        parts.append(f"## {name}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13.5px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left; vertical-align: top }
th { background: #f4f4f6 } tr.paper td { color: #777 } figure { margin: 1.5rem 0 } img { max-width: 100% }
figcaption { color: #555; font-size: 13.5px } pre { background: #f6f6f8; padding: 1rem; overflow-x: auto; font-size: 12.5px }
"""


def _page(title: str, tables: Sequence[Table], drawings: Sequence[Drawing], runs: Sequence[Run]) -> str:
    """One HTML page; pictures are embedded, and everything that came from files is escaped."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for name, head, rows in tables:
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts.append(_html_table(head, rows))
    for drawing in drawings:
        encoded = base64.b64encode(drawing.file.read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(drawing.title)}</h2><figure><img alt='{html.escape(drawing.title, quote=True)}' "
            f"src='data:image/png;base64,{encoded}'><figcaption>{html.escape(drawing.caption)}</figcaption></figure>"
        )
    for run in runs:
        text = "\n".join(f"{option.path} = {_plain(option.value)}" for option in options(run.config))
        parts.append(
            f"<details><summary>Configuration of {html.escape(run.name)}</summary><pre>{html.escape(text)}</pre></details>"
        )
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _html_table(head: Row, rows: Sequence[Row]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        kind = " class='paper'" if isinstance(row, Printed) else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _plain(value: Any) -> str:
    return type(value).__name__ if is_dataclass(value) else str(value)
