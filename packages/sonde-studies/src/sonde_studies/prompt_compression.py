"""Shorter prompts: words kept by a probe, by their self-information, or at random.

The shipped model of bytes reads a shortened piece of a file and then foretells what follows it.
"""

from typing import Any, final

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import sonde
from sonde import Model
from sonde.compress import CompressedPrompt, PromptCompressor
from sonde_studies._byte_encoder import byte_encoder
from sonde_studies._written import code, pieces
from sonde_studies.arms import note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick

PROMPT, REST, LEARNED, JUDGED, FILLED = 160, 48, 18, 16, 400
SHARES = {"half": 1 / 2, "fifth": 1 / 5}
WAYS = ("information", "probe", "encoder", "random")
FIGURE = "nats a byte of what follows"


@final
class PromptCompressionStudy(Study):
    """Prompts of 160 bytes and the 48 bytes behind each, outside the model's training data."""

    name = "prompt-compression"
    title = "does a probe of states keep the words that the reader needs?"
    paper = "pan2024llmlingua2"
    fidelity = (
        f"the reader labels the words of {LEARNED} prompts itself; linear probes of frozen states "
        "in place of a tuned classifier; the encoder that also reads what follows is small, and "
        "fills in three of ten masked bytes; words are counted"
    )
    data = "sonde:stdlib and the files of Python's library that it was not trained on"
    place = "byte-model"
    claims = (
        Claim("read", "The whole prompt of 160 bytes makes what follows likelier than none.",
              f"{FIGURE}, without a prompt less with it",
              arms=("whole", "none")),
        Claim("probe", "With half of the words, a probe's, learned from labelled prompts, serve "
              "better than self-information's.",
              f"{FIGURE}, self-information less probe",
              arms=("half | probe", "half | information")),
        Claim("fifth", "So they do, learned from labelled prompts, with a fifth.",
              f"{FIGURE}, self-information less probe",
              arms=("fifth | probe", "fifth | information")),
        Claim("information", "With half, self-information, which costs a pass of the reader, "
              "serves better than a random choice.",
              f"{FIGURE}, random less self-information",
              arms=("half | information", "half | random")),
        Claim("over random", "With half, the probe, which was learned and costs a pass of the "
              "reader over all prompts, serves better than a random choice.",
              f"{FIGURE}, random less probe",
              arms=("half | probe", "half | random")),
        Claim("encoder", "With half, a probe of an encoder that was trained to read also what "
              "follows serves better than one of the reader's states.",
              f"{FIGURE}, reader less encoder",
              arms=("trained encoder", "reader")),
        Claim("encoder over information", "With half, the trained encoder serves better than "
              "self-information.",
              f"{FIGURE}, self-information less encoder",
              arms=("trained encoder", "reader")),
        Claim("kept", "Half by the probe keeps half of what the whole prompt brings.",
              "share of the fall of the loss, less 0.5", premise="read"),
    )  # fmt: skip
    null = Claim("all words", "With all of its words a prompt serves as it is.",
                 f"{FIGURE}, all words less the prompt")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Learn a probe on some prompts, and shorten others in each way."""
        model, draw = sonde.load("sonde:stdlib", device="cpu"), np.random.default_rng(seed)
        n_learned, n_judged = (2, 3) if tiny else (LEARNED, JUDGED)
        length = PROMPT // 4 if tiny else PROMPT
        chosen = pieces(code(), n_learned + n_judged, length + REST, draw)
        prompts = [bytes(p[:length]).decode(errors="replace") for p in chosen]
        rest = [p[length:] for p in chosen[n_learned:]]
        tick("probe")
        options: dict[str, Any] = {"digits": False, "window": 512}
        with part("trained encoder"):
            encoder, filled = byte_encoder(model.processor, seed, 3 if tiny else FILLED)
        probe, other = (
            PromptCompressor(**options).learn(
                model, prompts[:n_learned], 32, progress=False, encoder=read
            )
            for read in (None, encoder)
        )
        loss = {"whole": list[float](), "none": list[float](), "all words": list[float]()}
        tick("prompts")
        for text, ids in zip(prompts[n_learned:], rest, strict=True):
            loss["whole"].append(_loss(model, text, ids))
            loss["none"].append(_loss(model, "", ids))
            loss["all words"].append(loss_of_share(model, text, ids, 1.0, **options))
            for name, share in SHARES.items():
                by = PromptCompressor(share, **options)
                short = by.compress(model, text)
                lot, _ = (_at_random(text, short, draw) for _ in range(2))  # seeds of the table
                probes = (by.compress(model, text, probe), by.compress(model, text, other, encoder))
                kept = (short.text, *(one.text for one in probes), lot)
                for way, one in zip(WAYS, kept, strict=True):
                    loss.setdefault(f"{name} | {way}", []).append(_loss(model, one, ids))
        for name in SHARES:
            for way in WAYS:
                learns, reads = way in ("probe", "encoder"), way != "random"
                note_for(f"{name} | {way}", rows=n_learned * learns, passes=reads)
        note_for("reader", updates=0)
        note_for("whole", bytes=length)
        note_for("none", bytes=0)
        mean = {name: sum(own) / len(own) for name, own in loss.items()}
        half = {way: mean[f"half | {way}"] for way in WAYS}
        gain = {s: mean[f"{s} | information"] - mean[f"{s} | probe"] for s in SHARES}
        fall = mean["none"] - mean["whole"]
        return {
            "read": fall,
            "probe": gain["half"],
            "fifth": gain["fifth"],
            "information": half["random"] - half["information"],
            "over random": half["random"] - half["probe"],
            "encoder": half["probe"] - half["encoder"],
            "encoder over information": half["information"] - half["encoder"],
            "masked bytes filled in": filled,
            "kept": (mean["none"] - half["probe"]) / fall - 0.5 if fall > 0 else -0.5,
            "all words": mean["all words"] - mean["whole"],
            **{f"loss, {name}" if " | " not in name else name: v for name, v in mean.items()},
        }


def loss_of_share(model: Model, text: str, ids: list[int], share: float, **options: Any) -> float:
    """Return the loss behind a prompt that keeps a share of its words."""
    return _loss(model, PromptCompressor(share, **options).compress(model, text).text, ids)


def _at_random(text: str, short: CompressedPrompt, draw: np.random.Generator) -> str:
    """Return as many words of a text, chosen at random."""
    n = int(short.kept.sum())
    chosen = sorted(draw.permutation(len(short.words))[:n].tolist())
    return "".join(text[a:b] for a, b in (short.words[i] for i in chosen))


@torch.no_grad()
def _loss(model: Model, prompt: str, ids: list[int]) -> float:
    """Return the mean loss of the bytes behind a prompt, all but the first."""
    before = list(prompt.encode())
    logits = model.module(torch.tensor([before + ids])).logits[0, len(before) : -1]
    return float(cross_entropy(logits, torch.tensor(ids[1:])))
