"""The path integral sampler where the answer is known: exact controls, both losses and all gradients, memory.

    python benchmarks/pis_exact.py [--paths 20000]

(a) Weights of the exact control: constant for N(m, T g^2 I); for another Gaussian and a mixture their spread against the step.
(b) Z at every number of steps, of the exact control and of a network that is not trained, in standard errors from the truth.
(c) Theorem 3: W_2 of the end from the Gaussian target, in closed form, against the step and against the control's error.
(d) Theorem 4: ESS against 1 - epsilon and exp(-epsilon), for the exact control moved by an error that is known.
(e) Gradients of the KL loss by checkpoints and by the adjoint, and of the log-variance loss by checkpoints, against plain
    automatic differentiation; and the two losses against each other: in the mean, the gradient of the log-variance along the
    control's own paths is twice that of the cost (Richter, Berner 2024).
(f) Peak memory of a training step: the bytes of all tensors alive at once, parameters not counted.

All in float64 but (f). Standard errors are those of one run.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[:0] = [
        str(Path(__file__).resolve().parents[1]),
        str(Path(__file__).resolve().parents[1] / "tests"),
        str(Path(__file__).resolve().parents[1] / "tests" / "core"),
    ]

import torch
from test_pis import F64, Mixture, gaussian, prepared, two
from torch import Tensor

from benchmarks.memory import LiveBytes
from indm_core.diagnostics.pis import Moved, log_slope, theorem_3_scale, w2_to_gaussian
from indm_core.pis import MixtureControl, NetworkControl, PathIntegralSampler, ess, log_z
from indm_core.pis.sampler import Gradient

__all__ = ["peak_bytes"]

GRADIENTS: tuple[Gradient, ...] = ("autograd", "checkpoint", "adjoint")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(num: int) -> None:
    law = gaussian([1.0, -2.0, 0.5], 2.0 * 0.7**2)
    sampler, target = PathIntegralSampler(MixtureControl(*law), 3, t_max=2.0, g=0.7), Mixture(*law)
    for num_steps in (1, 10, 100):
        _, log_w = sampler.sample(target, num, generator=rng(), num_steps=num_steps)
        off = float((log_w - target.log_z).abs().max())
        print(f"  N(m, T g^2 I), N = {num_steps}: largest |log w - log Z| {off:.1e}")
    steps = [25, 100, 400]
    for name, law, g in (("N(1, 0.25)", gaussian([1.0], 0.25), 1.0), ("two Gaussians, d = 3", two(), 1.5)):
        sampler, target = PathIntegralSampler(MixtureControl(*law), len(law[0][0]), t_max=1.0, g=g), Mixture(*law)
        spread = [float(sampler.sample(target, num, generator=rng(), num_steps=n)[1].std()) for n in steps]
        slope = log_slope([1 / n for n in steps], spread)
        print(f"  {name}: sd of log w {_list(spread)} at N = {steps}, slope {slope:.3f} against the step")


def unbiased(num: int) -> None:
    law = two()
    target = Mixture(*law)
    for name, control in (("exact control", MixtureControl(*law)), ("untrained network", _network())):
        sampler = PathIntegralSampler(control, 3, t_max=1.0, g=1.5)
        for num_steps in (1, 4, 16, 64):
            _, log_w = sampler.sample(target, num, generator=rng(1), num_steps=num_steps)
            value, se = log_z(log_w)
            off = (math.exp(value - target.log_z) - 1) / se
            print(
                f"  {name}, N = {num_steps}: log Z {value:.4f} +- {se:.4f}, Z {off:+.1f} se off; ESS {ess(log_w):.3f}"
            )


def theorem_3() -> None:
    means, covs, _ = two()
    law, steps = (means[:1], covs[:1], torch.ones(1, dtype=F64)), [40, 80, 160, 320]
    target = Mixture(*law)
    for epsilon in (0.0, 1e-4, 1e-2):
        control = Moved(MixtureControl(*law), 3 * epsilon)
        sampler = PathIntegralSampler(control, 3, t_max=1.0, g=1.0)
        w2 = [w2_to_gaussian(sampler, target, law[0][0], law[1][0], num_steps=n) for n in steps]
        shares = [v / theorem_3_scale(sampler, epsilon, num_steps=n) for n, v in zip(steps, w2, strict=True)]
        slope = log_slope([1 / n for n in steps], w2)
        print(f"  epsilon {epsilon:g}: W2 {_list(w2)} at N = {steps}, slope {slope:.3f} against the step")
        print(f"    over g sqrt(T d (D + epsilon)): {_list(shares)}")
    errors = [1e-3, 1e-2, 1e-1]
    w2 = [
        w2_to_gaussian(
            PathIntegralSampler(Moved(MixtureControl(*law), 3 * e), 3, t_max=1.0, g=1.0),
            target,
            law[0][0],
            law[1][0],
            num_steps=640,
        )
        for e in errors
    ]
    print(f"  N = 640: W2 {_list(w2)} at epsilon = {errors}, slope {log_slope(errors, w2):.3f}")


def theorem_4(num: int) -> None:
    moved, other = gaussian([1.0, -2.0], 1.0), gaussian([1.0, -2.0], 0.3)
    for epsilon in (0.0, 0.1, 0.5, 0.9):
        found = []
        for law in (moved, other):
            sampler = PathIntegralSampler(Moved(MixtureControl(*law), epsilon), 2, t_max=1.0, g=1.0, num_steps=100)
            found.append(ess(sampler.sample(Mixture(*law), num, generator=rng())[1]))
        print(
            f"  epsilon {epsilon:g}: ESS {found[0]:.4f} for N(m, T g^2 I), {found[1]:.4f} for N(m, 0.3 I) in 100 steps; "
            f"exp(-epsilon) {math.exp(-epsilon):.4f}, 1 - epsilon {1 - epsilon:.4f}"
        )


def gradients(num: int) -> None:
    torch.manual_seed(0)
    control = NetworkControl(3, width=16).double()

    def gradient(paths: int, **options) -> tuple[float, list[Tensor]]:
        sampler = prepared(control, **options)
        value = sampler(paths, generator=rng()).objective.mean()
        return float(value.detach()), list(torch.autograd.grad(value, list(sampler.control.parameters())))

    for loss, others in (("kl", GRADIENTS[1:]), ("log-variance", GRADIENTS[1:2])):
        value, plain = gradient(100, loss=loss, gradient="autograd")
        for name in others:
            other, found = gradient(100, loss=loss, gradient=name)
            off = max(float((a - b).abs().max()) for a, b in zip(plain, found, strict=True))
            print(f"  {loss} by {name}: loss off by {abs(other - value):.1e}, gradient by {off:.1e}")
    _, kl = gradient(num, loss="kl", gradient="adjoint")
    _, lv = gradient(num, loss="log-variance", gradient="checkpoint")
    a, b = (torch.cat([g.flatten() for g in found]) for found in (kl, lv))
    cosine = float(a @ b / (a.norm() * b.norm()))
    ratio = float(b.norm() / a.norm())
    print(f"  log-variance over KL, {num} paths: gradients' cosine {cosine:.4f}, ratio of lengths {ratio:.3f}")


def peak_bytes(gradient: Gradient, num_steps: int, *, num: int = 64, dim: int = 10) -> int:
    """The most bytes alive at once in a training step of `num` paths in float32."""
    torch.manual_seed(0)
    means, covs = torch.zeros(1, dim), torch.eye(dim)[None]
    sampler = PathIntegralSampler(
        NetworkControl(dim),
        dim,
        target=Mixture(means, covs, torch.ones(1)),
        num_steps=num_steps,
        gradient=gradient,
    )
    with LiveBytes() as count:
        sampler(num, generator=rng()).objective.mean().backward()
    return count.peak


def memory() -> None:
    print("  N        " + "".join(f"{name:>12}" for name in GRADIENTS) + "      states")
    for num_steps in (25, 100, 400):
        found = [peak_bytes(gradient, num_steps) / 2**20 for gradient in GRADIENTS]
        states = 3 * num_steps * 64 * 10 * 4 / 2**20
        print(f"  {num_steps:<9d}" + "".join(f"{v:9.2f} MiB" for v in found) + f"{states:8.2f} MiB")


def _network() -> NetworkControl:
    control = NetworkControl(3).double()
    for p in control.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=rng())
    return control


def _list(values: list[float]) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values) + "]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--paths", type=int, default=20_000)
    num = parser.parse_args().paths
    torch.set_num_threads(1)
    print(f"(a) weights of the exact control, {num} paths")
    weights(num)
    print("(b) Z is unbiased: two Gaussians in 3 dimensions, log Z = 1.0986")
    unbiased(num)
    print("(c) Theorem 3: one Gaussian in 3 dimensions, T = g = 1")
    theorem_3()
    print("(d) Theorem 4: d = 2, T = g = 1")
    theorem_4(num)
    print("(e) gradients: two Gaussians in 3 dimensions, 7 steps")
    gradients(num)
    print("(f) peak memory of a training step, 64 paths in 10 dimensions; states are x_i, q_i and eps_i")
    memory()


if __name__ == "__main__":
    main()
