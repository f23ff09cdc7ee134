"""Answers that a user knows to be healthy, such as those of an earlier version of the model.

A probe says what the states of a model allow; if these are damaged too, it says little. Healthy
answers to the same inputs say what is possible. The file that ``sonde scan --rows`` wrote of the
earlier version holds them; any table with the columns ``id`` and ``answer`` does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sonde.core.errors import InputError
from sonde.data.numbers import as_number
from sonde.data.opening import open_file
from sonde.data.sources import is_missing
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.record import DataEvidence
from sonde.findings.trial import Measure

LEAST: Final = 12
"""Known answers that a reference takes."""
SUFFIXES: Final = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True, eq=False)
class Reference:
    """Scores of healthy answers by example, as those of trials.

    Parameters
    ----------
    name : str
        The file.
    measure : {"accuracy", "error"}
        1 for a correct answer, or 1 less the squared error over the variance of the targets.
    scores : mapping of int to float
        By planned order.
    """

    name: str
    measure: Measure
    scores: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean score of all known answers."""
        return sum(self.scores.values()) / len(self.scores)


def reference_answers(path: Path | None, data: DataEvidence) -> Reference | None:
    """Return the scores of the answers in a file to the rows of a data set, or None if not asked.

    Raises
    ------
    InputError
        If the file holds no answers, or answers to other rows, or the data have no labels.
    """
    if path is None:
        return None
    answers = _answers_in(path)
    if not answers:
        raise InputError(
            f"scan: expected answers in {path}, got none in the column answer. `sonde scan HEALTHY "
            "DATA --rows FILE` writes them where the labels are classes of the model: with other "
            "labels, pass --classes or --label-column."
        )
    if data.target is None and not (data.has_labels and data.labels_are_models):
        raise InputError(
            f"scan: expected labels that are classes of the model, to say which answers of {path} "
            f"are correct, got {'other labels' if data.has_labels else 'no labels'} in {data.name}."
            " Pass --classes or --label-column."
        )
    scores = _numbers(answers, data) if data.target is not None else _classes(answers, data)
    if len(scores) < LEAST:
        raise InputError(
            f"scan: expected at least {LEAST} answers in {path} to rows of {data.name} with a "
            f"label, got {len(scores)} (ids in the file: {', '.join([*answers][:3])}; in "
            f"the data: {', '.join(map(str, data.ids[:3]))}). Write the file with `sonde scan "
            "HEALTHY DATA --rows FILE`, on the same data."
        )
    return Reference(path.name, "error" if data.target is not None else "accuracy", scores)


def _answers_in(path: Path) -> dict[str, Any]:
    """Return the answers of a table by id, without those that are missing."""
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"scan: expected a reference that ends in {', '.join(SUFFIXES)}, got {path}."
        )
    try:
        rows = list(open_file(path).rows()) if path.stat().st_size else []
    except OSError as error:
        raise InputError(f"scan: the reference {path} cannot be read: {error}.") from error
    columns = {*rows[0]} if rows else set[str]()
    if not {"id", "answer"} <= columns:
        raise InputError(
            f"scan: expected the columns id and answer in {path}, got "
            f"{', '.join(sorted(columns)) or 'no rows'}. `sonde scan --rows` writes them."
        )
    both = ((row.get("id"), row.get("answer")) for row in rows)
    return {str(i): answer for i, answer in both if not (is_missing(i) or is_missing(answer))}


def _classes(answers: Mapping[str, Any], data: DataEvidence) -> dict[int, float]:
    """Return 1 for each example whose answer is its class.

    An answer that is the name of a class stands for this class, any other for the class of its
    number.
    """
    names = {*map(str, data.label_names or ())}
    scores: dict[int, float] = {}
    for example, label in enumerate(data.label.tolist()):
        answer = answers.get(str(data.ids[example]))
        if label < 0 or answer is None:
            continue
        is_name = str(answer) in names
        right = str(answer) == class_name(data, label) if is_name else as_number(answer) == label
        scores[example] = float(right)
    return scores


def _numbers(answers: Mapping[str, Any], data: DataEvidence) -> dict[int, float]:
    """Return 1 less the squared error of each example, in variances of all targets."""
    assert data.target is not None
    truth = data.target.double()
    spread = float(truth[truth.isfinite()].var(correction=0))
    scores: dict[int, float] = {}
    for example, target in enumerate(truth.tolist()):
        answer = as_number(answers.get(str(data.ids[example])))
        is_known = answer is not None and math.isfinite(answer) and math.isfinite(target)
        if is_known and spread > 0:
            scores[example] = 1 - (answer - target) ** 2 / spread
    return scores
