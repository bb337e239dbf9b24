"""Measure trained runs: `python pipelines/evaluate.py RUN [RUN ...] [--option value ...]`.

Test NLL (probability-flow ODE, with the residual), NELBO, their gap and the Frechet and kernel distances of samples are
computed concurrently by a pool of actors, which take the models' weights once from the object store. Several runs on the same
data are measured on the same draws, and compared by differences paired per image.

Every figure has a standard error. Of likelihoods: `se`, the estimator's on these very images, from replicates (the same images,
fresh dequantisation, times and noise); `se_images`, over images, which adds what another test set would change. Of distances: a
bootstrap over the samples.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.likelihood import dequantise, nelbo, nll, quantise
from indm_core.metrics import Moments, frechet_bootstrap, inception_score, kernel_distance
from indm_core.model import Bridge, GenerativeModel
from indm_core.training import load_networks, network_tensors, step_seed
from pipelines.atomic import write_text
from pipelines.baselines import baselines
from pipelines.cli import describe, options, override, run_command
from pipelines.cluster import connect
from pipelines.config import RunConfig, digest, load, read_run
from pipelines.features import FeatureNetwork, cached_classifier, classifier_features, inception, raw
from pipelines.loop import to_unit
from pipelines.models import DataSpec
from pipelines.outputs import find_run, output_root
from pipelines.pool import Pool, places
from pipelines.prepare import ensure
from pipelines.sampling import Drawn, Sampling, samples
from pipelines.shards import Card, load_card, permutation, read_all, read_split

__all__ = [
    "BRIEF",
    "FULL",
    "Estimate",
    "Evaluator",
    "Samples",
    "Settings",
    "distances",
    "evaluate",
    "feature_key",
    "feature_maker",
    "main",
    "reference_rows",
    "subjects_of",
]


FULL, BRIEF = "evaluation.json", "evaluation-brief.json"
"""The files of a full measurement and of the main job's brief one."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how exactly.

    Args:
        images: Test images that likelihoods are taken on; 0 takes the whole split.
        nll_replicates: NLLs per image, with fresh dequantisation, noise and probe.
        num_probes: Hutchinson probes of an NLL.
        rtol, atol: Tolerances of its ODE.
        nelbo_replicates: NELBOs per image.
        nelbo_draws: Draws of (t, eps) in each, an even number.
        baselines: Of vectors, also the NLL of a Gaussian and of a mixture of Gaussians.
        uncorrected: Also the NLL and NELBO without the residual, the data fed at t_min as they are ("before correction").
        samples: Samples per model for the distances; 0 leaves them out.
        sampling: How they are drawn.
        inception_weights: File of the Inception weights; without it a small classifier of the data gives the features.
        chunk: Images per task.
        actors: Actors; 0 takes one per GPU of the cluster, else one for every two logical CPUs.
        seed: Of every draw.
    """

    images: int = 0
    nll_replicates: int = 8
    num_probes: int = 1
    rtol: float = 1e-5
    atol: float = 1e-5
    nelbo_replicates: int = 8
    nelbo_draws: int = 64
    baselines: bool = True
    uncorrected: bool = False
    samples: int = 5000
    sampling: Sampling = field(default_factory=Sampling)
    inception_weights: str = ""
    chunk: int = 64
    actors: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("nll_replicates", "nelbo_replicates", "nelbo_draws", "num_probes", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.nelbo_draws > 1 and self.nelbo_draws % 2:
            raise ValueError(
                f"nelbo_draws={self.nelbo_draws} must be 1 or an even number: draws come in antithetic pairs"
            )
        if min(self.images, self.samples) < 0 or 1 in (self.images, self.samples):
            raise ValueError(f"images={self.images} and samples={self.samples} must be 0 or at least 2")


KINDS = {
    "nll": "NLL",
    "nelbo": "NELBO",
    "nll_before": "NLL before correction",
    "nelbo_before": "NELBO without the residual",
    "partner": "NLL of the second data set under the flow",
}
"""What is taken of each test image."""


@dataclass(frozen=True)
class Estimate:
    """A mean, its estimator's standard error on these images (nan for one replicate), and the one over images."""

    mean: float
    se: float
    se_images: float

    @staticmethod
    def of(per_image: Tensor) -> Estimate:
        """From values (replicates, images)."""
        replicates, images = per_image.shape
        means = per_image.mean(1)
        se = float(means.std() / math.sqrt(replicates)) if replicates > 1 else math.nan
        over = float(per_image.mean(0).std() / math.sqrt(images)) if images > 1 else math.nan
        return Estimate(float(means.mean()), se, over)


