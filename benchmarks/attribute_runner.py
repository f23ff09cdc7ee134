"""Runs in the environment of captum: its attributions and ours of the same net and inputs."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.against import against
from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from benchmarks.nets import classifier, residual_net, token_batch
from sonde.explain import Baseline, GradCam, IntegratedGradients, Objective, Occlusion, SmoothGrad

TARGET, ROWS, SQUARES = 3, 256, 8
"""Squares that occlusion hides, along each side of the picture."""
ZERO, GOAL = Baseline("zero"), Objective("logit", target=TARGET)
Arm = Callable[[], Tensor]


def picture_arms(method: str, width: int, side: int, steps: int) -> tuple[Arm, Arm]:
    """Return ours and the peer's of a residual net and one picture."""
    peer: Any = importlib.import_module("captum.attr")
    net = residual_net(width)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    if method == "integrated gradients":
        return _integrated(peer, net, x, x, lambda values: net(values), steps)
    if method == "SmoothGrad":
        n = max(1, steps // 2)
        spread = 0.15 * float(x.max() - x.min())
        tunnel = peer.NoiseTunnel(peer.Saliency(net))
        how = {"nt_samples": n, "nt_samples_batch_size": n, "stdevs": spread, "abs": False}
        return (
            lambda: _value(SmoothGrad(n=n), net, x),
            lambda: tunnel.attribute(x, target=TARGET, **how).detach(),
        )
    if method == "Grad-CAM":
        layer = len(net) - 4
        cam = peer.LayerGradCam(net, net[layer])
        return (
            lambda: _value(GradCam(relu=False), net, x, str(layer)),
            lambda: cam.attribute(x, target=TARGET).detach()[:, 0],
        )
    square = side // SQUARES
    line = torch.arange(side) // square
    groups = (line[:, None] * (int(line.max()) + 1) + line).flatten()
    window = (3, square, square)
    occlusion = peer.Occlusion(net)
    size = 3 * square**2  # ours shares a figure among the entries of its part
    how = {"sliding_window_shapes": window, "strides": window, "perturbations_per_eval": ROWS}
    return (
        lambda: size * _value(Occlusion(ZERO, groups), net, x),
        lambda: occlusion.attribute(x, target=TARGET, **how).detach(),
    )


def text_arms(depth: int, width: int, length: int, steps: int) -> tuple[Arm, Arm]:
    """Return integrated gradients of both at the embedding of one text."""
    peer: Any = importlib.import_module("captum.attr")
    net: Any = classifier(depth, width)
    tokens = token_batch(1, length)
    ids = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        x = net.get_input_embeddings()(ids["input_ids"])
    return _integrated(peer, net, ids, x, lambda values: net(inputs_embeds=values).logits, steps)


def _integrated(
    peer: Any, net: nn.Module, inputs: Any, x: Tensor, forward: Callable[[Tensor], Tensor], n: int
) -> tuple[Arm, Arm]:
    theirs = peer.IntegratedGradients(forward)
    how = {"n_steps": n, "method": "gausslegendre", "internal_batch_size": ROWS}
    return (
        lambda: _value(IntegratedGradients(n, ZERO), net, inputs),
        lambda: theirs.attribute(x, target=TARGET, **how).detach(),
    )


def _value(method: Any, net: nn.Module, inputs: Any, site: str = "input") -> Tensor:
    return torch.as_tensor(method.explain(net, inputs, objective=GOAL, site=site).value)


def _arms(kind: str, **shape: Any) -> tuple[Arm, Arm]:
    return (picture_arms if kind == "picture" else text_arms)(**shape)


def times(kind: str, rounds: int, **shape: Any) -> dict[str, Any]:
    """Return our time over the peer's, and how far the values are apart, over the largest."""
    ours, theirs = _arms(kind, **shape)
    a, b = ours(), theirs()
    apart = float((a - b).abs().max() / b.abs().max())
    return against(ours, theirs, rounds) | {"apart": apart, "version": peer_version("captum")}


def memory(kind: str, peer: bool, **shape: Any) -> float:
    """Return by how many MiB an attribution raises the memory of this process."""
    return added_peak(_arms(kind, **shape)[peer])
