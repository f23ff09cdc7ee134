"""Values of a dictionary's features: dense, or only the active features with their indices.

If k features of each row are active, only their decoder rows are summed and gradients flow through
these features alone: one large product in a step instead of six.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

Act = Literal["relu", "topk", "abstopk", "batchtopk", "jumprelu", "gated", "matryoshka"]
FEW = ("topk", "abstopk")
"""Activations that keep the same number of features of each row."""
OF_BATCH = ("batchtopk", "matryoshka")
"""Activations that keep the largest features of a batch, and a fixed threshold once trained."""
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the features that ``matryoshka`` rebuilds rows from."""


@dataclass(frozen=True, eq=False)
class FeatureCodes:
    """Features of rows: ``value`` of all features, or of the features numbered by ``index``."""

    value: Float[Tensor, "row feature_or_k"]
    index: Int[Tensor, "row k"] | None = None

    def dense(self, n: int) -> Float[Tensor, "row feature"]:
        """Return the value of each of ``n`` features."""
        if self.index is None:
            return self.value
        return self.value.new_zeros(len(self.value), n).scatter(1, self.index, self.value)

    def decoded(self, decoder: Float[Tensor, "feature dim"]) -> Float[Tensor, "row dim"]:
        """Return the weighted sum of decoder rows, with the feature values as weights."""
        if self.index is None:
            return self.value @ decoder
        if self.index.shape[1] == 0:
            return self.value.new_zeros(len(self.value), decoder.shape[1])
        return _Decoded.apply(self.value, self.index, decoder)  # pyright: ignore[reportReturnType]

    def fired(self, n: int) -> Int[Tensor, "feature"]:
        """Return the number of rows in which each of ``n`` features is nonzero."""
        if self.index is None:
            return (self.value != 0).sum(0)
        return torch.bincount(self.index[self.value != 0], minlength=n)


def chosen(pre: Float[Tensor, "row feature"], act: str, k: int) -> Int[Tensor, "row k"]:
    """Return the numbers of the k largest features of each row, by size for ``abstopk``."""
    key = pre.abs() if act == "abstopk" else pre
    return key.topk(min(k, pre.shape[1]), dim=1, sorted=False).indices


def codes_of(
    pre: Float[Tensor, "row feature"],
    act: str,
    k: int,
    threshold: Float[Tensor, "_feature"] | None = None,
) -> FeatureCodes:
    """Return the features of rows, each row by itself."""
    if act in FEW:
        index = chosen(pre, act, k)
        value = pre.gather(1, index)
        return FeatureCodes(value if act == "abstopk" else value.relu(), index)
    if threshold is None:
        return FeatureCodes(pre.relu())
    return FeatureCodes(pre.relu() * (pre > threshold))


def few_codes(
    x: Float[Tensor, "row dim"],
    centre: Float[Tensor, "dim"],
    encoder: Float[Tensor, "feature dim"],
    bias: Float[Tensor, "feature"],
    act: str,
    k: int,
) -> FeatureCodes:
    """Return features of rows, with gradients through the active features only."""
    with torch.no_grad():
        pre = torch.addmm(bias - encoder @ centre, x, encoder.T)
        index = chosen(pre, act, k)
        picked = pre.gather(1, index)
    value: Any = _Encoded.apply(picked, index, x, centre, encoder, bias)
    return FeatureCodes(value if act == "abstopk" else value.relu(), index)


def jump(
    pre: Float[Tensor, "row feature"], threshold: Float[Tensor, "feature"], width: float
) -> tuple[Float[Tensor, "row feature"], Float[Tensor, "row feature"]]:
    """Return ``pre`` where it exceeds the threshold, with a mask of these entries; 0 elsewhere.

    Gradients reach the threshold through a rectangle of this width around it.
    """
    codes: Any = _Jump.apply(pre, threshold, width)
    return codes


def gated(
    products: Float[Tensor, "row feature"],
    gate_bias: Float[Tensor, "feature"],
    log_gain: Float[Tensor, "feature"],
    bias: Float[Tensor, "feature"],
) -> tuple[Float[Tensor, "row feature"], Float[Tensor, "row feature"]]:
    """Return the gated features, and the positive parts of the gates. A closed gate gives 0."""
    gate = products + gate_bias
    return (gate > 0) * (log_gain.exp() * products + bias).relu(), gate.relu()


def ungated(
    encoder: Float[Tensor, "feature dim"],
    gate_bias: Float[Tensor, "feature"],
    log_gain: Float[Tensor, "feature"],
    bias: Float[Tensor, "feature"],
) -> tuple[Float[Tensor, "feature dim"], Float[Tensor, "feature"], Float[Tensor, "feature"]]:
    """Return an encoder, a bias and thresholds that compute the features of ``gated``.

    A gate is open if the feature's size exceeds ``bias - gain gate_bias``: gate and size read along
    one direction.
    """
    gain = log_gain.exp()
    return encoder * gain[:, None], bias, bias - gain * gate_bias


def prefix_error(
    codes: FeatureCodes, decoder: Float[Tensor, "feature dim"], rows: Float[Tensor, "row dim"]
) -> Float[Tensor, ""]:
    """Return the mean squared error over reconstructions from the first features."""
    ends = sorted({max(1, round(share * len(decoder))) for share in PREFIXES})
    errors: list[Tensor] = []
    for start, end in zip([0, *ends], ends, strict=False):
        rows = rows - codes.value[:, start:end] @ decoder[start:end]
        errors.append(rows.square().sum(1).mean())
    return torch.stack(errors).mean()


def _transposed(
    index: Int[Tensor, "row k"], weight: Float[Tensor, "row k"], n: int, x: Float[Tensor, "row dim"]
) -> Float[Tensor, "feature dim"]:
    """Return, for each feature, the weighted sum of the rows in which the feature is active."""
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=n).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    rows, weights = order // index.shape[1], weight.reshape(-1)[order]
    return embedding_bag(
        rows, x, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, index: Tensor, decoder: Tensor) -> Tensor:
        ctx.save_for_backward(value, index, decoder)
        return embedding_bag(index, decoder, mode="sum", per_sample_weights=value)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, Tensor]:
        (slope,), (value, index, decoder) = given, ctx.saved_tensors
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            out = embedding_bag(index, decoder.detach(), mode="sum", per_sample_weights=leaf)
            (of_value,) = torch.autograd.grad(out, leaf, slope.contiguous())
        return of_value, None, _transposed(index, value, len(decoder), slope)


class _Encoded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        picked: Tensor,
        index: Tensor,
        x: Tensor,
        centre: Tensor,
        encoder: Tensor,
        bias: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(index, x, centre, encoder)
        return picked.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[None, None, None, Tensor, Tensor, Tensor]:
        (slope,), (index, x, centre, encoder) = given, ctx.saved_tensors
        n = len(encoder)
        of_bias = slope.new_zeros(n).index_add_(0, index.reshape(-1), slope.reshape(-1))
        of_encoder = _transposed(index, slope, n, x) - of_bias[:, None] * centre
        return None, None, None, -(of_bias @ encoder), of_encoder, of_bias


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> tuple[Tensor, Tensor]:
        active = (pre > threshold).to(pre)
        ctx.save_for_backward(pre, threshold, active)
        ctx.width = width
        return pre * active, active

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, None]:
        (of_value, of_count), (pre, threshold, active) = given, ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.width / 2).to(pre) / ctx.width
        of_threshold = -(near * (threshold * of_value + of_count)).sum(0)
        return of_value * active, of_threshold, None