@dataclass(frozen=True)
class Subject:
    """A trained model, as it travels through the object store."""

    run: RunConfig
    spec: DataSpec
    tensors: dict[str, Tensor]

    def build(self) -> GenerativeModel:
        model = self.run.model.build(self.spec)
        load_networks(model, self.tensors)
        return model.eval()


class Samples(NamedTuple):
    """A batch of samples: features, logits, the samples (levels, or vectors), score evaluations of each, seconds, and how many
    samples diverged: not finite, or further outside the data's range than it is wide, ten times over."""

    features: Tensor
    logits: Tensor
    shown: Tensor
    evaluations: float
    seconds: float
    diverged: int


class Evaluator:
    """An actor's work: it builds each model and the feature network once.

    Args:
        subjects: References to the models.
        features: Makes the feature network.
        threads: Of torch.
        device: That the models compute on; draws are made there, and so differ between kinds of device.
    """

    def __init__(
        self, subjects: list[ray.ObjectRef], features: Callable[[], FeatureNetwork], threads: int, device: str
    ) -> None:
        torch.set_num_threads(threads)
        self.subjects, self.make_features, self.device = subjects, features, device
        self.models: dict[int, tuple[GenerativeModel, DataSpec]] = {}
        self.features: FeatureNetwork | None = None

    def likelihood(self, kind: str, model: int, k: Tensor, seed: int, settings: Settings) -> Tensor:
        """What `KINDS` says of a chunk of levels, bits/dim or nats/dim per image (b,); the draws depend on the seed alone."""
        subject, spec = self._model(model)
        x = dequantise(k, spec.levels, spec.low, spec.high, torch.Generator().manual_seed(seed)).to(self.device)
        generator = torch.Generator(self.device).manual_seed(step_seed(seed, 1, 0))
        residual = not kind.endswith("_before")
        if kind == "partner":
            assert isinstance(subject, Bridge)
            with torch.no_grad():
                nats = subject.partner_nll(x, generator)
        elif kind.startswith("nll"):
            s = settings
            exact = {"num_probes": s.num_probes, "rtol": s.rtol, "atol": s.atol}
            nats = nll(subject, x, residual=residual, generator=generator, **exact)
        else:
            nats = nelbo(subject, x, residual=residual, num_draws=settings.nelbo_draws, generator=generator)
        return to_unit(nats.cpu(), spec)[0]

    def sample(self, model: int, seeds: list[int], sampling: Sampling) -> Samples:
        """The samples of the given seeds and their features."""
        subject, spec = self._model(model)
        began = time.monotonic()
        try:
            drawn = samples(subject, seeds, sampling, self.device)
        except ConvergenceError:  # one sampler that fails does not cost the table
            drawn = Drawn(torch.full((len(seeds), *spec.shape), math.nan), math.nan)
        x, seconds = drawn.x.cpu(), time.monotonic() - began
        far = 10 * (spec.high - spec.low) if spec.levels else math.inf
        lost = ~x.flatten(1).isfinite() | (x.flatten(1) - spec.low).abs().gt(far)
        x = x.nan_to_num(nan=spec.low, posinf=spec.high, neginf=spec.low)
        shown = quantise(x, spec.levels, spec.low, spec.high) if spec.levels else x
        features, logits = self._features(shown)
        shown = shown.to(torch.int32) if spec.levels else shown
        return Samples(features, logits, shown, drawn.evaluations, seconds, int(lost.any(1).sum()))

    def reference(self, k: Tensor) -> Tensor:
        """Features of data."""
        return self._features(k)[0]

    def _features(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        self.features = self.features or self.make_features()
        with torch.no_grad():
            return self.features.evaluate(shown)

    def _model(self, index: int) -> tuple[GenerativeModel, DataSpec]:
        if index not in self.models:
            subject: Subject = ray.get(self.subjects[index])
            self.models[index] = (subject.build().to(self.device), subject.spec)
        return self.models[index]


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
        "unit": to_unit(torch.zeros(()), first.spec)[1],
        "data": first.spec.name,
        "features": name,
        "images": _num_images(card, settings),
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
                figures[f"gap{suffix}"] = asdict(_gap(per_image[f"nelbo{suffix}", i], per_image[f"nll{suffix}", i]))
        if settings.samples:
            figures |= _distances(results, i, settings)
            figures["diverged"] = sum(part.diverged for part in _made(results, i))
        document["runs"][run_name] = figures
    document["differences"] = _differences(names, per_image)
    if card.kind == "vector" and settings.baselines:
        test = _test_rows(data, card, settings).numpy()
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


def _gap(nelbos: Tensor, nlls: Tensor) -> Estimate:
    """NELBO - NLL; its standard error takes the two estimators as independent, which errs on the large side."""
    over_images = Estimate.of((nelbos.mean(0) - nlls.mean(0)).unsqueeze(0))
    se = math.hypot(Estimate.of(nelbos).se, Estimate.of(nlls).se)
    return Estimate(over_images.mean, se, over_images.se_images)


def _differences(names: Sequence[str], per_image: dict[tuple[str, int], Tensor]) -> dict[str, Any]:
    """First run minus each other, paired per image on the same draws; the standard error is that of the pairs."""
    found = {}
    for j in range(1, len(names)):
        pairs = {}
        for kind in ("nll", "nelbo", "nll_before", "nelbo_before"):
            if (kind, 0) not in per_image or (kind, j) not in per_image:
                continue
            pairs[kind] = asdict(Estimate.of(per_image[kind, 0] - per_image[kind, j]))
        found[f"{names[0]} - {names[j]}"] = pairs
    return found


def _num_images(card: Card, settings: Settings) -> int:
    count = card.split("test").count
    return min(settings.images or count, count)


def _replicates(kind: str, settings: Settings) -> int:
    return settings.nll_replicates if kind.startswith("nll") else settings.nelbo_replicates


def _chunks(card: Card, settings: Settings) -> range:
    return range(0, _num_images(card, settings), settings.chunk)


def _test_rows(data: Path, card: Card, settings: Settings) -> Tensor:
    return torch.from_numpy(read_all(data, card, "test", _num_images(card, settings))["x"].astype("float32"))


def _tasks(
    subjects: Sequence[Subject], data: Path, card: Card, settings: Settings, root: Path
) -> dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]]:
    """Every task by its key: the method and its arguments. Long ones first; models in turn, so that both show early."""
    num_models, test = len(subjects), _test_rows(data, card, settings)
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
            other = _test_rows(place, load_card(place), settings)
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


