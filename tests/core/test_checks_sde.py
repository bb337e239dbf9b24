"""Planted mistakes in SDEs and scores: each is named by the identity that it breaks, in one line."""

from __future__ import annotations

import pytest
import torch
from problems import SmallBackbone
from torch import Tensor, nn

from indm_core.checks import check_model, check_score, check_sde
from indm_core.flow import Identity
from indm_core.model import INDM
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, SubVP

pytestmark = pytest.mark.usefixtures("unchecked")  # a mistake may have any shape


def mutant(law: type[LinearSDE], **methods) -> type[LinearSDE]:
    """A subclass with other methods, each of them called with the class that it changes as well."""
    changed = {name: lambda self, *given, f=f: f(law, self, *given) for name, f in methods.items()}
    return type(f"Wrong{law.__name__}", (law,), changed)


def cholesky(law, self, t):
    cov = law.cov(self, t.clamp(min=1e-12))
    return torch.linalg.cholesky(cov)


SDE_MUTANTS = {
    "F of the wrong sign": (
        mutant(VP, F=lambda law, self, t: -law.F(self, t)),
        r"d psi\(t, s\)/dt = F psi\(t, s\): .* at t=",
    ),
    "F off by 1e-5": (mutant(VP, F=lambda law, self, t: (1 + 1e-5) * law.F(self, t)), r"d psi\(t, s\)/dt = F psi"),
    "GG twice": (
        mutant(VE, GG=lambda law, self, t: 2 * law.GG(self, t)),
        r"d Sigma/dt = F Sigma \+ Sigma F\^T \+ GG\^T: ",
    ),
    "GG off by 1e-5": (mutant(CLD, GG=lambda law, self, t: (1 + 1e-5) * law.GG(self, t)), r"d Sigma/dt = F Sigma"),
    "GG negative": (mutant(VP, GG=lambda law, self, t: -law.GG(self, t)), "GG is symmetric, positive semi-definite"),
    "R transposed": (mutant(CLD, R=lambda law, self, t: law.R(self, t).mT), r"R R\^T = Sigma: .* at t=1e-05"),
    "Cholesky factor for R": (mutant(CLD, R=cholesky), r"dR/dt = \(F \+ 1/2 GG\^T Sigma\^-1\) R: "),
    "psi the other way": (mutant(CLD, psi=lambda law, self, t, s: law.psi(self, s, t)), r"d psi\(t, s\)/dt = F psi"),
    "psi not from s": (
        mutant(VP, psi=lambda law, self, t, s: law.psi(self, t, torch.zeros_like(s)) + 0 * law.psi(self, t, s)),
        r"psi\(s, s\) = I: ",
    ),
    "cov of another SDE": (
        mutant(SubVP, cov=lambda law, self, t: law.cov(self, t).sqrt(), R=lambda law, self, t: law.R(self, t).sqrt()),
        "d Sigma/dt = F Sigma",
    ),
    "cov without its start": (
        mutant(VE, cov=lambda law, self, t: law.cov(self, t) - 2 * self.sigma_min**2),
        r"Sigma is symmetric, positive definite",
    ),
    "F infinite at t_max": (
        mutant(VP, F=lambda law, self, t: law.F(self, t) / (1 - t / self.t_max)[..., None, None]),
        r"F, GG, psi\(t, 0\), cov and R are finite on \[0, t_max\]: F: -inf at t=1",
    ),
    "to_network not orthogonal": (
        mutant(CLD, to_network=lambda law, self, u: 2 * law.to_network(self, u)),
        "to_network is orthogonal and from_network is its inverse",
    ),
    "to_network scaled and back": (
        mutant(
            CLD,
            to_network=lambda law, self, u: 2 * law.to_network(self, u),
            from_network=lambda law, self, out: law.from_network(self, out / 2),
        ),
        r"to_network is orthogonal .*: \|to_network\(u\)\| = \|u\|",
    ),
    "embed twice": (mutant(VP, embed=lambda law, self, x: 2 * law.embed(self, x)), r"project\(embed\(x\)\) = x: "),
    "float64 of float32": (
        mutant(VP, cov=lambda law, self, t: law.cov(self, t.double())),
        "cov is torch.float64 at times",
    ),
    "one coefficient for all times": (
        mutant(CLD, GG=lambda law, self, t: law.GG(self, t.new_zeros(()))),
        r"GG is symmetric.*: GG has shape \(2, 2\) at times \(4, 1\)",
    ),
    "prior_cov singular": (
        mutant(CLD, prior_cov=lambda law, self: torch.diag(torch.tensor([1.0, 0.0]).double())),
        "prior_cov is symmetric, positive definite and float64",
    ),
    "log_rho falls": (mutant(VP, log_rho=lambda law, self, t: -law.log_rho(self, t)), "log_rho increases"),
    "trace_M half": (
        mutant(VP, trace_M=lambda law, self, t: 0.5 * law.trace_M(self, t)),
        "log_importance increases and its derivative is tr M",
    ),
    "time_at linear": (
        mutant(VP, time_at=lambda law, self, value: law.time_at(self, value) * (1 + 1e-6)),
        "time_at inverts log_importance",
    ),
    "unseen the other way": (
        mutant(CLD, unseen=lambda law, self, t: torch.eye(2).double() - law.unseen(self, t)),
        "unseen is the projector with M unseen = 0: M P = 0",
    ),
    "driven nowhere": (
        mutant(CLD, driven=lambda law, self, u: 0 * law.driven(self, u)),
        r"driven is where GG\^T is not zero, at all times: ",
    ),
    "signal of the position alone": (
        mutant(
            CLD,
            signal=lambda law, self, t: (law.signal(self, t)[0], law.signal(self, t)[1] * torch.tensor([[1.0], [0.0]])),
        ),
        r"signal: R q = the first column of psi\(t, 0\), \|q_1\| = 1: \|q_1\|\^2",
    ),
    "pixelwise in a basis": (
        type("WrongBDM", (BDM,), {"pixelwise": property(lambda self: True)}),
        "pixelwise: embed keeps positions apart",
    ),
    "any time": (mutant(VP, check_time=lambda law, self, name, t: None), r"check_time accepts .*: t=9e-06 is accepted"),
    "noise of the whole process": (
        mutant(VP, transition=lambda law, self, u, t, s, g=None: law.transition(self, u, t, 0 * s, g)),
        r"transition is N\(psi u, Sigma_t - psi Sigma_s psi\^T\)",
    ),
}


