"""Runs and recipes as an earlier version of this project wrote them: read, measured and gone on with.

`old_runs/` holds, of that version, recipes.json (every recipe, as its config.json had it), five tiny runs of six steps with the
figures that it measured on them (float64, three fixed images), and of `indm` the checkpoint of step 3. NLL: ODE at tolerance
0.01, of `linear`, a CLD, with the exact divergence and without the residual, since its probes and its bound are others now.
NELBO: at explicit nodes, since the control variate is another one now; of DiffFlow, which has none, by eight draws.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import one_line, train
from safetensors.torch import load_file
from torch import Tensor

from indm_core.likelihood import nelbo, nll
from indm_core.model import GenerativeModel, Node
from indm_core.sde import LinearSDE
from pipelines.config import load
from pipelines.config.codec import ALIASES, former, from_json, moved, subclasses
from pipelines.config.flows import FlowConfig
from pipelines.config.models import ModelConfig
from pipelines.config.networks import BackboneConfig
from pipelines.config.run import RunConfig
from pipelines.config.store import as_begun, read_run, write_run
from pipelines.config.terminal.cli import with_values
from pipelines.recipes import RECIPES
from pipelines.runs.job import read_metrics

OLD = Path(__file__).parent / "old_runs"
THEN = json.loads((OLD / "recipes.json").read_text())
FIGURES = json.loads((OLD / "figures.json").read_text())
DIGITS = ("digits_vp_nll", "digits_cld_nll", "digits_bdm_nll", "digits_bridge")
LINEAR = ("digits_linear_nll", "digits_cld_linear", "digits_bdm_linear")


def _digits(then: RunConfig) -> RunConfig:
    """Eight blocks in place of four, and twice the flow's rate, since no activation stands before the first layer."""
    optimisers = then.train.optimisers | {"flow": replace(then.train.optimisers["flow"], lr=2e-3)}
    model = replace(then.model, flow=replace(then.model.flow, blocks=(8,))) if then.recipe in DIGITS else then.model
    return replace(then, model=model, train=replace(then.train, optimisers=optimisers))


CHANGED = dict.fromkeys((*DIGITS, *LINEAR), _digits) | {
    # trained for a million iterations as published; 1.3 million are those of the diffusions that it is compared with
    name: lambda then: replace(then, train=replace(then.train, steps=1_000_000))
    for name in ("cifar10_dinof_ve", "cifar10_dinof_ve_deep", "cifar10_dinof_vp", "cifar10_dinof_subvp")
}
"""Recipes that have deliberately changed since."""
SCORE = ("--nf", "4", "--ch-mult", "1", "--num-res-blocks", "1", "--batch-size", "16", "--sample-every", "0")
SCORE += ("--steps", "6", "--log-every", "3", "--checkpoint-every", "3", "--validate-every", "0")
OPTIONS = (*SCORE, "--blocks", "2", "--flow.width", "4")
"""Those with which `indm` was trained, beside --pretrain-steps 3."""


@pytest.mark.parametrize("name", THEN)
def test_a_recipe_of_then_reads_as_that_of_now(name):
    """But for what a class did not have then, which keeps what it was."""
    run = from_json(RunConfig, THEN[name])
    then = former(run)
    flow = {"model.flow.first_activation": True} if "ResidualFlow" in str(THEN[name]) else {}
    assert then == flow | {"train.validate_every": 0, "train.order": "windows"}
    now = with_values(RECIPES[name](), then)
    assert CHANGED.get(name, lambda then: then)(run) == now
    assert (run != now) == (name in CHANGED)


def every(base: type) -> dict[str, type]:
    """All classes below a base by name, the abstract ones too."""
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found |= every(child)
    return found


def test_every_alias_leads_to_a_name_of_today():
    """A class's to a class that there is, a field's to a path at which every form of its class has it."""
    known = every(LinearSDE) | every(FlowConfig) | every(BackboneConfig) | every(ModelConfig)
    for then, now in ALIASES.items():
        seen = {then}
        while now in ALIASES:
            assert now not in seen, f"{then} leads back to itself"
            seen.add(now)
            now = ALIASES[now]
        name, _, path = now.partition(".")
        assert name in known, f"{then}: there is no class {name}"
        if path:
            for form in subclasses(known[name]).values():
                assert moved(form, then.partition(".")[2]) == path