def reference_rows(data: Path, card: Card, seed: int) -> Tensor:
    """At most 50,000 training rows, drawn without regard to their order (folders are sorted by class)."""
    count = card.split("train").count
    kept = np.sort(permutation(seed, 0, 0, count)[:50_000])
    chunks = (chunk["x"][np.isin(chunk["row"], kept)] for chunk in read_split(data, card, "train"))
    return torch.from_numpy(np.concatenate(list(chunks)))


def feature_key(make_features: Callable[[], FeatureNetwork]) -> str:
    """A hash of what a feature network is made of: its function and arguments, weights included."""
    sha = hashlib.sha256()
    assert isinstance(make_features, partial)
    sha.update(make_features.func.__name__.encode())
    for argument in make_features.args:
        if isinstance(argument, torch.nn.Module):
            for name, tensor in argument.state_dict().items():
                sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
        else:
            sha.update(repr(argument).encode())
    return sha.hexdigest()[:16]


def feature_maker(
    card: Card, data: Path, root: Path, inception_weights: str = "", needed: bool = True
) -> tuple[str, Callable[[], FeatureNetwork]]:
    """The feature network's name and what builds it in an actor; a classifier is trained here if need be."""
    if inception_weights:
        weights = Path(inception_weights).expanduser().resolve()
        name = inception(weights, levels=card.levels).name  # a bad file is refused here, not in an actor
        return name, partial(inception, weights, levels=card.levels)
    if card.num_classes < 2 and card.num_dims > 1024 and needed:
        raise ValueError(
            f"{card.name} has no labels to train a feature network with and {card.num_dims} raw values are too many: "
            "give --inception-weights FILE, or --samples 0"
        )
    if card.kind == "vector" or card.num_classes < 2 or not needed:
        return "raw", partial(raw, card.num_dims)

    def training_split() -> tuple[Tensor, Tensor]:
        rows = read_all(data, card, "train", 60_000)
        return torch.from_numpy(rows["x"]), torch.from_numpy(rows["label"])

    network = cached_classifier(root / "features", card, training_split)
    return f"{card.name}-cnn", partial(classifier_features, network, card.name)


