"""How often a training step asks for a number: on a GPU each time the host waits until all that it queued has been done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import MODELS, randn, rng
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from indm_core.flow import ResFlow
from indm_core.model import INDM, DiNof, Objective, Trainable
from indm_core.nn import MLP, UNet
from indm_core.sde import VP
from indm_core.training import AdamW, Trainer

VALUE = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero"}
"""Operators whose result a host has to know: item(), float(), bool() and int() are the first."""
MEMORY = {"tolist", "numpy", "cpu"}
"""Methods that read without an operator."""
COPY = {"tensor", "as_tensor", "new_tensor"}
"""Functions that copy a number of the host to the device that they are given."""


class Operators(TorchDispatchMode):
    """Counts those of `VALUE`, whoever calls them."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(at is not None and at.dtype == torch.bool for at in args[1])
        if name in VALUE or masked:
            self.seen["value"] += 1
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Counts those of `MEMORY`, and of `COPY` where a device is given."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = getattr(func, "__name__", ""), kwargs or {}
        if name in MEMORY:
            self.seen["memory"] += 1
        if name in COPY and (name == "new_tensor" or options.get("device") is not None):
            self.seen["copy"] += 1
        return func(*args, **options)


def image_indm(**objective) -> INDM:
    """With everything that images have: a convolutional residual flow, a U-Net with attention and dropout."""
    unet = UNet(
        (1, 8, 8), time_feature=lambda t: t, nf=8, ch_mult=(1, 2), num_res_blocks=1, attention=(4,), num_classes=3
    )
    flow = ResFlow((1, 8, 8), blocks=(1, 1), width=8)
    return INDM(flow, unet, VP(), shape=(1, 8, 8), objective=Objective(**objective), num_classes=3)


CASES: dict[str, tuple[Callable[[], Trainable], int]] = {
    **{name: (make, {"DiffFlow": 2}.get(name, 0)) for name, make in MODELS.items()},
    "images": (image_indm, 1),
    "images FID": (lambda: image_indm(mode="fid", soft_truncation=1.2), 1),
    "windows": (lambda: image_indm(smallest_window=(4, 4), window_step=2), 1 + 4),
    "two flows": (
        lambda: DiNof(
            ResFlow((8,), blocks=(1,), width=8),
            ResFlow((8,), blocks=(2,), width=8),
            MLP(8, time_feature=lambda t: t),
            VP(),
            shape=(8,),
        ),
        2,
    ),
}
"""Models, and how often the host looks at what it has drawn itself in a step: the lengths of a flow's series, the grid of a
path (twice: whether its steps have a length), the sides and the place of a window."""


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_the_device_once(name):
    """To learn whether the gradient is finite; whatever else is read lies with the host, and nothing is copied to a device."""
    make, own = CASES[name]
    model = make().double()
    trainer = Trainer(model, {network: AdamW() for network in model.networks()})
    x, y = randn(4, *model.shape), torch.tensor([0, 1, 2, -1]) if model.num_classes else None
    trainer.step([(x, y)], rng(0))  # the first step sets what is set by the first batch
    seen: Counter[str] = Counter()
    with Functions(seen), Operators(seen):
        trainer.step([(x, y)], rng(1))
    assert seen["copy"] == 0
    assert seen["value"] + seen["memory"] == 1 + own


def test_the_counter_counts():
    seen: Counter[str] = Counter()
    x = randn(3)
    p = torch.nn.Parameter(x.clone())
    p.grad = x.clone()
    with Functions(seen), Operators(seen):
        values = float(x[0]), bool(x[0] > 0), int(x[1]), x[2].item(), x[x > 0]
        torch.nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
        memory = x.tolist(), x.numpy()
        copies = torch.tensor(1.0, device="cpu"), x.new_tensor(1.0)
        assert torch.tensor(1.0) == 1
    assert (seen["value"], seen["memory"], seen["copy"]) == (len(values) + 2, len(memory), len(copies))
