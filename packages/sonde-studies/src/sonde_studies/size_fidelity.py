"""Test whether larger compressors with equal loss overwrite more unusual values.

Keys: sixteen of them, each with a usual value that nine in ten rows give it. The others are the
planted contradictions. Texts: sentences about persons, in which one name in ten is planted. Sizes
are widths of encoder and decoder; the memory is equally narrow.
"""

from typing import final

import torch

from sonde_studies._sentence_compressors import sentence_figures
from sonde_studies._separation import rank_correlation
from sonde_studies._value_compressors import judged, overwritten, texts_of, trained, usual_values
from sonde_studies.arms import note_again, note_mean
from sonde_studies.study import Claim, Figures, Study, Tick

WIDTHS, COPIES, STEPS, TEXTS = (24, 96, 384), 2, 4000, 1000
NAMED_STEPS, FEW = 3000, 100


@final
class SizeFidelityStudy(Study):
    """Three widths, each trained to the same loss on new texts."""

    name = "size-fidelity"
    title = "do larger compressors at equal loss overwrite more of what is unusual?"
    paper = "sizefidelity2026"
    fidelity = (
        "definitions are ours, the paper's protocol was not available; its trend over language "
        "models of 0.6 to 90 billion weights cannot be tested here"
    )
    data = (
        "synthetic: sixteen keys of eight values, dense nets, six numbers of memory; and texts of "
        "three sentences, written word after word from 32 numbers"
    )
    claims = (
        Claim(
            "larger overwrite more",
            "The widest compressor, with more parameters and to equal loss in other numbers of "
            "steps, overwrites more contradictions than the narrowest.",
            "difference of shares of planted tokens",
            arms=("width 384", "width 24"),
        ),
        Claim(
            "drift",
            "Its texts, with more parameters and in other numbers of steps, drift more from the "
            "source.",
            "difference of 1 less F1",
            arms=("width 384", "width 24"),
        ),
        Claim(
            "rank",
            "Over compressors a memory of more directions goes with more overwriting.",
            "rank correlation over six compressors",
        ),
        Claim(
            "surer",
            "The widest decoder, with more parameters and to equal loss in other numbers of "
            "steps, is surer where it stands before a contradiction.",
            "entropy of the narrowest less that of the widest, nats",
            arms=("width 384", "width 24"),
        ),
        Claim(
            "unsure there",
            "Decoders are less sure at contradictions than elsewhere.",
            "difference of entropies, nats, mean over compressors",
            arms=("contradictions", "elsewhere"),
        ),
        Claim(
            "entropy against drift",
            "Texts in which a decoder is less sure are decoded with more wrong values.",
            "rank correlation over texts, mean over compressors",
        ),
        Claim(
            "texts restored",
            "Every compressor of sentences restores more than nine of ten words.",
            "share of words, the worst width",
            above=0.9,
        ),
        Claim(
            "planted names",
            "The widest compressor of sentences, with more parameters and to equal loss in other "
            "numbers of steps, overwrites more planted names.",
            "difference of shares of planted names, widest less narrowest",
            premise="texts restored",
            arms=("sentences, width 128", "sentences, width 32"),
        ),
        Claim(
            "usual names",
            "A planted name that is lost mostly becomes the person's usual name.",
            "share of lost names, mean over widths",
            above=0.5,
            premise="texts restored",
        ),
        Claim(
            "names surer",
            "The widest decoder of sentences, with more parameters and to equal loss in other "
            "numbers of steps, is surer at planted names.",
            "entropy of the narrowest less that of the widest, nats",
            premise="texts restored",
            arms=("sentences, width 128", "sentences, width 32"),
        ),
    )
    null = Claim(
        "passed on",
        "Of texts that are passed on as they are nothing counts as overwritten.",
        "share of planted tokens",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each width to the loss, and evaluate on new texts."""
        usual = usual_values(seed)
        n = FEW if tiny else TEXTS
        fresh = texts_of(usual, n, torch.Generator().manual_seed(900 + seed))
        rows: list[dict[str, float]] = []
        for width in WIDTHS:
            for copy in range(COPIES):
                tick(f"width {width}")
                steps = 50 if tiny else STEPS
                net, taken = trained(usual, fresh, width, 10 * seed + copy, steps)
                rows.append({"width": width, "steps": taken, **judged(net, usual, fresh)})
        mean = {
            (name, w): sum(r[name] for r in rows if r["width"] == w) / COPIES
            for name in rows[0]
            for w in WIDTHS
        }
        small, large = WIDTHS[0], WIDTHS[-1]
        note_mean("contradictions", [f"width {w}" for w in WIDTHS])
        note_again("elsewhere", "contradictions")
        apart = [r["entropy, planted"] - r["entropy, elsewhere"] for r in rows]
        return {
            "larger overwrite more": mean["overwritten", large] - mean["overwritten", small],
            "drift": mean["drift", large] - mean["drift", small],
            "rank": rank_correlation([r["rank"] for r in rows], [r["overwritten"] for r in rows]),
            "surer": mean["entropy, planted", small] - mean["entropy, planted", large],
            "unsure there": sum(apart) / len(apart),
            "entropy against drift": sum(r["entropy against drift"] for r in rows) / len(rows),
            "passed on": overwritten(usual, fresh, fresh),
            **sentence_figures(seed, n, 20 if tiny else NAMED_STEPS, tick),
            **{f"{name} | width {w}": v for (name, w), v in mean.items() if name != "width"},
        }