def _made(results: dict[Any, Any], model: int) -> list[Samples]:
    """A model's samples in the order of their seeds."""
    return [results[key] for key in sorted((k for k in results if k[:2] == ("sample", model)), key=lambda k: k[2])]


def _distances(results: dict[Any, Any], model: int, settings: Settings) -> dict[str, Any]:
    made = _made(results, model)
    real = torch.cat([results[key] for key in sorted(k for k in results if k[0] == "reference")])
    return distances(
        torch.cat([part.features for part in made]), torch.cat([part.logits for part in made]), real, settings.seed
    )


def distances(features: Tensor, logits: Tensor, real: Tensor, seed: int) -> dict[str, Any]:
    """Frechet and kernel distances of samples from the training data, and with Inception its score, with standard errors.

    Args:
        features, logits: Of the samples, (n, d) and (n, classes).
        real: Features of the training data (m, d).
        seed: Of the bootstrap.
    """
    reference = Moments().update(real)
    generator = torch.Generator().manual_seed(seed)
    num = 20 if features.shape[1] > 512 else 100
    frechet = frechet_bootstrap(features, reference.mean, reference.cov, num_resamples=num, generator=generator)
    kid = kernel_distance(features, real, generator=generator)
    found: dict[str, Any] = {
        "frechet": {"mean": float(frechet.value), "se": float(frechet.standard_error), "samples": len(features)},
        "kernel": {"mean": float(kid.mean), "se": float(kid.standard_error), "samples": len(features)},
        "reference_samples": len(real),
    }
    if logits.shape[1] == 1008:  # Inception's classes
        score = inception_score(logits)
        found["inception_score"] = {"mean": float(score.mean), "se": float(score.standard_error)}
    return found


def _draw(run: Path, spec: DataSpec, results: dict[Any, Any], model: int, settings: Settings) -> None:
    from pipelines.pictures import draw_levels

    num = 100 if len(spec.shape) == 3 else 2000
    draw_levels(torch.cat([part.shown for part in _made(results, model)])[:num], spec, run / "samples.png")


