"""A pretrained language model whose cache is stored in two bits, or as thin matrices."""

import math
from pydoc_data.topics import topics
from random import Random
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde import Model
from sonde.compress import CrossLayerCache, QuantCache
from sonde_studies._cached import NEW, PROMPT, SmallerCaches
from sonde_studies._help_pages import language_model
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

TEXTS, CHUNK, KEPT, LONG = 2, 64, 0.3, 1024
PARTS: dict[str, dict[str, Any]] = {
    "two bits": {},
    "rank": {"rank": 8},
    "outliers": {"outliers": 0.07},
    "all": {"rank": 2, "outliers": 0.04},
    "four bits": {"bits": 4},
}
"""Those of ``rounded-cache``; the rank is such that it takes as many bytes as all three."""
GROUPS = (1, 2, 4)
SHARE = "over that of"


@final
class CachedPretrainedStudy(Study):
    """The cache of a prompt is packed in each way, and the next 64 tokens are predicted.

    A basis that layers share takes as many numbers as it saves where a prompt is as short as the
    keys are wide: layers side by side are tried on prompts of 1,024 tokens.
    """

    name = "cached-pretrained"
    title = "which form of a pretrained model's cache loses least?"
    paper = "kang2024gear"
    fidelity = (
        "the paper's three parts, factors by whole decompositions for chunks of 64 tokens; layers "
        "side by side as chang2025xkv publishes it; prompts of 192 tokens, of 1,024 for layers "
        "side by side"
    )
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    seconds = 50.0
    claims = (
        Claim("all", "Low rank and outliers together lose less than half of what two bits alone "
              "lose, with two and a half times the bytes.",
              f"divergence of two bits less that of all, {SHARE} two bits", above=0.5,
              arms=("all", "two bits")),
        Claim("any two", "All three lose less than two bits with a low rank of as many bytes.",
              f"divergence with rank less that of all, {SHARE} rank", arms=("all", "rank")),
        Claim("four bits", "All three at two bits lose less than four bits alone, which take 0.7 "
              "of their bytes.", "logarithm of the divergence of four bits over that of all",
              arms=("all", "four bits")),
        Claim("two layers", "At 30 % of the bytes of 1,024 tokens two layers side by side lose "
              "less than each alone.",
              f"divergence of single layers less that of pairs, {SHARE} single layers",
              arms=("2 layers", "1 layers")),
        Claim("four layers", "Four layers side by side lose less than pairs of as many bytes.",
              f"divergence of pairs less that of fours, {SHARE} pairs",
              arms=("4 layers", "2 layers")),
    )  # fmt: skip
    null = Claim("outliers alone", "A cache of eight bits with nine tenths of the values as "
                 "outliers, packed by the same code, costs nothing.",
                 "nats a token of the texts")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Pack the caches of the same prompts in every way."""
        model = language_model(self.place, tiny)
        tick("whole caches")
        caches = SmallerCaches(page_tokens(model, seed, 1 if tiny else TEXTS), model)
        lost: dict[str, float] = {}
        sizes: dict[str, float] = {}
        prompt = PROMPT if tiny else LONG
        long = SmallerCaches(page_tokens(model, seed, 1, prompt), model, prompt)
        forms = {name: (caches, _form(**more)) for name, more in PARTS.items()}
        layers = {f"{n} layers": (long, _layers(n, prompt)) for n in GROUPS}
        for name, (place, form) in (forms | layers).items():
            tick(name)
            lost[name], sizes[name] = place.lost(form)
            note(bytes=sizes[name])
        one, two, four = (lost[f"{n} layers"] for n in GROUPS)
        return {
            "all": 1 - lost["all"] / lost["two bits"],
            "any two": 1 - lost["all"] / lost["rank"],
            "four bits": math.log(lost["four bits"] / lost["all"]),
            "two layers": 1 - two / one,
            "four layers": 1 - four / two,
            "outliers alone": caches.dearer(_form(outliers=0.9, bits=8)),
            **{f"{name} | divergence": x for name, x in lost.items()},
        }


def _form(rank: int = 0, outliers: float = 0.0, bits: int = 2) -> QuantCache:
    return QuantCache(bits, 32, outliers, rank, chunk=CHUNK, recent=0)


def _layers(n: int, prompt: int) -> CrossLayerCache:
    return CrossLayerCache(layers=n, keep=KEPT, chunk=prompt, recent=0)


def page_tokens(model: Model, seed: int, n: int, prompt: int = PROMPT) -> Int[Tensor, "text pos"]:
    """Return the first tokens of different help pages."""
    length = prompt + NEW
    pages = [model.processor(text)["input_ids"] for _, text in sorted(topics.items())]
    long = [page[:length] for page in pages if len(page) >= length]
    return torch.tensor(Random(seed).sample(long, n))
