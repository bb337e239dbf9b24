"""The model card of an exported run: README.md as the Hugging Face hub reads it, filled from what the run's files say.

The YAML in front has the figures as a model index. Nothing in it is a guess: what was not measured is left out, and the text
says so. Paths of the machine are not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.modules import defining
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import options
from pipelines.data.origin import without_path
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import GapResult, NelboResult, NllResult
from pipelines.evaluation.results.estimates import with_error
from pipelines.evaluation.results.seeds import LEFT_OUT
from pipelines.recipes import RECIPES
from pipelines.reporting.tables import Run

__all__ = ["model_card", "trained_by"]

KINDS = {3: "Images", 2: "Sequences", 1: "Vectors"}
"""Of data, by the rank of a row."""


def model_card(run: Run, *, weights: str, grid: str, drawn: str, trained_with: Sequence[str], licence: str) -> str:
    """The text of README.md.

    Args:
        run: What its directory says, without paths of the machine.
        weights: Which they are, such as "averaged, step 1200".
        grid: File of the sample grid.
        drawn: How its samples were drawn.
        trained_with: The commits of the code that trained it; none where they are unknown.
        licence: Of the weights, as the hub names it.
    """
    spec, model = run.spec, run.config.model
    kind = type(model).__name__.removesuffix("Config")
    summary = (type(model).__doc__ or "").split("\n\n")[0].replace("\n", " ").split(" (see ")[0].strip().rstrip(".")
    rows = [
        ("data", f"{spec.name}, events {spec.shape}, {_levels(run)}"),
        ("weights", weights),
        ("trained by", f"`{trained_by(run.config)}`"),
        *(
            [("code of the training", ", then ".join(f"commit {code}" for code in trained_with))]
            if trained_with
            else []
        ),
    ]
    own = [Path(module.file).name for module in defining(run.config)]
    load = f"from_pretrained(DIR, module={own[0]!r})" if own else "from_pretrained(DIR)"
    return "\n".join(
        [
            *_front(run, kind, licence),
            f"# {run.name}",
            "",
            f"{summary}. A model of `indm_core`, exported by `pipelines/export.py`.",
            "",
            f"![samples]({grid})",
            "",
            f"Samples by {drawn}.",
            "",
            *_table(("", ""), rows),
            "",
            "## Figures",
            "",
            *_figures(run),
            "",
            "## Use",
            "",
            "```python",
            "from pipelines import from_pretrained",
            "",
            f"model = {load}  # or OWNER/NAME on the hub",
            f"x = model.sample(16, sampler={_sampler(run)!r}, seed=0)  # (16, {', '.join(map(str, spec.shape))})",
            "nats = model.nll(x)  # per sample",
            "```",
            "",
            *([f"Its own classes are defined in {', '.join(own)}, which is run when it is named.", ""] if own else []),
            "## Limits",
            "",
            *(f"- {line}" for line in _limits(run)),
            "",
        ]
    )


def trained_by(run: RunConfig) -> str:
    """The command of a run: its recipe and the options that are not the recipe's; of sources, the names alone."""
    if run.recipe not in RECIPES:
        return f"train.py FILE.py:{run.recipe}"
    before = {option.path: option.plain for option in options(RECIPES[run.recipe]())}
    words = ["train.py", run.recipe]
    for option in options(run):
        if option.path != "recipe" and before.get(option.path) != option.plain:
            words.append(f"--{option.path.replace('_', '-')} {_word(option.path, option.plain)}")
    return " ".join(words)


def _word(path: str, value: Any) -> str:
    if path in ("data.source", "data.partner"):
        return without_path(value) or '""'
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.lower() if isinstance(value, bool) else text or '""'


def _levels(run: Run) -> str:
    spec = run.spec
    scaled = f"scaled to [{spec.low:g}, {spec.high:g}]"
    return f"{spec.levels} levels, dequantised, {scaled}" if spec.levels else "continuous values"


