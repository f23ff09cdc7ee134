"""One forward pass for ``depth_use``: the input and output of each block, and the answer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch


@dataclass(frozen=True)
class Forward:
    """States of one stream before and after each block, and log probabilities of the answer."""

    before: list[Tensor]
    after: list[Tensor]
    log_p: Tensor | None

    @property
    def added(self) -> Float[Tensor, "layer *axes"]:
        """What each block adds."""
        return torch.stack([b - a for a, b in zip(self.before, self.after, strict=True)]).double()


def forward(module: nn.Module, batch: InputBatch, paths: list[str]) -> Forward:
    """Return the inputs and outputs of every block, and the log probabilities of the answer."""
    sites = [Site(path, port=port) for path in paths for port in ("in", "out")]
    seen = watch(module, batch, sites)
    states = [seen.tensors[str(site)].cpu() for site in sites]
    before, after = states[::2], states[1::2]
    for path, a, b in zip(paths, before, after, strict=True):
        if a.shape != b.shape or a.shape != before[0].shape:
            raise InputError(
                "depth_use: expected blocks that keep the shape of one stream, got "
                f"{tuple(a.shape)} in and {tuple(b.shape)} out at {path}."
            )
    return Forward(before, after, log_probabilities(seen.output))


def log_probabilities(output: Any) -> Tensor | None:
    """Return the log probabilities of the logits that a model returned; None without logits."""
    logits = find_logits(output)
    return None if logits is None else logits.double().log_softmax(-1).cpu()


def size_and_cosine(
    stream: Float[Tensor, "*axes dim"], added: Float[Tensor, "*axes dim"]
) -> Float[Tensor, "2 *axes"]:
    """Return the length of an addition over the length of its stream, and the cosine of both."""
    size, length = stream.norm(dim=-1), added.norm(dim=-1)
    return torch.stack([length / size, (stream * added).sum(-1) / (size * length)])


def answer_changes(plain: Forward, log_p: Tensor | None) -> Float[Tensor, "2 *axes"]:
    """Return distance and divergence in nats of an answer from the plain one, for each token.

    A single answer for an example counts for each of its tokens; NaN if an answer is missing.
    """
    axes = plain.before[0].shape[:-1]
    if plain.log_p is None or log_p is None:
        return torch.full((2, *axes), math.nan, dtype=torch.float64)
    p = plain.log_p.exp()
    nats = torch.where(p > 0, p * (plain.log_p - log_p), 0.0).sum(-1)
    found = torch.stack([(log_p.exp() - p).norm(dim=-1), nats])
    return found.reshape(*found.shape, *[1] * (1 + len(axes) - found.ndim)).expand(2, *axes)
