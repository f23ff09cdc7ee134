"""Given views of sequences, and training of learned views in two steps."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from sonde.train import LearnedViews, virtual_step
from sonde_studies.arms import note

RATE, BATCH, VIRTUAL_RATE = 3e-3, 64, 0.1


def view_of(lines: Float[Tensor, "row line dim"]) -> Float[Tensor, "row line dim"]:
    """Return views of sequences: three lines hidden, only five lines shown, or reordered.

    The kind is drawn for each sequence, by the global generator.
    """
    n, n_lines = lines.shape[:2]
    at = torch.arange(n_lines)
    hidden = torch.rand(n, n_lines).argsort(1) < 3
    first = torch.randint(n_lines - 5 + 1, (n, 1))
    outside = (at < first) | (at >= first + 5)
    start = torch.randint(n_lines - 3 + 1, (n, 1))
    inside = (at >= start) & (at < start + 3)
    key = torch.where(inside, start + 3 * torch.rand(n, n_lines), at + 0.5)
    reordered = lines.gather(1, key.argsort(1)[..., None].expand_as(lines))
    kind = torch.randint(3, (n, 1, 1))
    masked = torch.where(kind == 0, hidden[..., None], outside[..., None])
    return torch.where(kind == 2, reordered, lines.masked_fill(masked, 0.0))


def contrast_of(
    body: nn.Module,
    contrast: nn.Module,
    lines: Float[Tensor, "row line dim"],
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, ""]:
    """Return the contrast of the last states of two given views of sequences.

    Parameters
    ----------
    body : nn.Module
        A recurrent net that takes the batch first.
    contrast : nn.Module
    lines : Float[Tensor, "row line dim"]
    weights : mapping of str to Tensor, optional
        Used in place of the parameters of ``body``.
    """
    seen = torch.cat([view_of(lines), view_of(lines)])
    states = functional_call(body, dict(weights or {}), (seen,))[0][:, -1]
    return contrast(states, view=torch.arange(2).repeat_interleave(len(lines)))


def learn_in_two_steps(
    net: nn.Module,
    body: nn.Module,
    views: LearnedViews,
    loss: Callable[[Int[Tensor, "row"]], Float[Tensor, ""]],
    lines: Float[Tensor, "row line dim"],
    *,
    steps: int,
    seed: int,
    through: Literal["step", "nothing"] = "step",
) -> None:
    """Update a net by its loss, and the maps of its views by the contrast of the stepped net.

    At each step the maps are updated on a batch of their own, by the contrast after a virtual step
    of the net. Then the net is updated by the loss, with the maps that it had.

    Parameters
    ----------
    net : nn.Module
    body : nn.Module
        The part of the net that returns the contrasted states.
    views : LearnedViews
    loss : callable
        Takes the numbers of the rows of a batch; depends on the net and on the maps.
    lines : Float[Tensor, "row line dim"]
        Sequences without labels.
    steps, seed : int
    through : {"step", "nothing"}, default="step"
        Whether the gradient of the maps also passes through the virtual step.
    """
    weights = list(net.parameters())
    both = (*weights, *views.parameters())
    note(rows=len(lines), parameters=sum(p.numel() for p in both))
    nets, maps = (torch.optim.Adam(p, lr=RATE) for p in (weights, list(views.parameters())))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            rows, others = torch.randint(len(lines), (2, BATCH))
            inner = loss(rows)
            stepped = virtual_step(body, inner, VIRTUAL_RATE)
            if through == "nothing":
                stepped = {name: p.detach() for name, p in stepped.items()}
            outer = contrast_of(body, views, lines[others], stepped)
            slopes = torch.autograd.grad(outer, list(views.parameters()), retain_graph=True)
            _step(nets, weights, torch.autograd.grad(inner, weights))
            _step(maps, list(views.parameters()), slopes)


def _step(
    optimiser: torch.optim.Optimizer, weights: list[nn.Parameter], slopes: tuple[Tensor, ...]
) -> None:
    for weight, slope in zip(weights, slopes, strict=True):
        weight.grad = slope
    optimiser.step()
