"""Samplers compared: `python pipelines/compare.py RUN [RUN ...] [--rows "em:10 em:100 ode"] [--num-samples 5000]`.

A row is a sampler with options, `em:100`, `pc:1000:snr=0.1`, `ode:rtol=1e-5,atol=1e-5`: its name, the number of its steps, and
any option of `Sampling`. Every row of every run draws the same seeds, and is measured by the Frechet and kernel distance to the
training data, the evaluations of the score that a sample takes, and the seconds of one actor.

Features of samples are kept under RUN/compare/ as they are made: a killed table goes on where it stopped, and a larger
--num-samples adds to what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines import evaluate
from pipelines.atomic import write_text
from pipelines.checkpoint import save_tensors
from pipelines.cli import describe, override, run_command
from pipelines.cluster import connect
from pipelines.outputs import RULE, find_run, output_root
from pipelines.pictures import draw_levels, lines
from pipelines.pool import Pool, places
from pipelines.prepare import ensure
from pipelines.sampling import Sampling
from pipelines.shards import load_card

__all__ = ["FILE", "Compare", "compare", "main", "parse_row", "table"]

FILE = "compare.json"
CHUNK = 250
"""Samples per task and file."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """What is compared.

    Args:
        rows: Samplers, separated by blanks: name[:steps][:option=value,...].
        num_samples: Samples per row.
        inception_weights: File of the Inception weights; without it a small classifier of the data gives the features.
        actors: Actors; 0 takes one per GPU of the cluster, else one for every two logical CPUs.
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        traceback: Show where an error came from.
    """

    rows: str = "em:10 em:20 em:50 em:100 em:1000"
    num_samples: int = 5000
    inception_weights: str = ""
    actors: int = 0
    out: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples={self.num_samples} must be at least 2")
        for row in self.rows.split():
            parse_row(row)


def parse_row(row: str) -> Sampling:
    """The sampler that a row names.

    Raises:
        ValueError: an unknown sampler or option, with the row.
    """
    name, *rest = row.split(":")
    given = {"sampler": name}
    for word in rest:
        for part in word.split(","):
            option, equals, value = part.partition("=")
            given |= {option: value} if equals else {"steps": part}
    try:
        return override(Sampling(), given)
    except ValueError as error:
        raise ValueError(f"rows: {row!r}: {error}") from None


def compare(runs: Sequence[Path], wanted: Compare, root: Path) -> dict[str, Any]:
    """Measures every row of every run; Ray must be connected.

    Returns:
        {"features", "num_samples", "data", "runs": {name: [{row, evaluations, seconds, frechet, kernel}]}}; written into each
        run's directory, beside compare.png.
    """
    subjects = evaluate.subjects_of(runs)
    data = ensure(subjects[0].run.data.source, root / "data", subjects[0].run.data.options)
    card = load_card(data)
    name, make_features = evaluate.feature_maker(card, data, root, wanted.inception_weights)
    rows = wanted.rows.split()
    places_of = {(i, row): _place(run, row, name) for i, run in enumerate(runs) for row in rows}
    chunks = [(a, min(a + CHUNK, wanted.num_samples)) for a in range(0, wanted.num_samples, CHUNK)]
    tasks = {
        (i, row, a, b): ("sample", (i, list(range(a, b)), parse_row(row)))
        for a, b in chunks
        for row in rows
        for i in range(len(runs))
        if _read(places_of[i, row], a, b) is None
    }
    real = evaluate.reference_rows(data, card, 0)
    references = {("reference", a): ("reference", (real[a : a + 2000].clone(),)) for a in range(0, len(real), 2000)}
    actors, device = places(wanted.actors)
    arguments = ([ray.put(s) for s in subjects], make_features, 1, device)
    kept = len(places_of) * len(chunks) - len(tasks)
    if kept:
        print(f"{kept} of {len(places_of) * len(chunks)} pieces are there already", flush=True)
    with Pool(evaluate.Evaluator, arguments, actors, gpus=float(device == "cuda")) as pool:
        reference = torch.cat([part for _, part in sorted(pool.run(references, "reference features").items())])

        def keep(key: tuple[Any, ...], made: evaluate.Samples) -> None:
            i, row, a, b = key
            _write(places_of[i, row], a, b, made)

        pool.run(tasks, "samples", keep)
    document: dict[str, Any] = {
        "features": name,
        "num_samples": wanted.num_samples,
        "data": card.name,
        "runs": {
            run.name: [_figures(places_of[i, row], chunks, row, reference) for row in rows]
            for i, run in enumerate(runs)
        },
    }
    for i, run in enumerate(runs):
        write_text(run / FILE, json.dumps(document, indent=1, allow_nan=False) + "\n")
        _draw(document, run / "compare.png")
        for row in rows:
            shown = _read(places_of[i, row], *chunks[0])
            if shown is not None:
                num = 100 if len(card.shape) == 3 else 2000
                draw_levels(shown["shown"][:num], subjects[i].spec, places_of[i, row] / "samples.png")
    return document


def _place(run: Path, row: str, features: str) -> Path:
    """Where a row's samples are kept: a directory that follows from the weights, the sampler and the feature network."""
    settings = json.dumps(asdict(parse_row(row)), sort_keys=True)
    key = hashlib.sha256(f"{evaluate.digest(run)}\n{settings}\n{features}".encode()).hexdigest()[:12]
    return run / "compare" / f"{row.replace(':', '-').replace('=', '').replace(',', '-')}-{key}"


