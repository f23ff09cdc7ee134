"""Every sampled input with its label, the model's answer, and the findings that name it."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import torch

from sonde.findings.evidence.answers.answers import answer_columns, judge_heads, probabilities
from sonde.findings.evidence.answers.head_answers import head_rows
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.answers.number_answers import number_rows
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import EXAMPLES, shared_rows
from sonde.findings.evidence.texts.text_losses import TextLosses, text_losses
from sonde.findings.rule import Check

PAIRS: Final = 12
SHOWN: Final = 8
KNOWN: Final = ("truth", "answer", "confidence", "loss", "right")


def answered_rows(evidence: Evidence, checks: Sequence[Check] = ()) -> list[dict[str, Any]]:
    """Return each sampled row of DATA: incorrect rows first, then by falling loss.

    Rows of a classifier have truth, answer, confidence (the answer's probability), loss (nats) and
    whether the answer is right. Rows of a regression have truth, answer and loss (squared error);
    rows of a language model have the loss of a text (nats per token). With several labels or a map,
    the loss is the share of wrong answers; with ranks, the distance. Unknown fields are None.
    ``findings`` maps each code to the figure by which the finding counts this row.
    """
    shared = shared_rows(evidence)
    if shared.order is None:
        return []
    codes: dict[int, dict[str, float | None]] = defaultdict(dict)
    for finding in (check.finding for check in checks):
        if finding is not None and not finding.of_other:
            figures = finding.figures or (None,) * len(finding.examples)
            for example, figure in zip(finding.examples, figures, strict=True):
                codes[example][finding.code] = figure
    answers, data = known_answers(evidence), evidence.data
    rows = [
        {
            EXAMPLES: [example],
            "id": str(data.ids[example]),
            **dict.fromkeys(KNOWN),
            **answers.get(i, {}),
            "group": _group(data.group_keys[example]) if data.grouped else None,
            "findings": codes.get(example, {}),
        }
        for i, example in enumerate(shared.order.tolist())
    ]
    return sorted(rows, key=_worst_first)


def _group(key: bytes) -> str:
    """Return a group as the user wrote it, or as a hexadecimal hash if it stands for a document."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.hex()


def _worst_first(row: dict[str, Any]) -> tuple[bool, float, int]:
    loss = -math.inf if row["loss"] is None else row["loss"]
    return row["right"] is not False, -loss, row[EXAMPLES][0]


def known_answers(evidence: Evidence) -> dict[int, dict[str, Any]]:
    """Return the known answers of the model, by shared row."""
    columns, numbers = answer_columns(evidence), number_rows(evidence)
    if not isinstance(columns, str):
        return _of_classes(evidence, *columns)
    if not isinstance(numbers, str):
        lists = (x.tolist() for x in (*numbers, (numbers[1] - numbers[2]).square()))
        return {
            i: {"truth": truth, "answer": answer, "loss": loss}
            for i, answer, truth, loss in zip(*lists, strict=True)
        }
    heads = evidence.get(judge_heads)
    if heads is not None and heads.found:
        rows, order = head_rows(heads.found[0]), shared_rows(evidence).order
        assert order is not None  # answered_rows asks for the same
        return {i: rows[e] for i, e in enumerate(order.tolist()) if e in rows}
    losses_of = evidence.get(text_losses)
    if not isinstance(losses_of, TextLosses):
        return {}
    losses = (losses_of.loss + losses_of.mean).tolist()
    return {i: {"loss": x} for i, x in zip(losses_of.row.tolist(), losses, strict=True)}


def _of_classes(
    evidence: Evidence, logits: torch.Tensor, label: torch.Tensor
) -> dict[int, dict[str, Any]]:
    data, p = evidence.data, probabilities(logits.double())
    sure, answer = p.max(1)
    of_truth = p.gather(1, label.clamp(0, p.shape[1] - 1)[:, None])[:, 0]
    loss = -torch.where(label < p.shape[1], of_truth, 0.0).log()
    lists = (x.tolist() for x in (label, answer, sure, loss))
    return {
        i: {
            "truth": class_name(data, truth) if truth >= 0 else None,
            "answer": class_name(data, answered),
            "confidence": confidence,
            "loss": lost if truth >= 0 else None,
            "right": answered == truth if truth >= 0 else None,
        }
        for i, (truth, answered, confidence, lost) in enumerate(zip(*lists, strict=True))
    }


def wrong_pairs(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the incorrect rows by (label, answer): frequent pairs first, worst rows first.

    If right and wrong are not known, the rows of the largest loss form a single group.
    """
    if all(row["right"] is None for row in rows):
        with_loss = [row for row in rows if row["loss"] is not None]
        return [with_loss[:SHOWN]] if with_loss else []
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["right"] is False:
            pairs[row["truth"], row["answer"]].append(row)
    return sorted(pairs.values(), key=lambda some: -len(some))[:PAIRS]
