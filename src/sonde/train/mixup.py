"""Train on mixed examples, at the input or at a site, with labels or a teacher's answers.

For few labels and for calibration. On small clean data it changes little. Call ``change`` on the
inputs, or let ``sonde.training(model, {site: mixup})`` mix at a site, then take the loss on the
logits of the same batch: ``terms.loss(logits=..., label=...)``.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError, StateError
from sonde.core.ranges import check_ranges
from sonde.stats.divergence import kl_divergence
from sonde.tap.hooks.latest import Latest
from sonde.train._draws import Draws


@final
class Mixup(nn.Module):
    """Cross entropy of mixed examples with the labels of both parts.

    ``change`` returns ``share x + (1 - share) x[order]`` and keeps ``share ~ Beta(alpha, alpha)``
    and ``order`` for its thread; the loss is ``share CE(label) + (1 - share) CE(label[order])``.
    ``decoupled`` adds ``eta`` times the two cross entropies in which each of the two classes
    competes with all but the other, for rows whose labels differ. With ``teacher`` logits the loss
    is ``T^2 KL(teacher || logits)`` at temperature ``T`` in place of labels. With
    ``temperature="spread"`` each row's logits are divided by their standard deviation over the
    classes, which a teacher that learned on mixed rows has smaller, and ``T^2`` is left out.

    Range        [0, inf), nats; lower = better.
    Cost         O(row class).
    Assumes      one forward between ``change`` and the loss, which keeps the order of the rows.
    Differs      from the paper: one share for each row if ``per`` is "row".
    Batching     mean, given order and shares.

    Parameters
    ----------
    alpha : float, default=1
        Parameter of the Beta distribution of mixing weights, above 0.
    decoupled : bool, default=False
        Whether the decoupled part is added, with weight ``eta``.
    eta : float, default=0.1
        Weight of the decoupled part.
    per : {"batch", "row"}, default="batch"
        Whether all rows have one share, or each row has its own.
    temperature : float or "spread", default=1
        Divisor of the logits of teacher and model, above 0; "spread" divides each row's logits by
        their standard deviation.
    unmixed : float, default=0
        Fraction of the rows that stay as they are.
    seed : int, default=0
        Seed of the mixing weights and of the partners.

    References
    ----------
    zhang2018mixup
    """

    paper: ClassVar[str] = "zhang2018mixup"
    variants: ClassVar[dict[str, str]] = {
        "site": "verma2019manifold",
        "decoupled": "liu2023decoupled",
        "teacher": "choi2023mixkd",
        "temperature='spread'": "choi2023mixkd",
    }
    has_loss: ClassVar[bool] = True
    examples: ClassVar[tuple[dict, ...]] = (
        {},
        {"decoupled": True, "per": "row"},
        {"temperature": "spread"},
    )

    def __init__(
        self,
        alpha: float = 1.0,
        decoupled: bool = False,
        eta: float = 0.1,
        per: Literal["batch", "row"] = "batch",
        temperature: float | Literal["spread"] = 1.0,
        unmixed: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.alpha, self.decoupled, self.eta, self.per = alpha, decoupled, eta, per
        self.temperature, self.unmixed = temperature, unmixed
        check_ranges(self, alpha="> 0", unmixed="[0, 1]", per=("batch", "row"))
        if temperature != "spread":
            check_ranges(self, temperature="> 0")
        self.draws = Draws(seed)
        self.drawn: Latest[tuple[Tensor, Tensor] | tuple[None, None]] = Latest()

    @property
    def share(self) -> Tensor | None:
        """Mixing fraction of each row in the last ``change`` of this thread or task."""
        return self._last()[0]

    @property
    def order(self) -> Tensor | None:
        """Indices of the rows mixed in by the last ``change`` of this thread or task."""
        return self._last()[1]

    def change(self, x: Float[Tensor, "row *axes"]) -> Float[Tensor, "row *axes"]:
        """Return mixed rows, and record their fractions and order; in evaluation, return ``x``."""
        if not self.training:
            self.drawn.put((None, None))
            return x
        draw, n = self.draws.next(), len(x)
        order = torch.randperm(n, generator=draw).to(x.device)
        wide = torch.full((2, n if self.per == "row" else 1), self.alpha, dtype=torch.float64)
        gamma = torch._standard_gamma(wide, generator=draw)  # pyright: ignore[reportPrivateImportUsage]
        first, second = gamma
        share = (first / (first + second)).expand(n).clone()
        share[: round(self.unmixed * n)] = 1.0
        self.drawn.put((share.to(x), order))
        return self.mixed(x)

    def mixed(self, x: Float[Tensor, "row *axes"]) -> Float[Tensor, "row *axes"]:
        """Return other values of these rows, mixed as in the last ``change``."""
        share, order = self._drawn(len(x))
        share = share.to(x).reshape(-1, *(1,) * (x.ndim - 1))
        return share * x + (1 - share) * x[order]

    @in_float32
    def forward(
        self,
        logits: Float[Tensor, "row class"],
        label: Int[Tensor, "row"] | None = None,
        teacher: Float[Tensor, "row class"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of the logits of mixed rows.

        Parameters
        ----------
        logits : Float[Tensor, "row class"]
        label : Int[Tensor, "row"], optional
            Of the rows before they were mixed.
        teacher : Float[Tensor, "row class"], optional
            Logits of the teacher on the same mixed rows, or ``mixed`` of its logits on the plain
            rows.
        """
        if teacher is not None:
            own, its = (self._rescaled(x).log_softmax(1) for x in (logits, teacher.detach()))
            scale = 1.0 if isinstance(self.temperature, str) else self.temperature**2
            return scale * kl_divergence(its, own).mean()
        if label is None:
            raise InputError("Mixup: expected label or teacher, got neither. Pass one of them.")
        if self.share is None and not self.training:
            return cross_entropy(logits, label)
        share, order = self._drawn(len(logits))
        other = label[order]
        each = [cross_entropy(logits, to, reduction="none") for to in (label, other)]
        value = (share.to(logits) * each[0] + (1 - share.to(logits)) * each[1]).mean()
        if not self.decoupled:
            return value
        apart = (label != other) & (share < 1).to(label.device)
        both = _without(logits, label, other) + _without(logits, other, label)
        return value + self.eta * torch.where(apart, both, 0.0).mean()

    @in_float32
    def smoothness(
        self, mixed: Float[Tensor, "row *axes"], plain: Float[Tensor, "row *axes"]
    ) -> Float[Tensor, ""]:
        """Return the squared distance of mixed rows' states from mixed states: 0 if linear.

        Parameters
        ----------
        mixed, plain : Float[Tensor, "row *axes"]
            States of a site on the mixed rows, and on the rows before.
        """
        gap = mixed - self.mixed(plain)
        return gap.square().flatten(1).sum(1).mean()

    def _rescaled(self, logits: Tensor) -> Tensor:
        """Return logits over the temperature, or over each row's own spread."""
        if not isinstance(self.temperature, str):
            return logits / self.temperature
        spread = logits.std(1, correction=0, keepdim=True)
        return logits / spread.clamp(min=torch.finfo(logits.dtype).eps)

    def _last(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the values of the last ``change``, if needed of the only other thread."""
        own = self.drawn.own()
        values = self.drawn.values() if own is None else [own]
        if len(values) > 1:
            raise StateError(
                f"Mixup: expected change() in the thread of the loss, got calls in {len(values)} "
                "other threads: it is not known which call belongs to this loss. Call both in "
                "one thread."
            )
        return values[0] if values else (None, None)

    def _drawn(self, n: int) -> tuple[Tensor, Tensor]:
        share, order = self._last()
        if share is None or order is None or len(share) != n:
            got = "none" if share is None else f"a call on {len(share)} rows"
            raise StateError(
                f"Mixup: expected a previous call of change() on the same {n} rows, got {got}. "
                "Call mixup.change(x) on the batch first."
            )
        return share, order


def _without(logits: Tensor, label: Tensor, other: Tensor) -> Tensor:
    """Return the cross entropy of each row's label, without the row's other class."""
    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, other[:, None], value=True)
    hidden.scatter_(1, label[:, None], value=False)
    return cross_entropy(logits.masked_fill(hidden, -torch.inf), label, reduction="none")
