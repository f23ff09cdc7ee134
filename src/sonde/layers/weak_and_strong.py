"""A weak head that answers if it is confident, and a strong head for all other states."""

from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.errors import InputError
from sonde.layers.layer import Layer


@final
class WeakAndStrong(Layer):
    """Answer with a weak head if it is confident, else with a strong head.

    The confidence is ``C = D(p_weak)^alpha`` with ``D`` the variance of ``p`` divided by its
    largest possible value, or ``1 - entropy / log n``. Training minimises
    ``mean C L_weak + (1 - C) L_strong``, the heads in turn. The weak head answers where
    ``C > threshold``.

    Cost         both heads; in ``answer`` the strong head only on the states that are left.
    Assumes      the two heads are trained in turn: freeze one, then the other. A strong head that
                 mixes rows, such as a graph network, is asked by a call: ``answer`` shows it only
                 the rows that are left.

    Parameters
    ----------
    dim, n_classes : int
        Width of the states, and number of classes.
    width : int, optional
        Width of the strong head's hidden layer; by default ``4 dim``.
    dispersion : {"variance", "entropy"}, default="variance"
        How the weak head's confidence is computed.
    alpha : float, default=1.0
        Exponent of the confidence, above 0.
    threshold : float, default=0.5
        Confidence in [0, 1] above which the weak head answers.
    gate_gradient : bool, default=False
        Train the weak head through ``C`` too, unlike the paper's code.
    weak : nn.Module, optional
        Map from states to logits, in place of the linear head.
    strong : nn.Module, optional
        Map from states to logits, in place of the perceptron: for nodes of a graph, a network that
        holds the graph.

    References
    ----------
    zeng2024mowst
    """

    paper: ClassVar[str] = "zeng2024mowst"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "n_classes": 3},
        {"dim": 4, "n_classes": 3, "dispersion": "entropy", "threshold": 0.1},
    )
    layout: ClassVar[tuple[str, ...]] = ("*axes dim",)
    insertable = False
    bfloat16_safe = False  # a rounded confidence may choose the other head

    def __init__(
        self,
        dim: int,
        n_classes: int,
        width: int | None = None,
        dispersion: Literal["variance", "entropy"] = "variance",
        alpha: float = 1.0,
        threshold: float = 0.5,
        gate_gradient: bool = False,
        *,
        weak: nn.Module | None = None,
        strong: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 2 or alpha <= 0:
            raise InputError(
                f"WeakAndStrong: expected two or more classes and alpha above 0, got {n_classes} "
                f"and {alpha}."
            )
        self.dim, self.dispersion, self.alpha = dim, dispersion, alpha
        self.threshold, self.gate_gradient = threshold, gate_gradient
        hidden = width or 4 * dim
        self.weak = nn.Linear(dim, n_classes) if weak is None else weak
        parts = (nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, n_classes))
        self.strong = nn.Sequential(*parts) if strong is None else strong

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes class"]:
        """Return the logits of the head that answers; both heads run, for training."""
        weak = self.weak(x)
        sure = self.confidence(weak) > self.threshold
        return torch.where(sure.unsqueeze(-1), weak, self.strong(x))

    @torch.no_grad()
    def answer(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes class"]:
        """Return the logits of ``forward``; the strong head runs only if the weak is unsure."""
        rows = x.reshape(-1, self.dim)
        logits = self.weak(rows)
        left = (self.confidence(logits) <= self.threshold).nonzero().squeeze(1)
        if len(left):
            logits = logits.index_copy(0, left, self.strong(rows[left]))
        return logits.reshape(*x.shape[:-1], -1)

    def confidence(self, logits: Float[Tensor, "*axes class"]) -> Float[Tensor, "*axes"]:
        """Return the confidence in [0, 1] of the weak head's logits; 0 for equal logits."""
        p, n = logits.softmax(-1), logits.shape[-1]
        if self.dispersion == "variance":
            dispersion = (p - 1.0 / n).square().sum(-1) / (1.0 - 1.0 / n)
        else:
            entropy = -(p * logits.log_softmax(-1)).sum(-1)
            dispersion = 1.0 - entropy / torch.log(entropy.new_tensor(float(n)))
        return dispersion.clamp(0.0, 1.0) ** self.alpha

    def loss(self, x: Float[Tensor, "row dim"], y: Int[Tensor, "row"]) -> Float[Tensor, ""]:
        """Return ``mean C L_weak + (1 - C) L_strong`` of labelled rows."""
        weak = self.weak(x)
        c = self.confidence(weak if self.gate_gradient else weak.detach())
        errors = (cross_entropy(logits, y, reduction="none") for logits in (weak, self.strong(x)))
        first, second = errors
        return (c * first + (1.0 - c) * second).mean()
