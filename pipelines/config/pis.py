"""What a run of a path integral sampler is: target, sampler and training, a frozen dataclass that survives a JSON round trip.

RUN/config.json    {"version": 1, "run": PISRun}, with "modules" and "history" as of every run (`store`); no "spec", as there
                   are no data
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from safetensors.torch import load_file

from indm_core.pis import Counted, GradControl, NetworkControl, PathIntegralSampler, Target
from indm_core.ranges import check_count, check_not_negative, check_positive
from indm_core.training import AdamW, load_networks
from pipelines.config.document import documented, rebuilt
from pipelines.config.history import History
from pipelines.config.modules import Defined
from pipelines.config.run import Train
from pipelines.config.targets import OwnTargetConfig, TargetConfig
from pipelines.storage.files import write_text
from pipelines.storage.messages import one_line
from pipelines.storage.reading import read_json

__all__ = ["PISRun", "from_document", "is_pis_document", "load_control", "read_pis_run", "to_document", "write_pis_run"]

VERSION = 1
TRAIN = Train(
    steps=1500,
    batch_size=300,
    optimisers={"control": AdamW(lr=5e-3, beta_2=0.999, weight_decay=0.0, decay="exponential", decay_to=0.2146)},
    ema_decay=0.99,
    log_every=50,
    checkpoint_every=250,
    sample_every=500,
    validate_every=250,
)
"""As published but for the average of the weights and for the clip: the rate falls by 0.95 every 50 steps, 0.95^30 = 0.2146."""


@final
@dataclass(frozen=True, kw_only=True)
class PISRun:
    """One run of a path integral sampler (see indm_core/pis/sampler.py).

    Args:
        recipe: Its recipe, which is the word of the command line; of a target of your own, the name in its file.
        target: What is sampled from.
        control: nn, a network of time and place (PIS-NN); grad, which sees the target's gradient as well (PIS-Grad).
        loss: kl, the cost of the paths; or log-variance, the variance of their log weights, which takes no gradient of the
            target and none through the path.
        gradient: Of the loss, which is the same by each: checkpoint computes activations anew; adjoint keeps states alone;
            autograd keeps all, which is quickest where memory does not matter.
        exploration: Factor of the noise of the paths that log-variance is trained on.
        num_steps: N, steps of a path.
        t_max: T, the time at which paths end.
        g: Volatility of the process; 0: that of `variance`, sqrt(variance / T).
        variance: T g^2, the variance of the uncontrolled end, which must cover the target; read where g is 0.
        clip: Largest component of the target's gradient in the control grad; inf leaves it as it is.
        begin: Factor of the target's gradient before training, of the control grad.
        width, depth: Of the control's hidden layers, and their number.
        train: How it is trained. Its rows are particles, drawn anew at every step: each worker draws its share by the noise of
            (seed, step, rank), and gradients are averaged.
    """

    recipe: str
    target: TargetConfig = field(default_factory=OwnTargetConfig)
    control: Literal["nn", "grad"] = "grad"
    loss: Literal["kl", "log-variance"] = "kl"
    gradient: Literal["checkpoint", "adjoint", "autograd"] = "checkpoint"
    exploration: float = 1.0
    num_steps: int = 100
    t_max: float = 5.0
    g: float = 0.0
    variance: float = 1.0
    clip: float = math.inf
    begin: float = 0.0
    width: int = 64
    depth: int = 2
    train: Train = field(default_factory=lambda: TRAIN)

    def __post_init__(self) -> None:
        check_positive(t_max=self.t_max, exploration=self.exploration)
        check_count(num_steps=self.num_steps, width=self.width, depth=self.depth)
        check_not_negative(g=self.g)
        if not self.g:
            check_positive(variance=self.variance)
        if not self.clip > 0:
            raise ValueError(f"clip={self.clip} must be positive; inf leaves the target's gradient as it is")
        if self.exploration != 1 and self.loss == "kl":
            raise ValueError(
                f"exploration={self.exploration}: the loss kl is that of the control's own paths; give --loss log-variance"
            )
        if self.train.measure_every:
            raise ValueError(
                f"measure_every={self.train.measure_every}: a sampler of a density is measured by --validate-every"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return from_document, (to_document(self),)

    @property
    def volatility(self) -> float:
        """g."""
        return self.g or math.sqrt(self.variance / self.t_max)

    @property
    def differentiates(self) -> bool:
        """Whether the target's gradient is taken."""
        return self.control == "grad" or self.loss == "kl"

    def build(self, target: Target | None = None) -> PathIntegralSampler:
        """The sampler with fresh weights, drawn from torch's default generator.

        Args:
            target: In place of the configured one.
        """
        target = (target or self.target.build()).requires_grad_(False)
        size = {"width": self.width, "depth": self.depth}
        control = (
            NetworkControl(target.dim, **size)
            if self.control == "nn"
            else GradControl(target.dim, **size, clip=self.clip, begin=self.begin)
        )
        return PathIntegralSampler(
            control,
            target.dim,
            target=target,
            t_max=self.t_max,
            g=self.volatility,
            num_steps=self.num_steps,
            loss=self.loss,
            gradient=self.gradient,
            exploration=self.exploration,
        )

    def evaluations_per_path(self) -> float:
        """Points at which a training step evaluates the target, for each of its paths; by doing it."""
        counted = Counted(self.target.build())
        num = 2
        self.build(counted)(num).objective.mean().backward()
        return counted.evaluations / num


def to_document(run: PISRun) -> dict[str, Any]:
    """{"run": its JSON} and, where files of the user's take part in it, {"modules": what to import for them}."""
    return documented(run, _defined(run))


def from_document(document: dict[str, Any], where: str = "") -> PISRun:
    """The inverse of `to_document`; raises as `rebuilt` does."""
    return rebuilt(PISRun, document, where, _defined)


def write_pis_run(file: Path, run: PISRun, history: History) -> None:
    """Writes config.json."""
    document = {"version": VERSION, **to_document(run), **history.to_document()}
    write_text(file, json.dumps(document, indent=1) + "\n")


def read_pis_run(file: Path) -> PISRun:
    """Reads config.json.

    Raises:
        ValueError: no such file, a run of something else, or a target that this command has not named.
    """
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no readable run here ({one_line(error, 100)}); give another --name") from None
    if not is_pis_document(document):
        raise ValueError(f"{file}: a run of train.py, and none of a path integral sampler; give another --name")
    return from_document(document, f"{file}: ")


def is_pis_document(document: Any) -> bool:
    """Whether a config.json is of a path integral sampler."""
    run = document.get("run") if isinstance(document, dict) else None
    return isinstance(run, dict) and run.get("type") == PISRun.__name__


def load_control(sampler: PathIntegralSampler, file: Path) -> PathIntegralSampler:
    """A sampler with the control that a file of weights has, in evaluation mode."""
    load_networks(sampler, load_file(file))
    return sampler.eval()


def _defined(run: PISRun) -> Sequence[Defined]:
    return run.target.defined()
