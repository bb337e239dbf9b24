"""Samplers compared.

A row is a sampler with options, `em:100`, `pc:1000:snr=0.1`, `ode:rtol=1e-5,atol=1e-5`: its name, the number of its steps, and
any option of `Sampling`. Every row of every run draws the same seeds, and is measured by the Frechet and kernel distance to the
training data, the evaluations of the score that a sample takes, and the seconds of one actor.

Features of samples are kept under RUN/compare/ as they are made: a killed table goes on where it stopped, a larger
--num-samples adds to what is there, and the rows of an earlier table of as many samples stay in RUN/compare.json.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines.cluster.pool import Pool, places
from pipelines.config.cli import override
from pipelines.config.sampling import Sampling
from pipelines.config.store import identity
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.evaluation.estimates import distances
from pipelines.evaluation.evaluator import Evaluator, SampleBatch
from pipelines.evaluation.measure import subjects_of
from pipelines.evaluation.reference import feature_key, feature_maker, reference_rows
from pipelines.runs.checkpoint import save_tensors
from pipelines.runs.pictures import lines, save_levels
from pipelines.storage.files import write_text

__all__ = ["FILE", "CompareOptions", "compare", "family", "parse_row", "table"]


FILE = "compare.json"


CHUNK = 250
"""Samples per task and file."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
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
    try:
        for part in (part for word in rest for part in word.split(",")):
            option, equals, value = part.partition("=")
            option, value = (option, value) if equals else ("steps", part)
            if option in given:
                raise ValueError(f"{option} is given twice")
            given[option] = value
        if "steps" in given and "nfe" in given:
            raise ValueError("steps and nfe both say how long; give one")
        return override(Sampling(), given)
    except ValueError as error:
        raise ValueError(f"rows: {row!r}: {error}") from None


def compare(runs: Sequence[Path], wanted: CompareOptions, root: Path) -> dict[str, Any]:
    """Measures every row of every run; Ray must be connected.

    Returns:
        {"features", "num_samples", "data", "runs": {name: [{row, evaluations, seconds, frechet, kernel}]}}; written into each
        run's directory, beside compare.png.
    """
    subjects = subjects_of(runs)
    data = ensure(subjects[0].run.data.source, root / "data", subjects[0].run.data.options)
    card = load_card(data)
    name, make_features = feature_maker(card, data, root, wanted.inception_weights)
    rows = wanted.rows.split()
    actors, device = places(wanted.actors)
    key = f"{feature_key(make_features)} {device}"
    models = [identity(run) for run in runs]
    places_of = {(i, row): _place(run, models[i], row, key) for i, run in enumerate(runs) for row in rows}
    chunks = [(a, min(a + CHUNK, wanted.num_samples)) for a in range(0, wanted.num_samples, CHUNK)]
    tasks = {
        (i, row, a, b): ("sample", (i, list(range(a, b)), parse_row(row)))
        for a, b in chunks
        for row in rows
        for i in range(len(runs))
        if _read(places_of[i, row], a, b) is None
    }
    real = reference_rows(data, card, 0)
    references = {("reference", a): ("reference", (real[a : a + 2000].clone(),)) for a in range(0, len(real), 2000)}
    arguments = ([ray.put(s) for s in subjects], make_features, 1, device)
    kept = len(places_of) * len(chunks) - len(tasks)
    if kept:
        print(f"{kept} of {len(places_of) * len(chunks)} pieces are there already", flush=True)
    with Pool(Evaluator, arguments, actors, gpus=float(device == "cuda")) as pool:
        reference = torch.cat([part for _, part in sorted(pool.run(references, "reference features").items())])

        def keep(key: tuple[Any, ...], made: SampleBatch) -> None:  # on disk, not in memory
            i, row, a, b = key
            _write(places_of[i, row], a, b, made)

        pool.run(tasks, "samples", keep)
    document: dict[str, Any] = {
        "features": name,
        "num_samples": wanted.num_samples,
        "data": card.name,
        "key": key,
        "runs": {run.name: [] for run in runs},
    }
    began = shown = time.monotonic()
    for num, ((i, row), place) in enumerate(places_of.items(), 1):
        document["runs"][runs[i].name].append(_figures(place, chunks, row, reference))
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            left = (shown - began) / num * (len(places_of) - num)
            print(f"distances: {num}/{len(places_of)} rows, about {left:.0f} s left", flush=True)
    for i, run in enumerate(runs):
        whole = _with_earlier(document, run, models[i])
        write_text(run / FILE, json.dumps(whole, indent=1, allow_nan=False) + "\n")
        _draw(whole, run / "compare.png")
        for row in rows:
            piece = _read(places_of[i, row], *chunks[0])
            if piece is not None:
                num = 100 if len(card.shape) == 3 else 2000
                save_levels(piece["shown"][:num], subjects[i].spec, places_of[i, row] / "samples.png")
    return document


