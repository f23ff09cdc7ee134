"""Test whether fine-tuning a model to separate two kinds of texts separates its states.

Code stands for one kind and prose for the other, in pieces of one length.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde import load
from sonde.measure import AlignmentQuality, alignment_quality
from sonde_studies._tuned_on_kinds import layer_means, tuned_on_kinds
from sonde_studies._written import code, generated, pieces, prose
from sonde_studies.arms import note, note_again
from sonde_studies.study import Claim, Figures, Study, Tick

LENGTH, TRAIN, TEST, STEPS = 64, 256, 200, 40
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
    place = "byte-model"
    claims = (
        Claim(
            "tuned",
            "Tuning to tell two kinds of texts raises the index of their separation.",
            "tuned less untuned",
            arms=("tuned", "untuned"),
        ),
        Claim(
            "first layer",
            "It rises in the last layer more than in the first.",
            "rise in the last layer less rise in the first",
            arms=("tuned, last layer", "tuned, first layer"),
        ),
        Claim(
            "another tuning",
            "Tuning on labels by lot raises it less.",
            "tuned on the kinds less tuned by lot",
            arms=("tuned", "by lot"),
        ),
        Claim(
            "each decoding",
            "On texts that a model itself goes on with, tuning raises it in each of three ways to "
            "decode.",
            "tuned less untuned, least of three ways",
            arms=("tuned", "untuned"),
        ),
        Claim(
            "stable",
            "It moves less with the way to decode than with the tuning.",
            "tuned less untuned, mean, less the range of the tuned over ways",
            arms=("tuned", "untuned"),
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
        tick("untuned")
        note(updates=0)
        for name, lot in (("tuned", False), ("by lot", True)):
            tick(name)
            models[name] = tuned_on_kinds(base, ids[:, :TRAIN], seed, steps, lot)
        for layer in ("first", "last"):
            note_again(f"tuned, {layer} layer", "tuned")
        tick("reading")
        fresh = ids[:, TRAIN:].flatten(0, 1)
        layers = {name: layer_means(m, fresh) for name, m in models.items()}
        found = {name: alignment_quality(x, label) for name, x in layers.items()}
        source = torch.Generator().manual_seed(seed)
        shuffled = label[torch.randperm(len(label), generator=source)]
        lot = AlignmentQuality().fit(layers["tuned"], shuffled, ids=range(len(label)))
        rise = found["tuned"].layers - found["untuned"].layers
        tick("decoding")
        n = 10 if tiny else CONTINUED
        prompts = ids[:, TRAIN : TRAIN + n, :PROMPT].flatten(0, 1)
        kind = torch.arange(2).repeat_interleave(n)
        decoded = {
            (name, way): float(
                alignment_quality(layer_means(m, _continued(m, prompts, seed, how), PROMPT), kind)
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


def _continued(model: Any, prompts: Tensor, seed: int, how: dict[str, Any]) -> Tensor:
    """Return prompts and a model's continuations, as long as the pieces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return generated(model, prompts, LENGTH - PROMPT, **how)
