"""Text of likely bytes against text of unlikely ones, and two halves of one kind."""

import numpy as np
import pytest
import torch

from sonde import InputError, load
from sonde_studies.parts.tokens import NAMES, text_features
from sonde_studies.recipes.was_it_generated import was_it_generated

WORDS = ["return", "self", "import", "for", "in", "range", "value", "name"]


def written(n, seed, odd=False):
    """Return lines of code words; the letters of odd ones are shuffled."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(n):
        words = [WORDS[int(i)] for i in draw.integers(0, len(WORDS), 7)]
        said = ["".join(draw.permutation([*w])) if odd else w for w in words]
        found.append({"text": " ".join(said)})
    return found


@pytest.mark.truth("the logits of the model, read by hand")
def test_the_numbers_of_a_text_are_those_of_its_logits():
    model, texts = load("sonde:stdlib"), [r["text"] for r in written(5, 0)]
    got, lengths = text_features(model, [{"text": t} for t in texts])
    for text, row, n in zip(texts, got, lengths, strict=True):
        ids = torch.tensor([list(text.encode())])
        with torch.no_grad():
            chance = model.module(ids).logits[0, :-1].double().log_softmax(1)
        own = chance.gather(1, ids[0, 1:, None])[:, 0]
        entropy = -(chance.exp() * chance).sum(1)
        assert n == len(own)
        assert row[NAMES.index("log_p")] == pytest.approx(float(own.mean()), rel=1e-4)
        assert row[NAMES.index("spread of entropy")] == pytest.approx(
            float(entropy.std(unbiased=False)), rel=1e-3
        )
        least = own.sort().values[: round(0.2 * len(own))].mean()
        assert row[NAMES.index("least log_p")] == pytest.approx(float(least), rel=1e-4)


@pytest.mark.slow
@pytest.mark.truth("which texts had their letters shuffled")
def test_unlikely_texts_are_told_from_likely_ones_and_new_ones_are_judged():
    new = written(6, 3) + written(5, 4, odd=True)
    found = was_it_generated(
        load("sonde:stdlib"), written(40, 1, odd=True), written(35, 2), texts=new, progress=False
    )
    score = {row["what"]: row["AUROC"] for row in found.rows if "AUROC" in row}
    assert score["mean surprise, low"] > 0.95
    assert score["head on numbers"] > 0.95
    judged = [row["generated"] > 0.5 for row in found.rows if "generated" in row]
    assert judged == [True] * 6 + [False] * 5
    assert "Of 11 new texts 6 are" in found.sentence


@pytest.mark.slow
@pytest.mark.truth("two samples of one kind")
def test_texts_of_one_kind_cannot_be_told():
    found = was_it_generated(load("sonde:stdlib"), written(60, 5), written(60, 6), progress=False)
    score = {row["what"]: row for row in found.rows}
    assert score["head on numbers"]["low"] < 0.55
    assert score["mean surprise, low"]["low"] < 0.5 < score["mean surprise, low"]["high"]


def test_few_texts_are_refused():
    with pytest.raises(InputError, match="got 40 of people and 5 generated"):
        was_it_generated(load("sonde:stdlib"), written(40, 1), written(5, 2), progress=False)
