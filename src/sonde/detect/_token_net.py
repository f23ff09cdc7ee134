"""Network of ``PAWN``: averages token metrics with weights computed from hidden states.

Pure functions of a flat list of weights. The tokens of several texts lie in one tensor beside the
number of their text, so nothing is padded.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sonde.core.state import State
from sonde.stats.sequences import by_example
from sonde.stats.training import generator

N_METRICS = 5
EPSILON = 1e-5
CHUNK = 4096


@dataclass(frozen=True)
class NetShape(State):
    """Widths of the three parts; each part has ``depth`` hidden layers of ``hidden`` units."""

    dim: int
    features: int
    gates: int
    hidden: int
    depth: int

    def parts(self) -> tuple[tuple[int, ...], ...]:
        """Return the layer widths of metric network, gate network and head."""
        inner = (self.hidden,) * self.depth
        return (
            (N_METRICS, *inner, self.features),
            (2 * self.dim + 1, *inner, self.gates),
            (self.features, *inner, 1),
        )

    def weights(self, seed: int) -> list[Tensor]:
        """Return initial weights: uniform within ``1 / sqrt(inputs)``, scales of 1.

        Each layer has a matrix and an offset; each hidden layer also has the scale of its
        normalisation.
        """
        source, tensors = generator("token net", seed), []
        for widths in self.parts():
            for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
                reach = 1 / math.sqrt(n_in)
                for shape in ((n_out, n_in), (n_out,)):
                    tensors.append(reach * (2 * torch.rand(shape, generator=source) - 1))
                if i < self.depth:
                    tensors.append(torch.ones(n_out))
        return tensors

    def split(self, values: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
        """Return the weights of metric network, gate network and head."""
        n = 3 * self.depth + 2
        return values[:n], values[n : 2 * n], values[2 * n :]


@dataclass(frozen=True)
class TextTokens:
    """Tokens ordered by text and position; ``text`` counts 0, 1, ..."""

    x: Float[Tensor, "token dim"]
    metrics: Float[Tensor, "token 5"]
    text: Int[Tensor, "token"]
    follows: Int[Tensor, "token"]
    place: Float[Tensor, "token"]
    counts: Int[Tensor, "text"]

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "row dim"],
        metrics: Float[Tensor, "row 5"],
        text: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
        max_length: int,
    ) -> "TextTokens":
        """Return the first ``max_length`` tokens of each text, for rows in any order.

        ``follows`` is 1 if the row before a token holds the preceding token of its text.
        """
        tokens = by_example(text, position)
        keep = tokens.rank < max_length
        order, rank, counts = tokens.rows[keep], tokens.rank[keep], tokens.counts
        text, position = text[order], position[order]
        follows = tokens.continues[keep].long()
        follows[1:] &= position[1:] == position[:-1] + 1
        at = order.to(x.device)
        place = (rank / max_length).to(x)
        return cls(x[at], metrics[at], text, follows, place, counts.clamp(max=max_length))

    def since(self, first: int) -> "TextTokens":
        """Return the texts from an index on."""
        start = int(self.counts[:first].sum())
        return self._cut(first, len(self.counts), start, len(self.text))

    def chunks(self, most_texts: int) -> Iterator["TextTokens"]:
        """Yield whole texts: at most ``most_texts``, with a bounded number of tokens."""
        ends = self.counts.cumsum(0).tolist()
        first, start = 0, 0
        for i in range(len(ends)):
            full = i + 1 - first == most_texts or i + 1 == len(ends)
            if full or ends[i + 1] - start > CHUNK:
                yield self._cut(first, i + 1, start, ends[i])
                first, start = i + 1, ends[i]

    def _cut(self, first: int, last: int, start: int, end: int) -> "TextTokens":
        part = slice(start, end)
        columns = self.x[part], self.metrics[part], self.text[part] - first
        return TextTokens(*columns, self.follows[part], self.place[part], self.counts[first:last])

    def gate_inputs(self) -> Float[Tensor, "token input"]:
        """Return each token's preceding state (or zeros), own state and position."""
        before = torch.zeros_like(self.x)
        before[1:] = self.x[:-1] * self.follows[1:, None].to(self.x)
        return torch.cat([before, self.x, self.place[:, None]], dim=1)

    def dropped(self, share: float, source: torch.Generator) -> Int[Tensor, "kept"]:
        """Return the tokens after random dropout, at least one of each text."""
        luck = torch.rand(len(self.text), generator=source)
        best = torch.zeros(len(self.counts)).scatter_reduce_(0, self.text, luck, "amax")
        return torch.nonzero((luck >= share) | (luck == best[self.text])).flatten()


def text_logits(
    values: Sequence[Tensor],
    shape: NetShape,
    texts: TextTokens,
    kept: Int[Tensor, "kept"] | None = None,
) -> Float[Tensor, "text"]:
    """Return the logit of each text, from all or the selected tokens."""
    metric, gate, head = shape.split(values)
    inputs, metrics, text = texts.gate_inputs(), texts.metrics, texts.text.to(texts.x.device)
    if kept is not None:
        at = kept.to(texts.x.device)
        inputs, metrics, text = inputs[at], metrics[at], text[at]
    logits = perceptron(gate, shape.depth, inputs)
    n, where = len(texts.counts), text[:, None].expand_as(logits)
    top = logits.new_full((n, shape.gates), -math.inf)
    top = top.scatter_reduce(0, where, logits.detach(), "amax")
    grown = (logits - top[text]).exp()
    total = grown.new_zeros(n, shape.gates).index_add(0, text, grown)
    share = (grown / total[text]).repeat_interleave(shape.features // shape.gates, dim=1)
    features = share * perceptron(metric, shape.depth, metrics)
    pooled = features.new_zeros(n, shape.features).index_add(0, text, features)
    return perceptron(head, shape.depth, pooled)[:, 0]


def token_logits(
    values: Sequence[Tensor], shape: NetShape, metrics: Float[Tensor, "token 5"]
) -> Float[Tensor, "token"]:
    """Return each token's logit as a text of its own, where gates have no effect."""
    metric, _, head = shape.split(values)
    return perceptron(head, shape.depth, perceptron(metric, shape.depth, metrics))[:, 0]


def perceptron(values: Sequence[Tensor], depth: int, x: Tensor) -> Tensor:
    """Return the output of hidden layers (linear, normalisation, GELU) and a last linear layer."""
    for layer in range(depth):
        weight, offset, scale = values[3 * layer : 3 * layer + 3]
        x = functional.linear(x, weight, offset)
        x = functional.gelu(functional.layer_norm(x, scale.shape, scale, eps=EPSILON))
    return functional.linear(x, values[-2], values[-1])
