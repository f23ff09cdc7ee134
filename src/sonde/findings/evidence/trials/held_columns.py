"""The columns whose values do the answers more harm than their medians would.

No form mends a column of noise, or of the values of other rows. A small factor, or an exchange with
a column that says little, hides it and seems to be the fault. So the column is held at its median,
and a form has to do better. Further columns are held with it as long as that gains much more.
"""

from typing import Final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import groups_at
from sonde.findings.evidence.trials.tensor_forms import TensorForm, channel_axes, held_form
from sonde.findings.evidence.trials.tensor_trials import FormSearch, TensorTrials, in_own_budget
from sonde.findings.trial import LEVEL, chance_of_gain
from sonde.tap import LiveStream

BESIDE: Final = 0.1
"""Size of the budget relative to that of all other trials."""
MOST: Final = 4
"""Columns that are held together."""
MORE: Final = 0.1
"""Fraction of what is left wrong that a further column must correct."""


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

    def with_one_more(held: list[int]) -> tuple[list[int], TensorForm] | None:
        """Return the places of the best form that holds one more place, and this form."""
        rest = [i for i in range(len(places)) if i not in held]
        forms = {i: held_form([places[k] for k in (*held, i)], names) for i in rest}
        best = search.best(search.promising([*forms.values()]))
        return None if best is None else ([*held, next(i for i in rest if forms[i] is best)], best)

    def chosen() -> TensorForm | None:
        first = with_one_more([])
        if first is None:
            return None
        held, form = first
        while len(held) < MOST and (more := with_one_more(held)) is not None:
            if not _gains_much(search, form, more[1], len(places) - len(held)):
                break
            held, form = more
        return form

    return search.judged(chosen, leaves_out=True)


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
