"""Backbones: the published parameter counts, independence of samples, resampling filters, time and label embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d

from indm_core.nn import MLP, UNet
from indm_core.nn.blocks import (
    FIR,
    Attention,
    Down,
    ResBlock,
    Up,
)
from indm_core.nn.embedding import (
    ConditionEmbedding,
    FourierEmbedding,
    PositionalEmbedding,
    initialised,
)

DDPMPP: dict[str, Any] = {}
NCSNPP: dict[str, Any] = {"embedding": "fourier", "fir": True, "progressive_input": "residual"}
VARIANTS = pytest.mark.parametrize("variant", [DDPMPP, NCSNPP], ids=["DDPM++", "NCSN++"])


@pytest.fixture(autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def awake(net: nn.Module) -> Any:
    """The network in float64 without dropout, its layers that begin at ~ 0 given ordinary weights."""
    for layer in net.modules():
        weight = getattr(layer, "weight", None)
        if (
            isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
            and isinstance(weight, Tensor)
            and weight.abs().max() < 1e-4
        ):
            nn.init.xavier_uniform_(weight, generator=rng(1))
    return net.double().eval()


def small_unet(shape: tuple[int, ...] = (2, 9, 9), **options: Any) -> UNet:
    defaults: dict[str, Any] = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attention": (5,), "generator": rng()}
    return UNet(shape, **({**defaults, "time_feature": torch.log} | options))


def small_mlp(**options: Any) -> MLP:
    defaults: dict[str, Any] = {"time_feature": torch.log, "width": 16, "num_features": 8, "generator": rng()}
    return MLP(3, **(defaults | options))


BACKBONES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "MLP": (small_mlp, (3,)),
    "DDPM++": (small_unet, (2, 9, 9)),
    "NCSN++": (lambda **options: small_unet(**(NCSNPP | options)), (2, 9, 9)),
}
EACH_BACKBONE = pytest.mark.parametrize(("make", "event"), BACKBONES.values(), ids=BACKBONES)


def batch(event: tuple[int, ...], num: int = 4) -> tuple[Tensor, Tensor]:
    x = torch.randn(num, *event, generator=rng(2), dtype=torch.float64)
    return x, torch.rand(num, generator=rng(3), dtype=torch.float64) + 0.1


@pytest.mark.parametrize(
    ("variant", "num_res_blocks", "count"),
    [(DDPMPP, 4, 61_804_419), (NCSNPP, 4, 62_758_787), (DDPMPP, 8, 106_632_579), (NCSNPP, 8, 107_586_947)],
    ids=["61.80M", "62.76M", "106.63M", "107.59M"],
)
def test_parameter_counts_are_those_of_the_papers(variant, num_res_blocks, count):
    # Derived by hand from the blocks (conv_k: k^2 i o + o, GN: 2 i, MLPConfig: 512 o + o) before the network was written.
    with torch.device("meta"):
        net = UNet((3, 32, 32), time_feature=torch.log, num_res_blocks=num_res_blocks, **variant)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@EACH_BACKBONE
def test_rows_are_independent(make, event):
    net = awake(make())
    x, t = batch(event)
    out = net(x, t)
    torch.testing.assert_close(torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(4)]), out, rtol=0, atol=1e-10)
    jac = torch.autograd.functional.jacobian(lambda x: net(x, t).flatten(1).sum(1), x).flatten(2).abs().sum(2)
    assert (jac.diagonal() > 0).all()
    assert (jac - jac.diagonal().diag()).abs().max() == 0


@EACH_BACKBONE
def test_output_begins_at_zero_and_is_that_of_the_seed(make, event):
    x, t = batch(event)
    out = make().double()(x, t)
    assert 0 < out.abs().max() < 1e-3
    torch.testing.assert_close(make().double().eval()(x, t), make().double().eval()(x, t), rtol=0, atol=0)


@VARIANTS
@pytest.mark.parametrize("side", [8, 9, 14, 28, 32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_side_and_any_channels(variant, side, channels):
    net = awake(small_unet((channels, side, side + 3), ch_mult=(1, 2, 3), attention=(), **variant)).float()
    x = torch.randn(1, channels, side, side + 3, generator=rng())
    out = net(x, torch.ones(1))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.std() > 0


@EACH_BACKBONE
def test_time_is_read(make, event):
    net = awake(make())
    x, t = batch(event)
    assert (net(x, t) - net(x, t + 0.01)).abs().flatten(1).amax(1).min() > 1e-6


@EACH_BACKBONE
def test_labels_are_read_and_minus_one_is_no_label(make, event):
    net = awake(make(num_classes=3))
    x, t = batch(event)
    out = [net(x, t, torch.full((4,), y)) for y in (-1, 0, 1, 2)]
    assert torch.equal(out[0], net(x, t))
    for i in range(4):
        for j in range(i):
            assert (out[i] - out[j]).abs().flatten(1).amax(1).min() > 1e-6
    mixed = net(x, t, torch.tensor([0, -1, 2, 1]))
    torch.testing.assert_close(mixed, torch.stack([out[y + 1][i] for i, y in enumerate([0, -1, 2, 1])]))


@EACH_BACKBONE
def test_no_label_stays_zero_when_trained(make, event):
    net = awake(make(num_classes=3))
    x, t = batch(event)
    net(x, t, torch.tensor([-1, 0, 1, 2])).square().sum().backward()
    torch.optim.AdamW(net.parameters(), lr=0.1).step()
    assert torch.equal(net.embed.labels.weight[0], torch.zeros_like(net.embed.labels.weight[0]))


@EACH_BACKBONE
def test_gradients_reach_every_parameter_and_x(make, event):
    net = make(num_classes=3).double()
    x, t = batch(event)
    x.requires_grad_()
    net(x, t, torch.tensor([0, 1, 2, -1])).square().sum().backward()
    # At the start already: the layers at ~ 0 must let a gradient through.
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@EACH_BACKBONE
def test_gradient_of_x_is_the_derivative(make, event):
    net = awake(make())
    x, t = batch(event, 2)
    v = torch.randn(x.shape, generator=rng(4), dtype=x.dtype)
    w = torch.randn(x.shape, generator=rng(5), dtype=x.dtype)
    x.requires_grad_()
    (grad,) = torch.autograd.grad((net(x, t) * w).sum(), x)
    h = 1e-5
    difference = ((net(x + h * v, t) - net(x - h * v, t)) * w).sum() / (2 * h)
    torch.testing.assert_close((grad * v).sum(), difference, rtol=1e-6, atol=1e-8)


@EACH_BACKBONE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_types_follow_float64(make, event, dtype):
    net = awake(make(num_classes=3))
    x, t = batch(event)
    # Weights and x that bfloat16 holds exactly: what is left is the rounding of the computation.
    net, x = net.bfloat16().double(), x.bfloat16().double()
    y = torch.tensor([0, 1, 2, -1])
    exact = net(x, t, y)
    out = net.to(dtype)(x.to(dtype), t, y)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() < 20 * torch.finfo(dtype).eps * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert net.float()(x.float(), t, y).dtype == torch.float32


@EACH_BACKBONE
def test_vmap_over_samples(make, event):
    net = awake(make())
    x, t = batch(event)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention of CPUs has no rule for vmap
        out = torch.func.vmap(lambda x, t: net(x[None], t[None])[0])(x, t)
    torch.testing.assert_close(out, net(x, t))


@pytest.mark.parametrize("num_out", [8, 12])
@pytest.mark.parametrize("resample", [None, Down(fir=False), Down(fir=True), Up(fir=True)], ids=str)
def test_residual_block_formula(num_out, resample):
    block = awake(ResBlock(8, num_out, num_temb=6, dropout=0.5, resample=resample, generator=rng()))
    x = torch.randn(2, 8, 6, 6, generator=rng(), dtype=torch.float64)
    temb = torch.randn(2, 6, generator=rng(), dtype=torch.float64)

    def normed_swish(h: Tensor) -> Tensor:
        groups = h.unflatten(1, (-1, 4)).flatten(2)  # four channels to a group
        mean, var = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, correction=0)
        a = ((groups - mean) / (var + 1e-6).sqrt()).reshape(h.shape)
        return a / (1 + (-a).exp())

    sides = (11, 12)  # an odd one: cut where it is doubled

    def r(h: Tensor) -> Tensor:
        return h if resample is None else resample(h, sides)

    h = conv2d(r(normed_swish(x)), block.conv_in.weight, padding=1)
    h = h + torch.einsum("oi,bi->bo", block.condition.weight, temb).reshape(2, num_out, 1, 1)
    h = conv2d(normed_swish(h), block.conv_out.weight, padding=1)
    plain = resample is None and num_out == 8
    skip = x if plain else torch.einsum("oi,bihw->bohw", block.skip.weight[..., 0, 0], r(x))
    torch.testing.assert_close(block(x, temb, sides), (skip + h) / math.sqrt(2))


def test_blocks_begin_as_rescaled_skips():
    x, temb = torch.randn(2, 8, 6, 6, generator=rng()), torch.randn(2, 6, generator=rng())
    block = ResBlock(8, 8, num_temb=6, dropout=0.0, generator=rng())
    torch.testing.assert_close(block(x, temb), x * math.sqrt(0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(Attention(8, generator=rng())(x), x * math.sqrt(0.5), rtol=0, atol=1e-3)


def test_weights_begin_with_variance_scale_over_fan():
    for layer, fan in ((nn.Linear(300, 500), 400), (nn.Conv2d(20, 60, 3), 9 * 40)):
        for scale in (1.0, 1e-10):
            weight = initialised(layer, scale=scale, generator=rng()).weight
            assert weight.abs().max() <= math.sqrt(3 * scale / fan)
            # The fourth moment of a uniform law is 9/5 of its squared variance.
            error = 5 * math.sqrt((9 / 5 - 1) / weight.numel())
            assert abs(weight.square().mean() / (scale / fan) - 1) < error
            assert layer.bias is not None
            assert not layer.bias.any()
    for weight in Attention(128, generator=rng()).qkv.weight.chunk(3):
        assert abs(weight.square().mean() * 128 / 0.1 - 1) < 5 * math.sqrt((9 / 5 - 1) / weight.numel())


def test_network_ends_with_norm_swish_and_convolution():
    net = awake(small_unet())
    x, t = batch((2, 9, 9))
    seen: list[Tensor] = []
    net.decoder.register_forward_hook(lambda module, args, out: seen.append(out))
    out = net(x, t)
    a = net.norm_out(seen[0])
    torch.testing.assert_close(out, conv2d(a * a.sigmoid(), net.conv_out.weight, padding=1))


def test_attention_is_the_softmax_average():
    attention = awake(Attention(8, generator=rng()))
    x = torch.randn(1, 8, 3, 2, generator=rng(), dtype=torch.float64)
    pixels = attention.norm(x).flatten(2)[0].T
    q, k, v = (pixels @ w.T for w in attention.qkv.weight.chunk(3))
    average = torch.stack([((q_i * k).sum(1) / math.sqrt(8)).softmax(0) @ v for q_i in q])
    h = (average @ attention.out.weight.T).T.reshape(1, 8, 3, 2)
    torch.testing.assert_close(attention(x), (x + h) / math.sqrt(2))


def filtered(x: np.ndarray, *, padding: int) -> np.ndarray:
    """(1, 3, 3, 1)/8 along both axes of one image, by numpy's own convolution, at every pixel."""
    x = np.pad(x, ((padding, padding + x.shape[0] % 2), (padding, padding + x.shape[1] % 2)), mode="edge")
    for axis in (0, 1):
        x = np.apply_along_axis(np.convolve, axis, x, np.array([1.0, 3.0, 3.0, 1.0]) / 8, "valid")
    return x


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (7, 5)], ids=str)
def test_filter_is_a_convolution(size):
    x = torch.randn(2, 3, *size, generator=rng(), dtype=torch.float64)
    for stride, padding in ((1, 2), (2, 1)):
        out = FIR(stride=stride, padding=padding).double()(x)
        for b in range(2):
            for c in range(3):
                expected = filtered(x[b, c].numpy(), padding=padding)[::stride, ::stride]
                np.testing.assert_allclose(out[b, c].numpy(), expected, atol=1e-14)


