"""Several drafts from one pass for each token of a pretrained language model."""

from pydoc_data.topics import topics
from random import Random
from typing import Any, final

import torch

from sonde.edit import NGrams, SuperposedGenerate
from sonde_studies._drafts import drafts_of, judged, mixture_cosines
from sonde_studies._help_pages import language_model
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

PROMPTS, GIVEN, NEW, NEXT, DRAFTS = 4, 32, 12, 2, 3
NATS = "log-likelihood a token"


@final
class DraftsPretrainedStudy(Study):
    """The first 32 tokens of help pages are continued; other pages fill the n-grams."""

    name = "drafts-pretrained"
    title = "are three drafts from one pass as good as three passes, for a pretrained model?"
    paper = "shen2024superposed"
    fidelity = (
        "the published constants; a model of 135 million weights, which also judges the drafts "
        "where the paper asks a larger one; n-grams of 60,000 tokens"
    )
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    seconds = 30.0
    claims = (
        Claim("close", "Drafts that mix in n-grams of other texts are as likely as those of beam "
              "search of three passes, to 0.1 nats a token.", f"{NATS}, difference, and 0.1",
              arms=("superposed", "beam search")),
        Claim("best", "The best draft of three is likelier than greedy text, which takes as many "
              "passes and no texts.", f"difference of {NATS}", arms=("superposed", "greedy")),
        Claim("next", "One of the drafts, with a third of the passes and n-grams of other texts, "
              f"begins with the page's next {NEXT} tokens as often as one of three of beam "
              "search, to 2 points.", "difference of shares, and 0.02",
              arms=("superposed", "beam search")),
        Claim("n-grams", "With n-grams of other texts drafts are likelier in the mean than "
              "without.", f"difference of {NATS}", arms=("superposed", "no n-grams")),
        Claim("linear", "States of mixed texts are near the mixture of states, after the last "
              "layer.", "cosine, less 0.9"),
    )  # fmt: skip
    null = Claim("one draft", "A single draft, written by the same code, is greedy text.",
                 f"difference of {NATS}")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Continue pages in every way, and score the results."""
        model = language_model(self.place, tiny)
        module, n, new = model.module, *((4, NEXT) if tiny else (PROMPTS, NEW))
        pages = [model.processor(text)["input_ids"] for _, text in sorted(topics.items())]
        long = [i for i, page in enumerate(pages) if len(page) >= GIVEN + NEW]
        drawn = Random(seed).sample(long, n)
        texts = torch.tensor([pages[i][: GIVEN + NEW] for i in drawn])
        tick("n-grams")
        rest = [page for i, page in enumerate(pages) if i not in drawn]
        grams = NGrams.of(rest[:2] if tiny else rest)
        ways: dict[str, dict[str, Any]] = {
            "beam search": {"num_return_sequences": DRAFTS, "num_beams": DRAFTS},
            "greedy": {},
            "superposed": {"custom_generate": SuperposedGenerate(DRAFTS, ngrams=grams)},
            "no n-grams": {"custom_generate": SuperposedGenerate(DRAFTS)},
            "one draft": {"custom_generate": SuperposedGenerate(1)},
        }
        found: dict[str, float] = {}
        for name, how in ways.items():
            tick(name)
            drafts, rows = drafts_of(module, texts[:, :GIVEN], new, how)
            mixes = getattr(how.get("custom_generate"), "ngrams", None) is not None
            note(passes=rows, rows=len(rest) if mixes else 0)
            row = judged(module, drafts, texts, GIVEN, NEXT)
            row["model rows a token"] = rows / n / new
            found |= {f"{name} | {key}": value for key, value in row.items()}
        pairs = texts[:, :GIVEN].split(2)
        cosine = torch.stack([mixture_cosines(module, two) for two in pairs]).mean(0)

        def ahead(key: str, other: str, name: str = "superposed") -> float:
            return found[f"{name} | {key}"] - found[f"{other} | {key}"]

        return {
            "close": ahead("mean", "beam search") + 0.1,
            "best": ahead("best", "greedy"),
            "next": ahead("next bytes", "beam search") + 0.02,
            "n-grams": ahead("mean", "no n-grams"),
            "linear": float(cosine[-1]) - 0.9,
            "one draft": ahead("mean", "greedy", "one draft"),
            **{f"cosine after layer {i}": float(x) for i, x in enumerate(cosine)},
            **found,
        }
