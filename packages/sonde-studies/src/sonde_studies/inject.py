"""Test whether another run's spatial mean transfers its style without moving the content.

A toy: a painter whose words name a digit and two colours. What came out (15 seeds): the other
run's mean leaves the digit in nearly all pictures and brings .71 of the ground, but .20 of the ink.
One mean for all places is that of the ground, which covers four fifths of them; a mean for the
ink's places and one for the others bring .95 of both (three seeds). With the spread .33 of the ink
comes. States added place by place lose the digit in three pictures of four. After the first of two
blocks nothing comes: the second paints from the words again. An encoder of images, trained with the
frozen painter, brings a subject's handwriting and ink; two fifths of what separation takes of the
old ground it takes by states of the ground's own.
"""

from typing import final

import torch

import sonde
from sonde.edit import Inject
from sonde.tap import Tap
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.painter import (
    BLOCKS,
    DIGITS,
    colours_in,
    colours_of,
    correlation,
    random_words,
    studio,
)
from sonde_studies.worlds.subjects import STEPS as ENCODER_STEPS
from sonde_studies.worlds.subjects import subject_arms

EDITS = {
    "none": Inject(strength=0.0),
    "mean": Inject(),
    "mean and spread": Inject("adain"),
    "added mean": Inject("add"),
    "place by place": Inject("add", level="local"),
}
CALLS = {"plain": 2.0, "coloured": 0.0}
"""Share of colours that words leave out: all, or none."""


@final
class InjectStudy(Study):
    """A generator of coloured digits, and states of its run for another coloured digit."""

    name = "inject"
    title = "does another run's mean over places bring its style and leave the object?"
    paper = "wu2024infiniteid"
    fidelity = (
        "toy size and turned around: style comes from the other run, where the paper keeps a "
        "face's run and takes the style from the words'; the merge as published, after the last "
        "block of a net of two; both blocks are shown; nothing was chosen. The encoder of a "
        "subject is AnyMaker's at toy size: two levels, and what is not the subject held apart by "
        "agreement and independence, weighted as seeds 0 and 100 chose"
    )
    data = "mean shapes of digits in an ink on a ground, named by words"
    claims = (
        Claim("object", "With the other run's mean the digit is still its own in more than 95%.",
              "share of pictures", above=0.95),
        Claim("ground", "Most of the ground is the other run's.",
              "share of the variance of grounds", above=0.5),
        Claim("ink", "Most of the ink is the other run's.",
              "share of the variance of inks", above=0.5),
        Claim("spread", "With the spread as well, the ink is more like the other run's.",
              "share of the variance of inks, difference",
              arms=("mean and spread", "mean")),
        Claim("over adding", "Where words name colours, a mean that replaces brings more of the "
              "ground than one that is added.", "share of the variance of grounds, difference",
              arms=("mean", "added mean")),
        Claim("over places", "States that are added place by place lose the digit more often.",
              "share of pictures, difference",
              arms=("mean", "place by place")),
        Claim("kept", "States of a trained encoder keep a subject's handwriting and ink better "
              "than the generator's own, which know no handwriting.",
              "share of the variance of the subject, encoder less the better of two ways",
              arms=("separated", "own run")),
        Claim("apart", "Separation lowers what the encoder carries over of the subject's ground.",
              "slope of the painted ground on the subject's, without less with separation, which "
              "adds a tenth of the parameters",
              arms=("separated", "encoder")),
        Claim("by states", "States of its own for the ground lower it without the losses.",
              "slope of the painted ground on the subject's, without less with them, a tenth more"
              " parameters",
              arms=("own ground", "encoder")),
        Claim("by losses", "Agreement and independence lower it further.",
              "slope of the painted ground on the subject's, without less with the losses",
              arms=("separated", "own ground")),
        Claim("price", "Separation costs less than a tenth of the subject's variance.",
              "share of the variance of the subject, with separation (a tenth more parameters) "
              "less without, and 0.1",
              arms=("separated", "encoder")),
        Claim("levels", "Global states beside those of places keep more of the subject than an "
              "encoder keeps that was trained with places alone.",
              "share of the variance of the subject, both levels (a tenth more parameters) less "
              "places alone",
              arms=("separated", "places alone")),
    )  # fmt: skip
    null = Claim(
        "unrelated",
        "The ground has nothing of the run that another canvas is given.",
        "correlation, mean of three channels",
    )

    @torch.no_grad()
    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a generator, and generate with states of another run in every way."""
        tick("painter")
        at = studio(seed, 10) if tiny else studio(seed)
        tick("inject")
        n, draw = 50 if tiny else 400, torch.Generator().manual_seed(1000 + seed)
        digit, other = torch.randint(DIGITS, (2, n), generator=draw)
        words = random_words(other, draw, 0.0)
        ink, ground = colours_of(words[:, 1], draw), colours_of(words[:, 2], draw)
        wanted = at.paint(other, ink, ground)
        found: dict[str, dict[str, float]] = {}
        for call, share in CALLS.items():
            own = random_words(digit, draw, share)
            for site in (f"blocks.{i}" for i in range(BLOCKS)):
                with Tap(at.painter, site) as tap:
                    tap.run(words)
                for name, edit in EDITS.items():
                    note_for(name, rows=n)
                    with sonde.editing(at.painter, edit, site, others={"source": dict(tap.rows)}):
                        picture = at.painter(own)
                    brought = colours_in(picture, at.on_canvas[digit])[1]
                    found[f"{name}, {site}, {call}"] = at.judged(picture, digit, wanted) | {
                        "unrelated ground": correlation(brought, ground.roll(1, 0))
                    }

        tick("encoders")
        note_for("own run", updates=0)
        subject = subject_arms(at, seed, n, 10 if tiny else ENCODER_STEPS)
        both = {name: row["subject"] for name, row in subject.items()}
        raw = max(both["own run, mean"], both["own run, both levels"])
        whole, stated, separated = (
            subject[f"{name}, both levels"] for name in ("encoder", "own ground", "separated")
        )

        def of(name: str, key: str, call: str = "plain") -> float:
            return found[f"{name}, blocks.{BLOCKS - 1}, {call}"][key]

        return {
            "object": of("mean", "digit"),
            "ground": of("mean", "ground"),
            "ink": of("mean", "ink"),
            "spread": of("mean and spread", "ink") - of("mean", "ink"),
            "over adding": of("mean", "ground", "coloured")
            - of("added mean", "ground", "coloured"),
            "over places": of("mean", "digit") - of("place by place", "digit"),
            "kept": separated["subject"] - raw,
            "apart": whole["carried"] - separated["carried"],
            "by states": whole["carried"] - stated["carried"],
            "by losses": stated["carried"] - separated["carried"],
            "price": separated["subject"] - whole["subject"] + 0.1,
            "levels": separated["subject"] - both["places alone"],
            "unrelated": of("mean", "unrelated ground"),
            **{f"{k} | {key}": x for k, row in (found | subject).items() for key, x in row.items()},
        }
