"""A report of trained runs: `python pipelines/report.py RUN [RUN ...] [--out DIR]`.

Writes report.html, one page that needs nothing beside it, and report.md, its tables: the figures of `evaluate.py` and
`compare.py` beside those of the papers, samples, learning curves, the diagnostics of the INDM paper, configuration and
environment. Every row says its data and hardware: only rows on the same data in the same features are comparable.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import base64
import html
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from indm_core.likelihood import dequantise
from pipelines.atomic import write_text
from pipelines.cli import describe, options, override, run_command
from pipelines.compare import FILE as COMPARED
from pipelines.config import RunConfig, digest, identity, load, read_run
from pipelines.diagnose import Drawing, diagnose, norms
from pipelines.evaluate import BRIEF, FULL
from pipelines.loop import read_metrics
from pipelines.models import DataSpec
from pipelines.outputs import RULE, find_run, output_root
from pipelines.pictures import learning_curve
from pipelines.prepare import ensure
from pipelines.published import PUBLISHED
from pipelines.shards import load_card, read_all

__all__ = ["Report", "main", "report"]

Row = Sequence[str]


class _Printed(tuple[str, ...]):
    """A row of a paper's table."""


Table = tuple[str, Row, Sequence[Row]]
"""Title, head and rows."""


@dataclass(frozen=True, kw_only=True)
class Report:
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


@dataclass(frozen=True)
class Run:
    """A run's directory and what stands in it."""

    directory: Path
    config: RunConfig
    spec: DataSpec
    measured: dict[str, Any] | None
    compared: dict[str, Any] | None

    @staticmethod
    def read(directory: Path) -> Run:
        config, spec = read_run(directory / "config.json")
        name, trained = directory.name, (directory / "model.safetensors").is_file()
        weights = digest(directory) if trained else ""
        found = [_json(directory / file, "unit", "features", "differences") for file in (FULL, BRIEF)]
        measured = next((d for d in found if d and d["weights"].get(name) == weights), None)  # not of earlier weights
        compared = _json(directory / COMPARED, "features", "num_samples")
        if compared and (not trained or compared["weights"] != identity(directory)):
            compared = None
        return Run(directory, config, spec, measured, compared)

    @property
    def name(self) -> str:
        return self.directory.name


