"""Words between a perceiver and a language model: either is planted as the part that errs."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import sonde
from sonde import InputError, Model
from sonde_studies.parts.owners import owners_of
from sonde_studies.parts.rows import apart
from sonde_studies.perception_in_words import named_by_lot
from sonde_studies.recipes.perception_in_words import perception_in_words

WORDS = ("import", "return", "lambda")
QUESTIONS = ("again the same:", "and once more:")


def rows_of(seed=0, n=180, said=1.5, answers=WORDS):
    """Noisy one-hot vectors, with a word for each and the answer that belongs to the word."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (n,), generator=draw)
    x = torch.randn(n, 4, generator=draw) + said * torch.eye(4)[kind]
    return [
        {"x": v, "word": WORDS[c], "question": QUESTIONS[i % 2], "label": answers[c]}
        for i, (v, c) in enumerate(zip(x, kind.tolist(), strict=True))
    ]


def asked(rows, **options):
    return perception_in_words(
        Model(nn.Sequential(nn.Identity()).eval()), sonde.load("sonde:stdlib", device="cpu"), rows,
        input_column="x", sentence="the word is {};", site="0", progress=False, **options,
    )  # fmt: skip


def raised(model, prompt, alone, answer):
    """How much a sentence raises an answer's log-probability, byte by byte."""
    total = 0.0
    for text, sign in ((prompt, 1), (alone, -1)):
        ids = list(model.processor(text)["input_ids"])
        for byte in model.processor(f"{text} {answer}")["input_ids"][len(ids) :]:
            logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1].double()
            total += sign * float((logits[byte] - logits.logsumexp(0)).detach())
            ids.append(byte)
    return total


@pytest.mark.slow
@pytest.mark.truth("probabilities byte by byte, and heads of scikit-learn")
def test_answers_are_those_found_by_hand():
    rows, model = rows_of(), sonde.load("sonde:stdlib", device="cpu")
    found = {row["from"]: row["accuracy"] for row in asked(rows, seed=4).rows}
    sentence = {w: f"the word is {w};" for w in WORDS}
    said = {
        (w, q): max(WORDS, key=lambda a, w=w, q=q: raised(model, f"{sentence[w]} {q}", q, a))
        for w in WORDS for q in QUESTIONS
    }  # fmt: skip
    word = np.array([row["word"] for row in rows])
    kept, held = apart(word, 0.4, 4, ordered=False, owner=owners_of(rows))
    x = np.stack([row["x"].numpy() for row in rows]).astype(float)
    x = (x - x[kept].mean(0)) / x[kept].std(0)
    seen = LogisticRegression(C=0.1, max_iter=500).fit(x[kept], word[kept]).predict(x[held])
    for arm, words in (("true words", word[held]), ("perceived words", seen)):
        right = [
            said[w, rows[i]["question"]] == rows[i]["label"]
            for w, i in zip(words, held, strict=True)
        ]
        assert found[arm] == pytest.approx(np.mean(right))


@pytest.mark.truth("the part that was made worse")
def test_the_part_that_errs_is_named():
    assert asked(rows_of(said=0.7)).verdict == "perception"
    turned = asked(rows_of(said=4.0, answers=(WORDS[1], WORDS[2], WORDS[0])))
    assert turned.verdict == "reasoning"
    assert turned.facts["lost by reasoning"] > "0.9"


@pytest.mark.truth("words of other rows")
def test_words_by_lot_say_nothing():
    found = {row["from"]: row["accuracy"] for row in asked(rows_of(n=400, said=4.0)).rows}
    assert found["perceived words"] > 0.9
    assert found["words by lot"] == pytest.approx(1 / 3, abs=0.12)


def test_pictures_that_were_learned_are_seen_by_words_dealt_by_lot():
    draw = torch.Generator().manual_seed(0)
    fresh, leaked = [], []
    for seed in range(12):
        x = torch.randn(160, 60, generator=draw)
        fresh.append(named_by_lot(x[:100], x[100:], seed) - 0.1)
        leaked.append(named_by_lot(x[:100], x[60:], seed) - 0.1)
    error = np.std(fresh, ddof=1) / 12**0.5
    assert abs(np.mean(fresh)) < 3.1 * error < np.mean(leaked)


def test_a_reasoner_without_a_tokenizer_is_refused():
    eye = Model(nn.Sequential(nn.Identity()).eval())
    with pytest.raises(InputError, match="causal language model with its tokenizer"):
        perception_in_words(eye, eye, rows_of(), input_column="x", progress=False)


def test_a_sentence_without_a_place_for_the_word_is_refused():
    model = sonde.load("sonde:stdlib", device="cpu")
    eye = Model(nn.Sequential(nn.Identity()).eval())
    with pytest.raises(InputError, match=r"a sentence with \{\} in place of the word"):
        perception_in_words(
            eye, model, rows_of(), input_column="x", sentence="a picture", progress=False
        )
