"""How samples are drawn, as a configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from indm_core.exponential import Basis, Method, Warmup, check_options

__all__ = ["Sampling"]


READ = {
    "ode": ("rtol", "atol"),
    "em": ("steps", "grid", "lam"),
    "pc": ("steps", "grid", "snr", "corrector_steps"),
    "deis": ("steps", "grid", "nfe", "order", "method", "warmup", "corrector", "basis", "lam"),
}
"""Options that not every sampler reads."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler and its options.

    Args:
        sampler: ode (adaptive RK45), em (Euler-Maruyama), pc (predictor-corrector) or deis (exponential: DDIM, DEIS,
            gDDIM).
        steps: Steps of em, pc and deis.
        nfe: Evaluations of the score that deis may take in all, instead of `steps`; 0 leaves it to them.
        grid: Spacing of the times: uniform, power (quadratic), log-rho, edm, or trained (the model's own: uniform for a linear
            diffusion); auto is power for deis, else trained.
        order: Degree of deis's polynomial, 0 (DDIM) to 3.
        method: Of deis: t-AB, rho-AB, rho-RK or iPNDM.
        warmup: Of deis: low-order or exact.
        corrector: Whether deis corrects its t-AB steps.
        basis: In which deis takes eps for a polynomial: R, or the Cholesky factor L.
        lam: Stochasticity of em (1: the reverse SDE, 0: the ODE) and of deis at order 0 (gDDIM); -1 takes the sampler's own.
        rtol, atol: Tolerances of ode.
        snr: Signal-to-noise ratio of pc's corrector.
        corrector_steps: Langevin steps of pc per time.
        denoise: Whether Tweedie's mean replaces the last state.
        temperature: Factor of the final latent.
        start_temperature: Factor of the noise that sampling starts from.
        stop: Time at which sampling ends; 0 takes the diffusion's smallest.
    """

    sampler: Literal["ode", "em", "pc", "deis"] = "ode"
    steps: int = 1000
    nfe: int = 0
    grid: Literal["auto", "uniform", "power", "log-rho", "edm", "trained"] = "auto"
    order: int = 3
    method: Method = "t-AB"
    warmup: Warmup = "low-order"
    corrector: bool = False
    basis: Basis = "R"
    lam: float = -1.0
    rtol: float = 1e-4
    atol: float = 1e-4
    snr: float = 0.16
    corrector_steps: int = 1
    denoise: bool = True
    temperature: float = 1.0
    start_temperature: float = 1.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.corrector_steps < 0 or not 0 <= self.stop < 1:
            raise ValueError(
                f"corrector_steps={self.corrector_steps} and stop={self.stop} must not be negative, stop below 1"
            )
        if self.nfe < 0:
            raise ValueError(f"nfe={self.nfe} must not be negative")
        if self.lam < 0 and self.lam != -1:
            raise ValueError(f"lam={self.lam} must not be negative; -1 takes the sampler's own")
        if self.sampler == "deis":
            check_options(**self.of_deis())
        ignored = set().union(*READ.values()) - set(READ[self.sampler])
        for f in fields(self):
            if f.name in ignored and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"{f.name}={getattr(self, f.name)}: sampler={self.sampler} does not read it; do not give {f.name}"
                )
        for name in ("rtol", "atol", "snr", "temperature", "start_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    def counted(self) -> dict[str, Any]:
        """The options of deis that decide how many evaluations a step takes."""
        return {"order": self.order, "method": self.method, "warmup": self.warmup, "corrector": self.corrector}

    def of_deis(self) -> dict[str, Any]:
        """The options of `sample_deis`."""
        return self.counted() | {"lam": max(0.0, self.lam), "basis": self.basis}
