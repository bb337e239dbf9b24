"""Draw samples of a trained run: `python pipelines/sample.py RUN [--num-samples 64] [--sampler pc] [--out DIR]`.

One seed per sample: sample i is the same for every batch size and number of actors. Images become PNG files
(sample-000000.png, ...) and a grid.png, as they arrive; vectors become samples.npy and a scatter plot.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])


import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from indm_core.likelihood import dequantise, quantise
from indm_core.model import GenerativeModel
from pipelines.config.cli import describe, override, run_command_on_runs
from pipelines.config.sampling import Sampling
from pipelines.config.store import load, read_run
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.shards import read_all
from pipelines.data.spec import DataSpec
from pipelines.evaluation.sampling import Drawn, Sampler, check, draw_by
from pipelines.evaluation.settings import SampleOptions
from pipelines.runs.pictures import pixels, save_samples
from pipelines.storage.outputs import RULE, find_run, output_root


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command_on_runs(argv, f"{__doc__}\nOptions:\n{describe(SampleOptions())}\n\n{RULE}.", _sample)


def _sample(words: list[str], given: dict[str, str]) -> None:
    if len(words) > 1:
        raise ValueError(f"one run at a time, got {' '.join(words)}; options need --")
    _draw(words[0], override(SampleOptions(), given))


def _draw(word: str, wanted: SampleOptions) -> None:
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
    save_samples(shown[: 400 if len(spec.shape) == 3 else 10_000], spec, out / "grid.png")
    told = f", {lost} of them not finite" if lost else ""
    cost = f"{evaluated / wanted.num_samples:.1f} evaluations of the score each"
    print(f"{out}: {wanted.num_samples} samples by {wanted.sampling.sampler}, {cost}{told}, grid.png")


def _batches(run: Path, model: GenerativeModel, wanted: SampleOptions) -> Iterator[tuple[int, Drawn]]:
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
            drawn = draw_by(model, chosen, sampling, device, first)
            yield start, Drawn(drawn.x.cpu(), drawn.evaluations)
        return
    from pipelines.cluster.pool import Pool, places
    from pipelines.cluster.session import connect

    connect(wanted.actors, 1.0)
    actors, device = places(wanted.actors)
    tasks: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {(start,): ("draw", of(start)) for start in starts}
    with Pool(Sampler, (str(run), 1, device), actors, gpus=float(device == "cuda")) as pool:
        yield from ((key[0], drawn) for key, drawn in pool.stream(tasks))


def _data(run: Path, wanted: SampleOptions) -> Tensor | None:
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
    sys.exit(main())
