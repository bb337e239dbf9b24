"""A sampler by its name, with its options and its grid of times: what a model, a command and a file name a sampler by.

The names stand for the functions of `sample` and `exponential`; which options each reads is in `READ`. A name is looked up here
and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal, get_args

from torch import Tensor

from indm_core.collage.baselines import sample_resampled
from indm_core.collage.sampling import Predictor, evaluations, sample_collage
from indm_core.exponential import (
    Basis,
    Final,
    Method,
    Multistep,
    Prediction,
    Warmup,
    check_options,
    sample_deis,
)
from indm_core.noise import Noise
from indm_core.ranges import check_count, check_not_negative, check_positive, check_whole
from indm_core.sample import Sampler, Score, sample_em, sample_ode, sample_pc
from indm_core.sde import SDE
from indm_core.times import MOST_STEPS

__all__ = ["Grid", "Sampler", "Sampling", "sampler_of"]


Grid = Literal["uniform", "power", "log-rho", "edm", "trained", "fitted"]

READ = {
    "auto": ("grid", "nfe", "times"),
    "ode": ("rtol", "atol"),
    "em": ("steps", "grid", "power", "nfe", "lam"),
    "pc": ("steps", "grid", "power", "nfe", "snr", "corrector_steps"),
    "deis": ("steps", "grid", "power", "nfe", "times", *(own.name for own in fields(Multistep))),
    "collage": (
        "steps",
        "grid",
        "power",
        "nfe",
        "langevin_steps",
        "langevin_step",
        "final_step",
        "predictor",
        "metropolis",
    ),
    "resampled": ("steps", "grid", "power", "nfe", "repeats"),
}
"""Options that not every sampler reads."""
POWERS: dict[Grid, float] = {"power": 2.0, "edm": 7.0}
"""The grids that have a power, and the one that each takes where none is given."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler and its options.

    Args:
        sampler: auto (the one that was measured to be best of so many evaluations: `automatic`), ode (adaptive RK45), em
            (Euler-Maruyama), pc (predictor-corrector), deis (exponential: DDIM, DEIS, gDDIM), collage (a predictor with
            Langevin steps of the diffusion's own length, exact for collages) or resampled (steps of DDIM, each repeated
            from a state that is noised back up).
        steps: Steps of all but ode.
        nfe: Evaluations of the score that all but ode may take in all, instead of `steps`; 0 leaves it to them, and to auto.
        grid: Spacing of the times: uniform, power, log-rho, edm, trained (the model's own: uniform for a linear
            diffusion), or fitted to the model (`fit_times`); auto is power for deis, collage and resampled, else trained.
        times: Of a fitted grid, decreasing; without them it is yet to be fitted.
        power: Of the grids power and edm; 0 takes their own, 2 (quadratic) and 7.
        order: Degree of deis's polynomial, 0 (DDIM) to 3; 3 becomes what a grid of few steps allows.
        method: Of deis: t-AB, rho-AB, log-rho-AB, t-RK, rho-RK or iPNDM.
        warmup: Of deis: low-order or exact.
        corrector: Whether deis corrects the steps of its AB methods.
        reevaluate: Whether a corrector evaluates again at the corrected state; false: it costs no evaluation.
        basis: In which deis takes eps for a polynomial: R, or the Cholesky factor L.
        prediction: What deis takes for a polynomial: eps, data (the posterior mean) or velocity.
        final: Degree of deis's last steps: full, or low-order (falling to 0).
        churn: Noise that deis adds before its steps, in all, as a share of that which is there.
        churn_noise: Factor of its standard deviation.
        churn_from, churn_to: The times between which it is added, as shares of the diffusion's largest.
        lam: Stochasticity of em and of deis (1: the reverse SDE, 0: the ODE); -1 takes the sampler's own, em's 1 and deis's 0.
        rtol, atol: Tolerances of ode.
        snr: Signal-to-noise ratio of pc's corrector.
        corrector_steps: Langevin steps of pc per time.
        langevin_steps: Langevin steps of collage per time.
        langevin_step: Their length h, in units of the noise's covariance.
        final_step: h at the last time; over the last tenth of the times it falls from `langevin_step`.
        predictor: Of collage: deis (DDIM's step) or em (of the reverse SDE).
        metropolis: Whether collage takes a Langevin step with the probability that leaves each level's law as it is.
        repeats: Steps of resampled per time.
        denoise: Whether Tweedie's mean replaces the last state.
        temperature: Factor of the final latent.
        start_temperature: Factor of the noise that sampling starts from.
        stop: Time at which sampling ends; 0 takes the diffusion's smallest.
    """

    sampler: Literal["auto", "ode", "em", "pc", "deis", "collage", "resampled"] = "ode"
    steps: int = 1000
    nfe: int = 0
    grid: Literal["auto", "uniform", "power", "log-rho", "edm", "trained", "fitted"] = "auto"
    times: tuple[float, ...] = ()
    power: float = 0.0
    order: int = 3
    method: Method = "t-AB"
    warmup: Warmup = "low-order"
    corrector: bool = False
    reevaluate: bool = True
    basis: Basis = "R"
    prediction: Prediction = "eps"
    final: Final = "full"
    churn: float = 0.0
    churn_noise: float = 1.0
    churn_from: float = 0.0
    churn_to: float = 1.0
    lam: float = -1.0
    rtol: float = 1e-4
    atol: float = 1e-4
    snr: float = 0.16
    corrector_steps: int = 1
    langevin_steps: int = 4
    langevin_step: float = 0.5
    final_step: float = 0.1
    predictor: Predictor = "deis"
    metropolis: bool = False
    repeats: int = 5
    denoise: bool = True
    temperature: float = 1.0
    start_temperature: float = 1.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        _check_name(self.sampler)
        self._check_words()
        self._check_ranges()
        if self.sampler == "deis":
            check_options(self.multistep)
        self._check_fitted()
        for name, value in self.given().items():
            if name in set().union(*READ.values()) - set(READ[self.sampler]):
                raise ValueError(f"{name}={value}: sampler={self.sampler} does not read it; do not give {name}")
        if self.power and self.spacing not in POWERS:
            raise ValueError(
                f"power={self.power}: grid={self.spacing} has no power; do not give it, or take grid=power or grid=edm"
            )

    def _check_words(self) -> None:
        for name, words in (("grid", ("auto", *get_args(Grid))), ("predictor", get_args(Predictor))):
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(words)}")

    def _check_ranges(self) -> None:
        check_count(steps=self.steps, repeats=self.repeats)
        check_whole(nfe=self.nfe, corrector_steps=self.corrector_steps, langevin_steps=self.langevin_steps)
        for name in ("steps", "nfe", "corrector_steps", "langevin_steps", "repeats"):
            if getattr(self, name) > MOST_STEPS:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {MOST_STEPS:,}")
        check_not_negative(power=self.power)
        if not 0 <= self.stop < 1:
            raise ValueError(f"stop={self.stop} must not be negative, and must be below 1")
        if self.lam != -1 and not 0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam} must not be negative, and must be finite; -1 takes the sampler's own")
        positive = ("rtol", "atol", "snr", "langevin_step", "final_step", "temperature", "start_temperature")
        check_positive(**{name: getattr(self, name) for name in positive})

    def _check_fitted(self) -> None:
        noisy = self.lam > 0 or self.churn > 0
        if self.grid == "fitted" and (self.sampler not in ("auto", "deis") or noisy):
            raise ValueError(f"grid=fitted is of deis without noise, or of auto; got {self}")
        if self.times and self.grid != "fitted":
            raise ValueError(f"times={self.times}: they are of grid=fitted; got grid={self.grid}")
        if self.times and self.sampler == "deis" and len(self.times) != self.num_steps + 1:
            raise ValueError(
                f"times: {len(self.times)} of them, and {self.num_steps} steps have one more; fit them again"
            )

    @staticmethod
    def named(sampler: str, nfe: int) -> Sampling:
        """A sampler with its own options and, unless it is adaptive, so many evaluations of the score.

        Raises:
            ValueError: a name that there is not; the message lists those that there are.
        """
        _check_name(sampler)
        return Sampling(sampler=sampler, nfe=nfe if "nfe" in READ[sampler] else 0)  # pyright: ignore[reportArgumentType]

    @property
    def multistep(self) -> Multistep:
        """The options of deis."""
        given = {own.name: getattr(self, own.name) for own in fields(Multistep)}
        return Multistep(**given | {"lam": max(0.0, self.lam)})

    @property
    def spacing(self) -> Grid:
        """The grid that `grid` stands for."""
        if self.grid != "auto":
            return self.grid
        return "power" if self.sampler in ("deis", "collage", "resampled") else "trained"

    @property
    def unfitted(self) -> bool:
        """Whether the grid has yet to be fitted."""
        return self.grid == "fitted" and not self.times

    @property
    def exponent(self) -> float:
        """The power of a grid that has one."""
        return self.power or POWERS[self.spacing]

    @property
    def num_steps(self) -> int:
        """Steps: those given or, with `nfe`, the most that take no more evaluations.

        Raises:
            ValueError: not even one step is to be had, or fewer than the order needs.
        """
        steps = self._steps_of(self.nfe) if self.nfe else self.steps
        if self.sampler == "deis":
            self.multistep.check_steps(steps)
        return steps

    def _steps_of(self, nfe: int) -> int:
        if self.sampler == "deis":
            return self.multistep.steps_for(nfe, self.denoise)
        each = self._evaluations_of_a_step()
        if nfe < each + self.denoise:
            raise ValueError(f"nfe={nfe}: one step takes {each + self.denoise} evaluations; give more")
        return (nfe - self.denoise) // each

    def _evaluations_of_a_step(self) -> int:
        if self.sampler == "collage":
            return evaluations(1, langevin_steps=self.langevin_steps, metropolis=self.metropolis)
        return {"pc": 1 + self.corrector_steps, "resampled": self.repeats}.get(self.sampler, 1)

    def led(self, guidance: float, num_overlapping: int = 1) -> Sampling:
        """The same for a score that is led: Langevin steps of the diffusion's own length become shorter, as precisions grow.

        Guidance w raises the precision of a law up to 1 + w times, and factors of a canvas that overlap add theirs, while
        separators that are not led take away no more than before. Langevin steps are stable below 2/L, L the largest precision
        in units of the noise's. So they become 1/(1 + w) times as long, and where more than 4 factors overlap, another 4/k.

        Args:
            guidance: w; 0 changes nothing.
            num_overlapping: k, the most factors that cover a position.
        """
        if self.sampler != "collage" or not guidance:
            return self
        share = min(1.0, 4 / num_overlapping) / (1 + guidance)
        return replace(self, langevin_step=share * self.langevin_step, final_step=share * self.final_step)

    def given(self) -> dict[str, str | int | float | bool]:
        """The options that are not the defaults, in their order; the sampler and the times of a fitted grid apart."""
        named = (f for f in fields(self) if f.name not in ("sampler", "times"))
        values = {f.name: (getattr(self, f.name), f.default) for f in named}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __str__(self) -> str:
        """As a row of `compare.py`: the sampler, what says how long it takes, and the options that are not the defaults."""
        adaptive = {"ode": ("rtol", "atol"), "auto": ()}
        length = ("nfe",) if self.nfe else adaptive.get(self.sampler, ("steps",))
        shown = {name: getattr(self, name) for name in length} | self.given()
        return ":".join([self.sampler, *[",".join(f"{name}={value}" for name, value in shown.items())] * bool(shown)])


def _check_name(sampler: str) -> None:
    if sampler not in READ:
        raise ValueError(f"sampler={sampler!r} is none of {', '.join(READ)}")


def sampler_of(sampling: Sampling) -> Sampler:
    """The function that a sampling names, with its options.

    Raises:
        ValueError: auto, which stands for a sampler once the diffusion is known.
    """
    if sampling.sampler == "auto":
        raise ValueError("sampler=auto: it depends on the diffusion; take automatic.settled(model.sde, sampling)")
    samplers: dict[str, Callable[..., Tensor]] = {
        "ode": partial(sample_ode, rtol=sampling.rtol, atol=sampling.atol),
        "em": partial(sample_em, lam=1.0 if sampling.lam < 0 else sampling.lam),
        "pc": partial(sample_pc, snr=sampling.snr, corrector_steps=sampling.corrector_steps),
        "deis": partial(sample_deis, **vars(sampling.multistep)),
        "collage": partial(
            sample_collage,
            langevin_steps=sampling.langevin_steps,
            step=sampling.langevin_step,
            final_step=sampling.final_step,
            predictor=sampling.predictor,
            metropolis=sampling.metropolis,
        ),
        "resampled": partial(sample_resampled, repeats=sampling.repeats),
    }

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise, y: Tensor | None = None) -> Tensor:
        if y is None:
            return samplers[sampling.sampler](sde, score, u, ts, generator=generator)
        if sampling.sampler == "ode":  # it asks for the score of the samples that are still under way
            return samplers["ode"](sde, score, u, ts, generator=generator, y=y)
        return samplers[sampling.sampler](sde, lambda u, t, _=None: score(u, t, y), u, ts, generator=generator)

    return sampler
