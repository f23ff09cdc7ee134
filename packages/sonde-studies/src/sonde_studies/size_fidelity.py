"""Test whether larger compressors with equal loss overwrite more unusual values.

Keys: sixteen of them, each with a usual value that nine in ten rows give it. The others are the
planted contradictions. Texts: sentences about persons, in which one name in ten is planted. Sizes
are widths of encoder and decoder; the memory is equally narrow.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sonde.measure import compression_fidelity, participation_ratio
from sonde_studies._separation import rank_correlation
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.named_texts import (
    FORMS,
    NAMES,
    PERSONS,
    NamedTexts,
    as_words,
    trained_compressor,
)

KEYS, VALUES, USUAL, MEMORY = 16, 8, 0.9, 6
WIDTHS, COPIES = (24, 96, 384), 2
LOSS, STEPS, EVERY, BATCH, RATE = 0.3, 4000, 5, 256, 2e-3
TEXTS = 1000
NAMED_WIDTHS, NAMED_LOSS, NAMED_STEPS = (32, 64, 128), 1.25, 3000


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
            "The widest compressor overwrites more contradictions than the narrowest.",
            "difference of shares of planted tokens",
        ),
        Claim(
            "drift",
            "Its texts drift more from the source.",
            "difference of 1 less F1",
        ),
        Claim(
            "rank",
            "Over compressors a memory of more directions goes with more overwriting.",
            "rank correlation over six compressors",
        ),
        Claim(
            "surer",
            "The widest decoder is surer where it stands before a contradiction.",
            "entropy of the narrowest less that of the widest, nats",
        ),
        Claim(
            "unsure there",
            "Decoders are less sure at contradictions than elsewhere.",
            "difference of entropies, nats, mean over compressors",
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
            "The widest compressor of sentences overwrites more planted names.",
            "difference of shares of planted names, widest less narrowest",
            premise="texts restored",
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
            "The widest decoder of sentences is surer at planted names.",
            "entropy of the narrowest less that of the widest, nats",
            premise="texts restored",
        ),
    )
    null = Claim(
        "halves",
        "Two halves of the texts are overwritten alike.",
        "difference of shares, widest compressor",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each width to the loss, and evaluate on new texts."""
        usual = torch.randint(VALUES, (KEYS,), generator=torch.Generator().manual_seed(seed))
        fresh = _texts(usual, 100 if tiny else TEXTS, torch.Generator().manual_seed(900 + seed))
        rows: list[dict[str, float]] = []
        for width in WIDTHS:
            for copy in range(COPIES):
                tick(f"width {width}")
                steps = 50 if tiny else STEPS
                net, taken = _trained(usual, fresh, width, 10 * seed + copy, steps)
                rows.append({"width": width, "steps": taken, **_judged(net, usual, fresh)})
        mean = {
            (name, w): sum(r[name] for r in rows if r["width"] == w) / COPIES
            for name in rows[0]
            for w in WIDTHS
        }
        small, large = WIDTHS[0], WIDTHS[-1]
        apart = [r["entropy, planted"] - r["entropy, elsewhere"] for r in rows]
        return {
            "larger overwrite more": mean["overwritten", large] - mean["overwritten", small],
            "drift": mean["drift", large] - mean["drift", small],
            "rank": rank_correlation([r["rank"] for r in rows], [r["overwritten"] for r in rows]),
            "surer": mean["entropy, planted", small] - mean["entropy, planted", large],
            "unsure there": sum(apart) / len(apart),
            "entropy against drift": sum(r["entropy against drift"] for r in rows) / len(rows),
            "halves": mean["halves", large],
            **_sentences(seed, tiny, tick),
            **{f"{name} | width {w}": v for (name, w), v in mean.items() if name != "width"},
        }


