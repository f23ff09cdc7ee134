"""The column whose values do the answers more harm than their median would.

No form mends a column of noise, or of the values of other rows. A small factor, or an exchange with
a column that says little, hides it and seems to be the fault. So the column is held at its median,
and a form has to do better.
"""

from typing import Final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.tensor_forms import TensorForm, channel_axes, held_form
from sonde.findings.evidence.trials.tensor_trials import FormSearch, TensorTrials, in_own_budget
from sonde.tap import LiveStream

BESIDE: Final = 0.1
"""Size of the budget relative to that of all other trials."""


def held_column(stream: LiveStream, evidence: Evidence) -> TensorTrials | str:
    """Hold the column at its median that gains most by it, or return why none is held."""
    return in_own_budget(stream, evidence, _of, BESIDE)


def _of(search: FormSearch) -> TensorTrials | str:
    def chosen() -> TensorForm | None:
        names = search.names if len(search.given) == 1 else ()
        forms = [
            held_form(one, axis, i, names)
            for one in search.given.values()
            if one.kind == "numbers"
            for axis in channel_axes(one)
            for i in range(one.x.shape[axis])
        ]
        return search.best(search.promising(forms))

    return search.judged(chosen, leaves_out=True)
