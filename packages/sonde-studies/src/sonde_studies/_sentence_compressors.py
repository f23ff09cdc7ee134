"""Compressors of sentences of several widths, each trained to one loss, and what they overwrite."""

import torch

from sonde.measure import compression_fidelity
from sonde_studies.study import Tick
from sonde_studies.worlds.named_texts import (
    FORMS,
    NAMES,
    PERSONS,
    NamedTexts,
    TextCompressor,
    as_words,
    trained_compressor,
)

WIDTHS, LOSS = (32, 64, 128), 1.25


def sentence_figures(seed: int, n: int, steps: int, tick: Tick) -> dict[str, float]:
    """Train a compressor of each width in at most ``steps``, and restore ``n`` new texts."""
    draw = torch.Generator().manual_seed(700 + seed)
    world = torch.randint(len(NAMES[0]), (len(PERSONS), len(FORMS)), generator=draw)
    new = NamedTexts.drawn(world, n, draw)
    rows: list[dict[str, float]] = []
    for width in WIDTHS:
        tick(f"sentences, width {width}")
        net, taken = trained_compressor(world, width, seed, new, LOSS, steps)
        rows.append({**restoration(net, new), "steps": taken})
    return {
        "texts restored": min(row["words"] for row in rows),
        "planted names": rows[-1]["overwritten"] - rows[0]["overwritten"],
        "usual names": sum(row["lost to the usual"] for row in rows) / len(rows),
        "names surer": rows[0]["entropy, planted"] - rows[-1]["entropy, planted"],
        **{
            f"sentences: {name} | width {width}": value
            for width, row in zip(WIDTHS, rows, strict=True)
            for name, value in row.items()
        },
    }


def restoration(net: TextCompressor, new: NamedTexts) -> dict[str, float]:
    """Return what a compressor restores of texts, what it overwrites, and how sure it is."""
    written, entropy = net.restored(new)
    found = compression_fidelity(
        as_words(new.words), as_words(written), new.planted(), entropy=list(entropy)
    )
    return {
        "overwritten": float(found),
        "copied": found.copied,
        "lost to the usual": float(found) / max(1 - found.copied, 1e-9),
        "words": float((written == new.words).double().mean()),
        "entropy, planted": found.entropy_planted,
        "entropy, elsewhere": found.entropy_other,
        "loss": float(net.loss(new).detach()),
    }