def test_what_an_earlier_file_left_out_is_the_default_of_its_class():
    """The four fields of an objective lay in its model; a file that has one of them leaves the others as they were."""
    model = from_json(ModelConfig, {"type": "DiNofConfig", "pretrain_steps": 3})
    assert (model.objective.mode, model.objective.pretrain_steps) == ("fid", 3)
    model = from_json(ModelConfig, {"type": "BridgeConfig", "soft_truncation": 1.2})
    assert (model.objective.mode, model.objective.soft_truncation) == ("nll", 1.2)
    with pytest.raises(ValueError, match=r"config: 'mode' is called 'objective\.mode' now, and both are given"):
        from_json(ModelConfig, {"type": "INDMConfig", "mode": "fid", "objective": {"type": "Objective"}})


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_of_then_gives_its_figures(name):
    model = load(OLD / name).double()
    x = torch.rand(3, *model.shape, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    seeded = torch.Generator().manual_seed
    options = {"residual": False, "exact_divergence": True} if name == "linear" else {}
    found = {"nll": lambda: nll(model, x, rtol=1e-2, atol=1e-2, generator=seeded(2), **options)}
    found["nelbo"] = lambda: nelbo(model, x, num_draws=8, generator=seeded(2))
    found["nelbo at nodes"] = lambda: nelbo(model, x, nodes=nodes(model, x), residual=False)
    for kind, figures in FIGURES[name].items():
        torch.testing.assert_close(found[kind](), torch.tensor(figures, dtype=torch.float64), rtol=1e-9, atol=0)


def nodes(model: GenerativeModel, x: Tensor) -> list[Node]:
    """Four explicit nodes (t, eps, weight), at which a NELBO is no estimate."""
    generator = torch.Generator().manual_seed(2)
    shape, times = model.state_like(len(x), x).shape, torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    return [(t * model.t_start, torch.randn(shape, generator=generator, dtype=torch.float64), 0.25) for t in times]


@pytest.fixture
def killed(tmp_path):
    """The run as it lay there after its third step."""
    shutil.copytree(OLD / "indm", tmp_path / "indm")
    (tmp_path / "indm" / "model.safetensors").unlink()
    return tmp_path


def test_a_run_of_then_goes_on_to_the_same_weights(killed):
    """From step 3, where the flow begins to train, to step 6: parameters, moments and averages were restored.

    Up to the norms of the flow's layers, which one power iteration per step found less well: a step is 1e-3, whatever the
    gradient's size, so that a few weights of nearly no gradient go their own way.
    """
    begun_with = ("--name", "indm", "--pretrain-steps", "3", *OPTIONS, "--optimisers.flow.lr", "0.001")
    train("digits_vp_nll", *begun_with, out=killed)
    found, expected = (load_file(place / "model.safetensors") for place in (killed / "indm", OLD / "indm"))
    searched = {
        key for tensors in (found, expected) for key in tensors if key.endswith((".left", ".vectors"))
    }  # for norms
    assert found.keys() - searched == expected.keys() - searched
    apart = torch.cat([(found[key] - expected[key]).flatten().abs() for key in sorted(found.keys() - searched)])
    assert float(apart.median()) < 1e-7
    assert float(apart.mean()) < 5e-5
    records = [read_metrics(place) for place in (killed / "indm", OLD / "indm")]
    assert [record.step for record in records[0]] == [3, 6]
    assert records[0][0] == records[1][0]
    assert records[0][1].terms["nelbo"] == pytest.approx(records[1][1].terms["nelbo"], rel=1e-4)
    assert read_run(killed / "indm" / "config.json") == read_run(OLD / "indm" / "config.json")


def test_a_run_of_then_keeps_what_it_was_begun_with(killed):
    """Its order of rows, its flow: under the first command of today and under those after it, when config.json says so too."""
    file = killed / "indm" / "config.json"
    for _ in range(2):
        there, spec = read_run(file)
        today = {"train.order": "streams", "train.validate_every": 100, "model.flow.first_activation": False}
        again = as_begun(with_values(there, today), file)
        assert there == again
        assert again.train.order == "windows"
        write_run(file, again, spec)
    assert '"order": "windows"' in file.read_text()
    assert RECIPES["digits_vp_nll"]().train.order == "streams"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pretrain-steps", "2"), "model.objective.pretrain_steps=3, not 2"),
        (("--pretrain-steps", "3", "--mode", "fid"), "model.objective.mode=nll, not fid"),
        (("--pretrain-steps", "3", "--model.flow.actnorm", "none"), "model.flow.actnorm=pixel, not none"),
    ],
)
def test_a_run_of_then_is_not_gone_on_with_by_other_options(words, said, killed, capsys):
    train("digits_vp_nll", "--name", "indm", *words, *OPTIONS, out=killed, status=2)
    one_line(capsys.readouterr().err, "error: ", said, "give another --name")


def test_weights_of_then_start_a_run_of_now(killed):
    """RUN/pretrained of an earlier version starts a linear diffusion."""
    start = ("--name", "b", "--start-from", str(killed / "indm" / "pretrained"))
    train("digits_linear_nll", *start, *SCORE, out=killed)
    assert [record.step for record in read_metrics(killed / "b")] == [6]
