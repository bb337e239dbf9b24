"""Measuring trained runs.

Test NLL (probability-flow ODE, with the residual), NELBO, their gap and the Frechet and kernel distances of samples are
computed concurrently by a pool of actors, which take the models' weights once from the object store. Several runs on the same
data are measured on the same draws, and compared by differences paired per image.

Every figure has a standard error. Of likelihoods: `se`, the estimator's on these very images, from replicates (the same images,
fresh dequantisation, times and noise); `se_images`, over images, which adds what another test set would change. Of distances: a
bootstrap over the samples.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from indm_core.training import network_tensors, step_seed
from pipelines.cluster.pool import Pool, places
from pipelines.config.store import digest, load, read_run
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.baselines import baselines
from pipelines.evaluation.estimates import Estimate, differences, distances, gap
from pipelines.evaluation.evaluator import Evaluator, SampleBatch, Subject
from pipelines.evaluation.reference import feature_maker, num_images, reference_rows, test_rows
from pipelines.evaluation.results import KINDS
from pipelines.evaluation.settings import FULL, Settings
from pipelines.storage.files import write_text

__all__ = ["evaluate", "subjects_of"]


def evaluate(runs: Sequence[Path], settings: Settings, root: Path, name_of_file: str = FULL) -> dict[str, Any]:
    """Measures runs on the same data together; Ray must be connected.

    Args:
        runs: Directories of trained runs.
        root: Output directory, where prepared data and classifiers are kept.
        name_of_file: What the document is called in each run's directory.

    Returns:
        {"runs": {name: figures}, "differences": {...}, "settings": ..., ...}, plain JSON values.

    Raises:
        ValueError: no run, a run that is not trained, or runs on different data.
    """
    began = time.monotonic()
    subjects = subjects_of(runs)
    first = subjects[0]
    data = ensure(first.run.data.source, root / "data", first.run.data.options)
    card = load_card(data)
    name, make_features = feature_maker(card, data, root, settings.inception_weights, settings.samples > 0)
    actors, device = places(settings.actors)
    arguments = ([ray.put(s) for s in subjects], make_features, 1, device)
    with Pool(Evaluator, arguments, actors, gpus=float(device == "cuda")) as pool:
        results = pool.run(_tasks(subjects, data, card, settings, root), "evaluating")
    names = [run.name for run in runs]
    document: dict[str, Any] = {
        "unit": first.spec.unit,
        "data": first.spec.name,
        "features": name,
        "images": num_images(card, settings),
        "settings": asdict(settings),
        "weights": {run.name: digest(run) for run in runs},
        "runs": {},
    }
    per_image: dict[tuple[str, int], Tensor] = {}
    for i, run_name in enumerate(names):
        figures: dict[str, Any] = {
            "parameters": sum(t.numel() for t in subjects[i].tensors.values()),
            "evaluations": subjects[i].build().evaluations(),
        }
        for kind in sorted({key[0] for key in results if key[0] in KINDS and key[1] == i}):
            rows = []
            for r in range(_replicates(kind, settings)):
                chunks = sorted(key for key in results if key[:3] == (kind, i, r))
                rows.append(torch.cat([results[key] for key in chunks]))
            per_image[kind, i] = torch.stack(rows).double()
            figures[kind] = asdict(Estimate.of(per_image[kind, i]))
        for suffix in ("", "_before"):
            if (f"nll{suffix}", i) in per_image:
                figures[f"gap{suffix}"] = asdict(gap(per_image[f"nelbo{suffix}", i], per_image[f"nll{suffix}", i]))
        if settings.samples:
            figures |= _distances(results, i, settings)
            figures["diverged"] = sum(part.diverged for part in _made(results, i))
        document["runs"][run_name] = figures
    document["differences"] = differences(names, per_image)
    if card.kind == "vector" and settings.baselines:
        test = test_rows(data, card, settings).numpy()
        document["baselines"] = baselines(reference_rows(data, card, settings.seed).numpy(), test, settings.seed)
    document["seconds"] = time.monotonic() - began
    for i, run in enumerate(runs):
        if settings.samples:
            _draw(run, first.spec, results, i, settings)
        write_text(run / name_of_file, json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")
    return _finite(document)


def _finite(value: Any) -> Any:
    """JSON has no nan: a standard error that one replicate cannot give becomes null."""
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def subjects_of(runs: Sequence[Path]) -> list[Subject]:
    """The models of runs, which must be on the same data and have names that tell them apart.

    Raises:
        ValueError: no trained run, runs on other data, or two of one name.
    """
    subjects = [Subject(*read_run(run / "config.json"), network_tensors(load(run))) for run in runs]
    first = subjects[0]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.spec != first.spec or replace(subject.run.data, partner="") != replace(first.run.data, partner=""):
            names = f"{subject.spec.name} and {first.spec.name}"
            raise ValueError(f"{run} and {runs[0]} were trained on other data ({names}): measure them apart")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"{', '.join(map(str, runs))}: runs of the same name cannot be told apart; rename one")
    return subjects


def _replicates(kind: str, settings: Settings) -> int:
    return settings.nll_replicates if kind.startswith("nll") else settings.nelbo_replicates


def _chunks(card: Card, settings: Settings) -> range:
    return range(0, num_images(card, settings), settings.chunk)


def _tasks(
    subjects: Sequence[Subject], data: Path, card: Card, settings: Settings, root: Path
) -> dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]]:
    """Every task by its key: the method and its arguments. Long ones first; models in turn, so that both show early."""
    num_models, test = len(subjects), test_rows(data, card, settings)
    tasks: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}
    for kind in ("nll", "nelbo", *(("nll_before", "nelbo_before") if settings.uncorrected else ())):
        for r in range(_replicates(kind, settings)):
            for c in _chunks(card, settings):
                seed = step_seed(settings.seed, r, c)
                for i in range(num_models):
                    arguments = (kind, i, test[c : c + settings.chunk].clone(), seed, settings)
                    tasks[kind, i, r, c] = ("likelihood", arguments)
    for i, subject in enumerate(subjects):
        if subject.run.data.partner:
            place = ensure(subject.run.data.partner, root / "data", subject.run.data.options)
            other = test_rows(place, load_card(place), settings)
            for r in range(settings.nelbo_replicates):
                for c in range(0, len(other), settings.chunk):
                    arguments = (
                        "partner",
                        i,
                        other[c : c + settings.chunk].clone(),
                        step_seed(settings.seed, r, c),
                        settings,
                    )
                    tasks["partner", i, r, c] = ("likelihood", arguments)
    step = max(settings.chunk, 250)
    for a in range(0, settings.samples, step):
        seeds = list(range(a, min(a + step, settings.samples)))
        for i in range(num_models):
            tasks["sample", i, a] = ("sample", (i, seeds, settings.sampling))
    if settings.samples:
        train = reference_rows(data, card, settings.seed)
        for a in range(0, len(train), 2000):
            tasks["reference", a] = ("reference", (train[a : a + 2000].clone(),))
    return tasks


def _made(results: dict[Any, Any], model: int) -> list[SampleBatch]:
    """A model's samples in the order of their seeds."""
    return [results[key] for key in sorted((k for k in results if k[:2] == ("sample", model)), key=lambda k: k[2])]


def _distances(results: dict[Any, Any], model: int, settings: Settings) -> dict[str, Any]:
    made = _made(results, model)
    real = torch.cat([results[key] for key in sorted(k for k in results if k[0] == "reference")])
    return distances(
        torch.cat([part.features for part in made]), torch.cat([part.logits for part in made]), real, settings.seed
    )


def _draw(run: Path, spec: DataSpec, results: dict[Any, Any], model: int, settings: Settings) -> None:
    from pipelines.runs.pictures import save_levels

    num = 100 if len(spec.shape) == 3 else 2000
    save_levels(torch.cat([part.shown for part in _made(results, model)])[:num], spec, run / "samples.png")