def _write(place: Path, a: int, b: int, made: evaluate.Samples) -> None:
    place.mkdir(parents=True, exist_ok=True)
    cost = torch.tensor([made.evaluations, made.seconds], dtype=torch.float64)
    tensors = {"features": made.features, "logits": made.logits, "cost": cost}
    if a == 0:
        tensors["shown"] = made.shown[:2000]
    save_tensors(place / f"{a:06d}-{b:06d}.safetensors", tensors)


def _read(place: Path, a: int, b: int) -> dict[str, Tensor] | None:
    """A piece that was kept; None where there is none, or half of one."""
    try:
        return load_file(place / f"{a:06d}-{b:06d}.safetensors")
    except (OSError, SafetensorError):
        return None


def _figures(place: Path, chunks: Sequence[tuple[int, int]], row: str, reference: Tensor) -> dict[str, Any]:
    pieces = [piece for a, b in chunks if (piece := _read(place, a, b)) is not None]
    features, logits = (torch.cat([piece[name] for piece in pieces]) for name in ("features", "logits"))
    shares = torch.tensor([len(piece["features"]) / len(features) for piece in pieces], dtype=torch.float64)
    cost = torch.stack([piece["cost"] for piece in pieces])
    found = {"row": row, "evaluations": float(shares @ cost[:, 0]), "seconds": float(cost[:, 1].sum())}
    diverged = int((~features.isfinite().all(1)).sum())
    if diverged:  # one unstable sampler does not cost the table
        nothing = {"mean": None, "se": None, "samples": len(features)}
        return found | {"diverged": diverged, "frechet": nothing, "kernel": nothing}
    return found | evaluate.distances(features, logits, reference, seed=0)


def _draw(document: dict[str, Any], file: Path) -> None:
    """Frechet distance against evaluations, one line for each sampler of each run."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, rows in document["runs"].items():
        for row in rows:
            sampler = row["row"].split(":")[0]
            if row["frechet"]["mean"] is not None:
                point = (row["evaluations"], row["frechet"]["mean"], row["frechet"]["se"])
                series.setdefault(f"{name} {sampler}", []).append(point)
    lines(series, "evaluations of the score per sample", f"FD({document['features']})", file, log=True)


def table(document: dict[str, Any]) -> str:
    """The rows as text, every distance with its standard error."""
    head = f"{'row':<24} {'NFE':>7} {'seconds':>9}  FD({document['features']})      KD"
    shown = [f"{document['num_samples']} samples per row; data: {document['data']}; seconds: of one actor, all samples"]
    for name, rows in document["runs"].items():
        shown += [name, head]
        for row in rows:
            frechet, kernel = (
                f"{row['diverged']} samples diverged" if "diverged" in row else f"{d['mean']:.4g} +- {d['se']:.2g}"
                for d in (row["frechet"], row["kernel"])
            )
            shown.append(f"{row['row']:<24} {row['evaluations']:>7.1f} {row['seconds']:>9.1f}  {frechet:<20} {kernel}")
    return "\n".join(shown)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    text = f"{__doc__}\nOptions:\n{describe(Compare())}\n\nOf a row:\n{describe(Sampling())}\n\n{RULE}."
    return run_command(argv, text, _compare)


def _compare(words: list[str], given: dict[str, str]) -> None:
    wanted = override(Compare(), given)
    root = output_root(wanted.out)
    runs = [find_run(word, root) for word in words]
    evaluate.subjects_of(runs)  # refused before a session is started
    connect(1, 1.0)
    print(table(compare(runs, wanted, root)))


if __name__ == "__main__":
    from pipelines.compare import main as importable_main

    sys.exit(importable_main())