def test_linear_interpolation_is_the_filter_on_spread_pixels():
    x = torch.randn(1, 1, 6, 6, generator=rng(), dtype=torch.float64)
    padded = np.pad(x[0, 0].numpy(), 1, mode="edge")
    spread = np.zeros((16, 16))
    spread[::2, ::2] = padded
    for axis in (0, 1):
        spread = np.apply_along_axis(np.convolve, axis, spread, np.array([1.0, 3.0, 3.0, 1.0]) / 4, "full")
    np.testing.assert_allclose(Up(fir=True)(x, (12, 12))[0, 0].numpy(), spread[3:15, 3:15], atol=1e-14)


@pytest.mark.parametrize("fir", [False, True], ids=["mean", "FIR"])
def test_resampling_keeps_constants_and_means(fir):
    for size in ((8, 8), (9, 7), (14, 5)):
        constant = torch.full((1, 2, *size), 0.7, dtype=torch.float64)
        down = Down(fir=fir).double()(constant, ())
        assert down.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))
        torch.testing.assert_close(down, torch.full_like(down, 0.7))
        torch.testing.assert_close(Up(fir=fir)(down, size), constant)
    x = torch.randn(2, 3, 8, 12, generator=rng(), dtype=torch.float64)
    mean = x.mean((2, 3))
    torch.testing.assert_close(Down(fir=fir).double()(x, ()).mean((2, 3)), mean)
    torch.testing.assert_close(Up(fir=fir)(Down(fir=fir).double()(x, ()), (8, 12)).mean((2, 3)), mean)


