"""Networks that give another value at each call: the dropouts of torch, functions that draw, layers that carry something."""

from __future__ import annotations

import pytest
import torch
from problems import SmallBackbone, randn, rng
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from indm_core.model import FFJORD, DiffFlow
from indm_core.model.repeatable import check_repeatable
from indm_core.nn import UNet

D = 3


class Through(nn.Module):
    """x through a layer of its own shape, then a linear map; `zero` begins that map at 0."""

    def __init__(self, layer: nn.Module, zero: bool = False) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(D, D)
        if zero:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.out(self.layer(x))


class Function(nn.Module):
    """A function of x as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sequence(nn.Module):
    """x as one token of a sequence, through a layer that may give a pair."""

    def __init__(self, layer: nn.Module, attention: bool = False) -> None:
        super().__init__()
        self.layer, self.attention = layer, attention

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(1)
        out = self.layer(tokens, tokens, tokens) if self.attention else self.layer(tokens)
        return (out[0] if isinstance(out, tuple) else out).squeeze(1)


PRIVATE = torch.Generator().manual_seed(0)
DRAWING = {
    "Dropout": lambda: nn.Dropout(0.1),
    "Dropout1d": lambda: nn.Dropout1d(0.1),
    "Dropout2d": lambda: nn.Dropout2d(0.1),
    "Dropout3d": lambda: nn.Dropout3d(0.1),
    "AlphaDropout": lambda: nn.AlphaDropout(0.1),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.1),
    "RReLU": lambda: nn.RReLU(),
    "MultiheadAttention": lambda: Sequence(nn.MultiheadAttention(D, 1, dropout=0.1, batch_first=True), attention=True),
    "TransformerEncoderLayer": lambda: Sequence(nn.TransformerEncoderLayer(D, 1, 8, dropout=0.1, batch_first=True)),
    "GRU": lambda: Sequence(nn.GRU(D, D, num_layers=2, dropout=0.1, batch_first=True)),
    "FractionalMaxPool": lambda: nn.FractionalMaxPool2d(2, output_size=1),
    "F.dropout": lambda: Function(lambda x: F.dropout(x, 0.1)),
    "F.dropout of almost nothing": lambda: Function(lambda x: F.dropout(x, 1e-6)),
    "attention's dropout_p": lambda: Function(
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1)[0]
    ),
    "noise": lambda: Function(lambda x: x + torch.randn_like(x)),
    "noise of a generator of its own": lambda: Function(lambda x: x + torch.randn(x.shape, generator=PRIVATE).to(x)),
    "a power iteration": lambda: spectral_norm(nn.Linear(D, D)),
}


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("zero", [False, True], ids=["", "behind a layer that begins at zero"])
def test_whatever_changes_from_call_to_call_is_refused(name, zero):
    network, before = Through(DRAWING[name](), zero), torch.get_rng_state()
    for build in (
        lambda: DiffFlow(network, SmallBackbone(D), shape=(D,)),
        lambda: DiffFlow(SmallBackbone(D), network.double(), shape=(D,)),
        lambda: FFJORD(network, shape=(D,)),
    ):
        with pytest.raises(
            ValueError, match=r"^(drift|score): .* evaluates it twice at a state.* set dropout to 0"
        ) as error:
            build()
        assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), before)


STEADY = {
    "no dropout": lambda: nn.Sequential(nn.Dropout(0.0), nn.AlphaDropout(0.0)),
    "attention": lambda: Sequence(nn.MultiheadAttention(D, 1, batch_first=True), attention=True),
    "one layer of a GRU": lambda: Sequence(nn.GRU(D, D, batch_first=True)),
    "batch norm": lambda: nn.BatchNorm1d(D),
}


@pytest.mark.parametrize("name", STEADY)
def test_what_gives_one_value_is_taken_and_left_as_it_is(name):
    network = Through(STEADY[name]())
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in network.state_dict().items()}
    check_repeatable("drift", network, (D,))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_layer_is_named():
    network = UNet((1, 8, 8), time_feature=lambda t: t, nf=8, ch_mult=(1,), num_res_blocks=1, dropout=0.1)
    with pytest.raises(ValueError, match=r"score: the layer 'encoder.levels.0.0.dropout' draws"):
        check_repeatable("score", network, (1, 8, 8))


def test_why_it_is_refused(monkeypatch):
    """Of a drift with F.dropout the adjoint's gradient over 4,000 rows is another one; without, it is the same."""
    monkeypatch.setattr("indm_core.model.diffflow.check_repeatable", lambda *given: None)
    ratios = {}
    for p in (0.0, 0.5):
        found = []
        for adjoint in (True, False):
            torch.manual_seed(0)
            drift = Through(Function(lambda x, p=p: F.dropout(x, p)))
            with torch.no_grad():
                drift.out.weight.copy_(-torch.eye(D))
            options = {"shape": (D,), "t_max": 0.4, "schedule": ((0, 4),), "adjoint": adjoint, "flexible": False}
            model = DiffFlow(drift, SmallBackbone(D, seed=2), **options).double()
            model(randn(4000, D), generator=rng()).objective.mean().backward()
            assert drift.out.weight.grad is not None
            found.append(float(drift.out.weight.grad.diagonal().sum()))
        ratios[p] = found[0] / found[1]
    assert ratios[0.0] == pytest.approx(1, rel=1e-10)
    assert abs(ratios[0.5] - 1) > 0.2, ratios
