"""SND070: blocks that look less trained than their siblings, in an inaccurate model."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._effects import OF_PARTS
from sonde.findings.evidence.modules.block_training import (
    BlockTraining,
    compare_blocks,
    less_trained,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.trials.part_trials import FINE, PartTrials, part_trials
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND070(Rule):
    """Gap between the spectra of some blocks and those of the other blocks.

    Parameters
    ----------
    ratio : float, default=2.0
        Least gap, in widths of the wider side.
    most : float, default=0.02
        Upper limit, for every named block, of the mean logarithm of its largest singular values
        over those of random weights.
    """

    ratio: float = 2.0
    most: float = 0.02

    title: ClassVar[str] = "Blocks that look far less trained than their siblings"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("untrained",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains((*OF_PARTS, "SND068")),)
    why: ClassVar[str] = (
        "A checkpoint that mixes two training steps, or was loaded in part, has blocks that do "
        "not belong together, and no error appears."
    )
    fix: ClassVar[str] = "Load these blocks from the checkpoint that the others come from."
    how: ClassVar[str] = (
        "Tested if the answers are poor, as in SND068. For each of at least four blocks of one "
        "class: the mean logarithm of the largest singular value of its weights relative to "
        "that of random weights of the same size, the mean logarithm of their root mean "
        "square, and the distance of its norm weights from 1. Raised if two of these "
        "statistics separate the same blocks as the lower ones, with a gap twice as wide as "
        "the range on either side, and no singular value in these blocks exceeds those of "
        "random weights."
    )
    false_positives: ClassVar[str] = "Blocks that were added to a trained model on purpose."
    plant: ClassVar[str] = "Two of six blocks with the weights of an early step."
    twin: ClassVar[str] = "The model with all blocks of its last step."

    def check(self, evidence: Evidence) -> Check:
        """Search for blocks whose spectra are separate from the others."""
        blocks, parts = evidence.get(compare_blocks), evidence.get(part_trials)
        if not isinstance(blocks, BlockTraining):
            return self.not_applicable("fewer than four blocks of the same class ran")
        lens = evidence.get(measure_lens)
        fine = isinstance(lens, LensEvidence) and lens.beats_counts
        if fine or parts in FINE:
            return self.clear(
                Figure("edge", 1.0, unit="ratio"),
                "the answers are not poor enough to look for a cause",
            )
        if not isinstance(parts, PartTrials):
            return self.not_applicable(str(parts))
        low = less_trained(blocks, self.ratio)
        high = [i for i in range(len(blocks.paths)) if i not in low]
        named = [blocks.edge[i] for i in low]
        figure = Figure(
            "edge", math.exp(sum(named) / len(named)) if named else 1.0, unit="ratio", null=1.0,
            threshold=math.exp(self.most), direction="below",
        )  # fmt: skip
        if not low or max(named) > self.most:
            return self.clear(figure)
        rest = math.exp(sum(blocks.edge[i] for i in high) / len(high))
        paths = [blocks.paths[i] for i in low]
        text = (
            f"{places(paths)} {'looks' if len(low) == 1 else 'look'} far less trained than "
            f"{places([blocks.paths[i] for i in high])}: the largest singular values of their "
            f"weights are {percent(figure.value)} of those of random weights; in the other "
            f"blocks {percent(rest)}"
        )
        sizes = [math.exp(sum(blocks.size[i] for i in some) / len(some)) for some in (low, high)]
        return self.raised_with(
            "warning",
            sentence(
                f"{text}.",
                f"The root mean square of the weights is {number(sizes[0])} in these blocks and "
                f"{number(sizes[1])} in the others.",
                f"{plural(len(blocks.paths), 'block')}.",
            ),
            figure,
            sites=tuple(paths),
            effect=0.9,
            next=read_command(paths[0]),
            fix=f"Load {places(paths)} from the checkpoint that the other blocks come from.",
        )  # fmt: skip
