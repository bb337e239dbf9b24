"""Draw samples of a trained run: `python pipelines/sample.py RUN [--num-samples 64] [--sampler pc] [--out DIR]`.

One seed per sample: sample i is the same for every batch size and number of actors. Images become PNG files
(sample-000000.png, ...) and a grid.png, as they arrive; vectors become samples.npy and a scatter plot.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from indm_core.likelihood import dequantise, quantise
from indm_core.model import GenerativeModel
from pipelines.cli import describe, override, run_command
from pipelines.config import load, read_run
from pipelines.models import DataSpec
from pipelines.outputs import RULE, find_run, output_root
from pipelines.pictures import draw_samples, pixels
from pipelines.prepare import ensure
from pipelines.sampling import Drawn, Sampling, check, samples
from pipelines.shards import load_card, read_all

__all__ = ["Sample", "main"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is drawn, and where to.

    Args:
        num_samples: How many.
        seed: Of the first sample; sample i has seed + i.
        sampling: The sampler and its options.
        batch: Samples drawn together.
        start: prior: the model's law; data: the diffused latents of the test data (sample i starts from image i).
        out: Directory of the pictures; RUN/samples-SAMPLER where it is empty.
        actors: Ray actors, each with a GPU where the cluster has as many; 0 draws in this process, without Ray.
        traceback: Show where an error came from.
    """

    num_samples: int = 64
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    batch: int = 64
    start: Literal["prior", "data"] = "prior"
    out: str = ""
    actors: int = 0
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch < 1:
            raise ValueError(f"num_samples={self.num_samples} and batch={self.batch} must be at least 1")
        if self.seed < 0 or self.actors < 0:
            raise ValueError(f"seed={self.seed} and actors={self.actors} must not be negative")


class Sampler:
    """An actor that holds a model."""

    def __init__(self, run: str, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.model, self.device = load(run).to(device), device

    def draw(self, seeds: list[int], sampling: Sampling, start: Tensor | None) -> Drawn:
        drawn = samples(self.model, seeds, sampling, self.device, start)
        return Drawn(drawn.x.cpu(), drawn.evaluations)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command(argv, f"{__doc__}\nOptions:\n{describe(Sample())}\n\n{RULE}.", _sample)


def _sample(words: list[str], given: dict[str, str]) -> None:
    if len(words) > 1:
        raise ValueError(f"one run at a time, got {' '.join(words)}; options need --")
    _draw(words[0], override(Sample(), given))


def _draw(word: str, wanted: Sample) -> None:
    run = find_run(word)
    _, spec = read_run(run / "config.json")
    model = load(run)
    check(model, wanted.sampling)
    out = output_root(wanted.out or str(run / f"samples-{wanted.sampling.sampler}"))
    began, kept, done, evaluated, lost = time.monotonic(), {}, 0, 0.0, 0
    for start, (x, evaluations) in _batches(run, model, wanted):
        evaluated += evaluations * len(x)
        lost += int((~x.flatten(1).isfinite()).any(1).sum())
        x = x.nan_to_num(nan=spec.low)
        if len(spec.shape) == 3:
            _write(x, spec, out, start)
        if len(spec.shape) == 1 or start < 400:
            kept[start] = x
        done += len(x)
        print(f"{done}/{wanted.num_samples} samples, {time.monotonic() - began:.1f} s", flush=True)
    shown = torch.cat([kept[start] for start in sorted(kept)])
    if len(spec.shape) == 1:
        np.save(out / "samples.npy", shown.numpy())
    draw_samples(shown[: 400 if len(spec.shape) == 3 else 10_000], spec, out / "grid.png")
    told = f", {lost} of them not finite" if lost else ""
    cost = f"{evaluated / wanted.num_samples:.1f} evaluations of the score each"
    print(f"{out}: {wanted.num_samples} samples by {wanted.sampling.sampler}, {cost}{told}, grid.png")


def _batches(run: Path, model: GenerativeModel, wanted: Sample) -> Iterator[tuple[int, Drawn]]:
    """(index of the first sample, samples and what they took) as they are done."""
    seeds = range(wanted.seed, wanted.seed + wanted.num_samples)
    starts = range(0, wanted.num_samples, wanted.batch)
    data = _data(run, wanted)

    def of(start: int) -> tuple[list[int], Sampling, Tensor | None]:
        stop = start + wanted.batch
        return list(seeds[start:stop]), wanted.sampling, None if data is None else data[start:stop]

    if not wanted.actors:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = model.to(device)
        for start in starts:
            chosen, sampling, first = of(start)
            drawn = samples(model, chosen, sampling, device, first)
            yield start, Drawn(drawn.x.cpu(), drawn.evaluations)
        return
    from pipelines.cluster import connect
    from pipelines.pool import Pool, places

    connect(wanted.actors, 1.0)
    actors, device = places(wanted.actors)
    tasks: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {(start,): ("draw", of(start)) for start in starts}
    with Pool(Sampler, (str(run), 1, device), actors, gpus=float(device == "cuda")) as pool:
        yield from ((key[0], drawn) for key, drawn in pool.stream(tasks))


def _data(run: Path, wanted: Sample) -> Tensor | None:
    """Test data to start from, dequantised by the seed; sample i has the row i modulo their number."""
    if wanted.start == "prior":
        return None
    config, spec = read_run(run / "config.json")
    place = ensure(config.data.source, output_root(None) / "data", config.data.options)
    k = torch.from_numpy(read_all(place, load_card(place), "test", wanted.num_samples)["x"].astype("float32"))
    k = k[torch.arange(wanted.num_samples) % len(k)]
    return dequantise(k, spec.levels, spec.low, spec.high, torch.Generator().manual_seed(wanted.seed))


def _write(x: Tensor, spec: DataSpec, out: Path, start: int) -> None:
    """One PNG per image; grey images stay grey."""
    shown = pixels(quantise(x, spec.levels, spec.low, spec.high), spec)
    for i, image in enumerate(shown):
        picture = Image.fromarray(image[..., 0] if spec.shape[0] == 1 else image)
        picture.save(out / f"sample-{start + i:06d}.png")


if __name__ == "__main__":
    from pipelines.sample import main as importable_main

    sys.exit(importable_main())
