"""Test whether a model has forgotten: compare it with a retrained model, attack membership."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.batch import words_of
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.metrics import Metric, auroc
from sonde.tap.hooks.holding import in_eval
from sonde.weights import as_model
from sonde.weights.tuning import each_batch, row_losses

ATTACKED = "forget", "held"
"""Parts whose losses an attack compares."""


@dataclass(frozen=True)
class Standing:
    """Loss and accuracy of a model on a part of the data.

    Parameters
    ----------
    loss : float
        Mean cross-entropy of an example, in nats.
    accuracy : float
        Share of right answers, in [0, 1].
    n : int
        Examples.
    """

    loss: float
    accuracy: float
    n: int


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Losses of the labelled examples of one part of the data.

    Parameters
    ----------
    loss : Float[Tensor, "row"]
        Cross-entropy of each example, in nats.
    right : Float[Tensor, "row"]
        1 for a correct answer, else 0; of a text, the fraction of its tokens.
    group : Int[Tensor, "row"]
        Number of each example's group; without groups, of the example.
    key : Int[Tensor, "row"]
        Number of each example: copies without ids share one.
    """

    loss: Float[Tensor, "row"]
    right: Float[Tensor, "row"]
    group: Int[Tensor, "row"]
    key: Int[Tensor, "row"]

    def less(self, other: "RowLosses") -> Float[Tensor, "row"]:
        """Return each loss less another model's, 0 where both are infinite."""
        return torch.where(self.loss == other.loss, 0.0, self.loss - other.loss)


@dataclass(frozen=True)
class Forgotten:
    """Accuracy of a model on forgotten examples, on other training examples, and on new ones.

    Parameters
    ----------
    before, after : mapping of str to Standing
        By the part of the data: ``forget``, ``retain``, ``held``.
    retrained : mapping of str to Standing or None
        Accuracy of a model that never saw the forget examples: the value that ``after`` should be
        near.
    attack : Metric or None
        Area under the ROC curve of an attacker who takes examples of low loss for members: forget
        examples against held-out examples. 0.5 = they cannot be told apart; below 0.5, the forget
        examples stand out by their high loss.
    attack_before, attack_retrained : Metric or None
        The attack on the model before, and on the retrained model.
    rows : mapping of str to mapping of str to RowLosses
        Losses of the examples, by model (``before``, ``after``, ``retrained``) and part.
    """

    before: Mapping[str, Standing]
    after: Mapping[str, Standing]
    retrained: Mapping[str, Standing] | None
    attack: Metric | None
    attack_before: Metric | None
    attack_retrained: Metric | None
    rows: Mapping[str, Mapping[str, RowLosses]] = field(
        default_factory=dict[str, Mapping[str, RowLosses]]
    )

    def json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        sides = {"before": self.before, "after": self.after, "retrained": self.retrained}
        attacks = {
            "attack": self.attack,
            "attack_before": self.attack_before,
            "attack_retrained": self.attack_retrained,
        }
        return {
            **{
                name: None if side is None else {part: vars(s) for part, s in side.items()}
                for name, side in sides.items()
            },
            **{
                name: None if m is None else {"auroc": m.value, "low": m.low, "high": m.high}
                for name, m in attacks.items()
            },
        }


def forgotten(
    model: Model | nn.Module,
    changed: nn.Module,
    forget: Inputs,
    retain: Inputs,
    held: Inputs | None = None,
    retrained: nn.Module | None = None,
) -> Forgotten:
    """Return a model's loss and accuracy before and after unlearning.

    Parameters
    ----------
    model : Model or nn.Module
        Before.
    changed : nn.Module
        After.
    forget : Inputs
        Examples to forget.
    retain : Inputs
        Other training examples.
    held : Inputs, optional
        Examples that no model saw, of the kind that is to be forgotten: what the attacker compares
        with. Without them there is no attack.
    retrained : nn.Module, optional
        A model that never saw the forget examples, as ``Retrain`` makes one.

    Raises
    ------
    InputError
        If a part of the data is empty or has no labels, or a model answers NaN.
    """
    live = as_model(model)
    parts = {"forget": forget, "retain": retain} | ({} if held is None else {"held": held})
    modules = {"before": live.module, "after": changed}
    modules |= {} if retrained is None else {"retrained": retrained}
    rows = {
        name: {part: _row_losses(live, module, name, part, data) for part, data in parts.items()}
        for name, module in modules.items()
    }
    stands = {
        name: {part: _standing(r) for part, r in of_part.items()} for name, of_part in rows.items()
    }
    keys = None if held is None else torch.cat([rows["after"][part].key for part in ATTACKED])
    attacks = {
        name: membership_attack(*(of_part[part].loss for part in ATTACKED), group=keys)
        for name, of_part in rows.items()
        if held is not None
    }
    return Forgotten(
        stands["before"],
        stands["after"],
        stands.get("retrained"),
        attacks.get("after"),
        attacks.get("before"),
        attacks.get("retrained"),
        rows,
    )


def membership_attack(
    members: Float[Tensor, "member"],
    others: Float[Tensor, "other"],
    group: Int[Tensor, "row"] | None = None,
) -> Metric:
    """Return how well low losses separate members of the training data from other examples.

    Parameters
    ----------
    members, others : Float[Tensor, "row"]
        Losses of examples that the model may have seen, and of some that it has not.
    group : Int[Tensor, "row"], optional
        Groups of members and then of others, such as copies: they count as one in the interval.

    Returns
    -------
    Metric
        AUROC in [0, 1]; 0.5 = they cannot be told apart.

    Examples
    --------
    >>> membership_attack(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.15])).value
    0.75
    """
    scores = -torch.cat([members, others]).double()
    return auroc(scores, torch.arange(len(scores)) < len(members), group)


def _row_losses(live: Model, module: nn.Module, name: str, part: str, data: Inputs) -> RowLosses:
    """Return the loss and the accuracy of each example with a known answer."""
    compute = row_losses(live, module, data)
    found_parts = list[tuple[Tensor, ...]]()
    with torch.no_grad(), in_eval(module):
        for batch in each_batch(data):
            losses = compute(batch)
            answers = losses.answers
            assert answers is not None
            hits = (answers.log_p.argmax(1) == answers.truth).float()
            right = answers.per_example(hits, len(batch))
            numbers = words_of(batch.group_keys), words_of(batch.keys)
            is_known = losses.known.cpu()
            found_parts.append(
                (
                    losses.losses[losses.known].double(),
                    right[losses.known],
                    *(n[is_known] for n in numbers),
                )
            )
    joined = [torch.cat(parts) for parts in zip(*found_parts, strict=True)]
    if not joined or not len(joined[0]):
        raise InputError(f"forgotten: expected labels in the {part} data, got no labelled example.")
    if n_nan := int(joined[0].isnan().sum()):
        raise InputError(
            f"forgotten: expected losses that are numbers, got NaN for {n_nan} of {len(joined[0])} "
            f"{part} examples on the model {name!r}. `sonde scan` on that model names the cause."
        )
    return RowLosses(*joined)


def _standing(rows: RowLosses) -> Standing:
    loss = float(rows.loss.mean())
    mean = loss if math.isfinite(loss) else math.inf
    return Standing(mean, float(rows.right.mean()), len(rows.loss))
