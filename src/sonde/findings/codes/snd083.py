"""SND083: input tensors, channels and masks that are the same in all rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.inputs.idle_tensors import IdleTensor, IdleTensors, find_idle_tensors
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Level, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import sentence
from sonde.findings.words.text import number, percent, plural, shortened


@final
@dataclass(frozen=True)
class SND083(Rule):
    """Number of input tensors, channels and masks with one value in all rows."""

    title: ClassVar[str] = "An input that is the same in all rows"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("near chance", "redundant columns")
    breaks: ClassVar[Breaks] = "all answers"
    why: ClassVar[str] = (
        "The model cannot use an input that never changes: a file that was not read or a feature "
        "that was not computed often arrives as zeros, without an error."
    )
    fix: ClassVar[str] = "Find where this input is made, and give the model its values."
    how: ClassVar[str] = (
        "At most 2,048 rows are read. A tensor of floating-point numbers, or of one whole number "
        "in each row, that has one value everywhere is an error, and a tensor whose rows are all "
        "equal a warning; several whole numbers in each row, such as token types, may be equal. "
        "A channel of a sequence or an image and a column of whole numbers with one value is a "
        "warning. A mask of ones is a warning if another tensor of this length ends in two zeros "
        "or more in 10 % "
        "of the rows. Constant columns of a table are reported by SND073."
    )
    false_positives: ClassVar[str] = "Constants that a model takes as arguments, such as a grid."
    plant: ClassVar[str] = "A model of two tensors whose second tensor is zero in all rows."
    twin: ClassVar[str] = "The same model and data with the values of the second tensor."

    def check(self, evidence: Evidence) -> Check:
        """Report the most severe inputs first."""
        idle_inputs = evidence.get(find_idle_tensors)
        if not isinstance(idle_inputs, IdleTensors):
            return self.not_applicable(idle_inputs or "no model was run")
        figure = Figure(
            "idle_inputs", float(len(idle_inputs.found)), unit="inputs", n_rows=idle_inputs.n_rows
        )
        ranked = sorted(idle_inputs.found, key=lambda idle: _level(idle) != "error")
        if not ranked:
            return self.clear(figure)
        texts = [_said(idle, idle_inputs.n_rows) for idle in ranked[:3]]
        if len(ranked) > len(texts):
            texts.append(f"{plural(len(ranked) - len(texts), 'more input')} of this kind.")
        level = _level(ranked[0])
        return self.raised_with(
            level,
            sentence(*texts),
            figure,
            effect=1.0 if level == "error" else 1 / (1 + idle_inputs.n_tensors),
            fix=_fix(ranked[0]),
            location=_location(ranked),
        )


def _location(ranked: Sequence[IdleTensor]) -> Location:
    """Return the tensors, with their channels if all inputs of this kind are channels of one."""
    tensors = tuple(dict.fromkeys(idle.name for idle in ranked))
    is_one = len(tensors) == 1 and all(idle.index >= 0 for idle in ranked)
    return Location(tensors, tuple(idle.index for idle in ranked) if is_one else ())


def _level(idle: IdleTensor) -> Level:
    if idle.kind in ("channel", "mask"):
        return "warning"
    return "error" if idle.kind == "tensor" else "warning"


def _said(idle: IdleTensor, n: int) -> str:
    name, rows = shortened(idle.name, 40), f"all {plural(n, 'row')}"
    if idle.kind == "tensor":
        return f"Input {name!r} is {number(idle.value)} everywhere in {rows}."
    if idle.kind == "rows":
        return f"Input {name!r} is the same in {rows}."
    if idle.kind == "channel":
        return f"{idle.where} of input {name!r} is {number(idle.value)} in {rows}.".capitalize()
    return (
        f"Input {name!r} marks no padding in {rows}, but {shortened(idle.where, 40)!r} ends in "
        f"zeros in {percent(idle.share)} of them."
    )


def _fix(idle: IdleTensor) -> str:
    if idle.kind != "mask":
        return ""
    return f"{idle.name} = {idle.where} != 0, if zeros of {idle.where} are padding."