SIZE_FREE = [{}, {"embedding": "fourier", "fir": True, "progressive_input": "residual"}]


@pytest.mark.parametrize("options", SIZE_FREE, ids=["ddpm++", "ncsn++"])
@pytest.mark.parametrize("sides", [(1, 1), (2, 9), (5, 8), (16, 8), (13, 40)], ids=str)
def test_a_network_takes_every_size_with_the_weights_of_one(options, sides):
    net, other = (awake(small_unet(shape=(2, *made_for), **options)) for made_for in ((8, 8), (16, 24)))
    other.load_state_dict(net.state_dict())
    x, t = batch((2, *sides))
    out = net(x, t)
    assert out.shape == x.shape
    torch.testing.assert_close(out, other(x, t))  # what a network is made for is no part of its map


@pytest.mark.parametrize("options", SIZE_FREE, ids=["ddpm++", "ncsn++"])
def test_far_inside_a_long_canvas_the_map_is_that_of_a_crop(options):
    """Without attention and norms over the canvas what is beyond the receptive field has no part; shifts by the coarsest stride
    shift the output."""
    net = awake(small_unet(shape=(2, 8, 8), attention=(), **options))
    for block in net.modules():
        if isinstance(block, nn.GroupNorm):
            block.forward = lambda h: h
        if isinstance(block, Attention):
            block.forward = lambda h: h
    x, t = batch((2, 8, 160))
    whole, crop = net(x, t), net(x[..., 16:144], t)
    torch.testing.assert_close(whole[..., 76:84], crop[..., 60:68])


