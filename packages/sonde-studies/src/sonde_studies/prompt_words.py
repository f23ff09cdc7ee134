"""Prompts of a pretrained language model, shortened by the self-information of their words."""

import random
from typing import final

import torch

from sonde.compress import PromptCompressor
from sonde_studies._help_pages import LONG, drawn_pages, language_model, losses_of
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

HALF, JUDGED = 0.5, 2
NATS = "nats a token of what follows"


@final
class PromptWordsStudy(Study):
    """Two thirds of a page are shortened to half of their words; the rest of the page judges."""

    name = "prompt-words"
    title = "do the words of high self-information carry a prompt, for a pretrained model?"
    paper = "li2023selective"
    fidelity = "words in place of the paper's phrases; the model that reads also scores the words"
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    claims = (
        Claim("over random",
              "Half of the words by self-information, which takes a pass of its own, serve better"
              " than a random half.",
              f"{NATS}, random less self-information",
              arms=("compressed", "random")),
        Claim("over last", "They serve better than the last half.",
              "nats a token of what follows, last (one pass for two) less self-information",
              arms=("compressed", "last")),
    )  # fmt: skip
    null = Claim("other page", "Words at the places that another page keeps serve as a random half "
                 "does.", f"{NATS}, random less other page")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Shorten prompts in each way, and read what follows them."""
        model, source = language_model(self.place, tiny), random.Random(seed)
        compressor, n_judged = PromptCompressor(HALF, digits=False), 1 if tiny else JUDGED
        totals: dict[str, list[float]] = {}
        pages = drawn_pages(seed, n_judged, LONG)
        others = drawn_pages(1000 + seed, n_judged, LONG)
        for text, other in zip(pages, others, strict=True):
            tick("prompt")
            cut = text.rindex(" ", 0, 2 * len(text) // 3)
            prompt, after = text[:cut], text[cut:]
            short = compressor.compress(model, prompt)
            words, n = [prompt[a:b] for a, b in short.words], int(short.kept.sum())
            at = compressor.compress(model, other[:cut]).kept.nonzero()[:, 0].tolist()
            lot = sorted(source.sample(range(len(words)), n))
            own = [i for i in at if i < len(words)][:n]
            spare = source.sample(sorted({*range(len(words))} - {*own}), n - len(own))
            forms = {
                "whole": prompt,
                "compressed": short.text,
                "last": "".join(words[len(words) - n :]),
                "random": "".join(words[i] for i in lot),
                "other page": "".join(words[i] for i in sorted([*own, *spare])),
            }
            tail = model.processor(after, add_special_tokens=False)["input_ids"]
            for name, form in forms.items():
                ids = torch.tensor([[*model.processor(form)["input_ids"], *tail]])
                note_for(name, passes=2 if name == "compressed" else 1)
                loss = float(losses_of(model.module, ids)[-len(tail) :].mean())
                totals.setdefault(name, []).append(loss)
        mean = {name: sum(values) / len(values) for name, values in totals.items()}
        return {
            "over random": mean["random"] - mean["compressed"],
            "over last": mean["last"] - mean["compressed"],
            "other page": mean["random"] - mean["other page"],
            **{f"loss, {name}": value for name, value in mean.items()},
        }
