"""Test whether generated code can be detected by the model that wrote it.

People's texts are pieces of files that the shipped byte-level model was not trained on; generated
ones are its own continuations of other such pieces. It is a weak writer of 3 million parameters:
that it is caught says little about a strong one.
"""

from typing import Any, final

import numpy as np
import torch

from sonde import Model, load
from sonde.data import rows_of
from sonde_studies._written import generated
from sonde_studies.recipes.was_it_generated import was_it_generated
from sonde_studies.study import Claim, Figures, Study, Tick

TEXTS, TINY, PROMPT, BYTES = 120, 25, 48, 120


@final
class WasItGeneratedStudy(Study):
    """Continuations of code by the shipped model at temperature 1, against the original."""

    name = "was-it-generated"
    title = "do a model's numbers and states tell its own texts from those of people?"
    fidelity = (
        "the usual numbers of a white-box model, and linear heads in folds; no paper's system"
    )
    data = "120 pieces of 120 bytes of the standard library, and 120 of the model's continuations"
    place = "byte-model"
    claims = (
        Claim(
            "told",
            "The best head tells generated texts from those of people.",
            "AUROC less 0.5",
        ),
        Claim(
            "states",
            "A head on states, which has more weights, tells more than a head on fifteen numbers "
            "of the tokens.",
            "AUROC of the head on states less that of the head on numbers",
            arms=("head on states", "head on numbers"),
        ),
        Claim(
            "characters",
            "A head on fifteen numbers of the model tells more than one on counts of characters, "
            "which has more weights.",
            "AUROC of the head on numbers less that of the head on characters",
            arms=("head on numbers", "head on characters"),
        ),
    )
    null = Claim(
        "people",
        "Texts of people cannot be told from other texts of people.",
        "AUROC of the head on numbers",
        above=0.5,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Sample pieces, continue some, run the recipe, and once on human texts only."""
        model, n = load("sonde:stdlib"), TINY if tiny else TEXTS
        draw = np.random.default_rng(seed)
        files = [r["text"] for r in rows_of("sonde:stdlib/test-all") if len(r["text"]) > 4000]
        pieces = []
        while len(pieces) < 3 * n:
            text = files[int(draw.integers(len(files)))]
            at = int(draw.integers(len(text) - PROMPT - BYTES))
            piece = text[at : at + PROMPT + BYTES]
            pieces += [piece] if piece.isascii() else []
        tick("generate")
        made = [{"text": t} for t in continued(model, [p[:PROMPT] for p in pieces[:n]], seed)]
        one, two = (
            [{"text": p[PROMPT:]} for p in part] for part in (pieces[n : 2 * n], pieces[2 * n :])
        )
        tick("tell")
        found = was_it_generated(model, one, made, seed=seed, progress=False)
        tick("people against people")
        null = was_it_generated(model, one, two, seed=seed, progress=False)
        score, same = ({r["what"]: r["AUROC"] for r in a.rows} for a in (found, null))
        return {
            "told": float(found.value) - 0.5,
            "states": score["head on states"] - score["head on numbers"],
            "characters": score["head on numbers"] - score["head on characters"],
            "people": same["head on numbers"],
            **{f"AUROC | {name}": value for name, value in score.items()},
        }


def continued(model: Model, prompts: list[str], seed: int) -> list[str]:
    """Return a model's continuations of prompts of one length, sampled at temperature 1."""
    ids: Any = torch.tensor([list(p.encode()) for p in prompts])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        found = generated(model.module, ids, BYTES, do_sample=True, top_k=0)
    return [bytes(row[ids.shape[1] :]).decode("utf-8", "replace") for row in found.tolist()]
