"""Losses of prompts with completions count the completions only, wherever a loss is computed.

A model that predicts every prompt wrongly has the losses of the unchanged one.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from lm_twin_case import twin
from sonde import judge_edit
from sonde.compress import fidelity
from sonde.core.inputs import InputBatch
from sonde.data import open_inputs
from sonde.edit import forgotten
from sonde.explain import LogitLens
from sonde.run.changing.judge import measure_damage
from sonde.run.training.figures import task_figures
from sonde.tap.rows.padding import right_padded

ASKED = [{"role": "user", "content": "What is the capital of Peru?"}]
SAID = [{"role": "assistant", "content": "The capital of Peru is Lima."}]
FORMS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "texts": (
        [
            {"prompt": "The capital of France is", "completion": " Paris."},
            {"prompt": "People in Japan", "completion": " speak Japanese."},
        ],
        [" Paris.", " speak Japanese."],
    ),
    "chats": (
        [{"prompt": ASKED, "completion": SAID}],
        ["The capital of Peru is Lima.<|im_end|>\n"],
    ),
    "preferences": (
        [{"prompt": "The film was", "chosen": " great.", "rejected": " awful."}],
        [" awful.", " great."],
    ),
    "Alpaca": ([{"instruction": "Name a city.", "output": "Cairo"}], ["Cairo"]),
}
ROWS = FORMS["texts"][0]
SHORTEST = 3
"""Tokens that are surely of a prompt."""


def only_batch(data: Any, **options: Any) -> InputBatch:
    inputs = open_inputs(twin(), data, **options)
    (batch,) = inputs.batches(0, len(inputs))
    return batch


def _wrong(logits: Tensor, length: int) -> Tensor:
    new = logits.clone()
    new[:, : length - 1, 5] += 60.0
    return new


@contextmanager
def wrong_on_prompts(length: int) -> Iterator[None]:
    """Change the answers at the first tokens, so that none predicts its prompt."""

    handle = twin().module.lm_head.register_forward_hook(
        lambda _, __, logits: _wrong(logits, length)
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("form", FORMS)
def test_the_tokens_of_a_completion_are_marked(form: str) -> None:
    data, expected = FORMS[form]
    inputs = open_inputs(twin(), data)
    (batch,) = inputs.batches(0, len(inputs))
    assert batch.completion is not None
    rows = zip(batch.kwargs["input_ids"], batch.completion, strict=True)
    assert sorted(twin().processor.decode(ids[real]) for ids, real in rows) == sorted(expected)
    assert any("count the tokens of the completions only" in note for note in inputs.notes)


@pytest.mark.slow
def test_reports_name_the_tokens_that_a_loss_counts() -> None:
    data = [dict(row) for row in ROWS]
    judged = judge_edit(twin(), twin(), data=data, progress=False)
    assert judged.document["neutral"].endswith("(tokens of completions only)")
    plain = judge_edit(twin(), twin(), data=["A lovely film."], progress=False)
    assert "completions" not in plain.document["neutral"]


def test_other_texts_have_no_completion() -> None:
    assert only_batch(["The capital of France is Paris."]).asked is None
    assert only_batch(ROWS, text_column="prompt").asked is None
    assert only_batch([{"messages": ASKED + SAID}]).asked is None


def test_the_mask_moves_with_its_tokens() -> None:
    """Chunks, padding on the left and rows that are cut keep the mask on the same tokens."""
    whole = only_batch(ROWS)
    assert whole.completion is not None
    n = [int(x) for x in whole.completion.sum(1)]
    parts = only_batch(ROWS, max_length=3)
    assert parts.completion is not None
    assert int(parts.completion.sum()) == sum(n)
    flipped = InputBatch(
        **{
            **vars(whole),
            "kwargs": {k: x.flip(1) for k, x in whole.kwargs.items()},
            "mask": whole.mask.flip(1),  # pyright: ignore[reportOptionalMemberAccess]
            "completion": whole.completion.flip(1),
        }
    )
    back = right_padded(flipped)
    assert back.completion is not None
    assert [int(x) for x in back.completion.sum(1)] == n


def _rise_of_damage(length: int) -> float:
    @contextmanager
    def act() -> Iterator[nn.Module]:
        with wrong_on_prompts(length):
            yield twin().module

    inputs = open_inputs(twin(), ROWS)
    return abs(measure_damage(twin(), act, inputs).means(inputs)[0].value)


def _divergence(length: int) -> float:
    changed = copy.deepcopy(twin().module)
    changed.lm_head.register_forward_hook(lambda _, __, logits: _wrong(logits, length))
    return fidelity(twin(), changed, open_inputs(twin(), ROWS)).kl


def _rise_of_training(length: int) -> float:
    inputs = open_inputs(twin(), ROWS)
    with wrong_on_prompts(length):
        after = task_figures(twin(), twin().module, inputs)
    return float((after.loss - task_figures(twin(), twin().module, inputs).loss).abs().sum())


def _rise_of_forgetting(length: int) -> float:
    inputs = open_inputs(twin(), ROWS)
    changed = copy.deepcopy(twin().module)
    changed.lm_head.register_forward_hook(lambda _, __, logits: _wrong(logits, length))
    became = forgotten(twin(), changed, forget=inputs, retain=inputs)
    return abs(became.after["forget"].loss - became.before["forget"].loss)


def _rise_of_lens(length: int) -> float:
    inputs = open_inputs(twin(), ROWS)
    before = LogitLens().explain(twin(), inputs).cross_entropy[-1]
    with wrong_on_prompts(length):
        return float((LogitLens().explain(twin(), inputs).cross_entropy[-1] - before).abs())


LOSSES: dict[str, Callable[[int], float]] = {
    "judgement": _rise_of_damage,
    "compression": _divergence,
    "training": _rise_of_training,
    "forgetting": _rise_of_forgetting,
    "lens": _rise_of_lens,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_counts_completions_only(name: str) -> None:
    assert LOSSES[name](SHORTEST) == pytest.approx(0.0, abs=1e-9)
    assert LOSSES[name](20) > 0.01
