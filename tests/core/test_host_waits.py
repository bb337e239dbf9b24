"""Samplers wait for no device: nothing is read from one, and nothing is sent to it, from step to step.

The state lies on the device `meta`, which has shapes and no values: reading a value from it raises, and what comes from the CPU
is a copy between devices, which is counted. On a GPU either would make the host wait, and neither may be in a CUDA graph.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from indm_core.exponential import sample_deis
from indm_core.sample import power_times, sample_pc
from indm_core.sde import BDM, CLD, VP, LinearSDE

META = torch.device("meta")
ATEN = torch.ops.aten
WAITS = (ATEN._local_scalar_dense.default, ATEN._linalg_check_errors.default, ATEN._linalg_eigh.default)
SAMPLERS = {
    "eps": partial(sample_deis, order=3),
    "data, PEC": partial(sample_deis, order=1, prediction="data", corrector=True, reevaluate=False),
    "gDDIM": partial(sample_deis, order=0, lam=1.0),
    "pc": sample_pc,  # with the steps of `sample_em`
}
SDES = [VP(), CLD(), BDM(height=2, width=3)]


class Crossings(TorchDispatchMode):
    """Counts the copies between devices, and the values that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (
            {x.device for x in tree_leaves(of) if isinstance(x, Tensor) and x.ndim} for of in ((args, kwargs), out)
        )
        self.copies += bool(META in made | given and len(made | given) > 1)
        self.values += func in WAITS and args[0].device == META
        return out


def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return -u


def crossings(sampler: Any, sde: LinearSDE, num_steps: int) -> Crossings:
    event = (6,) if sde.pixelwise else (1, 2, 3)  # of the one that is not, in the problems
    u = torch.empty(2, *event, sde.prior_cov().shape[-1], device=META)
    ts = power_times(sde, num_steps, 2.0)
    sampler(sde, score, u, ts)  # coefficients and constants are made once
    with Crossings() as found:
        out = sampler(sde, score, u, ts)
    assert out.shape == u.shape
    assert out.device == META
    return found


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_no_step_of_a_sampler_waits_for_the_device(sde, name):
    few, many = (crossings(SAMPLERS[name], sde, num_steps) for num_steps in (1, 2))
    assert few.values == many.values == 0
    assert few.copies == many.copies