def table(document: dict[str, Any]) -> str:
    """The figures as text, laid out as Table 4 of the INDM paper; every figure with its standard error."""
    settings, unit = document["settings"], document["unit"]
    lines = [
        f"{'model':<24} {'params':>8} {'cost':>6}  {f'NLL {unit}':<22} {f'NELBO {unit}':<22} {'gap':<22} "
        f"FD({document['features']})",
    ]
    for name, figures in document["runs"].items():
        cells = [_cell(figures[kind]) for kind in ("nll", "nelbo", "gap")]
        frechet = figures.get("frechet")
        distance = f"{frechet['mean']:.3f} +- {frechet['se']:.3f}" if frechet else "-"
        if figures.get("diverged"):
            distance += f" ({figures['diverged']} diverged)"
        params = f"{figures['parameters'] / 1e6:.2f}M"
        cost = sum(figures.get("evaluations", {}).values()) or "-"
        lines.append(f"{name:<24} {params:>8} {cost:>6}  {cells[0]:<22} {cells[1]:<22} {cells[2]:<22} {distance}")
        for kind, label in (KINDS | {"gap_before": "gap before correction"}).items():
            if kind in figures and kind not in ("nll", "nelbo"):
                lines.append(f"  {label}: {_cell(figures[kind])}")
    for name, estimate in document.get("baselines", {}).items():
        lines.append(f"{name}: NLL {estimate['mean']:+.4f} +- {estimate['se_images']:.4f} {unit} (over test rows)")
    for pair, kinds in document["differences"].items():
        shown = ", ".join(f"{KINDS[kind]} {_cell(d | {'se': d['se_images']})}" for kind, d in kinds.items())
        lines.append(f"{pair}, paired per image on the same draws: {shown}")
    one = settings["nll_replicates"] == 1
    lines.append(
        f"{document['images']} test {'images' if unit.startswith('bits') else 'rows'} of {document['data']}; "
        f"NLL: probability-flow ODE at rtol {settings['rtol']:g}, atol {settings['atol']:g}, "
        f"x{settings['nll_replicates']}; NELBO: {settings['nelbo_draws']} draws, x{settings['nelbo_replicates']}; "
        f"+- is the estimator's standard error on these images"
        + (" (of NLL and gap: over images)" if one else "")
        + "; cost: evaluations of networks per training step"
        + f"; FD: {settings['samples']} samples, {settings['sampling']['sampler']}, bootstrap; {document['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _cell(estimate: dict[str, Any]) -> str:
    """Mean and standard error; what is not finite, or could not be had, is n/a."""
    mean, se = estimate["mean"], estimate["se_images"] if estimate["se"] is None else estimate["se"]
    return f"{'n/a' if mean is None else f'{mean:+.4f}'} +- {'n/a' if se is None else f'{se:.4f}'}"


def log(document: dict[str, Any], runs: Sequence[Path], root: Path) -> None:
    """Writes each run's figures, table and samples into its MLflow run."""
    from pipelines import tracking

    tracking.log_quietly(partial(_log, document, runs, root), root)


def _log(document: dict[str, Any], runs: Sequence[Path], root: Path) -> None:
    from mlflow.tracking import MlflowClient

    from pipelines import tracking

    client = MlflowClient(tracking.tracking_uri(root))
    for run in runs:
        run_id = tracking.run_id(run)
        if not run_id:
            continue
        for name, estimate in document["runs"][run.name].items():
            values = estimate.items() if isinstance(estimate, dict) else [("mean", estimate)]
            for part, value in values:
                if value is not None:
                    client.log_metric(run_id, f"test/{name}" if part == "mean" else f"test/{name}/{part}", value)
        for file in (FULL, BRIEF, "samples.png"):
            if (run / file).is_file():
                client.log_artifact(run_id, str(run / file))


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where.

    Args:
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        traceback: Show where an error came from.
    """

    out: str = ""
    traceback: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command(argv, f"{__doc__}\nOptions:\n{describe(Settings())}\n{describe(Launch())}", _evaluate)


def _evaluate(words: list[str], given: dict[str, str]) -> None:
    ours = {option.path for option in options(Launch())}
    launch = override(Launch(), {k: v for k, v in given.items() if k in ours})
    settings = override(Settings(), {k: v for k, v in given.items() if k not in ours}, sorted(ours))
    root = output_root(launch.out)
    runs = [find_run(word, root) for word in words]
    subjects_of(runs)  # refused before a session is started
    connect(1, 1.0)
    document = evaluate(runs, settings, root)
    log(document, runs, root)
    print(table(document))


if __name__ == "__main__":
    from pipelines.evaluate import main as importable_main

    sys.exit(importable_main())
