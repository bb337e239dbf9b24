"""A run's configuration survives JSON, names nothing but configurations, and rebuilds its model with equal outputs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, field, replace

import pytest
import torch
from ray_session import ROOT, TINY, environment, one_line, train

from indm_core.model import GenerativeModel
from indm_core.noise import seeded
from indm_core.training import network_tensors
from pipelines.config import codec, load
from pipelines.config.codec import form, from_json, moved, subclasses, to_json
from pipelines.config.flows import FlowConfig, IdentityConfig
from pipelines.config.models import BridgeConfig, INDMConfig, ModelConfig
from pipelines.config.networks import network_shape
from pipelines.config.run import RunConfig, to_document
from pipelines.config.store import read_run, write_run
from pipelines.data.spec import DataSpec
from pipelines.recipes import BASELINES, DEFAULT, RECIPES
from pipelines.storage import checkpoint

SPEC = DataSpec(name="set", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps, trained in this process."""
    out = tmp_path_factory.mktemp("runs")
    train("digits_vp_nll", *TINY, out=out)
    return out / "digits_vp_nll"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_json_round_trip(name, tmp_path):
    run = RECIPES[name]()
    assert run.recipe == name
    text = json.dumps(to_json(run), allow_nan=False)
    assert from_json(RunConfig, json.loads(text)) == run
    write_run(tmp_path / "config.json", run, SPEC)
    assert read_run(tmp_path / "config.json") == (run, SPEC)


def test_default_and_baselines_are_recipes():
    assert DEFAULT in RECIPES
    assert {*BASELINES, *BASELINES.values()} <= RECIPES.keys()


def test_whole_numbers_stand_for_floats_and_come_back_as_such():
    document = to_json(RunConfig(recipe="r"))
    document["model"]["sde"]["beta_max"] = 20
    run = from_json(RunConfig, document)
    assert type(run.model.sde.beta_max) is float


FAULTS = {
    "unknown type": (["model", "sde", "type"], "OU", ["config.model.sde", "unknown class 'OU'", "VP"]),
    "unknown field": (["model", "sde", "beta"], 1.0, ["config.model.sde", "VP", "'beta'", "beta_max"]),
    "another type's field": (
        ["model", "flow", "type"],
        "IdentityConfig",
        ["config.model.flow", "IdentityConfig", "'activation'"],
    ),
    "text for a number": (["train", "steps"], "many", ["config.train.steps", "'many'", "int"]),
    "fraction for an int": (["train", "steps"], 1.5, ["config.train.steps", "1.5"]),
    "bool for an int": (["train", "seed"], True, ["config.train.seed", "True"]),
    "number for a bool": (["data", "flip"], 1, ["config.data.flip", "1"]),
    "not a choice": (["model", "objective", "mode"], "elbo", ["config.model.objective.mode", "'elbo'"]),
    "a setting refused": (["model", "objective", "data_var"], -1.0, ["config.model.objective", "data_var=-1.0"]),
    "list for a number": (["train", "ema_decay"], [0.9], ["config.train.ema_decay", "[0.9]"]),
    "number in a tuple": (["model", "flow", "blocks"], [8, "x"], ["config.model.flow.blocks[1]", "'x'"]),
    "null": (["model"], None, ["config.model", "ModelConfig", "None"]),
    "a value refused by the class": (["train", "batch_size"], 0, ["config.train", "batch_size=0"]),
    "an optimiser's value": (["train", "optimisers", "score", "lr"], -1.0, ["config.train.optimisers.score", "lr=-1"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_documents_are_refused_with_the_place(fault):
    path, value, parts = FAULTS[fault]
    document = json.loads(json.dumps(to_json(RECIPES["digits_vp_nll"]())))
    inside = document
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(ValueError, match=r"config") as caught:
        from_json(RunConfig, document)
    one_line(str(caught.value), *parts)


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "posix.system", "torch.nn.Linear", "Linear", "INDM", "ResFlow", "UNet", "Path", "ABC", "object"),
        *("LinearSDE", "FlowConfig", "BackboneConfigs", "type", "eval", "__import__", "RunConfig", "Job", "Sampling"),
    ],
)
@pytest.mark.parametrize("place", ["sde", "flow", "backbone"])
def test_a_document_names_nothing_but_configurations_of_the_place(place, name):
    document = to_json(RECIPES["digits_vp_nll"]())
    document["model"][place] = {"type": name, "command": "true"}
    with pytest.raises(ValueError, match=rf"config\.model\.{place}: unknown class '{name}': "):
        from_json(RunConfig, document)