def _sampler(run: Run) -> str:
    model = run.config.model
    return "deis" if any(option.path == "sde" for option in options(model)) else "em"


def _front(run: Run, kind: str, licence: str) -> list[str]:
    """The YAML; texts in JSON's quotes, which YAML reads."""
    tags = ["diffusion", "score-based-diffusion", "normalizing-flow", kind.lower()]
    lines = ["---", "library_name: indm", f"license: {json.dumps(licence)}", "tags:", *(f"- {tag}" for tag in tags)]
    if len(run.spec.shape) == 3:
        lines.append("pipeline_tag: unconditional-image-generation")
    metrics = list(_metrics(run))
    if metrics:
        name = json.dumps(run.spec.name)
        lines += ["model-index:", f"- name: {json.dumps(run.name)}", "  results:", "  - task:"]
        lines += ["      type: density-estimation", "    dataset:", f"      name: {name}", f"      type: {name}"]
        lines += ["    metrics:"]
        for kind_of, shown, value in metrics:
            lines += [f"    - type: {kind_of}", f"      name: {json.dumps(shown)}", f"      value: {value!r}"]
    return [*lines, "---", ""]


def _metrics(run: Run) -> Iterator[tuple[str, str, float]]:
    """(type, name with unit, value) of what was measured."""
    for label, kind in (("nll", NllResult), ("nelbo", NelboResult)):
        found = run.of(kind)
        if found is not None and math.isfinite(found.result.after.mean):
            yield label, f"{label.upper()} ({found.document.unit})", round(found.result.after.mean, 6)
    found = run.of(DistancesResult)
    if found is not None and math.isfinite(found.result.distances.frechet.value):
        frechet = found.result.distances.frechet
        yield "fd", f"FD({found.result.reference.features}), {frechet.n:,} samples", round(frechet.value, 6)


def _figures(run: Run) -> list[str]:
    if not run.measured:
        return ["Not measured on these weights."]
    rows = []
    for label, kind in (("NLL", NllResult), ("NELBO", NelboResult), ("gap NELBO - NLL", GapResult)):
        found = run.of(kind)
        if found is not None:
            estimate, document = found.result.after, found.document
            error = with_error(estimate.mean, estimate.error, ".4f").replace("+-", "±")
            rows.append((label, f"{error} {document.unit}", f"{document.images:,} test rows of {document.data}"))
    found = run.of(DistancesResult)
    if found is not None:
        distances = found.result
        frechet = distances.distances.frechet
        value = with_error(frechet.value, frechet.se, ".4f").replace("+-", "±")
        cost = (
            "" if math.isnan(distances.evaluations) else f", {distances.evaluations:.1f} evaluations of the score each"
        )
        how = f"{frechet.n:,} samples by {distances.sampling}{cost}; {distances.reference}"
        rows.append((f"FD({distances.reference.features})", value, how))
    figures = run.measured[-1].runs[run.name]
    cost = " + ".join(f"{num} {network}" for network, num in figures.evaluations.items())
    return [
        *_table(("figure", "value ± standard error", "of what"), rows),
        "",
        f"{figures.parameters:,} parameters; a training step evaluates {cost} per sample.",
    ]


def _limits(run: Run) -> Iterator[str]:
    spec = run.spec
    yield f"{KINDS[len(spec.shape)]} of shape {spec.shape} and of the law of {spec.name} alone; it was tested on nothing else."
    if run.measured:
        yield f"The errors are of the measurement of {LEFT_OUT.replace(' (train.py --seeds 3 shows it)', '')}."
        yield "NLL is by the probability-flow ODE with the residual at t_min, an upper bound in expectation; NELBO is a bound."
        if run.of(DistancesResult) is not None:
            yield "A Frechet distance compares with others in the same features, on the same rows and of as many samples only."
    yield "No labels, no guidance: samples are unconditional."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
