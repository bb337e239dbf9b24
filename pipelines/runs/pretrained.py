"""Weights of others as the start of a run: `--start-from hf:DIR`, or `hf:OWNER/NAME` of the Hugging Face hub.

They are those of the class `UNet2DModel` of the library diffusers, which a DDPM pipeline holds: config.json and
diffusion_pytorch_model.safetensors, in the directory or in unet/ below it, and where there is one the scheduler_config.json
that says at which noise levels they were trained. The run's backbone becomes a `DDPMUNetConfig` of that architecture, and the
weights become a checkpoint of step 0 of which the score starts, below OUT/starts. Files that have to be unpickled are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from indm_core.training import load_networks
from pipelines.config.hub import snapshot
from pipelines.config.networks import DDPMUNetConfig
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import options, with_values
from pipelines.data.spec import DataSpec
from pipelines.storage import checkpoint
from pipelines.storage.files import sha256_of
from pipelines.storage.manifest import DamagedError
from pipelines.storage.messages import one_line
from pipelines.storage.reading import read_json

__all__ = ["PREFIX", "Pretrained", "begin_with", "find"]

PREFIX = "hf:"
WEIGHTS, PICKLED = "diffusion_pytorch_model", (".bin", ".pth", ".pt", ".ckpt")
CONVERSION = "from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True) of diffusers' UNet2DModel"
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
DEFAULTS: dict[str, Any] = {
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": [DOWN[0], DOWN[1], DOWN[1], DOWN[1]],
    "up_block_types": [UP[1], UP[1], UP[1], UP[0]],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "add_attention": True,
    "time_embedding_dim": None,
    "in_channels": 3,
    "out_channels": 3,
}
"""What a config.json leaves out."""
ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
"""What this project's network can be of what theirs can; the first is also what a config.json leaves out."""
LEVELS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
LEVELS_ONLY: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
}
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What the layers of an attention were called in older files."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network of others in a directory.

    Args:
        backbone: Its architecture, and the noise levels that it was trained at.
        channels: Of its images.
        files: Of its weights.
    """

    backbone: DDPMUNetConfig
    channels: int
    files: tuple[Path, ...]

    def tensors(self) -> dict[str, Tensor]:
        """The weights in float32, under the names of today.

        Raises:
            ValueError: a file that is no safetensors file.
        """
        found: dict[str, Tensor] = {}
        for file in self.files:
            try:
                found |= load_file(file)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file}: not a readable safetensors file ({one_line(error, 100)})") from None
        return {_name_of_today(name): tensor.float() for name, tensor in found.items()}


def find(word: str) -> Pretrained:
    """The network that `hf:DIR` or `hf:OWNER/NAME` names.

    Raises:
        ValueError: nothing there, an architecture that this project's network cannot have, or weights that are pickled.
    """
    given = word.removeprefix(PREFIX)
    if given.endswith(PICKLED):
        raise ValueError(_pickled(Path(given)))
    place = snapshot(given, ["*.json", "*.safetensors"])
    unet = next((p for p in (place / "unet", place) if (p / "config.json").is_file()), None)
    if unet is None:
        raise ValueError(
            f"start_from={word}: no config.json in {place} or {place / 'unet'}; give {PREFIX}DIR of a U-Net"
        )
    where = str(unet / "config.json")
    config = _read(unet / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{where}: of the class {config['_class_name']!r}; only UNet2DModel can start a run")
    _refuse_others(config, ONLY, where)
    levels = _levels(place, unet)
    backbone = _backbone({**DEFAULTS, **config}, levels, where)
    if config.get("in_channels", 3) != config.get("out_channels", 3):
        raise ValueError(
            f"{where}: in_channels and out_channels differ; a network whose output is eps alone has equal ones"
        )
    return Pretrained(backbone=backbone, channels=config.get("in_channels", 3), files=_weights(unet))


def begin_with(word: str, run: RunConfig, spec: DataSpec, root: Path) -> tuple[RunConfig, Path]:
    """The run with the backbone of a pretrained network, and the checkpoint of step 0 that holds its weights.

    Args:
        word: `hf:DIR` or `hf:OWNER/NAME`.
        root: The output directory; the checkpoint lies in starts/ below it, once for the same weights and levels.

    Raises:
        ValueError: as `find` does; a model without such a backbone, or data that the network was not trained for.
    """
    found, known = find(word), {option.path: option.value for option in options(run)}
    if "model.backbone" not in known:
        raise ValueError(f"start_from={word}: the model of {run.recipe} has no backbone that these weights could be")
    if known.get("model.objective.data_var"):
        raise ValueError(f"start_from={word}: the network's output is eps itself; give --data-var 0")
    if spec.shape[0] != found.channels or len(spec.shape) != 3:
        raise ValueError(
            f"start_from={word}: for images of {found.channels} channels, and {spec.name} has {spec.shape}"
        )
    if (spec.low, spec.high) != (-1.0, 1.0):
        raise ValueError(f"start_from={word}: the network knows images in [-1, 1]; give --low -1 --high 1")
    run = with_values(run, {"model.backbone": found.backbone})
    network = {f"score.backbone.{name}": tensor for name, tensor in found.tensors().items()}
    try:
        load_networks(run.model.build(spec), network, ["score"])
    except ValueError as error:
        raise ValueError(f"start_from={word}: {error}") from None
    key = hashlib.sha256("".join([sha256_of(file) for file in found.files] + [repr(found.backbone)]).encode())
    start = root / "starts" / key.hexdigest()[:16]
    if not _is_whole(start):
        tensors = {f"{kind}.{name}": tensor.clone() for kind in ("model", "ema") for name, tensor in network.items()}
        checkpoint.write(start, tensors, {"step": 0, "skipped": 0, "averaged": 1, "origin": word})
    return run, start


def _is_whole(start: Path) -> bool:
    try:
        checkpoint.read_state(start).verify()
    except (OSError, ValueError, DamagedError):
        return False
    return True


def _read(file: Path) -> dict[str, Any]:
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not JSON ({one_line(error, 100)})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: no configuration of a network")
    return document


def _refuse_others(config: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], where: str) -> None:
    for name, values in only.items():
        given = config.get(name, values[0])
        if given not in values:
            can = " or ".join(map(repr, values))
            raise ValueError(f"{where}: {name}={given!r} is not supported, only {can}; this network cannot start a run")


def _levels(place: Path, unet: Path) -> dict[str, Any]:
    """What the scheduler's file says of the noise levels; DDPM's where there is none."""
    folders = (place / "scheduler", unet.parent / "scheduler", place, unet)
    file = next((f / "scheduler_config.json" for f in folders if (f / "scheduler_config.json").is_file()), None)
    given = _read(file) if file else {}
    _refuse_others(given, LEVELS_ONLY, str(file))
    return {name: given.get(name, value) for name, value in LEVELS.items()}


def _backbone(config: Mapping[str, Any], levels: Mapping[str, Any], where: str) -> DDPMUNetConfig:
    try:
        channels = tuple(int(c) for c in config["block_out_channels"])
        down, up = config["down_block_types"], config["up_block_types"][::-1]
        if not len(channels) == len(down) == len(up):
            raise ValueError("block_out_channels, down_block_types and up_block_types differ in length")
        return DDPMUNetConfig(
            channels=channels,
            num_res_blocks=int(config["layers_per_block"]),
            attention_down=_attending(down, DOWN),
            attention_up=_attending(up, UP),
            attention_middle=bool(config["add_attention"]),
            head_dim=int(config["attention_head_dim"] or 0),
            groups=int(config["norm_num_groups"]),
            norm_eps=float(config["norm_eps"]),
            padding=int(config["downsample_padding"]),
            cosine_first=bool(config["flip_sin_to_cos"]),
            shift=int(config["freq_shift"]),
            num_temb=int(config["time_embedding_dim"] or 0),
            dropout=float(config["dropout"]),
            num_levels=int(levels["num_train_timesteps"]),
            beta_first=float(levels["beta_start"]),
            beta_last=float(levels["beta_end"]),
            schedule=levels["beta_schedule"],
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {one_line(error, 200)}; this network cannot start a run") from None


def _attending(types: Sequence[str], known: tuple[str, str]) -> tuple[int, ...]:
    """The levels, from the finest, whose blocks have attention."""
    others = [kind for kind in types if kind not in known]
    if others:
        raise ValueError(f"block type {others[0]!r} is not supported, only {' and '.join(known)}")
    return tuple(i for i, kind in enumerate(types) if kind == known[1])


def _weights(unet: Path) -> tuple[Path, ...]:
    whole, shards = unet / f"{WEIGHTS}.safetensors", sorted(unet.glob(f"{WEIGHTS}-*-of-*.safetensors"))
    if whole.is_file():
        return (whole,)
    if shards:
        return tuple(shards)
    pickled = sorted(file for file in unet.iterdir() if file.suffix in PICKLED)
    raise ValueError(
        _pickled(pickled[0]) if pickled else f"{whole}: no such file; these are all weights that can be read"
    )


def _pickled(file: Path) -> str:
    return f"{file}: a pickle, which runs what it holds when it is read; convert it where you trust it: {CONVERSION}"


def _name_of_today(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in FORMER:
        parts[-2] = FORMER[parts[-2]]
    return ".".join(parts)
