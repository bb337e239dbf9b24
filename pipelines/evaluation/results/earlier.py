"""Documents from before there were versions, as documents of today.

    evaluation   {"unit", "data", "features", "images", "settings", "weights", "differences", "baselines", "seconds",
                  "runs": {name: {"parameters", "evaluations", "nll", "nelbo", "gap", "nll_before", ..., "frechet", ...}}}
    comparison   {"features", "num_samples", "data", "key", "weights", "runs": {name: [{"row", "frechet", "kernel", ...}]}}

An estimate was {"mean", "se", "se_images"}, a distance {"mean", "se", "samples"}. What they did not say stays unknown:
nan, or ''.
"""

from __future__ import annotations

from typing import Any

from pipelines.config.codec import to_json
from pipelines.evaluation.sampling.rows import parse_row

__all__ = ["comparison", "evaluation"]

Json = dict[str, Any]
NLL, NELBO, GAP = ("nll", "NllResult"), ("nelbo", "NelboResult"), ("gap", "GapResult")


def evaluation(document: Json) -> dict[str, Any]:
    """An evaluation.

    Raises:
        KeyError: it is none.
    """
    settings, results = document.get("settings", {}), []
    first, *others = document["runs"]
    for second in others:
        kinds = document["differences"][f"{first} - {second}"]
        found = {name: _corrected(kinds, name, kind) for name, kind in (NLL, NELBO)}
        results.append({"type": "DifferenceResult", "first": first, "second": second} | found)
    if document.get("baselines"):
        laws = [{"name": name, "nll": _estimate(law)} for name, law in document["baselines"].items()]
        results.append({"type": "BaselinesResult", "laws": laws})
    return {
        "unit": document["unit"],
        "data": document.get("data", ""),
        "images": document.get("images", 0),
        "settings": settings,
        "weights": document["weights"],
        "runs": {name: _figures(document, run, settings) for name, run in document["runs"].items()},
        "results": results,
        "seconds": document.get("seconds"),
    }


def _figures(document: Json, run: Json, settings: Json) -> dict[str, Any]:
    results = [_corrected(run, name, kind) for name, kind in (NLL, NELBO, GAP) if name in run]
    if "partner" in run:
        results.append({"type": "PartnerResult", "nll": _estimate(run["partner"])})
    if "frechet" in run:
        results.append(_distances(document, run) | {"sampling": settings.get("sampling", {})})
    return {"parameters": run["parameters"], "evaluations": run.get("evaluations", {}), "results": results}


def _corrected(figures: Json, name: str, kind: str) -> dict[str, Any]:
    before = {"before": _estimate(figures[f"{name}_before"])} if f"{name}_before" in figures else {}
    return {"type": kind, "after": _estimate(figures[name])} | before


def _estimate(figure: Json) -> dict[str, Any]:
    return {name: figure.get(name) for name in ("mean", "se", "se_images")}


def _distances(document: Json, figures: Json) -> dict[str, Any]:
    compared = {
        name: {"value": figures[name]["mean"], "se": figures[name]["se"], "n": figures[name]["samples"]}
        for name in ("frechet", "kernel")
    }
    score = figures.get("inception_score")
    shown = {"inception_score": {"value": score["mean"], "se": score["se"]}} if score else {}
    return {
        "type": "DistancesResult",
        "distances": compared | shown,
        "reference": _reference(document, figures.get("reference_samples", 0)),
        "diverged": figures.get("diverged", 0),
    }


def _reference(document: Json, size: int) -> dict[str, Any]:
    key, _, _ = document.get("key", "").partition(" ")
    return {"data": document.get("data", ""), "size": size, "features": document["features"], "key": key}


def comparison(document: Json) -> dict[str, Any]:
    """A table of samplers.

    Raises:
        KeyError: it is none.
        ValueError: a row that names no sampler.
    """
    runs = document["runs"]
    size = max((row.get("reference_samples", 0) for rows in runs.values() for row in rows), default=0)
    return {
        "num_samples": document["num_samples"],
        "key": document.get("key", ""),
        "reference": _reference(document, size),
        "weights": document["weights"],
        "runs": {name: [_row(document, row, size) for row in rows] for name, rows in runs.items()},
    }


def _row(document: Json, row: Json, size: int) -> dict[str, Any]:
    figures = row | {"reference_samples": size}
    said = {"sampling": to_json(parse_row(row["row"]).sampling), "evaluations": row["evaluations"]}
    return {"row": row["row"], "seconds": row["seconds"], "result": _distances(document, figures) | said}
