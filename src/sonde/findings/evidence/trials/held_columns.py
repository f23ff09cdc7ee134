"""The columns whose values do the answers more harm than their medians would.

No form mends a column of noise, or of the values of other rows. A small factor, or an exchange with
a column that says little, hides it and seems to be the fault. So the column is held at its median,
and a form has to do better.

Of several such columns, each alone may gain nothing while the others mislead the model. So all
columns are moved towards their medians at once, each as far as the gradient of the loss calls for,
at a price for every column; those that end nearer to the median are held, and put back one by one
if the answers do without. A model without gradients holds one column after the other.
"""

from collections.abc import Callable
from typing import Final

import torch

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import groups_at, two_logits
from sonde.findings.evidence.trials.tempered_loss import as_logits
from sonde.findings.evidence.trials.tensor_forms import (
    TensorForm,
    channel_axes,
    held_form,
)
from sonde.findings.evidence.trials.tensor_trials import FormSearch, TensorTrials, in_own_budget
from sonde.findings.trial import CANNOT_RUN, LEVEL, chance_of_gain
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import InputTensor

Place = tuple[InputTensor, int, int]
"""A tensor, the axis of its columns or channels, and the index of one of them."""
BESIDE: Final = 0.1
"""Size of the budget relative to that of all other trials."""
MOST: Final = 8
"""Columns that are held together, and at most half of all."""
MORE: Final = 0.1
"""Fraction of what is left wrong that a further column must correct."""
STEPS, LEAST_STEPS, RATE = 100, 40, 0.1
"""Steps of Adam, the fewest that are worth a start, and their size."""
PASSES: Final = 3
"""Forward passes that a step with its gradient costs."""
PRICE: Final = 0.02
"""What a column held costs, in nats or in variances of the targets."""
START: Final = 2.0
"""Logit of how far a column keeps its values at first."""
DONE_WITHOUT: Final = 1.05
"""Loss, relative to that of all columns held, up to which a column is put back."""


def held_column(stream: LiveStream, evidence: Evidence) -> TensorTrials | str:
    """Hold the columns at their medians that gain most by it, or return why none is held."""
    return in_own_budget(stream, evidence, _of, BESIDE)


def _of(search: FormSearch) -> TensorTrials | str:
    names = search.names if len(search.given) == 1 else ()
    places = [
        (one, axis, i)
        for one in search.given.values()
        if one.kind == "numbers"
        for axis in channel_axes(one)
        for i in range(one.x.shape[axis])
    ]

    def held(which: list[int]) -> TensorForm:
        return held_form([places[i] for i in which], names)

    def chosen() -> TensorForm | None:
        together = _put_back(search, held, _nearest(search, places))
        return search.best([form for form in (_one_by_one(search, held, len(places)), together)
                            if form is not None])  # fmt: skip

    return search.judged(chosen, leaves_out=True)


def _one_by_one(
    search: FormSearch, held: Callable[[list[int]], TensorForm], n: int
) -> TensorForm | None:
    """Return the form with the column held that gains most, and further ones while they gain."""
    which: list[int] = []
    best: TensorForm | None = None
    while len(which) < min(MOST, n):
        rest = [i for i in range(n) if i not in which]
        forms = {i: held([*which, i]) for i in rest}
        more = search.best(search.promising([*forms.values()]))
        if more is None or (best and not _gains_much(search, best, more, len(rest))):
            break
        which.append(next(i for i in rest if forms[i] is more))
        best = more
    return best


def _nearest(search: FormSearch, places: list[Place]) -> list[int]:
    """Return the places that the loss wants nearer to their medians than to their values.

    Nearest first, at most half of all. Empty if the model has no gradients, or if they cost too
    much.
    """
    rows, budget = search.chooses, search.evidence.budget
    n_steps = min(STEPS, int(budget.left() / max(PASSES * budget.cost.of(len(rows)), 1e-9)))
    if n_steps < LEAST_STEPS or not places:
        return []
    batch = search.small.together(rows)
    order = search.order_of(rows)
    numbers = {one.name: one.x[torch.tensor(rows)].float() for one, _, _ in places}
    medians = torch.tensor(
        [float(one.x.select(axis, i).double().nanmedian()) for one, axis, i in places]
    )
    along = {(one.name, axis): (one.x.ndim, one.x.shape[axis]) for one, axis, _ in places}
    keep = torch.full((len(places),), START, requires_grad=True)
    boldness = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([keep, boldness], RATE)
    try:
        with torch.enable_grad():
            for _ in range(n_steps):
                kept = keep.sigmoid()
                tensors = dict(numbers)
                start = 0
                for (name, axis), (ndim, n) in along.items():
                    shape = [n if a == axis else 1 for a in range(ndim)]
                    part = slice(start, start + n)
                    median = medians[part].reshape(shape)
                    moved = kept[part].reshape(shape) * (tensors[name] - median)
                    tensors[name], start = median + moved, start + n
                for _ in range(PASSES):
                    budget.note(len(rows))
                answers = search.differentiable(batch, tensors)
                if answers is None:
                    return []
                if search.scores.kind == "class":
                    answers = as_logits(two_logits(answers)) * boldness.exp()
                loss = search.scores.losses(answers, order).mean() + PRICE * (1 - kept).sum()
                keep.grad, boldness.grad = torch.autograd.grad(
                    loss, [keep, boldness], allow_unused=True
                )
                optimizer.step()
    except CANNOT_RUN:
        return []
    near = [i for i in range(len(places)) if float(keep[i]) < 0]
    return sorted(near, key=lambda i: float(keep[i]))[: min(MOST, len(places) // 2)]


def _put_back(
    search: FormSearch, held: Callable[[list[int]], TensorForm], which: list[int]
) -> TensorForm | None:
    """Return the form with columns held, less those whose values the answers do as well with."""
    while which:
        others = [[k for k in which if k != i] for i in which]
        forms = [held(some) if some else None for some in others]
        whole, *losses = search.losses([held(which), *forms], search.chooses)
        least = min(losses)
        if least > DONE_WITHOUT * whole:
            return held(which)
        which = others[losses.index(least)]
    return None


def _gains_much(search: FormSearch, form: TensorForm, more: TensorForm, n_tried: int) -> bool:
    """Return whether a form that holds one more column gains much more than chance explains.

    ``more`` is the best of ``n_tried`` forms. The rows that chose it decide: the other rows judge
    the form that is chosen in the end.
    """
    before, after = (search.scored(one, search.chooses) for one in (form, more))
    if before is None or after is None:
        return False
    gain, left = float((after - before).mean()), 1 - float(before.mean())
    group = groups_at(search.evidence, search.order_of(search.chooses))
    return gain >= MORE * left and chance_of_gain(before, after, group) < LEVEL / n_tried
