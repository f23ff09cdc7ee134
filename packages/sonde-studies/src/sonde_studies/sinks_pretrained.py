"""A pretrained language model whose cache is a window, with the text's first tokens or without."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, final

import torch
from torch import Tensor

from sonde import Model
from sonde.compress import StreamingCache
from sonde.core import CachedTokens, CacheRule
from sonde_studies._cached import PROMPT, SmallerCaches
from sonde_studies._help_pages import language_model
from sonde_studies.arms import note
from sonde_studies.cached_pretrained import page_tokens
from sonde_studies.study import Claim, Figures, Study, Tick

TEXTS, WINDOW = 1, 48
NATS = "nats a token of the texts"


@final
class SinksPretrainedStudy(Study):
    """Of 192 tokens a cache keeps 48, and the next 64 tokens are predicted."""

    name = "sinks-pretrained"
    title = "does a language model need the first tokens of its text, whatever they are?"
    paper = "xiao2024streaming"
    fidelity = (
        "the paper's rule, but keys keep the rotation of their place in the text; one step from a "
        "whole cache to a window, no stream of millions of tokens"
    )
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    claims = (
        Claim("window", "Without the first tokens, a window in a quarter of the bytes costs over "
              "half a nat more than the whole cache.", f"{NATS}, window less whole cache, less 0.5",
              arms=("window", "whole")),
        Claim("four", "In as many bytes, a window with the first four tokens costs less.",
              f"{NATS}, window less four first", arms=("window", "four first")),
        Claim("nearly all", "With the first four tokens, a window in a quarter of the bytes costs "
              "less than 0.2 nats more than the whole cache.", f"0.2 less the {NATS}",
              arms=("four first", "whole")),
        Claim("four over one", "Four first tokens cost less than one.",
              f"{NATS}, one first less four first", arms=("one first", "four first")),
        Claim("words", "What the first tokens say does not matter: four line breaks in their place "
              "cost at most 0.1 nats more.", f"{NATS}, first four less line breaks, and 0.1",
              arms=("four first", "line breaks")),
    )  # fmt: skip
    null = Claim("others", "Four random tokens of the prompt in place of the window's oldest gain "
                 "nothing.", f"{NATS}, window less others", arms=("window", "others"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Read the same prompts into each cache, and go on from it."""
        model = language_model(self.place, tiny)
        tick("texts")
        texts = page_tokens(model, seed, 1 if tiny else TEXTS)
        caches, broken = SmallerCaches(texts, model), SmallerCaches(_broken(model, texts), model)
        source = Random(seed)
        others = tuple(source.sample(range(8, PROMPT - WINDOW), 4))
        rules: dict[str, CacheRule] = {
            "whole": StreamingCache(PROMPT, 0),
            "window": StreamingCache(WINDOW, 0), "one first": StreamingCache(WINDOW, 1),
            "four first": StreamingCache(WINDOW, 4), "others": ChosenTokens(WINDOW, others),
        }  # fmt: skip
        cost: dict[str, float] = {}
        for name, rule in rules.items():
            tick(name)
            cost[name], size = caches.cost(rule)
            note(bytes=size)
        tick("line breaks")
        cost["line breaks"], size = broken.cost(rules["four first"])
        note(bytes=size)
        return {
            "window": cost["window"] - cost["whole"] - 0.5,
            "four": cost["window"] - cost["four first"],
            "nearly all": 0.2 + cost["whole"] - cost["four first"],
            "four over one": cost["one first"] - cost["four first"],
            "words": cost["four first"] - cost["line breaks"] + 0.1,
            "others": cost["window"] - cost["others"],
            **{f"cost, {name}": x for name, x in cost.items()},
        }


@final
@dataclass(frozen=True)
class ChosenTokens(CacheRule):
    """Keep chosen tokens of each text, and the newest of the other tokens.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.
    chosen : tuple of int, default=()
        Positions in the text.
    """

    budget: int | float = 0.25
    chosen: tuple[int, ...] = ()
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the position of each token in its text; infinite for chosen tokens."""
        chosen = torch.tensor(self.chosen, device=seen.index.device)
        return torch.where(torch.isin(seen.index, chosen), torch.inf, seen.index.double())


def _broken(model: Model, texts: Tensor) -> Tensor:
    """Return the texts with line breaks in place of their first four tokens."""
    changed = texts.clone()
    changed[:, :4] = model.processor("\n", add_special_tokens=False)["input_ids"][0]
    return changed
