"""How far the answers of a changed model are from those of the original, on the same examples."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.metrics.intervals import Bootstrap, measured
from sonde.stats.divergence import kl_divergence
from sonde.tap import RowLosses, live_stream, place_of
from sonde.tap.rows.padding import right_padded
from sonde.weights import as_model


@dataclass(frozen=True)
class Fidelity:
    """How far two models' answers are apart.

    Parameters
    ----------
    n : int
        Answers that were compared: tokens of texts, else examples.
    kl : float
        Mean of ``KL(original || changed)`` over answers, in nats.
    kl_low, kl_high : float
        Its 95 % interval, from resampled groups of examples; NaN if there is one group.
    kl_99 : float
        Its 99 % quantile.
    changed : float
        Share of answers whose most likely class is another, in [0, 1].
    right_to_wrong, wrong_to_right : float
        Shares of the answers whose truth is known.
    """

    n: int
    kl: float
    kl_low: float
    kl_high: float
    kl_99: float
    changed: float
    right_to_wrong: float
    wrong_to_right: float

    def json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


@torch.no_grad()
def fidelity(
    model: Model | nn.Module,
    changed: nn.Module,
    inputs: Inputs,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Fidelity:
    """Return how far a changed model's answers are from those of a model.

    Parameters
    ----------
    model : Model or nn.Module
    changed : nn.Module
    inputs : Inputs
        A text has an answer for each token after the first, other inputs one each.
    start, stop : int, optional
        Compare on these examples alone.

    Raises
    ------
    InputError
        If there is no answer.
    """
    live, parts = as_model(model), dict[str, list[Tensor]]()
    end = len(inputs) if stop is None else min(stop, len(inputs))
    losses: list[RowLosses] = []
    groups: dict[bytes, int] = {}
    logits = live_stream(live, inputs, logits_asked=True).logits_key
    for batch in map(right_padded, inputs.batches(start, end)):
        if not losses:
            losses = [
                RowLosses(live, module, "label", logits, place_of(module, batch))
                for module in (live.module, changed)
            ]
        one, other = (each.answers(batch) for each in losses)
        p, q = one.log_p.double(), other.log_p.double()
        tops, known = (p.argmax(1), q.argmax(1)), one.truth >= 0
        right = [(top == one.truth) & known for top in tops]
        found = {
            "kl": kl_divergence(p, q).nan_to_num(nan=torch.inf, posinf=torch.inf),
            "changed": tops[0] != tops[1],
            "lost": right[0] & ~right[1],
            "won": right[1] & ~right[0],
            "known": known,
            "group": torch.tensor([groups.setdefault(k, len(groups)) for k in batch.group_keys])[
                one.example
            ],
        }
        for name, x in found.items():
            parts.setdefault(name, []).append(x.double().cpu())
    if not parts or not sum(map(len, parts["kl"])):
        raise InputError("fidelity: expected examples with answers, got none. Pass more data.")
    whole = {name: torch.cat(x) for name, x in parts.items()}
    n_known = max(1.0, float(whole["known"].sum()))
    low, high = _interval(whole["kl"], whole["group"].long())
    return Fidelity(
        n=len(whole["kl"]),
        kl=float(whole["kl"].mean()),
        kl_low=low,
        kl_high=high,
        kl_99=float(whole["kl"].quantile(0.99)) if len(whole["kl"]) < 2**24 else float("nan"),
        changed=float(whole["changed"].mean()),
        right_to_wrong=float(whole["lost"].sum()) / n_known,
        wrong_to_right=float(whole["won"].sum()) / n_known,
    )


def _interval(kl: Tensor, group: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of a mean over answers, by resampling groups of answers."""
    n_groups = int(group.max()) + 1
    sums, counts = torch.zeros(2, n_groups, dtype=torch.float64)
    sums.index_add_(0, group, kl)
    counts.index_add_(0, group, torch.ones_like(kl))

    def mean(weights: Tensor) -> Tensor:
        return (weights @ sums) / (weights @ counts)

    found = measured(mean, torch.arange(n_groups), Bootstrap())
    return found.low, found.high
