"""Long texts with a fact in a known place, and the model that answers from windows."""

import pytest
import torch

from sonde_studies.worlds.needles import (
    FACTS,
    LETTERS,
    WINDOW,
    LongText,
    PairEmbedding,
    answers,
    surest,
    trained,
)


@pytest.mark.parametrize("times", [3, 8])
def test_a_text_holds_the_fact_in_its_quarter(times):
    for quarter in range(4):
        text = LongText.drawn(quarter, torch.Generator().manual_seed(quarter), times)
        assert len(text.whole) == times * WINDOW
        place = text.sentences.index(text.fact)
        assert place * 4 // len(text.sentences) == quarter
        facts = [s for s in text.sentences if s[1].isupper()]
        assert len({s[1] for s in facts}) == len(facts) == FACTS
        assert all(s[2].isdigit() and s[3] == "." for s in facts)
        assert text.fact in facts
        assert text.other in facts
        assert text.other != text.fact
        assert text.question == "?" + text.fact[1]
        assert text.absent.isupper()
        assert text.absent not in text.whole


def test_an_embedding_holds_the_letter_before():
    torch.manual_seed(0)
    part = PairEmbedding()
    ids = torch.randint(len(LETTERS), (2, 7))
    found = part(ids)
    assert torch.equal(found[:, 0], part.letter.weight[ids[:, 0]])
    for i in range(1, 7):
        expected = part.letter.weight[ids[:, i]] + part.before.weight[ids[:, i - 1]]
        assert torch.allclose(found[:, i], expected)


def test_the_surest_window_is_the_best_of_a_loop():
    """Every window is read alone: 15 sentences, 60 letters, and the last 60."""
    model, draw = trained(0, 2), torch.Generator().manual_seed(1)
    for i in range(4):
        text = LongText.drawn(i, draw, 3)
        parts = [text.whole[:60], text.whole[60:120], text.whole[120:180], text.whole[-60:]]
        best = ("", 0.0)
        for part in parts:
            ids = torch.tensor([[LETTERS.index(x) for x in part + text.question]])
            with torch.no_grad():
                chances = model.module(ids).logits[0, -1, 52:62].softmax(0)
            if float(chances.max()) > best[1]:
                best = (str(int(chances.argmax())), float(chances.max()))
        assert surest(model, text) == best[0]
        assert answers(model, [parts[0] + text.question])[0].isdigit()