def _sentences(seed: int, tiny: bool, tick: Tick) -> dict[str, float]:
    """Train a compressor of sentences of each width to one loss, and restore new texts."""
    draw = torch.Generator().manual_seed(700 + seed)
    world = torch.randint(len(NAMES[0]), (len(PERSONS), len(FORMS)), generator=draw)
    new = NamedTexts.drawn(world, 100 if tiny else TEXTS, draw)
    rows: list[dict[str, float]] = []
    for width in NAMED_WIDTHS:
        tick(f"sentences, width {width}")
        steps = 20 if tiny else NAMED_STEPS
        net, taken = trained_compressor(world, width, seed, new, NAMED_LOSS, steps)
        written, entropy = net.restored(new)
        found = compression_fidelity(
            as_words(new.words), as_words(written), new.planted(), entropy=list(entropy)
        )
        rows.append(
            {
                "overwritten": float(found),
                "copied": found.copied,
                "lost to the usual": float(found) / max(1 - found.copied, 1e-9),
                "words": float((written == new.words).double().mean()),
                "entropy, planted": found.entropy_planted,
                "entropy, elsewhere": found.entropy_other,
                "loss": float(net.loss(new).detach()),
                "steps": taken,
            }
        )
    return {
        "texts restored": min(row["words"] for row in rows),
        "planted names": rows[-1]["overwritten"] - rows[0]["overwritten"],
        "usual names": sum(row["lost to the usual"] for row in rows) / len(rows),
        "names surer": rows[0]["entropy, planted"] - rows[-1]["entropy, planted"],
        **{
            f"sentences: {name} | width {width}": value
            for width, row in zip(NAMED_WIDTHS, rows, strict=True)
            for name, value in row.items()
        },
    }


def _texts(usual: Int[Tensor, "key"], n: int, draw: torch.Generator) -> Int[Tensor, "text key"]:
    """Return texts with a value for each key, mostly the usual value."""
    other = (usual + torch.randint(1, VALUES, (n, len(usual)), generator=draw)) % VALUES
    return torch.where(torch.rand(n, len(usual), generator=draw) < USUAL, usual, other)


def _net(width: int) -> nn.ModuleDict:
    ends = KEYS * VALUES
    return nn.ModuleDict(
        {
            "compress": nn.Sequential(
                nn.Linear(ends, width), nn.ReLU(), nn.Linear(width, MEMORY), nn.Tanh()
            ),
            "decode": nn.Sequential(nn.Linear(MEMORY, width), nn.ReLU(), nn.Linear(width, ends)),
        }
    )


def _said(
    net: nn.ModuleDict, texts: Int[Tensor, "text key"]
) -> tuple[Float[Tensor, "text slot"], Float[Tensor, "text key value"]]:
    """Return each text's memory, and the decoder's log-probabilities."""
    memory = net["compress"](functional.one_hot(texts, VALUES).float().flatten(1))
    logits = net["decode"](memory).unflatten(1, (KEYS, VALUES))
    return memory, logits.log_softmax(-1)


def _loss(net: nn.ModuleDict, texts: Tensor) -> Tensor:
    return functional.nll_loss(_said(net, texts)[1].flatten(0, 1), texts.flatten())


@torch.enable_grad()
def _trained(
    usual: Tensor, fresh: Tensor, width: int, seed: int, steps: int
) -> tuple[nn.ModuleDict, int]:
    """Return a compressor trained to the given loss on new texts, and the number of steps."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _net(width)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        _loss(net, _texts(usual, BATCH, draw)).backward()
        optimiser.step()
        if step % EVERY == 0 and float(_loss(net, fresh).detach()) <= LOSS:
            return net, step
    return net, steps


@torch.no_grad()
def _judged(net: nn.ModuleDict, usual: Tensor, fresh: Tensor) -> dict[str, float]:
    memory, said = _said(net, fresh)
    entropy = -(said.exp() * said).sum(-1)
    source, decoded = fresh.tolist(), said.argmax(-1).tolist()
    prior = usual.tolist()
    planted = [{k: prior[k] for k in range(KEYS) if text[k] != prior[k]} for text in source]
    found = compression_fidelity(source, decoded, planted, entropy=list(entropy))
    halves = [
        float(compression_fidelity(source[i::2], decoded[i::2], planted[i::2])) for i in (0, 1)
    ]
    wrong = (said.argmax(-1) != fresh).double().mean(1)
    return {
        "overwritten": float(found),
        "entropy against drift": rank_correlation(entropy.mean(1).tolist(), wrong.tolist()),
        "copied": found.copied,
        "drift": found.drift,
        "entropy, planted": found.entropy_planted,
        "entropy, elsewhere": found.entropy_other,
        "rank": float(participation_ratio(memory)),
        "loss": float(_loss(net, fresh)),
        "halves": halves[0] - halves[1],
    }
