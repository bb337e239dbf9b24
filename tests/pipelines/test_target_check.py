"""A target of the user's is asked, before any work is spent, all that training and drawing will ask of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from indm_core.pis import Target
from pipelines.config.pis import PISRun
from pipelines.config.targets import TargetConfig
from pipelines.training.target_check import check_target


class Gauss(Target):
    """N(0, I) without its constant."""

    dim = 2

    def log_prob(self, x):
        return -0.5 * x.square().sum(1)


@dataclass(frozen=True, kw_only=True)
class Given(TargetConfig):
    """A target as it is."""

    target: Any

    def build(self) -> Target:
        return self.target


def target_of(name: str, **members: Any) -> Target:
    return type(name, (Gauss,), members)()


def where(value: float):
    """log_prob of the Gaussian that is `value` where x_0 > 1."""
    return lambda _, x: torch.where(x[:, 0] > 1, value, -0.5 * x.square().sum(1))


def raises(error: BaseException):
    def asked(*_: Any, **__: Any) -> Any:
        raise error

    return asked


def in_place(_: Target, x: torch.Tensor) -> torch.Tensor:
    return -0.5 * x.detach().mul_(2).square().sum(1)


BLACK_BOX = {"control": "nn", "loss": "log-variance"}
REFUSALS = {
    "nan": ({"log_prob": where(math.nan)}, {}, "log_prob is nan at x="),
    "infinite": ({"log_prob": where(math.inf)}, {}, "log_prob is inf at x="),
    "no variance": ({"log_prob": where(-math.inf)}, BLACK_BOX, "loss log-variance is infinite; give --loss kl"),
    "raises": ({"log_prob": raises(RuntimeError("a\nb"))}, {}, "log_prob raised RuntimeError: a b; correct it"),
    "exits": ({"log_prob": raises(SystemExit(3))}, {}, "log_prob raised SystemExit: 3"),
    "numpy": ({"log_prob": lambda _, x: x.detach().numpy()[:, 0]}, {}, "gave a ndarray; it gives a torch.Tensor"),
    "complex": ({"log_prob": lambda _, x: x[:, 0] * 1j}, {}, "torch.complex64"),
    "in place": ({"log_prob": in_place}, BLACK_BOX, "changes the x that it is given"),
    "no dim": ({"dim": property(raises(AttributeError("no dim")))}, {}, "dim raised AttributeError"),
    "no __init__": ({"__init__": lambda _: None}, {}, "begin __init__ by super().__init__()"),
    "negative dim": ({"dim": -3}, {}, "dim=-3"),
    "half a dim": ({"dim": 2.5}, {}, "dim=2.5"),
    "log Z": ({"log_z": None}, {}, "log_z=None is no number; leave it out"),
    "no samples": ({"exact": True}, {}, "sample raised ValueError"),
    "samples": ({"exact": True, "sample": lambda _, num, generator: torch.zeros(num, 3)}, {}, "the shape (64, 3)"),
}


def run_of(target: Target, **options: Any) -> PISRun:
    return replace(PISRun(recipe="mine", target=Given(target=target)), **options)


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_trained_on_or_drawn_is_refused(case: str) -> None:
    members, options, part = REFUSALS[case]
    with pytest.raises(ValueError, match=r"^mine: ") as refused:
        check_target(run_of(target_of("Mine", **members), **options))
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("members", "options"),
    [
        ({"log_prob": where(-math.inf)}, {}),
        ({"log_prob": lambda _, x: -x.abs().sum(1).long()}, BLACK_BOX),
        ({"log_z": torch.tensor(1.8), "log_prob": lambda _, x: -x.double().square().sum(1)}, {}),
        ({"exact": True, "sample": lambda _, num, generator: torch.randn(num, 2, generator=generator)}, {}),
    ],
)
def test_what_can_be_trained_on_is_taken(members: dict[str, Any], options: dict[str, Any]) -> None:
    check_target(run_of(target_of("Mine", **members), **options))


def test_the_variance_that_paths_have_is_named() -> None:
    target = target_of("Mine", log_prob=lambda _, x: x.sum(1) - math.inf)
    with pytest.raises(ValueError, match=r"N\(0, 20 I\)"):
        check_target(run_of(target, g=2.0))
