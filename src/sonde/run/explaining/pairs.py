"""Pairs of texts that differ in the part that decides the answer, tokenized for a model."""

import inspect
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sonde.core.errors import InputError, reason_of
from sonde.core.inputs import Model
from sonde.data.pieces import texts_of
from sonde.data.processors import is_tokenizer
from sonde.data.vocabulary import vocabulary_of
from sonde.explain import AnswerMargin, Objective
from sonde.explain._runs import Goal


@dataclass(frozen=True)
class TextPair:
    """Two texts of equal token count, the answer to the first, and an answer to compare."""

    clean: str
    corrupt: str
    answer: str
    instead: str | None = None


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """Model inputs of both texts, the objective that separates the runs, and tokens as text."""

    clean: dict[str, Any]
    corrupt: dict[str, Any]
    goal: Goal
    clean_pieces: list[str]
    corrupt_pieces: list[str]


def read_pairs(path: Path) -> list[TextPair]:
    """Return the pairs of a JSONL file: ``clean``, ``corrupt``, ``answer`` and maybe ``instead``.

    Raises
    ------
    InputError
        With the line that is wrong.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"trace: {path} cannot be read: {reason_of(error)}.") from error
    names = {f.name for f in fields(TextPair)}
    pairs: list[TextPair] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"trace: {path}:{number} is not JSON: {error}.") from error
        values = row if isinstance(row, dict) else {}
        given = {name: values[name] for name in names if values.get(name) is not None}
        numbers = [name for name, value in given.items() if not isinstance(value, str)]
        if {"clean", "corrupt", "answer"} - given.keys() or numbers:
            got = f"{numbers[0]}={given[numbers[0]]!r}" if numbers else sorted(given)
            raise InputError(
                "trace: expected the texts clean, corrupt and answer (and optionally "
                f"instead) in {path}:{number}, got {got}."
            )
        pairs.append(TextPair(**given))
    if not pairs:
        raise InputError(f"trace: expected at least one pair of texts in {path}, got none.")
    return pairs


def encoded(model: Model, pair: TextPair) -> EncodedPair:
    """Return a pair as model inputs.

    Raises
    ------
    InputError
        If the model is no language model with a tokenizer, the texts are of different length or the
        same, or an answer has no token.
    """
    tokenizer = model.processor
    if model.task != "causal" or not is_tokenizer(tokenizer):
        raise InputError(
            f"trace: expected a language model with a tokenizer, got {model.name or 'a model'} "
            f"({model.task}). In Python, ActivationPatching can trace any model."
        )
    before = vocabulary_of(model, tokenizer).before

    def ids(text: str) -> list[int]:
        return [*before, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

    clean, corrupt = ids(pair.clean), ids(pair.corrupt)
    _check(clean, corrupt, tokenizer)
    answers = [_answer(ids, pair.clean, clean, tokenizer, pair.answer)]
    if pair.instead is not None:
        answers.append(_answer(ids, pair.clean, clean, tokenizer, pair.instead))
        if answers[0] == answers[1]:
            raise InputError(
                f"trace: expected two answers, got the same tokens for {pair.answer!r} and "
                f"{pair.instead!r}."
            )
    goal, rows = _goal(model, answers)
    pieces = [texts_of(side, tokenizer) for side in (clean, corrupt)]
    more = max(map(len, rows))
    for one in pieces:
        one += [f"answer {i + 1}" for i in range(more)]
    device = next(model.module.parameters()).device
    given = [_inputs(model, side, rows, device) for side in (clean, corrupt)]
    return EncodedPair(given[0], given[1], goal, pieces[0], pieces[1])


def _check(clean: list[int], corrupt: list[int], tokenizer: Any) -> None:
    if len(clean) != len(corrupt):
        tokens = " and ".join(repr(texts_of(side, tokenizer)[-12:]) for side in (clean, corrupt))
        raise InputError(
            f"trace: expected texts with the same number of tokens, got {len(clean)} and "
            f"{len(corrupt)}: {tokens}. States are copied to the same position: replace words "
            "so that the number of tokens stays the same."
        )
    if clean == corrupt:
        raise InputError(
            "trace: expected two different texts, got the same tokens for the clean and the "
            "corrupted text."
        )


def _answer(ids: Any, text: str, read: list[int], tokenizer: Any, answer: str) -> list[int]:
    """Return the answer's tokens after a text, or by themselves if the text's tokens change."""
    whole = ids(text + answer)
    if whole[: len(read)] == read and len(whole) > len(read):
        return whole[len(read) :]
    tokens = list(tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])
    if not tokens:
        raise InputError(
            f"trace: the answer {answer!r} has no token. Include the leading space: ' Mary'."
        )
    return tokens


def _goal(model: Model, answers: list[list[int]]) -> tuple[Goal, list[list[int]]]:
    """Return the objective that separates the runs, and the answer tokens after each text."""
    if all(len(answer) == 1 for answer in answers):
        target = answers[0][0]
        other = answers[1][0] if len(answers) > 1 else None
        if other is None:
            return Objective("log_prob", target=target), [[]]
        return Objective("margin", target=target, other=other), [[]]
    if len(answers) == 1:
        return Objective("answer", length=len(answers[0])), answers
    return AnswerMargin(len(answers[0]), len(answers[1])), answers


def _inputs(
    model: Model, text: list[int], answers: list[list[int]], device: torch.device
) -> dict[str, Any]:
    """Return the text followed by each answer, padded at the right."""
    rows = [[*text, *answer] for answer in answers]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device)}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask.to(device)
    takes = inspect.signature(model.module.forward).parameters
    if answers == [[]] and "logits_to_keep" in takes:
        inputs["logits_to_keep"] = 1  # the last position alone is looked at
    return inputs
