import math
import random

import pytest
import torch
from tests.student import student

from narrow import present
from sonde import InputError
from sonde.measure import compression_fidelity

VALUES = 256


def texts(n=60, length=40, seed=0):
    """Return texts of bytes, what is usual at two places of each, and texts with that instead."""
    draw = random.Random(seed)
    source = [[draw.randrange(VALUES) for _ in range(length)] for _ in range(n)]
    usual = [
        {
            p: (text[p] + 1 + draw.randrange(VALUES - 1)) % VALUES
            for p in draw.sample(range(length), 2)
        }
        for text in source
    ]
    return source, usual


@pytest.mark.truth("decoders whose answers are known: a copy, what is usual, and uniform bytes")
def test_known_decoders():
    source, usual = texts(400)
    copy = compression_fidelity(source, source, usual)
    assert (copy.value, copy.copied, copy.exact, copy.drift) == (0.0, 1.0, 1.0, 0.0)
    prior = [
        [places.get(i, t) for i, t in enumerate(text)]
        for text, places in zip(source, usual, strict=True)
    ]
    assert compression_fidelity(source, prior, usual).value == 1.0
    draw = random.Random(1)
    lot = [[draw.randrange(VALUES) for _ in text] for text in source]
    flat = torch.full((40,), math.log(VALUES))
    found = compression_fidelity(source, lot, usual, entropy=[flat] * len(source))
    assert abs(found.value - 1 / VALUES) < 4 * math.sqrt(1 / VALUES / 800)
    assert found.entropy_planted == pytest.approx(5.5451774445) == found.entropy_other
    assert found.value + found.copied + found.other == pytest.approx(1.0)
    assert found.n_planted == 800


@pytest.mark.truth("F1 of bags of tokens by hand")
def test_drift_of_another_length():
    found = compression_fidelity([["a", "b", "b", "c"]], [["b", "a"]], [{3: "d"}])
    assert found.drift == pytest.approx(1 - 2 * 2 / 6)
    assert found.other == 1.0
    assert found.se is None


@pytest.mark.truth("the spread over fresh draws of documents")
def test_texts_of_a_document_stand_together_in_the_error():
    def drawn(seed):
        draw = random.Random(seed)
        source, usual = texts(80, 8, seed)
        wrong = [draw.random() < 0.4 for _ in range(20)]  # a document of four texts at once
        said = [
            [places.get(i, t) if wrong[j // 4] else t for i, t in enumerate(text)]
            for j, (text, places) in enumerate(zip(source, usual, strict=True))
        ]
        found = compression_fidelity(source, said, usual, group=[j // 4 for j in range(80)])
        # documents have equally many planted tokens: it is the error of a mean of documents
        want = torch.tensor(wrong).double().std() / 20**0.5 * student(20)
        assert found.se == pytest.approx(float(want), rel=1e-12)
        return found

    found = [drawn(s) for s in range(60)]
    spread = torch.tensor([float(f) for f in found]).std()
    told = torch.tensor([float(torch.as_tensor(f.se)) for f in found]).mean()
    assert 0.7 < float(told / spread) < 1.4


def test_what_is_planted_must_not_be_usual():
    with pytest.raises(
        InputError,
        match="whose token differs from the prior's token, got position 1 in a text of 2",
    ):
        compression_fidelity([["a", "b"]], [["a", "b"]], [{1: "b"}])


@pytest.mark.truth("the exact interval of 0 of n; the figures of the texts without their copies")
def test_texts_that_agree_have_an_error_and_copies_are_one_text():
    source, usual = texts(20)
    found = compression_fidelity(source, source, usual)
    assert 0.0 + 1.959964 * float(present(found.se)) == pytest.approx(1 - 0.025 ** (1 / 20))
    said = [[usual[0].get(i, t) for i, t in enumerate(source[0])], *source[1:]]
    once = compression_fidelity(source, said, usual)
    thrice = compression_fidelity(3 * source, 3 * said, 3 * usual)
    assert thrice.n == once.n == 20
    assert float(present(thrice.se)) == pytest.approx(float(present(once.se)))
    assert thrice.conventions["copies"].startswith("40 of 60")
    assert "copies" not in once.flags
    with pytest.raises(InputError, match="20 groups, got 3"):
        compression_fidelity(source, said, usual, group=[1, 2, 3])
