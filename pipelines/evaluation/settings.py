"""What an evaluation measures, and how exactly; what the commands of an evaluation take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from indm_core.likelihood import Solver, check_solver
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sampling import Sampling
from pipelines.config.terminal.cli import WHOLE
from pipelines.config.terminal.device import check_device, check_device_of_workers
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.layout import Layout, sampling_of_canvases
from pipelines.evaluation.results.estimates import FEWEST, FEWEST_OF_SCORE

__all__ = ["BRIEF_SETTINGS", "EvaluateOptions", "SampleOptions", "Settings"]


CANVASES = 200
NLL_TOLERANCE = 3e-2
FIRST_LOOK = 4
"""Replicates before a standard error is looked at, to stop: that of fewer says little."""
MOST_SEED = 2**32 - 1
"""That scikit-learn's mixtures take."""


def _of_canvases() -> Sampling:
    return sampling_of_canvases(Layout())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how exactly.

    Args:
        images: Test images that likelihoods are taken on; 0 takes the whole split.
        nll_replicates: NLLs per image, with fresh dequantisation, noise and probe.
        exact_dims: NLLs of data of at most so many dimensions take the exact divergence, a backward pass for each; 0: none do.
        num_probes: Hutchinson probes of the other NLLs.
        nll_solver: How the ODE of the NLL is solved: rk45; or exponential, of linear SDEs, at about half the evaluations.
        rtol, atol: Tolerances of rk45.
        nll_nfe: Evaluations of exponential; 0 takes as many as its error estimate needs.
        nll_tolerance: What that estimate, of the NLL in nats, may be.
        nelbo_replicates: NELBOs per image.
        nelbo_draws: Draws of (t, eps) in each, an even number.
        baselines: Of vectors, also the NLL of a Gaussian and of a mixture of Gaussians.
        uncorrected: Also the NLL and NELBO without the residual, the data fed at t_min as they are ("before correction").
        samples: Samples per model for the distances; 0 leaves them out.
        sampling: How they are drawn.
        layout: How canvases are made of pieces, which are measured where there are any.
        canvases: Canvases per model, where a collage is asked for.
        canvas_sampling: How canvases are drawn.
        inception_weights: File of the Inception weights; without it a small classifier of the data gives the features.
        chunk: Images per task.
        actors: Actors; 0 takes one per GPU of the cluster, else one for every two logical CPUs.
        seed: Of every draw.
        until_se: Stop a likelihood when its standard error, in the unit of the table, is that small: after whole replicates, at
            the least 4, or of one replicate after some of the images; 0 takes all.
        nll_until_se, nelbo_until_se: The same of one of them, in its place; 0: until_se holds.
    """

    images: int = 0
    nll_replicates: int = 8
    exact_dims: int = 8
    num_probes: int = 1
    nll_solver: Solver = "rk45"
    rtol: float = 1e-5
    atol: float = 1e-5
    nll_nfe: int = 0
    nll_tolerance: float = NLL_TOLERANCE
    nelbo_replicates: int = 8
    nelbo_draws: int = 64
    baselines: bool = True
    uncorrected: bool = False
    samples: int = 5000
    sampling: Sampling = field(default_factory=Sampling)
    layout: Layout = field(default_factory=Layout)
    canvases: int = CANVASES
    canvas_sampling: Sampling = field(default_factory=_of_canvases, metadata=WHOLE)
    inception_weights: str = ""
    chunk: int = 64
    actors: int = 0
    seed: int = 0
    until_se: float = 0.0
    nll_until_se: float = 0.0
    nelbo_until_se: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nll_replicates", "nelbo_replicates", "nelbo_draws", "num_probes", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.exact_dims < 0:
            raise ValueError(f"exact_dims={self.exact_dims} must not be negative; 0 takes probes for all")
        if self.nelbo_draws > 1 and self.nelbo_draws % 2:
            raise ValueError(
                f"nelbo_draws={self.nelbo_draws} must be 1 or an even number: draws come in antithetic pairs"
            )
        for name, fewest in (("images", 2), ("samples", FEWEST)):
            if getattr(self, name) != 0 and getattr(self, name) < fewest:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or at least {fewest}: its error needs them")
        if self.inception_weights and 0 < self.samples < FEWEST_OF_SCORE:
            raise ValueError(
                f"samples={self.samples}: an Inception Score with its error needs {FEWEST_OF_SCORE}; "
                f"give --samples {FEWEST_OF_SCORE} or more"
            )
        check_positive(rtol=self.rtol, atol=self.atol)
        check_not_negative(actors=self.actors, seed=self.seed)
        if self.seed > MOST_SEED:
            raise ValueError(f"seed={self.seed} must be at most {MOST_SEED:,}")
        self._check_solver()
        self._check_stops()
        self._check_canvases()

    def _check_stops(self) -> None:
        for name in ("until_se", "nll_until_se", "nelbo_until_se"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and not negative; 0 takes all")
        for kind, until in (("nll", self.stops_nll), ("nelbo", self.stops_nelbo)):
            replicates = getattr(self, f"{kind}_replicates")
            if until and 1 < replicates <= FIRST_LOOK:
                raise ValueError(
                    f"{kind}_replicates={replicates}: a standard error is first looked at after {FIRST_LOOK} replicates; give "
                    f"--{kind}-replicates {FIRST_LOOK + 1} or more, or 1, which stops after some of the images, or --until-se 0"
                )

    def _check_solver(self) -> None:
        try:
            check_solver(self.nll_solver, self.nll_nfe, self.nll_tolerance)
        except ValueError as error:
            raise ValueError(f"nll_{error}") from None
        if self.nll_tolerance != NLL_TOLERANCE and (self.nll_solver != "exponential" or self.nll_nfe):
            raise ValueError(
                f"nll_tolerance={self.nll_tolerance:g} is of --nll-solver exponential without --nll-nfe, and is not read; "
                "do not give it"
            )

    @property
    def nll_tolerances(self) -> str:
        """How exactly the ODE of the NLL is solved, in words."""
        if self.nll_solver == "rk45":
            return f"rtol {self.rtol:g}, atol {self.atol:g}"
        return f"{self.nll_nfe} evaluations" if self.nll_nfe else f"{self.nll_tolerance:g} nats"

    @property
    def stops_nll(self) -> float:
        """The standard error at which an NLL stops; 0: at none."""
        return self.nll_until_se or self.until_se

    @property
    def stops_nelbo(self) -> float:
        """Of an NELBO likewise."""
        return self.nelbo_until_se or self.until_se

    @property
    def stops_at_images(self) -> bool:
        """Whether a likelihood may stop after some of the images."""
        each = ((self.stops_nll, self.nll_replicates), (self.stops_nelbo, self.nelbo_replicates))
        return any(until and replicates == 1 for until, replicates in each)

    def _check_canvases(self) -> None:
        fewest = FEWEST_OF_SCORE if self.inception_weights else FEWEST
        if self.collages and self.canvases < fewest:
            raise ValueError(
                f"canvases={self.canvases}: a distance of their pieces with its error needs {fewest}; "
                f"give --canvases {fewest} or more"
            )
        if not self.collages and (self.canvases != CANVASES or self.canvas_sampling != _of_canvases()):
            raise ValueError(
                "canvases, canvas_sampling: no canvas is made; say how with --collage chain, or remove them"
            )

    @property
    def collages(self) -> bool:
        """Whether canvases are measured."""
        return self.layout.collage != "none"

    @property
    def compares(self) -> bool:
        """Whether anything that is drawn is compared with data."""
        return self.samples > 0 or self.collages


BRIEF_SETTINGS = Settings(
    images=128,
    nll_replicates=1,
    rtol=1e-4,
    atol=1e-4,
    nelbo_replicates=4,
    nelbo_draws=16,
    samples=1000,
    sampling=Sampling(sampler="ode", rtol=1e-3, atol=1e-3),
    chunk=32,
)
"""The brief measurement of the main job and of a sweep's trials; pipelines/evaluate.py takes the full one."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Where an evaluation finds its runs.

    Args:
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        device: Of the actors: cpu, or cuda, each with a GPU; auto takes the GPUs where there are any.
        traceback: Show where an error came from.
    """

    out: str = ""
    device: str = "auto"
    traceback: bool = False

    def __post_init__(self) -> None:
        check_device_of_workers(self.device)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is drawn, and where to.

    Args:
        num_samples: How many; canvases are 4 where it is not given.
        seed: Of the first sample; sample i has seed + i.
        sampling: The sampler and its options; of canvases, where no sampler is given, collage with 50 steps.
        batch: Samples drawn together.
        start: prior: the model's law; data: the diffused latents of the test data (sample i starts from image i), of canvases
            those of the picture --known.
        strength: With --start data, the share of the time up to which data are noised: the less, the more of them stays
            (SDEdit).
        label: Of a run with labels: a class, or several (0,1,2), which the samples have in turn; -1 is none, as is nothing.
        guidance: w of s(u, label) + w (s(u, label) - s(u)), not negative: how much further towards the class than its law;
            above 0 an evaluation takes the network twice.
        layout: How canvases are made of pieces.
        conditions: What is known of canvases.
        translate: Of a bridge: forward carries test images of its first data set to the second, backward those of the second to
            the first by the sampler, both does either; no draws samples.
        path: On which images go forward: sde, the diffusion, which forgets them; or ode, the probability-flow ODE at rtol and
            atol, by which each keeps its partner.
        out: Directory of the pictures; where it is empty RUN/samples-SAMPLER, of canvases RUN/canvases-LAYOUT-SAMPLER, of a
            translation RUN/translated-SAMPLER, with the sampler's settings.
        overwrite: Remove other samples that are in that directory; without it they are not mixed with, but refused.
        actors: Ray actors, each with a GPU where the cluster has as many; 0 draws in this process, without Ray. Of canvases
            they share the pieces of each step.
        device: cpu, cuda or, in this process, cuda:1; auto takes a GPU where there is one.
        traceback: Show where an error came from.
    """

    num_samples: int = 64
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    batch: int = 64
    start: Literal["prior", "data"] = "prior"
    strength: float = 1.0
    label: tuple[int, ...] = ()
    guidance: float = 0.0
    layout: Layout = field(default_factory=Layout)
    conditions: Conditions = field(default_factory=Conditions)
    translate: Literal["no", "forward", "backward", "both"] = "no"
    path: Literal["sde", "ode"] = "sde"
    out: str = ""
    overwrite: bool = False
    actors: int = 0
    device: str = "auto"
    traceback: bool = False

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.actors:
            check_device_of_workers(self.device)
        if self.num_samples < 1 or self.batch < 1:
            raise ValueError(f"num_samples={self.num_samples} and batch={self.batch} must be at least 1")
        if self.seed < 0 or self.actors < 0:
            raise ValueError(f"seed={self.seed} and actors={self.actors} must not be negative")
        if self.seed + self.num_samples > 2**63:
            raise ValueError(f"seed={self.seed}: sample i has seed + i, which must lie below 2^63; give a smaller seed")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance={self.guidance} must be finite and not negative")
        if self.guidance and not self.label and not self.conditions.labelled:
            raise ValueError(f"guidance={self.guidance:g}: it leads towards a class; give --label, or no guidance")
        labels = (*self.label, *self.conditions.factor_labels)
        if self.guidance and labels and max(labels) < 0:
            raise ValueError(
                f"guidance={self.guidance:g}: it leads nowhere, because all labels are -1, which is none; give a class, or no "
                "guidance"
            )
        if self.label and self.conditions.labelled:
            theirs = "a class_map" if self.conditions.class_map else "factor_labels"
            raise ValueError(f"label={','.join(map(str, self.label))}: pieces have {theirs}; give one of them")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength:g} must lie in (0, 1], a share of the time")
        if self.strength != 1 and self.start != "data":
            raise ValueError(f"strength={self.strength:g}: it says how far data are noised; give --start data")
        self.conditions.check(self.layout, self.start)
        for name, value, default in (
            ("actors", self.actors, 0),
            ("start", self.start, "prior"),
            ("label", self.label, ()),
            ("collage", self.layout.collage, "none"),
        ):
            if self.translate != "no" and value != default:
                raise ValueError(f"{name}={value}: a translation starts from data, in this process; remove it")
        if self.translate != "no" and self.num_samples < FEWEST:
            raise ValueError(
                f"num_samples={self.num_samples}: a Frechet distance needs {FEWEST}; give --num-samples {FEWEST} or more"
            )
        if self.path == "ode" and self.translate not in ("forward", "both"):
            raise ValueError(f"path=ode is of --translate forward, and translate={self.translate}; remove it")