def _json(file: Path, *needed: str) -> dict[str, Any] | None:
    """A document of `evaluate.py` or `compare.py`; None where there is none.

    Raises:
        ValueError: something else under that name.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); remove it, or measure again") from None
    whole = isinstance(document, dict) and {"runs", "weights", *needed} <= document.keys()
    if not whole or not isinstance(document["runs"], dict):
        raise ValueError(f"{file}: no measurement of runs; remove it, or measure again")
    return document


def report(directories: Sequence[Path], wanted: Report) -> Path:
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
    tables = [("Likelihood and distance", *_main_table(runs)), *_difference_tables(runs), *_sampler_tables(runs)]
    if wanted.images:
        tables.append(_norm_table(runs, wanted.images))
    tables.append(("Environment", ("what", "value"), _environment()))
    title = ", ".join(run.name for run in runs)
    write_text(out / "report.md", _markdown(title, tables))
    write_text(out / "report.html", _page(title, tables, drawings, runs))
    return out / "report.html"


def _main_table(runs: Sequence[Run]) -> tuple[Row, Sequence[Row]]:
    """Rows laid out as Table 4 of INDM's paper: ours, then the papers'; cost: evaluations of networks per training step."""
    head = ("model", "data, source", "params", "cost", "steps", "NLL", "NELBO", "gap", "distance")
    rows: list[Row] = []
    for run in runs:
        figures = run.measured["runs"].get(run.name) if run.measured else None
        steps, data = f"{run.config.train.steps:,}", f"{run.spec.name}, this machine"
        if figures is None or run.measured is None:
            rows.append(
                (run.name, data, "", "", steps, "not measured on these weights: pipelines/evaluate.py", "", "", "")
            )
            continue
        unit = run.measured["unit"]
        cells = [_measured(figures[kind], unit, run.spec) for kind in ("nll", "nelbo", "gap")]
        frechet = figures.get("frechet")
        label = f"FD({run.measured['features']}) "
        distance = f"{label}{_with_error(frechet)}, n = {frechet['samples']:,}" if frechet else ""
        cost = " + ".join(f"{num} {network}" for network, num in figures.get("evaluations", {}).items())
        rows.append((run.name, data, f"{figures['parameters'] / 1e6:.2f}M", cost, steps, *cells, distance))
        for name, law in (run.measured.get("baselines") or {}).items() if run is runs[0] else ():
            rows.append((name, data, "", "", "", _measured(law | {"se": None}, unit, run.spec), "", "", ""))
    images, table = len(runs[0].spec.shape) == 3, runs[0].config.data.options.table
    for row in (row for row in PUBLISHED if (images if row.kind == "image" else table == row.data.lower())):
        cells = ["" if value is None else f"{value:.2f} {row.unit}" for value in (row.nll, row.nelbo, row.gap)]
        fids = [f"FID {value:.2f} ({name})" for name, value in (("ODE", row.fid_ode), ("PC", row.fid_pc)) if value]
        rows.append(_Printed((row.model, f"{row.data}, {row.source}", row.params, "", "", *cells, ", ".join(fids))))
    return head, rows


def _measured(estimate: dict[str, Any], unit: str, spec: DataSpec) -> str:
    """Mean, error and unit; of vectors, whose papers print totals, the total too."""
    text = f"{_with_error(estimate)} {unit}"
    if len(spec.shape) == 3 or estimate["mean"] is None:
        return text
    return f"{text} (total {spec.num_dims * estimate['mean']:.2f})"


def _with_error(estimate: dict[str, Any]) -> str:
    """Mean and standard error; what could not be had is n/a."""
    mean, se = estimate["mean"], estimate["se"] if estimate["se"] is not None else estimate.get("se_images")
    return " ± ".join("n/a" if value is None else f"{value:.4f}" for value in (mean, se))


def _difference_tables(runs: Sequence[Run]) -> list[Table]:
    """The paired differences of the measurement that the first run is part of."""
    measured = runs[0].measured
    if not measured or not measured["differences"]:
        return []
    rows = [
        (pair, *(_with_error(kinds[kind] | {"se": kinds[kind]["se_images"]}) for kind in ("nll", "nelbo")))
        for pair, kinds in measured["differences"].items()
    ]
    head = ("models", f"NLL ({measured['unit']})", f"NELBO ({measured['unit']})")
    return [("Differences, paired per image on the same draws", head, rows)]


def _sampler_tables(runs: Sequence[Run]) -> list[Table]:
    """The rows of `compare.py`, per run."""
    found = []
    for run in runs:
        rows = run.compared["runs"].get(run.name) if run.compared else None
        if not rows or not run.compared:
            continue
        head = ("sampler", "evaluations", "seconds", f"FD({run.compared['features']})", "kernel distance")
        shown = [
            (
                r["row"],
                "n/a" if r["evaluations"] is None else f"{r['evaluations']:.1f}",
                f"{r['seconds']:.1f}",
                _with_error(r["frechet"]) + (f", {r['diverged']} diverged" if r.get("diverged") else ""),
                _with_error(r["kernel"]),
            )
            for r in rows
        ]
        found.append((f"Samplers of {run.name}, {run.compared['num_samples']:,} samples per row", head, shown))
    return found


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
    series = {run.name: [r for r in read_metrics(run.directory) if "nelbo" in r] for run in runs}
    unit = next((r["unit"] for records in series.values() for r in records), "")
    if any(series.values()):
        learning_curve(series, unit, out / "learning_curve.png")
        found.append(
            Drawing(out / "learning_curve.png", "Learning curves", "Training NELBO; dotted: end of pre-training.")
        )
    if images:
        models = [(run.name, load(run.directory)) for run in runs]
        found += diagnose(models, _data(runs[0], images), runs[0].spec, out)
    return found


def _environment() -> Sequence[Row]:
    packages = ("torch", "ray", "numpy", "pyarrow", "mlflow", "torch-fidelity")
    versions = []
    for name in packages:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            versions.append((name, "not installed"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores, GPU: {gpu}"),
        ("system", platform.platform()),
        ("python", platform.python_version()),
        *versions,
    ]


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
        kind = " class='paper'" if isinstance(row, _Printed) else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _plain(value: Any) -> str:
    return type(value).__name__ if is_dataclass(value) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command(argv, f"{__doc__}\nOptions:\n{describe(Report())}\n\n{RULE}.", _report)


def _report(words: list[str], given: dict[str, str]) -> None:
    print(report([find_run(word) for word in words], override(Report(), given)))


if __name__ == "__main__":
    from pipelines.report import main as importable_main

    sys.exit(importable_main())
