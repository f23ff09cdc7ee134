"""The judge of language models: a destroyed model is called poor, an unchanged one is not."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
from torch import Tensor, nn

import sonde
from lm_twin_case import FOLDER, TEXTS, twin
from models import mlp
from sonde.core.errors import InputError
from sonde.edit import ClampUnit, Fact
from sonde.run.changing.fact_prompts import (
    FactPrompts,
    made_wordings,
    measure_facts,
    next_chances,
)
from sonde.run.changing.language_figures import LanguageFigures, Line, measure_language
from sonde.run.changing.written_texts import PlainTexts, measure_writing

PROMPT = "The capital of France is"
OTHERS = tuple(f"The capital of {c} is" for c in ("Japan", "Egypt", "Poland", "Kenya"))


def prompts(target: str) -> FactPrompts:
    fact = Fact(PROMPT, "France", target, neighbours=OTHERS)
    return FactPrompts.of(twin(), [fact])


def plain() -> PlainTexts:
    return PlainTexts.write(twin(), [PROMPT, *OTHERS], n_tokens=12)


def own_answer() -> str:
    token = next_chances(twin(), twin().module, [PROMPT]).argmax(1)
    return str(twin().processor.decode(token))


def unchanged() -> nullcontext[nn.Module]:
    return nullcontext(twin().module)


@contextmanager
def always(token: int) -> Iterator[nn.Module]:
    """Open the model with one token as the answer to everything."""

    def raised(module: nn.Module, args: object, output: Tensor) -> Tensor:
        output[..., token] += 1e4
        return output

    handle = twin().module.lm_head.register_forward_hook(raised)
    yield twin().module
    handle.remove()


def test_no_change_keeps_every_answer_and_every_text() -> None:
    found = measure_facts(twin(), unchanged, prompts(own_answer()))
    assert found.efficacy == (1.0, 1.0)
    assert found.generality == (1.0, 1.0)
    assert found.n_unlike > 0
    assert found.n_unlike + found.n_wordings == len(made_wordings(Fact(PROMPT, "France", " x")))
    assert found.specificity == 1.0
    wrote = measure_writing(plain(), unchanged)
    assert wrote.kept == 1.0
    for before, after in (wrote.entropy, wrote.loss, wrote.refusals):
        assert before == after


@pytest.mark.slow
def test_no_change_does_nothing() -> None:
    found = measure_language(twin(), unchanged, facts=prompts(own_answer()))
    assert len(found.lines) == 8
    scores = dict(found.scores)
    assert set(scores.values()) == {1.0}
    assert "left out: the old model answers them unlike the prompt" in found.lines[1].meaning
    idle = sonde.judge_edit(FOLDER, FOLDER, positive=TEXTS[:2], negative=TEXTS[2:], progress=False)
    scores = idle.document["language"]["scores"]
    assert scores.pop("efficacy") == 0.0
    assert set(scores.values()) == {1.0}
    assert "its worst figure is efficacy, 0.00" in idle.document["language"]["verdict"]


@pytest.mark.slow
def test_what_no_prompt_asked_has_no_score() -> None:
    """Neutral texts alone do not answer for other subjects."""
    asked = replace(prompts(own_answer()), wordings=((),), neighbours=((),))
    found = measure_language(twin(), unchanged, facts=asked, kept=0.998)
    assert found.scores.keys() == {
        "efficacy",
        "other topics",
        "fluency",
        "plausibility",
        "refusals",
    }
    meanings = {line.name: line.meaning for line in found.lines}
    assert meanings["generality"] == "not asked: no other wording of a fact"
    assert meanings["specificity"].startswith("not asked: no other subject (0.998 of")
    assert "Not measured: generality, specificity" in found.verdict


def test_one_answer_to_every_prompt_is_poor() -> None:
    token = int(twin().processor(" lira")["input_ids"][0])
    target = str(twin().processor.decode([token]))
    found = measure_facts(twin(), lambda: always(token), prompts(target))
    assert (found.efficacy, found.generality, found.specificity) == ((0, 1), (0, 1), 0.0)
    wrote = measure_writing(plain(), lambda: always(token))
    assert wrote.entropy[1] == 0.0 < wrote.entropy[0]
    assert wrote.loss[1] > wrote.loss[0] + 1.0
    assert wrote.kept < 0.2


@pytest.mark.slow
def test_a_destructive_edit_of_activations_is_named() -> None:
    """Units that are clamped far away leave nothing of the model's texts."""
    edit = ClampUnit(tuple(range(16)), 40.0)
    found = sonde.judge_edit(
        twin(), lambda: sonde.editing(twin(), edit, "model.layers.3"), data=list(TEXTS)
    )
    assert found.document["language"]["is_poor"]
    healthy = sonde.judge_edit(FOLDER, FOLDER, data=list(TEXTS), progress=False)
    assert not healthy.document["language"]["is_poor"]


def test_the_verdict_is_that_of_the_worst_figure_and_names_what_is_missing() -> None:
    lines = (
        Line("efficacy", 1.0, 0.0, 1.0, ""),
        Line("generality", 0.75, 0.0, 0.75, ""),
        Line("specificity", math.nan, math.nan, math.nan, ""),
    )
    found = LanguageFigures(lines)
    assert found.worst == ("generality", 0.75)
    assert "worst figure is generality, 0.75" in found.verdict
    assert "Not measured: specificity" in found.verdict


def test_given_wordings_and_neighbours_are_taken() -> None:
    fact = Fact(PROMPT, "France", " Rome", ("France has the capital",), OTHERS)
    found = FactPrompts.of(twin(), [fact])
    assert found.wordings == (("France has the capital",),)
    assert found.half(0).neighbours == (OTHERS[::2],)
    assert made_wordings(fact)[-1] == "France's capital is"


def test_a_model_that_writes_no_texts_is_refused() -> None:
    with pytest.raises(InputError, match="expected a language model"):
        sonde.judge_edit(mlp(), mlp())
