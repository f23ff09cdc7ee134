"""What a compressor restores of sentences, counted word by word."""

import pytest
import torch

from sonde_studies._sentence_compressors import restoration, sentence_figures
from sonde_studies.worlds.named_texts import (
    FORMS,
    NAMES,
    PERSONS,
    WORDS,
    NamedTexts,
    trained_compressor,
)


@pytest.mark.truth("words and planted names counted in a loop")
def test_words_and_names_are_counted():
    draw = torch.Generator().manual_seed(0)
    world = torch.randint(len(NAMES[0]), (len(PERSONS), len(FORMS)), generator=draw)
    new = NamedTexts.drawn(world, 60, draw)
    net, _ = trained_compressor(world, 24, 0, new, 0.0, 150)
    found, written = restoration(net, new), net.restored(new)[0].tolist()
    same = [a == b for x, y in zip(new.words.tolist(), written, strict=True)
            for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert found["words"] == pytest.approx(sum(same) / len(same))
    planted = [(i, at, usual) for i, row in enumerate(new.planted()) for at, usual in row.items()]
    usual = [WORDS[written[i][at]] == name for i, at, name in planted]
    kept = [written[i][at] == int(new.words[i, at]) for i, at, _ in planted]
    assert found["overwritten"] == pytest.approx(sum(usual) / len(usual))
    assert found["copied"] == pytest.approx(sum(kept) / len(kept))
    assert 0 < sum(usual) < len(usual) - sum(kept)
    lost = sum(usual) / (len(usual) - sum(kept))
    assert found["lost to the usual"] == pytest.approx(lost)


def test_the_claims_compare_the_widest_with_the_narrowest():
    found = sentence_figures(0, 30, 4, lambda _: None)
    rows = {
        name: [found[f"sentences: {name} | width {w}"] for w in (32, 64, 128)]
        for name in ("words", "overwritten", "entropy, planted")
    }
    assert found["texts restored"] == min(rows["words"])
    assert found["planted names"] == rows["overwritten"][-1] - rows["overwritten"][0]
    assert found["names surer"] == rows["entropy, planted"][0] - rows["entropy, planted"][-1]
