"""Test whether a note in the prompt brings back facts that a language model was made to forget.

For facts with an answer of a few words. Whether the weights still hold a fact is another question:
``forgotten`` and the recipe ``unlearning-audit`` ask it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sonde.core import sign_test
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import open_inputs, rows_of
from sonde.tap.hooks.holding import in_eval
from sonde.weights import as_model
from sonde.weights.tuning import each_batch, row_losses

PROMPTS = "alone", "own", "other"


@dataclass(frozen=True, eq=False)
class FactsInContext:
    """Correct answers of two models to questions without a note, with their own, and another's.

    Parameters
    ----------
    right : mapping of str to mapping of str to Bool[Tensor, "fact"]
        By model (``before``, ``after``) and prompt: ``alone`` has no note, ``own`` a note that
        states the fact, ``other`` a note that states another fact.
    group : Int[Tensor, "fact"]
        Index of the group that each row belongs to: its column ``group``, else its own text, so
        that copies of a row are one group.
    """

    right: Mapping[str, Mapping[str, Bool[Tensor, "fact"]]]
    group: Int[Tensor, "fact"]

    def share(self, model: str, prompt: str) -> float:
        """Return the fraction of questions that a model answers correctly after a prompt."""
        return float(self.right[model][prompt].double().mean())

    def p_value(self) -> float:
        """Return how likely as much help is if own notes help the changed model as others do.

        One-sided sign test over groups of rows that one kind of note brings back more often.
        """
        after = self.right["after"]
        gain = after["own"].long() - after["other"].long()
        of_group = torch.zeros_like(gain).index_add(0, self.group, gain)
        return sign_test(int((of_group > 0).sum()), int((of_group < 0).sum()))

    def json(self) -> dict[str, Any]:
        """Return all fractions, and the p-value, as JSON values."""
        shares = {name: {p: self.share(name, p) for p in PROMPTS} for name in self.right}
        return {**shares, "n": len(self.right["after"]["alone"]), "p_value": self.p_value()}


def facts_in_context(
    model: Model | nn.Module,
    changed: nn.Module,
    facts: Any,
    note_column: str | None = None,
    other_column: str | None = None,
) -> FactsInContext:
    """Ask a model before and after unlearning for facts, with notes in the prompt and without.

    An answer is correct if all its tokens are the most likely ones, which is what greedy generation
    writes.

    Parameters
    ----------
    model : Model or nn.Module
        A causal language model with its tokenizer, before.
    changed : nn.Module
        After.
    facts : str, path or iterable
        Rows with ``prompt``, which ends where the answer begins, and ``completion``, the answer.
        Rows with one ``group`` (a person, a subject), and copies of a row, count once in the test.
    note_column : str, optional
        Column of the text that states the fact and is put before the prompt; without it the note is
        the prompt with its answer, and a line break.
    other_column : str, optional
        Column of a note on another fact; without it the note of the next row with another answer.

    Returns
    -------
    FactsInContext

    Raises
    ------
    InputError
        If there are fewer than two answers, a column or an answer is missing, a text is too long,
        or a model's probabilities are NaN.

    References
    ----------
    shumailov2024ununlearning
    """
    live, rows = as_model(model), rows_of(facts)
    columns = ["prompt", "completion", *filter(None, (note_column, other_column))]
    if missing := [c for c in columns if any(not isinstance(r.get(c), str) for r in rows)]:
        raise InputError(
            f"facts_in_context: expected texts in the columns {', '.join(columns)} of every row, "
            f"got rows without {', '.join(missing)}."
        )
    answers = [row["completion"].strip() for row in rows]
    if n_empty := answers.count(""):
        raise InputError(
            f"facts_in_context: expected answers of a word or more, got none in {n_empty} of "
            f"{len(rows)} rows."
        )
    if not other_column and len({*answers}) < 2:
        raise InputError(
            "facts_in_context: expected facts with two answers or more, so that a note on another "
            f"fact states another answer, got {len({*answers})}. Pass more facts."
        )
    notes = [r[note_column] if note_column else f"{r['prompt']}{r['completion']}\n" for r in rows]
    others = [r[other_column] for r in rows] if other_column else _of_others(notes, answers)
    before = {"alone": [""] * len(rows), "own": notes, "other": others}
    groups = [str(r.get("group", (r["prompt"], r["completion"]))) for r in rows]
    index = {key: i for i, key in enumerate(dict.fromkeys(groups))}
    modules = {"before": live.module, "after": changed}
    right = {
        name: {prompt: _correct(live, name, module, rows, n) for prompt, n in before.items()}
        for name, module in modules.items()
    }
    return FactsInContext(right, torch.tensor([index[key] for key in groups]))


def _of_others(notes: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Return for each fact the note of the next fact that has another answer."""
    n = len(notes)
    turns = ([(i + k) % n for k in range(1, n)] for i in range(n))
    return [
        next(notes[j] for j in turn if answers[j] != answers[i]) for i, turn in enumerate(turns)
    ]


def _correct(
    live: Model,
    name: str,
    module: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> Bool[Tensor, "fact"]:
    asked = [
        {"prompt": f"{note}{row['prompt']}", "completion": row["completion"], "id": i}
        for i, (row, note) in enumerate(zip(rows, notes, strict=True))
    ]
    data = open_inputs(live, asked, long="error")
    compute = row_losses(live, module, data)
    correct = torch.zeros(len(rows), dtype=torch.bool)
    with torch.no_grad(), in_eval(module):
        for batch in each_batch(data):
            answers = compute(batch).answers
            assert answers is not None
            at = [int(i) for i in batch.ids]  # batches are sorted by length
            is_nan = answers.log_p.isnan().any(1).double()
            n_nan = int(answers.per_example(is_nan, len(batch)).count_nonzero())
            if n_nan:
                raise InputError(
                    f"facts_in_context: expected probabilities, got NaN for the answers of {n_nan} "
                    f"facts on the model {name!r}. `sonde scan` on that model names the cause."
                )
            hits = (answers.log_p.argmax(1) == answers.truth).double()
            correct[at] = answers.per_example(hits, len(batch)).cpu() > 1 - 1e-6
    return correct
