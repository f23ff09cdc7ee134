"""Test whether a language model's states tell which of several models wrote a text.

The writers learned from the same files to the same held-out loss and continue the same beginnings:
what tells them apart is neither their topic nor their quality.
"""

from typing import Any, final

import numpy as np

from sonde import Model, load
from sonde_studies._model_writers import MOST, NEW, Sources, texts_of, trained
from sonde_studies._writer_nets import MIXINGS, Mixing
from sonde_studies.arms import note_for
from sonde_studies.recipes.who_wrote_it import who_wrote_it
from sonde_studies.study import Claim, Figures, Study, Tick

BASE: Mixing = "convolution"
TEXTS, TINY, FEW = 60, 2, 24
STATES, CHARACTERS = "states, masked", "characters, masked"


@final
class WhichModelWroteItStudy(Study):
    """Four architectures as writers, four seeds of one, and writers by lot."""

    name = "which-model-wrote-it"
    title = "do states tell which of several language models wrote a text?"
    paper = "tihanyi2025hidden"
    fidelity = (
        "models of 0.3 million weights that learn Python until they reach 2.1 nats a byte; the "
        "paper asks twenty large models for JavaScript and fine-tunes the encoder that reads it, "
        "here states of the shipped model are read as they are. The models differ in how positions "
        "mix, in first weights and in the order of the data, not in size"
    )
    data = (
        "224 bytes after each of 60 beginnings, of files that no model has seen, by each of four "
        "models that learned from the same files of the standard library"
    )
    place = "byte-model"
    claims = (
        Claim("named", "States tell which architecture wrote a text more often than chance.",
              "accuracy of a linear head less a quarter"),
        Claim("masked", "They do so where words that not all models use are masked.",
              "accuracy less a quarter, masked"),
        Claim("beyond characters", "Masked, states tell it more often than counts of characters.",
              "accuracy by states less accuracy by characters, masked",
              arms=("states", "characters")),
        Claim("more than seeds", "They tell architectures more often than seeds of one.",
              "accuracy, masked, four architectures less four seeds",
              arms=("states", "four seeds")),
    )  # fmt: skip
    null = Claim("lot", "Writers by lot cannot be told apart.",
                 "accuracy less a quarter, masked, texts of each beginning dealt")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train seven models, let them write, and run the recipe on four at a time."""
        reader, draw = load("sonde:stdlib"), np.random.default_rng(seed)
        sources = Sources.of(FEW if tiny else TEXTS, draw)
        makers: dict[str, Mixing] = {mixing: mixing for mixing in MIXINGS}
        makers |= {f"seed {i}": BASE for i in (1, 2, 3)}
        texts, losses = dict[str, list[dict[str, Any]]](), dict[str, float]()
        for i, (name, mixing) in enumerate(makers.items()):
            tick(name)
            own = 100 * seed + i
            net, losses[name] = trained(mixing, sources, own, TINY if tiny else MOST)
            texts[name] = texts_of(net, name, sources.begun, 24 if tiny else NEW, own)
        tick("writers")
        written = [row for name in MIXINGS for row in texts[name]]
        seeds = [row for name, mixing in makers.items() if mixing == BASE for row in texts[name]]
        lot = [draw.permutation(len(MIXINGS)) for _ in sources.begun]
        dealt = [{**row, "author": str(lot[int(row["file"])][i // len(lot)])}
                 for i, row in enumerate(written)]  # fmt: skip
        for name, own in (("states", written), ("characters", written), ("four seeds", seeds)):
            note_for(name, rows=len(own))
        models, same, none = (_named(reader, rows, seed) for rows in (written, seeds, dealt))
        return {
            "named": models["states, as written"] - 0.25,
            "masked": models[STATES] - 0.25,
            "beyond characters": models[STATES] - models[CHARACTERS],
            "more than seeds": models[STATES] - same[STATES],
            "lot": none[STATES] - 0.25,
            **{f"architectures | {arm}": value for arm, value in models.items()},
            **{f"seeds | {arm}": value for arm, value in same.items()},
            **{f"held-out loss, nats a byte | {name}": value for name, value in losses.items()},
        }


def _named(reader: Model, rows: list[dict[str, Any]], seed: int) -> dict[str, float]:
    """Return the accuracy of each arm of the recipe; texts after one beginning share a fold."""
    found = who_wrote_it(reader, rows, group_column="file", seed=seed, progress=False)
    return {row["arm"]: row["accuracy"] for row in found.rows}