def _with_earlier(document: dict[str, Any], run: Path, model: str) -> dict[str, Any]:
    """The document with the rows that the run's last one has and this one has not."""
    try:
        earlier = json.loads((run / FILE).read_text(encoding="utf-8"))
        same = all(earlier[name] == document[name] for name in ("features", "num_samples", "data", "key"))
        kept = earlier["runs"][run.name] if same and earlier["weights"] == model else []
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    new = document["runs"][run.name]
    rows = [*(row for row in kept if row["row"] not in {r["row"] for r in new}), *new]
    return document | {"weights": model, "runs": document["runs"] | {run.name: rows}}


def _place(run: Path, model: str, row: str, features: str) -> Path:
    """Where a row's samples are kept: it follows from the model, the sampler, the feature network and the kind of device."""
    sampling = parse_row(row)
    settings = json.dumps(asdict(sampling), sort_keys=True)
    key = hashlib.sha256(f"{model}\n{settings}\n{features}".encode()).hexdigest()[:16]
    return run / "compare" / f"{sampling.sampler}-{key}"


def _write(place: Path, a: int, b: int, made: SampleBatch) -> None:
    place.mkdir(parents=True, exist_ok=True)
    cost = torch.tensor([made.evaluations, made.seconds, made.diverged], dtype=torch.float64)
    tensors = {"features": made.features, "logits": made.logits, "cost": cost}
    if a == 0:
        # the features of vectors are the vectors, and a file takes no memory twice
        tensors["shown"] = made.shown[:2000].clone()
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
    evaluated = cost[:, 0].isfinite()
    found: dict[str, Any] = {
        "row": row,
        "evaluations": float(shares[evaluated] @ cost[evaluated, 0] / shares[evaluated].sum())
        if evaluated.any()
        else None,
        "seconds": float(cost[:, 1].sum()),
        "diverged": int(cost[:, 2].sum()),
    }
    if not features.isfinite().all():
        nothing = {"mean": None, "se": None, "samples": len(features)}
        return found | {"frechet": nothing, "kernel": nothing}
    return found | distances(features, logits, reference, seed=0)


def _draw(document: dict[str, Any], file: Path) -> None:
    """Frechet distance against evaluations, one line for each sampler of each run, whatever its number of steps."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, rows in document["runs"].items():
        for row in rows:
            if row["frechet"]["mean"] is not None and row["evaluations"] is not None:
                point = (row["evaluations"], row["frechet"]["mean"], row["frechet"]["se"])
                series.setdefault(f"{name} {family(row['row'])}", []).append(point)
    lines(series, "evaluations of the score per sample", f"FD({document['features']})", file, log=True)


def family(row: str) -> str:
    """A row's name without what says how long it takes."""
    options = [part for word in row.split(":") for part in word.split(",")]
    lengths = ("steps", "nfe", "rtol", "atol")
    return " ".join(part for part in options if not part.isdigit() and part.partition("=")[0] not in lengths)


def table(document: dict[str, Any]) -> str:
    """The rows as text, every distance with its standard error."""
    width = max((len(row["row"]) for rows in document["runs"].values() for row in rows), default=24)
    head = f"{'row':<{width}} {'NFE':>7} {'seconds':>9}  FD({document['features']})      KD"
    shown = [f"{document['num_samples']} samples per row; data: {document['data']}; seconds: of one actor, all samples"]
    for name, rows in document["runs"].items():
        shown += [name, head]
        for row in rows:
            frechet, kernel = (
                "n/a" if d["mean"] is None else f"{d['mean']:.4g} +- {d['se']:.2g}"
                for d in (row["frechet"], row["kernel"])
            )
            cost = "n/a" if row["evaluations"] is None else f"{row['evaluations']:.1f}"
            lost = f"  ({row['diverged']} diverged)" if row["diverged"] else ""
            shown.append(f"{row['row']:<{width}} {cost:>7} {row['seconds']:>9.1f}  {frechet:<20} {kernel}{lost}")
    return "\n".join(shown)