def test_a_type_that_is_no_text_is_refused():
    document = to_json(RECIPES["digits_vp_nll"]())
    document["model"]["sde"]["type"] = ["VP"]
    with pytest.raises(ValueError, match=r"config\.model\.sde"):
        from_json(RunConfig, document)


def test_a_missing_field_without_default_is_named():
    with pytest.raises(ValueError, match=r"config: .*recipe"):
        from_json(RunConfig, {})


def outputs(model: GenerativeModel) -> tuple[torch.Tensor, ...]:
    """Latent, log-determinant and score of fixed inputs."""
    x = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    with torch.no_grad():
        u, log_det = model.encode(x, seeded(range(3)))
        return u, log_det, model.score(u, torch.tensor(0.3))


def test_load_rebuilds_the_model_with_equal_outputs(trained):
    model = load(trained)
    assert not model.training
    run, spec = read_run(trained / "config.json")
    averaged, _ = checkpoint.read(checkpoint.latest(trained))
    stored = {key.removeprefix("ema."): value for key, value in averaged.items() if key.startswith("ema.")}
    loaded = network_tensors(model)
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[key], stored[key]) for key in stored)
    torch.manual_seed(123)
    other = run.model.build(spec)
    fresh = outputs(other.eval())
    other.load_state_dict(model.state_dict())
    for mine, again, unlike in zip(outputs(load(trained)), outputs(other.eval()), fresh, strict=True):
        assert torch.equal(mine, again)
        assert not torch.equal(mine, unlike)


@pytest.fixture
def copy(trained, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


def refused(directory, *parts: str) -> None:
    with pytest.raises(ValueError, match=directory.name) as caught:
        load(directory)
    one_line(str(caught.value), *parts)


def test_truncated_weights_are_refused(copy):
    file = copy / "model.safetensors"
    for size in (0, 5, 200, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:size])
        refused(copy, "model.safetensors", "not a readable safetensors file")


def test_missing_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, "no trained weights yet", "train it")


def test_another_version_is_refused(copy):
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2}))
    refused(copy, "config.json", "another version", "version 1")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    refused(copy, "config.json")


def test_no_run_is_refused(tmp_path):
    refused(tmp_path, "no readable run", "give the directory of a run")


def test_weights_of_another_architecture_are_refused(copy):
    run, spec = read_run(copy / "config.json")
    assert isinstance(run.model, INDMConfig)
    write_run(copy / "config.json", replace(run, model=replace(run.model, flow=IdentityConfig())), spec)
    refused(copy, "model.safetensors", "another architecture", "flow.")
    wider = replace(run.model, flow=replace(run.model.flow, width=24))
    write_run(copy / "config.json", replace(run, model=wider), spec)
    refused(copy, "model.safetensors", "another architecture", "flow.", "shape")


def test_an_unknown_class_names_the_file_and_the_nearest_class(copy):
    document = json.loads((copy / "config.json").read_text())
    document["run"]["model"]["flow"]["type"] = "ResFlowConfg"
    (copy / "config.json").write_text(json.dumps(document))
    refused(copy, "config.json: run.model.flow: unknown class 'ResFlowConfg'", "did you mean ResFlowConfig")


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What two fields have moved into."""

    width: int = 1
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Third:
    """Twice renamed."""

    inside: Inside = field(default_factory=lambda: Inside(width=7, depth=8))
    last: int = 3


@dataclass(frozen=True, kw_only=True)
class Heir(Third):
    """Below it."""


def test_classes_and_fields_may_be_renamed_again_and_again(monkeypatch):
    """First, then Second, then Third; a field a, then b, then last; and w, then inside.breadth, then inside.width."""
    entries = {"First": "Second", "Second": "Third", "First.a": "First.b", "Second.b": "Second.last"}
    entries |= {"Second.w": "Third.inside.breadth", "Inside.breadth": "Inside.width"}
    monkeypatch.setattr(codec, "ALIASES", entries)
    expected = Third(inside=Inside(width=5, depth=8), last=4)
    for name in ("First", "Second", "Third"):
        for last in ("a", "b", "last"):
            assert from_json(Third, {"type": name, last: 4, "w": 5}) == expected
        assert form(Third, name) is Third
    assert from_json(Third, {"type": "Heir", "a": 4, "w": 5}) == Heir(inside=expected.inside, last=4)
    inside = {"type": "Inside", "breadth": 5, "depth": 8}
    assert from_json(Third, {"type": "First", "a": 4, "inside": inside}) == expected
    assert moved(Third, "w") == "inside.breadth"
    assert moved(Third, "q") is None
    with pytest.raises(ValueError, match="'a' is called 'last' now, and both are given; remove 'a'"):
        from_json(Third, {"type": "Third", "a": 4, "last": 4})
    with pytest.raises(ValueError, match="Third has no field 'q'; it has inside, last"):
        from_json(Third, {"type": "First", "q": 1})


def test_a_name_of_then_that_is_a_class_of_now_means_the_latter(monkeypatch):
    monkeypatch.setattr(codec, "ALIASES", {"IdentityConfig": "ResFlowConfig"})
    assert from_json(FlowConfig, {"type": "IdentityConfig"}) == IdentityConfig()


def test_a_run_travels_as_its_document():
    for name in ("digits_bdm_nll", "toy2d_dinof", "cifar10_diffflow"):
        run = RECIPES[name]()
        assert pickle.loads(pickle.dumps(run)) == run  # noqa: S301
        assert deepcopy(run) == run


READS_RUNS = """
import json, sys
from pipelines.config.run import from_document
for document in json.load(sys.stdin):
    from_document(document)
