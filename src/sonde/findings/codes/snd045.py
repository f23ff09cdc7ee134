"""SND045: blank inputs."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.findings.evidence.inputs.extreme_class import largest_class
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import reached, read_command, sentence
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND045(Rule):
    """Fraction of inputs that are constant or empty."""

    warning: float = 0.01

    title: ClassVar[str] = "Blank inputs"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("markup",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "An image of one colour, an empty text, silence or a row of equal numbers cannot be "
        "classified: the file was not written, the crop missed the object, or the sensor was "
        "off."
    )
    fix: ClassVar[str] = "Drop the blank rows, or fill them in."
    how: ClassVar[str] = (
        "Empty texts, recognised by their size in bytes; and inputs of eight numbers or more "
        "that are all equal: each channel of an image or signal, each unit of a sequence, or a "
        "whole row. Constant inputs are searched for among the sampled rows; every input with "
        "the content of such a row counts. Any blank input is a note, 1 % are a warning."
    )
    false_positives: ClassVar[str] = "Tiles of empty background that belong to the task."
    plant: ClassVar[str] = "5 % of the images are black."
    twin: ClassVar[str] = "The same pictures."

    def check(self, evidence: Evidence) -> Check:
        """Count constant and empty inputs."""
        blank = _blank(evidence)
        if blank is None:
            return self.not_applicable("no input is an array of numbers or a text")
        n, count = len(blank), int(blank.sum())
        share = count / max(n, 1)
        figure = Figure("blank_share", share, unit="share", threshold=self.warning, n_rows=n)
        if count == 0:
            return self.clear(figure)
        level = reached(share, 0.0, self.warning)
        assert level is not None
        verb = "is" if count == 1 else "are"
        text = (
            f"{count:,} of {plural(n, 'input')} ({percent(share)}) {verb} blank: empty, or the "
            "same value everywhere."
        )
        key = evidence.sites[0].schema.key
        one = largest_class(evidence.data, range(n), blank.double().numpy())
        return self.raised_with(
            level[0],
            sentence(text, "" if one is None else one.said),
            figure,
            classes=() if one is None else (one.name,),
            examples=tuple(torch.nonzero(blank).flatten().tolist()),
            effect=min(1.0, share),
            next=read_command(key),
        )


def _blank(evidence: Evidence) -> Bool[Tensor, "example"] | None:
    """Return whether each example is blank, or None if the inputs are not known."""
    if not evidence.sites:
        return None
    data, shared = evidence.data, shared_rows(evidence)
    constant, order, is_text = shared.column("constant"), shared.order, shared.column("length")
    if order is None or (constant is None and (is_text is None or data.size is None)):
        return None
    blank = torch.zeros(data.n, dtype=torch.bool)
    if is_text is not None and data.size is not None:
        blank |= data.size == 0
    if constant is not None:
        seen = {data.keys[i] for i in order[constant > 0].tolist()}
        blank |= torch.tensor([key in seen for key in data.keys], dtype=torch.bool)
    return blank
