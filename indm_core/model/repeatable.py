"""Whether a network that is evaluated twice at one state gives one value.

Training that keeps states instead of activations (`adjoint`, `ffjord`) evaluates a network at a state once to go on from it
and once more for the gradient. Where the second value differs from the first the gradient is wrong, and nothing shows it: the
network draws (dropout of any kind, in layers or as a function) or carries something from call to call (a power iteration).

torch's layers that draw are found by their class and named. What is left, a function that draws inside `forward` or a layer of
somebody else, is found by trial: a copy of the network in training mode is evaluated twice. It must not draw from torch's
default generators, and the two values must agree. The copy's weights are moved: a layer that begins at zero hides nothing.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["check_repeatable"]


def check_repeatable(name: str, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuses a network whose value at a state changes from call to call in training mode.

    Args:
        name: Of the network, for the message.
        network: network(x, t, y) -> like x; it is left as it is.
        shape: Event of x.

    Raises:
        ValueError: it draws or carries something from call to call; the message says which layer, or what the trial showed.
    """
    found = next((path for path, layer in network.named_modules() if _draws(layer)), None)
    why = _trial(network, shape) if found is None else f"the layer {found!r} draws in training mode"
    if why:
        raise ValueError(
            f"{name}: {why}, and training evaluates it twice at a state, where the two values must agree; "
            "set dropout to 0, or give another layer"
        )


def _draws(layer: nn.Module) -> bool:
    """Whether a layer is one of torch's that draw in training mode."""
    match layer:
        case nn.modules.dropout._DropoutNd():  # Dropout, of 1 to 3 dimensions, AlphaDropout, FeatureAlphaDropout
            return layer.p > 0
        case nn.MultiheadAttention():
            return layer.dropout > 0
        case nn.RNNBase():
            return layer.dropout > 0 and layer.num_layers > 1
        case nn.RReLU() | nn.FractionalMaxPool2d() | nn.FractionalMaxPool3d():
            return True
    return False


@torch.no_grad()
def _trial(network: nn.Module, shape: tuple[int, ...]) -> str:
    """Evaluates a copy twice; what went wrong, or ''. A network without values (device meta) is not tried."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    if like.is_meta:
        return ""
    twin = copy.deepcopy(network).train()
    generator = torch.Generator().manual_seed(0)
    for p in twin.parameters():
        if p.is_floating_point():
            p += 0.02 * torch.randn(p.shape, generator=generator).to(p)
    x = torch.randn(2, *shape, generator=generator).to(like)
    t = torch.full((2,), 0.5, dtype=torch.float64, device=x.device)
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        before = _generator_states(x)
        first = twin(x, t, None)
        drew = any(not torch.equal(a, b) for a, b in zip(before, _generator_states(x), strict=True))
        second = twin(x, t, None)
    if drew:
        return "it draws random numbers in training mode"
    if _differ(first, second):
        return "it gives two values at one state in training mode"
    return ""


def _generator_states(x: Tensor) -> list[Tensor]:
    """Of torch's default generators, on the CPU and where x is."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(x.device)] if x.device.type == "cuda" else states


def _differ(first: Tensor, second: Tensor) -> bool:
    """By more than rounding, which kernels on a GPU may do differently from call to call."""
    bound = 16 * torch.finfo(first.dtype).eps
    return not torch.allclose(first, second, rtol=0, atol=bound * float(first.abs().max().nan_to_num()), equal_nan=True)