"""


def test_a_process_that_knows_no_recipes_reads_the_run_of_each():
    documents = json.dumps([to_document(recipe()) for recipe in RECIPES.values()])
    words = [sys.executable, "-c", READS_RUNS]
    subprocess.run(words, cwd=ROOT, env=environment(), input=documents, text=True, check=True, timeout=60)


def test_a_bridge_alone_needs_a_partner():
    forms = subclasses(ModelConfig).values()
    assert [form for form in forms if form.needs_partner.fget(form)] == [BridgeConfig]


CIFAR10 = DataSpec(name="cifar10", shape=(3, 32, 32), levels=256, low=-1.0, high=1.0, num_classes=10)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar10_vp_nll", 61_804_419),
        ("cifar10_vp_fid", 61_804_419),
        ("cifar10_ve_fid", 62_758_787),
        ("cifar10_vp_nll_deep", 106_632_579),
        ("cifar10_ve_fid_deep", 107_586_947),
        ("celeba64_vp_fid", 61_804_419),
    ],
)
def test_the_published_sizes(name, count):
    """61.80, 62.76, 106.63 and 107.59 million parameters of the score (Kim et al. 2022, Table 4)."""
    run = RECIPES[name]()
    with torch.device("meta"):
        backbone = run.model.backbone.build(network_shape(CIFAR10, run.model.sde), run.model.sde)
    assert sum(p.numel() for p in backbone.parameters()) == count


def test_a_diffusion_of_dinof_s_table_has_its_network_and_more_steps():
    for name in ("ve", "vp", "subvp"):
        linear, dinof = RECIPES[f"cifar10_linear_{name}"](), RECIPES[f"cifar10_dinof_{name}"]()
        assert (linear.train.steps, dinof.train.steps) == (1_300_000, 1_000_000)
        model = linear.model
        assert (model.flow, model.objective.mode) == (IdentityConfig(), "fid")
        assert (model.sde, model.backbone) == (dinof.model.sde, dinof.model.backbone)
        assert linear.data == dinof.data
        assert linear.train.optimisers["score"] == dinof.train.optimisers["score"]


def test_celeba_hq_fits_its_networks_at_256_pixels():
    """Seven levels, 256 to 4 pixels, attention at 16; a score and a flow prior of the images' shape."""
    spec = DataSpec(name="celebahq", shape=(3, 256, 256), levels=256, low=0.0, high=1.0, num_classes=0)
    dinof, linear = RECIPES["celebahq256_dinof_ve"](), RECIPES["celebahq256_ve"]()
    assert (dinof.data.options.size, dinof.data.options.low, dinof.data.flip) == (256, 0.0, True)
    assert (dinof.train.steps, dinof.train.batch_size, dinof.model.t_m) == (500_000, 8, 0.6)
    assert (dinof.model.sde.sigma_min, dinof.model.sde.sigma_max) == (0.01, 348.0)
    assert linear.model.backbone == dinof.model.backbone
    with torch.device("meta"):
        x, t = torch.zeros(2, *spec.shape), torch.zeros(2)
        score = dinof.model.backbone.build(network_shape(spec, dinof.model.sde), dinof.model.sde)
        prior = dinof.model.prior.build(spec.shape)
        assert score(x, t).shape == x.shape
    assert [len(level) for level in score.encoder.levels] == [2] * 7
    assert sum(p.numel() for p in score.parameters()) == 67_745_027
    assert sum(p.numel() for p in prior.parameters()) == 7_920_684  # of the channels alone: as on CIFAR-10


def test_the_time_of_ncsn_is_the_logarithm_of_its_noise():
    sde = RECIPES["cifar10_ve_fid"]().model.sde
    t = torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.log_sigma(t), sde.sigma(t).log())
