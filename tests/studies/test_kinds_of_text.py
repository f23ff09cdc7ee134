"""Pieces of texts of three kinds, and the loss of a byte model on them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import sonde
from sonde_studies._kinds_of_text import kinds_of_text, next_byte_loss
from sonde_studies._written import pieces, text_pieces


@pytest.mark.truth("Python's slices and counts")
def test_pieces_are_slices_without_overlap():
    texts = ["abcdefghij", "klmnopq"]
    found = text_pieces(texts, 9, 3, np.random.default_rng(1))
    assert sorted(found) == ["abc", "def", "ghi", "klm", "nop"]
    raw = pieces([t.encode() for t in texts], 2, 3, np.random.default_rng(1))
    assert raw == [list(t.encode()) for t in found[:2]]


def test_kinds_have_texts_of_separate_files():
    kinds = kinds_of_text((6, 5, 4), 40, np.random.default_rng(2))
    assert [*kinds] == ["tables", "prose", "code"]
    for kind in kinds.values():
        parts = (kind.learned, kind.gate, kind.judged)
        assert [len(texts) for texts in parts] == [6, 5, 4]
        assert {len(text) for texts in parts for text in texts} == {40}
    assert any("\\u" in text or "# " in text for text in kinds["tables"].learned)


@torch.no_grad()
@pytest.mark.truth("one text after the other, without padding")
def test_the_loss_counts_each_byte_once():
    model = sonde.load("sonde:stdlib", device="cpu")
    texts = ["def f(x):", "import os\nimport sys\n", "é"]
    total, n = 0.0, 0
    for text in texts:
        ids = torch.tensor([list(text.encode())])
        logits = model.module(input_ids=ids).logits
        total += float(cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
        n += ids.shape[1] - 1
    assert next_byte_loss(model, texts) == pytest.approx(total / n, rel=1e-4)
