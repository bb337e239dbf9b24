"""Weights of diffusers' UNet2DModel: the same eps at the same level, the start of a run, and what cannot be one."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import one_line, train
from safetensors.torch import load_file, save_file

from indm_core.model import Objective
from indm_core.nn.ddpm import discrete_log_snr, level_of
from indm_core.sde import CLD, VE, VP, SubVP
from pipelines.config import load
from pipelines.config.flows import IdentityConfig, ResFlowConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import DDPMUNetConfig
from pipelines.config.provenance import backbone_options
from pipelines.config.terminal.cli import override, split_arguments
from pipelines.data.spec import DataSpec
from pipelines.recipes import RECIPES
from pipelines.runs.pretrained import begin_with, find
from pipelines.storage import checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.utils import import_utils

    import_utils._torchvision_available = False  # not needed here, and it fails where it was built for another torch
    from diffusers import DDPMScheduler, UNet2DModel

DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
SMALL = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
SMALL |= {"down_block_types": DOWN, "up_block_types": UP, "layers_per_block": 1}
FORMS = [
    {},
    {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None, "norm_eps": 1e-6},
    {"down_block_types": DOWN[::-1], "up_block_types": ("UpBlock2D", "UpBlock2D"), "layers_per_block": 2},
    {"add_attention": False, "attention_head_dim": 4, "time_embedding_dim": 20, "dropout": 0.3},
    {"block_out_channels": (8, 8, 16), "down_block_types": (*DOWN, DOWN[0]), "up_block_types": (UP[1], *UP)},
]
SPEC = DataSpec(name="small", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=0)
RUN = RECIPES["digits_vp_nll"]()


def theirs(place: Path, **options) -> UNet2DModel:
    """A network of diffusers with random weights of a size that all of them matter, as it saves itself."""
    torch.manual_seed(1)
    network = UNet2DModel(**SMALL | options).eval()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor += 0.1 * torch.randn(tensor.shape)
    network.save_pretrained(place)
    return network


@pytest.fixture
def saved(tmp_path) -> Path:
    theirs(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=lambda sde: type(sde).__name__)
def test_eps_is_theirs_at_the_same_x_and_level(options, sde, tmp_path):
    """x as their network sees it, and the state of the diffusion at the time of that level's log-SNR."""
    network = theirs(tmp_path / "net", **options)
    run, start = begin_with(f"hf:{tmp_path / 'net'}", _of(sde), SPEC, tmp_path)
    model = run.model.build(SPEC).eval()
    tensors = checkpoint.read(start)[0]
    backbone = model.networks()["score"].backbone
    backbone.load_state_dict({k.removeprefix("model.score.backbone."): v for k, v in tensors.items() if k[0] == "m"})
    levels = torch.tensor([40, 300, 700])
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[levels]
    t = sde.time_at(torch.log((1 - abar) / abar))
    t = t.reshape(-1, 1, 1, 1)
    psi, sigma = sde.psi0(t)[..., 0], sde.cov(t)[..., 0].sqrt()
    torch.testing.assert_close((psi / sigma).flatten() ** 2, abar / (1 - abar), rtol=1e-3, atol=0)
    x = torch.randn(3, 1, 8, 8)
    u = x[..., None] * torch.sqrt(psi**2 + sigma**2).float()
    with torch.no_grad():
        expected = network(x, levels).sample
        found = model.score_model.eps(u, t)[..., 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _of(sde) -> object:
    return replace(RUN, model=INDMConfig(sde=sde, flow=IdentityConfig(), objective=Objective()))


def test_the_levels_are_those_of_their_scheduler():
    for schedule in ("linear", "scaled_linear"):
        abar = DDPMScheduler(num_train_timesteps=500, beta_end=0.03, beta_schedule=schedule).alphas_cumprod.double()
        table = discrete_log_snr(500, 1e-4, 0.03, schedule)
        torch.testing.assert_close(table, torch.log(abar / (1 - abar)), rtol=1e-4, atol=1e-4)
    i = torch.tensor([0.0, 0.25, 17.0, 498.5, 499.0]).double()
    between = table[i.long()] + (i - i.floor()) * (table[(i.long() + 1).clamp(max=499)] - table[i.long()])
    torch.testing.assert_close(level_of(between, table), i)
    beyond = torch.stack([2 * table[0] - table[1], 2 * table[-1] - table[-2]])
    torch.testing.assert_close(level_of(beyond, table), torch.tensor([-1.0, 500.0]).double())
    assert level_of(torch.tensor([15.0, -15.0]).double(), table).isfinite().all()
    for bad in ((1, 1e-4, 0.02, "linear"), (10, 0.0, 0.02, "linear"), (10, 0.3, 0.02, "linear")):
        with pytest.raises(ValueError, match="must be at least 2"):
            discrete_log_snr(*bad)


def test_a_linear_diffusion_goes_on_as_an_indm(saved, tmp_path):
    """The flow begins at the identity: the first losses are equal on the same draws."""
    losses = []
    for flow in (IdentityConfig(), ResFlowConfig(blocks=(2,), width=8)):
        of = replace(RUN, model=INDMConfig(flow=flow, objective=Objective(pretrain_steps=0)))
        run, start = begin_with(f"hf:{saved}", of, SPEC, tmp_path)
        torch.manual_seed(2)
        model = run.model.build(SPEC)
        tensors = {k.removeprefix("model."): v for k, v in checkpoint.read(start)[0].items() if k.startswith("model.")}
        missing = model.networks()["score"].load_state_dict(
            {k.removeprefix("score."): v for k, v in tensors.items()}, strict=True
        )
        assert not missing.missing_keys
        x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(4)) * 2 - 1
        model.eval()
        losses.append(model(x, None, torch.Generator().manual_seed(3)).objective.mean().item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_train_begins_with_them(saved, tmp_path, capsys):
    words = [
        "digits_vp_nll",
        "--start-from",
        f"hf:{saved}",
        "--pretrain-steps",
        "0",
        "--blocks",
        "1",
        "--flow.width",
        "8",
    ]
    words += [
        "--steps",
        "2",
        "--batch-size",
        "16",
        "--sample-every",
        "0",
        "--checkpoint-every",
        "1",
        "--log-every",
        "1",
    ]
    train(*words, "--score.lr", "1e-9", "--score.weight-decay", "0", "--keep", "2", out=tmp_path)
    model = load(tmp_path / "digits_vp_nll")
    given = load_file(saved / "diffusion_pytorch_model.safetensors")
    mine = model.networks()["score"].backbone.state_dict()
    assert mine.keys() == given.keys()
    assert all(torch.allclose(mine[name], given[name], atol=1e-6) for name in given)
    assert model.sample(2, nfe=3).isfinite().all()
    capsys.readouterr()
    train(*words, "--score.lr", "1e-9", "--score.weight-decay", "0", "--keep", "2", out=tmp_path)
    assert "complete, 2 steps" in capsys.readouterr().out


def test_older_names_and_half_precision_are_read(saved, tmp_path):
    before = find(f"hf:{saved}").tensors()
    file = saved / "diffusion_pytorch_model.safetensors"
    then = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for name, tensor in load_file(file).items():
        for now, former in then.items():
            name = name.replace(f".{now}.", f".{former}.")
        renamed[name.replace(".to_out.0.", ".proj_attn.")] = tensor.half()
    assert any(".proj_attn." in name for name in renamed)
    save_file(renamed, file)
    now = find(f"hf:{saved}").tensors()
    assert now.keys() == before.keys()
    assert all(torch.allclose(now[name], before[name], atol=2e-3, rtol=1e-3) for name in now)
    assert {tensor.dtype for tensor in now.values()} == {torch.float32}


def test_a_pipeline_has_its_network_and_its_levels_in_folders(tmp_path):
    theirs(tmp_path / "unet")
    DDPMScheduler(num_train_timesteps=200, beta_schedule="scaled_linear").save_pretrained(tmp_path / "scheduler")
    for place in (tmp_path, tmp_path / "unet"):
        found = find(f"hf:{place}").backbone
        assert (found.num_levels, found.schedule, found.beta_last) == (200, "scaled_linear", 0.02)


REFUSED = {
    "down_block_types": (
        ["SkipDownBlock2D", "DownBlock2D"],
        "'SkipDownBlock2D' is not supported, only DownBlock2D and",
    ),
    "time_embedding_type": ("fourier", "time_embedding_type='fourier' is not supported, only 'positional'"),
    "class_embed_type": ("timestep", "class_embed_type='timestep' is not supported"),
    "num_class_embeds": (10, "num_class_embeds=10 is not supported"),
    "center_input_sample": (True, "center_input_sample=True is not supported"),
    "_class_name": ("UNet2DConditionModel", "only UNet2DModel can start a run"),
    "block_out_channels": ([8], "differ in length"),
    "layers_per_block": ("many", "invalid literal"),
    "out_channels": (2, "in_channels and out_channels differ"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_there_is_not_is_named(name, saved):
    value, said = REFUSED[name]
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        find(f"hf:{saved}")
    one_line(str(refused.value), str(file), said)


def test_pickles_are_refused_and_the_conversion_is_named(saved):
    file = saved / "diffusion_pytorch_model.safetensors"
    file.rename(saved / "diffusion_pytorch_model.bin")
    for word in (f"hf:{saved}", f"hf:{saved}/diffusion_pytorch_model.bin", "hf:somewhere/model.pth"):
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            find(word)
        one_line(str(refused.value), "a pickle, which runs what it holds", "safe_serialization=True")
    (saved / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: no such file"):
        find(f"hf:{saved}")


def test_what_they_cannot_start_is_one_line(saved, tmp_path):
    word = f"hf:{saved}"
    cases = [
        (RECIPES["digits_diffflow"](), SPEC, "has no backbone that these weights could be"),
        (replace(RUN, model=replace(RUN.model, objective=Objective(data_var=0.5))), SPEC, "give --data-var 0"),
        (RUN, replace(SPEC, shape=(3, 8, 8)), "images of 1 channels, and small has (3, 8, 8)"),
        (RUN, replace(SPEC, low=0.0), "knows images in [-1, 1]; give --low -1"),
        (RUN, replace(SPEC, shape=(1, 9, 9)), "multiples of 2"),
        (replace(RUN, model=INDMConfig(sde=CLD(), flow=IdentityConfig())), SPEC, "conv_in.weight' has shape"),
    ]
    for run, spec, said in cases:
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            begin_with(word, run, spec, tmp_path)
        one_line(str(refused.value), said)
    with pytest.raises(ValueError, match="is read at noise levels of a linear diffusion"):
        DDPMUNetConfig(channels=(32,)).build((1, 8, 8), None)
    with pytest.raises(ValueError, match=r"no config\.json in"):
        find(f"hf:{tmp_path}")


def test_what_a_run_from_these_weights_needs_to_go_on_from_it_is_told(saved, tmp_path):
    """A recipe's own backbone is another: which options make it the same, and that they do."""
    run, _ = begin_with(f"hf:{saved}", RUN, SPEC, tmp_path)
    told = backbone_options(run, RUN)
    assert told.startswith("--model.backbone DDPMUNet --model.backbone.channels 8,16 ")
    words, given = split_arguments(told.split())
    assert not words
    assert override(RUN, given).model.backbone == run.model.backbone
    assert backbone_options(run, run) == ""
