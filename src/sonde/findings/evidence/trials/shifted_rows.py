"""Inputs of the rows before or after, for rows that follow one another in time.

Inputs of a later row are newer: whatever is to be forecast is then nearer, and the answers get
better although nothing is wrong. So a shift is not chosen by its loss, but by the regret of the
answers: what a line through the numbers, or a temperature, would gain. A model is as bold as the
inputs that it learned from allow; if it gets the inputs of other rows, its answers are too bold.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import ttest_1samp
from torch import Tensor

from sonde.core.paired_gains import group_means
from sonde.findings.evidence.inputs.row_dependence import rows_per_block
from sonde.findings.evidence.shared_rows import two_logits
from sonde.findings.evidence.trials.answer_scores import AnswerScores
from sonde.findings.evidence.trials.tempered_loss import TEMPERATURES, as_logits
from sonde.findings.evidence.trials.tensor_forms import TensorForm
from sonde.findings.trial import LEVEL
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import input_tensors

LAGS: Final = (1, -1, 2, -2, 3, -3)
REGRET: Final = 0.05
"""Least regret of the unchanged rows, in nats or in variances of the targets."""
CLOSED, NEAR = 2 / 3, 0.1
"""Fraction of this regret that a shift must close, and by which shifts count as equal."""


def shifted_rows(stream: LiveStream) -> list[TensorForm]:
    """Return the forms in which every row gets the inputs of a row before or after it."""
    n, module = len(stream.inputs), stream.model.module

    @lru_cache(4096)
    def inputs_at(i: int) -> dict[str, Tensor] | None:
        batch = next(iter(stream.inputs.batches(i, i + 1)), None)
        return None if batch is None else {k: t.x for k, t in input_tensors(module, batch).items()}

    def form_of(lag: int) -> TensorForm:
        def change(given: Mapping[str, Tensor], order: Int[Tensor, "row"]) -> dict[str, Tensor]:
            shifted: dict[str, list[Tensor]] = {name: [] for name in given}
            for row, i in enumerate(order.tolist()):
                others = inputs_at(min(max(i + lag, 0), n - 1)) or {}
                for name, x in given.items():
                    shifted[name].append(others.get(name, x[row : row + 1]))
            return {name: torch.cat(parts) for name, parts in shifted.items()}

        when = "after" if lag > 0 else "before"
        steps = f"{abs(lag)} rows" if abs(lag) > 1 else "one row"
        line = f"x, y = x[{lag}:], y[:-{lag}]" if lag > 0 else f"x, y = x[:{lag}], y[{-lag}:]"
        line += "  # all inputs, and the targets"
        return TensorForm(f"of the rows {steps} {when}", line, change)

    return [form_of(lag) for lag in LAGS]


def blocks_of(x: Float[Tensor, "row"], order: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return the block of each row: neighbours in time, as many as depend on one another."""
    ranked = torch.argsort(order)
    return torch.argsort(ranked) // rows_per_block(x[ranked].numpy()[:, None])


def chosen_shift(
    scores: AnswerScores,
    answers: Sequence[Tensor],
    order: Int[Tensor, "row"],
    chooses: Bool[Tensor, "row"],
) -> int | None:
    """Return the number of the shift that the rows were given in, or None.

    The nearest row whose inputs leave about the least regret is chosen by the rows that choose; the
    other rows must confirm that their regret falls (Student's test over blocks, 1 %).

    Parameters
    ----------
    scores : AnswerScores
    answers : sequence of Tensor
        The answers to the unchanged rows, then to each shift, nearest first.
    order : Int[Tensor, "row"]
        Examples of the rows.
    chooses : Bool[Tensor, "row"]
    """
    regret = torch.stack([_regret(scores, one, order, chooses) for one in answers])
    if not bool(torch.isfinite(regret).all()):
        return None
    own, *others = regret[:, chooses].mean(1).tolist()
    least = min(others)
    if own < REGRET or own - least < CLOSED * own:
        return None
    best = next(i for i, x in enumerate(others) if x - least <= NEAR * (own - least))
    less = (regret[0] - regret[1 + best])[~chooses]
    means = group_means(less, blocks_of(less, order[~chooses]))
    if len(means) < 2:
        return None
    test = ttest_1samp(means.numpy(), 0.0, alternative="greater")
    return best if float(test.pvalue) < LEVEL else None  # type: ignore[attr-defined]


def _regret(
    scores: AnswerScores, answers: Tensor, order: Int[Tensor, "row"], chooses: Bool[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """Return what the best line or temperature of the rows that choose takes from each loss."""
    if scores.kind == "numbers":
        changed = _on_a_line(answers, scores.targets(order), chooses)
        return scores.losses(answers, order) - scores.losses(changed, order)
    logits = as_logits(two_logits(answers)) if scores.kind == "class" else answers
    losses = torch.stack([scores.losses(logits / t, order) for t in (1.0, *TEMPERATURES)])
    return losses[0] - losses[int(losses[:, chooses].mean(1).argmin())]


def _on_a_line(
    answers: Tensor, truth: Float[Tensor, "row *rest"], chooses: Bool[Tensor, "row"]
) -> Tensor:
    """Return each number on the line that fits the targets of the rows that choose."""
    y = truth.reshape(len(truth), -1)
    x = answers.double().reshape(len(y), -1)[:, : y.shape[1]]
    weight = (chooses[:, None] & torch.isfinite(y)).double()
    n, y = weight.sum(0).clamp(min=1), torch.nan_to_num(y)
    centre, level = (weight * x).sum(0) / n, (weight * y).sum(0) / n
    slope = (weight * (x - centre) * (y - level)).sum(0)
    slope = slope / (weight * (x - centre).square()).sum(0).clamp(min=1e-300)
    return (slope * (x - centre) + level).reshape(answers.shape)