@pytest.mark.parametrize("options", SIZE_FREE, ids=["ddpm++", "ncsn++"])
def test_sequences_are_resampled_as_images_whose_rows_are_equal(options):
    net = awake(small_unet(shape=(2, 16), **options))
    for length in (1, 5, 16, 33):
        x, t = batch((2, length))
        assert net(x, t).shape == x.shape
    down = Down(fir=True, axes=1).double()(torch.full((1, 2, 9), 0.7, dtype=torch.float64), ())
    torch.testing.assert_close(down, torch.full((1, 2, 5), 0.7, dtype=torch.float64))
    x = torch.randn(2, 3, 9, generator=rng(), dtype=torch.float64)
    rows = x.unsqueeze(2).expand(-1, -1, 6, -1)
    for layer, flat in ((Down(fir=True), Down(fir=True, axes=1)), (Down(fir=False), Down(fir=False, axes=1))):
        torch.testing.assert_close(layer.double()(rows, ())[:, :, 1], flat.double()(x, ()))
    for fir in (False, True):
        torch.testing.assert_close(Up(fir=fir)(rows, (12, 17))[:, :, 5], Up(fir=fir, axes=1)(x, (17,)))


def test_positional_embedding_closed_form():
    s = torch.tensor([0.0, 0.5, 999.0], dtype=torch.float64)
    out = PositionalEmbedding(6)(s).numpy()
    for row, value in zip(out, s.tolist(), strict=True):
        expected = [wave(value * w) for wave in (math.sin, math.cos) for w in (1.0, 0.01, 0.0001)]
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_fourier_frequencies_are_normal_fixed_and_survive_a_cast():
    embedding = FourierEmbedding(20_000, scale=16.0, generator=rng())
    f = embedding.ticks.double() / 2**16
    assert abs(f.mean()) < 5 * 16 / 100
    assert abs(f.std() / 16 - 1) < 5 / math.sqrt(2 * 10_000)
    s = torch.tensor([-3.0, 0.1], dtype=torch.float64)
    out = embedding(s)
    phase = 2 * math.pi * s[:, None] * f
    torch.testing.assert_close(out, torch.cat([phase.sin(), phase.cos()], 1), rtol=0, atol=1e-9)
    assert torch.equal(embedding.bfloat16()(s), out)
    again = FourierEmbedding(20_000, generator=rng(7))
    again.load_state_dict(embedding.state_dict())
    assert torch.equal(again(s), out)


def test_time_is_embedded_in_float64():
    embed = ConditionEmbedding(64, 8, time_feature=lambda t: 999 * t, embedding="fourier", generator=rng())
    t = torch.tensor([0.123456789], dtype=torch.float64)
    exact = embed.double()(t, None, torch.float64)
    single = embed.float()(t, None, torch.float32)
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"shape": (3, 1, 32)}, "shape"),
        ({"shape": (32,)}, "shape"),
        ({"shape": (1, 8, 8), "ch_mult": (1, 2, 2, 2)}, "ch_mult"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"nf": 6}, "nf"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"num_classes": -1}, "num_classes"),
        ({"embedding": "learned"}, "embedding"),
        ({"progressive_input": "sum"}, "progressive_input"),
    ],
    ids=str,
)
def test_refused_arguments_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        small_unet(**options)


@EACH_BACKBONE
def test_refused_inputs_are_named(make, event):
    x, t = batch(event)
    net = make().double()
    with pytest.raises(ValueError, match=r"y was given .* num_classes=0"):
        net(x, t, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="x must have shape"):
        net(x[:, :-1], t)
    with pytest.raises(ValueError, match="depth"):
        small_mlp(depth=0)
    with pytest.raises(ValueError, match="num_features"):
        small_mlp(num_features=7)