@pytest.mark.parametrize("name", SDE_MUTANTS)
def test_a_wrong_sde_is_named(name):
    law, message = SDE_MUTANTS[name]
    with pytest.raises(AssertionError, match=message) as failure:
        check_sde(law(height=3, width=4) if issubclass(law, BDM) else law())
    assert str(failure.value).startswith(f"{law.__name__}: ")
    assert "\n" not in str(failure.value)


def test_an_sde_that_can_be_written_to_is_named():
    loose = mutant(VP, __setattr__=lambda law, self, name, value: object.__setattr__(self, name, value))
    with pytest.raises(AssertionError, match=r"it is a value: .* its fields can be assigned"):
        check_sde(loose())


def score(f):
    """A score from a function of (u, t)."""
    return lambda u, t, y=None: f(u, t)


def with_rows(t: Tensor, u: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (u.ndim - 1)).to(u)


SCORE_MUTANTS = {
    "batch mean": (
        score(lambda u, t: -(u - u.mean(0)) * with_rows(t, u)),
        "a row is the same alone and in a batch: row 0",
    ),
    "the first time for all": (
        score(lambda u, t: -u * t.flatten()[0].to(u)),
        "a row is the same alone and in a batch",
    ),
    "float64 times cast up": (score(lambda u, t: -u * t.reshape(-1, *[1] * (u.ndim - 1))), "should be torch.float32"),
    "t of shape (b,) only": (score(lambda u, t: -u * t.expand(len(u))[:, None, None].to(u)), "it raises RuntimeError"),
    "0-d times otherwise": (
        score(lambda u, t: -u * (with_rows(t, u) if t.ndim else 2 * t.to(u))),
        "one time and the same time for each row give one score: .* largest error",
    ),
    "no condition": (lambda u, t: -u, r"score\(u, t, y=None\) takes a condition: it raises TypeError"),
    "dropout": (
        score(lambda u, t: nn.functional.dropout(-u, 0.5)),
        r"score\(u, t\) is a function of u and t: a second call \(networks with dropout are to be in evaluation mode\)",
    ),
    "not finite": (score(lambda u, t: -u / (with_rows(t, u) - 1)), r"is like u and finite: .*inf at index"),
    "another shape": (score(lambda u, t: -u.squeeze(-1)), r"shape \(4, 2\), should be \(4, 2, 1\)"),
    "u is written to": (score(lambda u, t: u.neg_()), "u, which it writes to"),
    "not the gradient": (score(lambda u, t: -1.1 * u), "score = grad log p_t: at t=.* largest error"),
}


@pytest.mark.parametrize("name", SCORE_MUTANTS)
def test_a_wrong_score_is_named(name):
    wrong, message = SCORE_MUTANTS[name]
    with pytest.raises(AssertionError, match=message) as failure:
        check_score(wrong, VP(), (2,), log_prob=lambda u, t: -0.5 * u.square().flatten(1).sum(1))
    assert "\n" not in str(failure.value)


def test_a_model_with_a_wrong_sde_is_named():
    sde = SDE_MUTANTS["GG twice"][0]()
    with pytest.raises(AssertionError, match=r"INDM as given: its SDE: WrongVE: d Sigma/dt = F Sigma"):
        check_model(INDM(Identity(), SmallBackbone(2), sde, shape=(2,)))
