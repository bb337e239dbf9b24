"""A run as a model repository: a directory that `load` and the tools of the Hugging Face hub read, and nothing of this machine.

config.json         as of a run; of its sources, the names alone
model.safetensors   the weights;  model.json  what vouches for them
README.md           the model card (`model_card`);  samples.png  a grid of samples
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from indm_core.training import network_tensors
from pipelines.config.history import History
from pipelines.config.provenance import Provenance
from pipelines.config.run import RunConfig
from pipelines.config.store import CONFIG, WEIGHTS, load, read_run, weights_state, write_run, write_weights
from pipelines.config.weights import Weights
from pipelines.data.origin import without_path
from pipelines.evaluation.sampling.settled import sampling_for
from pipelines.reporting.hub.card import model_card
from pipelines.reporting.hub.options import ExportOptions
from pipelines.reporting.tables import Run
from pipelines.runs.pictures import save_samples
from pipelines.storage.files import write_text
from pipelines.storage.outputs import check_writable
from pipelines.storage.paths import local_path
from pipelines.storage.reading import read_document

__all__ = ["export"]

CARD, GRID, STATE = "README.md", "samples.png", "model.json"
OURS = {CONFIG, WEIGHTS, STATE, CARD, GRID}
MARK = b"library_name: indm"
"""In every card."""
HUBS = {".git", ".gitattributes", ".cache", ".huggingface"}
"""What the hub's tools put into a repository of it."""


def export(run: Weights, wanted: ExportOptions) -> Path:
    """Writes the directory, and returns it.

    Raises:
        ValueError: a run without weights, a sampler that its model does not allow, or a directory that holds other things.
    """
    if not wanted.to:
        raise ValueError("where to? give --to DIR")
    out = local_path(wanted.to, "--to").resolve()
    _refuse_others(out, run.run)
    model = load(run)
    wanted = replace(wanted, sampling=sampling_for(run, model, wanted.sampling))
    check_writable(out, "give another --to DIR")
    found = Run.read(run)
    state = weights_state(run)
    made = Provenance.read(state.content, str(state.file)) if state else None
    config, spec = without_paths(found.config), found.spec
    step = state.content["step"] if state else config.train.steps
    history = History.read(run.run / CONFIG)
    document = (
        replace(made, run=config).to_document() if made else Provenance(run=config, spec=spec, data={}).to_document()
    )
    tensors = {name: tensor.clone() for name, tensor in network_tensors(model).items()}  # sampling moves buffers
    num = wanted.num_samples or (64 if len(spec.shape) > 1 else 1000)
    x = model.sample(num, sampler=wanted.sampling, seed=wanted.seed)
    card = model_card(
        replace(found, config=without_paths(read_run(run.run / CONFIG)[0])),
        weights=f"{'not averaged' if run.raw else 'averaged over training'}, step {step:,}",
        grid=GRID,
        drawn=f"`{wanted.sampling}`, seeds {wanted.seed} to {wanted.seed + num - 1}",
        trained_with=history.codes,
        licence=wanted.licence,
    )
    write_text(out / CARD, card)  # first: by it a directory is known that a kill has left half written
    save_samples(x, spec, out / GRID)
    write_run(out / CONFIG, config, spec, history.without_lines())
    write_weights(out, tensors, step, document)
    return out


def without_paths(run: RunConfig) -> RunConfig:
    """The configuration with the names of its sources in place of their paths on this machine."""
    data = run.data
    return replace(run, data=replace(data, source=without_path(data.source), partner=without_path(data.partner)))


def _refuse_others(out: Path, run: Path) -> None:
    """A directory that holds something else than an export is left as it is."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--to {out}: a file; give a directory")
    if out == run.resolve():
        raise ValueError(f"--to {out}: the run itself; give another directory")
    if not out.is_dir():
        return
    entries = {path.name for path in out.iterdir()} - HUBS
    foreign = sorted(entries - OURS)
    if entries and not foreign and not ((out / CARD).is_file() and MARK in read_document(out / CARD)):
        foreign = sorted(entries)
    if foreign:
        raise ValueError(
            f"--to {out}: holds other things ({foreign[0]}), which are left as they are; give a new directory"
        )
