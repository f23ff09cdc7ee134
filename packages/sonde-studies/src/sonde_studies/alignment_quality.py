"""Test whether fine-tuning a model to separate two kinds of texts separates its states.

Code stands for one kind and prose for the other, in pieces of one length.
"""

from copy import deepcopy
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde import load
from sonde.measure import AlignmentQuality, alignment_quality
from sonde_studies._written import code, pieces, prose
from sonde_studies.study import Claim, Figures, Study, Tick

LENGTH, TRAIN, TEST, STEPS, RATE, BATCH, MIXED = 64, 256, 200, 40, 1e-4, 32, 0.2
PROMPT, CONTINUED = 24, 100
DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "temperature 0.7": {"do_sample": True, "temperature": 0.7, "top_k": 0},
    "nucleus 0.9": {"do_sample": True, "top_p": 0.9, "top_k": 0},
}


@final
class AlignmentQualityStudy(Study):
    """The shipped model, and a copy tuned by a linear head on its mean state."""

    name = "alignment-quality"
    title = "does alignment quality see that a model was tuned to tell two kinds of texts?"
    paper = "borah2025alignment"
    fidelity = (
        "maps and weights of the four indices are ours; kinds of texts in place of safe and unsafe "
        "completions, so nothing is said about safety"
    )
    data = "Python's standard library against scikit-learn's descriptions, pieces of 64 bytes"
    claims = (
        Claim("tuned", "Tuning to tell the kinds raises it.", "tuned less untuned"),
        Claim(
            "first layer",
            "It rises in the last layer more than in the first.",
            "rise in the last layer less rise in the first",
        ),
        Claim(
            "mixed",
            f"It falls where {MIXED:.0%} of each kind are counted as the other.",
            "tuned, all right less some wrong",
        ),
        Claim(
            "another tuning",
            "Tuning on labels by lot raises it less.",
            "tuned on the kinds less tuned by lot",
        ),
        Claim(
            "each decoding",
            "On texts that a model itself goes on with, tuning raises it in each of three ways to "
            "decode.",
            "tuned less untuned, least of three ways",
        ),
        Claim(
            "stable",
            "It moves less with the way to decode than with the tuning.",
            "tuned less untuned, mean, less the range of the tuned over ways",
        ),
    )
    null = Claim("by lot", "Texts that are called one kind by lot.", "value less its null, tuned")

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fine-tune both copies and read the layers on new pieces."""
        draw = np.random.default_rng(seed)
        n = 16 if tiny else TEST
        ids = torch.tensor(
            [p for files in (code(), prose()) for p in pieces(files, TRAIN + n, LENGTH, draw)]
        ).unflatten(0, (2, -1))
        label = torch.arange(2).repeat_interleave(n)
        base: Any = load("sonde:stdlib").module
        steps = 3 if tiny else STEPS
        models = {"untuned": base}
        for name, lot in (("tuned", False), ("by lot", True)):
            tick(name)
            models[name] = _tuned(base, ids[:, :TRAIN], seed, steps, lot)
        tick("reading")
        layers = {name: _layers(m, ids[:, TRAIN:].flatten(0, 1)) for name, m in models.items()}
        found = {name: alignment_quality(x, label) for name, x in layers.items()}
        source = torch.Generator().manual_seed(seed)
        some = torch.rand(len(label), generator=source) < MIXED
        mixed = alignment_quality(layers["tuned"], torch.where(some, 1 - label, label))
        shuffled = label[torch.randperm(len(label), generator=source)]
        lot = AlignmentQuality().fit(layers["tuned"], shuffled, ids=range(len(label)))
        rise = found["tuned"].layers - found["untuned"].layers
        tick("decoding")
        n = 10 if tiny else CONTINUED
        prompts = ids[:, TRAIN : TRAIN + n, :PROMPT].flatten(0, 1)
        kind = torch.arange(2).repeat_interleave(n)
        decoded = {
            (name, way): float(
                alignment_quality(_layers(m, _continued(m, prompts, seed, how), PROMPT), kind)
            )
            for name, m in models.items()
            if name != "by lot"
            for way, how in DECODINGS.items()
        }
        raised = [decoded["tuned", way] - decoded["untuned", way] for way in DECODINGS]
        ways = [decoded["tuned", way] for way in DECODINGS]
        return {
            "tuned": float(found["tuned"]) - float(found["untuned"]),
            "first layer": float(rise[-1] - rise[0]),
            "mixed": float(found["tuned"]) - float(mixed),
            "another tuning": float(found["tuned"]) - float(found["by lot"]),
            "each decoding": min(raised),
            "stable": sum(raised) / len(raised) - (max(ways) - min(ways)),
            "by lot": float(lot) - float(torch.as_tensor(lot.null)),
            **{
                f"{name} | layer {i}": float(v)
                for name, result in found.items()
                for i, v in enumerate(result.layers)
            },
            **{f"{name} | {way}": value for (name, way), value in decoded.items()},
        }


@torch.no_grad()
def _layers(model: nn.Module, ids: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Return each text's mean state from a given token on, for each layer."""
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    return {f"layer {i}": x[:, first:].mean(1) for i, x in enumerate(states)}


def _continued(model: Any, prompts: Tensor, seed: int, how: dict[str, Any]) -> Tensor:
    """Return prompts and a model's continuations, as long as the pieces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=LENGTH - PROMPT,
            min_new_tokens=LENGTH - PROMPT,
            pad_token_id=0,
            **how,
        )


@torch.enable_grad()
def _tuned(base: nn.Module, ids: Tensor, seed: int, steps: int, lot: bool) -> nn.Module:
    """Return a copy trained to separate the kinds, or random labels, from the mean last state."""
    draw = torch.Generator().manual_seed(seed)
    model = deepcopy(base)
    texts, label = ids.flatten(0, 1), torch.arange(2).repeat_interleave(ids.shape[1])
    if lot:
        label = label[torch.randperm(len(label), generator=draw)]
    head = torch.zeros(model.config.hidden_size, 2, requires_grad=True)  # pyright: ignore
    both = [
        {"params": list(model.parameters()), "lr": RATE},
        {"params": [head], "lr": 100 * RATE},
    ]
    optimiser = torch.optim.Adam(both)
    for _ in range(steps):
        rows = torch.randint(len(texts), (BATCH,), generator=draw)
        states = model(input_ids=texts[rows], output_hidden_states=True).hidden_states[-1]
        optimiser.zero_grad()
        functional.cross_entropy(states.mean(1) @ head, label[rows]).backward()
        optimiser.step()
    return model.eval()
