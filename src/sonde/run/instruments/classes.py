"""Whether labels are the classes of a model, for methods that compare both."""

from collections.abc import Iterable

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.stream import Stream
from sonde.data.inputs import ItemInputs
from sonde.tap import LiveStream

COMPARED = {"label", "logits"}
SHOWN = 6


def check_classes(instruments: Iterable[Instrument], stream: Stream) -> None:
    """Refuse labels that are not the model's classes if a method compares them with its answers.

    Labels that are not the model's classes are numbered in sorted order, so a number may mean
    another class to the model.

    Raises
    ------
    InputError
        Naming the method and the labels.
    """
    if not isinstance(stream, LiveStream) or not isinstance(stream.inputs, ItemInputs):
        return
    if stream.inputs.own_labels or not stream.label_names:
        return
    names = ", ".join(stream.label_names[:SHOWN])
    for instrument in instruments:
        if any(set(r.statistic.needs()) >= COMPARED for r in instrument.all_reads().values()):
            raise InputError(
                f"{type(instrument).__name__}: expected labels that are the model's classes, "
                f"which are compared with its answers, got {names}"
                f"{'' if len(stream.label_names) <= SHOWN else ', ...'}. Name its outputs in "
                "their order (--classes), correct the labels, or choose another column "
                "(--label-column)."
            )
