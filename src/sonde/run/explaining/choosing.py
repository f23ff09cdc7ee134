"""Choose the inputs to explain: spread over classes and correct or wrong answers, or as named."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from pyarrow import csv, parquet
from pyarrow import json as arrow_json
from torch import Tensor

from sonde.core.errors import InputError, near, reason_of
from sonde.core.inputs import InputBatch, Model
from sonde.core.wording import plural
from sonde.data.inputs import ItemInputs
from sonde.run.reading.class_order import answer_numbers
from sonde.run.scoring.exhibit import hashed_id
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch

POOL: Final = 2048
READERS: Final = {
    ".csv": csv.read_csv,
    ".parquet": parquet.read_table,
    ".jsonl": arrow_json.read_json,
}


@dataclass(frozen=True)
class Choice:
    """Choice of the answers to explain.

    Parameters
    ----------
    wrong : bool, default=False
        Only inputs whose answer is not their label; for a regression the inputs with the largest
        errors.
    rows : Path or None
        Only those of a table with a column ``row`` or ``id``, as ``sonde scan --rows`` writes it.
    label : str or None
        Only those of a class.
    pair : (str, str) or None
        Only inputs of the first class that the model calls the second class.
    ids : sequence of str, default=()
        Only these inputs: each by its id, its place in the data, or the number of its row, as
        ``sonde scan --rows`` and ``sonde score`` write them.
    """

    wrong: bool = False
    rows: Path | None = None
    label: str | None = None
    pair: tuple[str, str] | None = None
    ids: Sequence[str] = ()

    def check(self) -> None:
        """Raise an InputError if ``rows`` is no table that names rows."""
        if self.rows is not None:
            _table(self.rows)

    def of(self, model: Model, inputs: ItemInputs, n: int, seed: int = 0) -> ItemInputs:
        """Return at most ``n`` inputs, spread over classes, correct answers and wrong answers.

        The model answers at most 2,048 inputs, drawn by the hash of their content.

        Raises
        ------
        InputError
            If no input is left, or if ``wrong`` or ``pair`` is given and right answers are unknown.
        """
        if self.rows is not None:
            inputs = inputs.at(_listed(self.rows, inputs))
        if self.ids:
            inputs = inputs.at(_named(self.ids, inputs))
        name = self.label if self.pair is None else self.pair[0]
        pool = (inputs if name is None else inputs.of_class(name)).drawn(POOL, seed)
        answered = answer_numbers(model, pool) if pool.own_labels else None
        truth, target = pool.listing.label, pool.listing.target
        if self.wrong and answered is None and target is not None:
            off = np.abs(_numbers(model, pool) - target)
            worst = np.argsort(np.where(np.isnan(off), -1, off), kind="stable")[::-1]
            return pool.at(np.sort(worst[: min(n, int(np.isfinite(off).sum()))]))
        if answered is None:
            if self.wrong or self.pair is not None:
                what = "wrong answers" if self.wrong else "answers of a class"
                raise InputError(
                    "explain: expected labels that are the model's classes, to find "
                    f"{what}, got none. Name the column (--label-column) and the classes "
                    "(--classes). For a language model, choose texts by their loss: sonde "
                    "scan --rows FILE, then explain --rows FILE."
                )
            answered = truth
        kept = np.arange(len(pool))
        if self.wrong:
            kept = np.flatnonzero((answered != truth) & (truth >= 0))
        if self.pair is not None:
            kept = np.flatnonzero(answered == pool.class_number(self.pair[1]))
        if not len(kept):
            asked = f"among {plural(len(pool), 'row')}"
            raise InputError(
                f"explain: expected at least one input to explain, got none {asked}. Choose "
                "other inputs."
            )
        # a folder is sorted: its first rows are of one class, one day, one file
        kept = np.random.default_rng(seed).permutation(kept)
        return pool.at(spread(kept, truth, answered, n, pool.listing.group_keys))


def spread(
    kept: Int[np.ndarray, "_kept"],
    truth: Int[np.ndarray, "row"],
    said: Int[np.ndarray, "row"],
    n: int,
    groups: Sequence[bytes] = (),
) -> Int[np.ndarray, "_chosen"]:
    """Return at most ``n`` rows, spread evenly over classes, correct and wrong answers.

    Rows of a class, right or wrong, are taken in the order of ``kept``, but each group gives a
    first row before any group gives a second.

    Examples
    --------
    >>> truth, said = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    >>> spread(np.arange(6), truth, said, 3).tolist()
    [0, 3, 4]
    """
    seen: Counter[tuple[int, bool]] = Counter()
    ranked: list[tuple[int, int]] = []
    for i in _groups_in_turn(kept.tolist(), groups):
        cell = int(truth[i]), bool(truth[i] == said[i])
        ranked.append((seen[cell], i))
        seen[cell] += 1
    ranked.sort(key=lambda one: one[0])
    return np.sort(np.array([i for _, i in ranked[:n]], dtype=np.int64))


def _groups_in_turn(rows: list[int], groups: Sequence[bytes]) -> list[int]:
    if not groups:
        return rows
    seen: Counter[bytes] = Counter()
    turn: dict[int, int] = {}
    for i in rows:
        turn[i] = seen[groups[i]]
        seen[groups[i]] += 1
    return sorted(rows, key=turn.__getitem__)


def one_number(model: Model, batch: InputBatch) -> Float[Tensor, "row"] | None:
    """Return the predictions of a regression, or None unless the model gives one number per row."""
    with torch.no_grad():
        logits = find_logits(watch(model.module, batch, ()).output)
    is_usable = logits is not None and logits.numel() == len(logits)
    return logits.double().cpu().flatten() if is_usable and logits is not None else None


def _numbers(model: Model, inputs: ItemInputs) -> Float[np.ndarray, "row"]:
    answers = np.full(len(inputs), np.nan)
    for batch in inputs.batches(0, len(inputs)):
        numbers = one_number(model, batch)
        if numbers is None:
            raise InputError(
                "explain: expected a model that outputs one number for each row, whose error "
                "can be measured, got another kind of output. Name a column of classes "
                "(--label-column)."
            )
        answers[batch.order.numpy()] = numbers.numpy()
    return answers


def _table(path: Path) -> pa.Table:
    """Return the table of a file, checked to name rows."""
    if path.suffix not in READERS or not path.is_file():
        raise InputError(f"--rows: expected a file {', '.join(READERS)}, got {path}.")
    try:
        table = READERS[path.suffix](path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"--rows: {path} cannot be read as a table: {reason_of(error)}. Write the table with "
            "`sonde scan --rows`."
        ) from error
    if not {"row", "id"} & {*table.column_names}:
        raise InputError(
            f"--rows: expected a column row or id in {path}, got {', '.join(table.column_names)}. "
            "Write the table with `sonde scan --rows`."
        )
    return table


def _listed(path: Path, inputs: ItemInputs) -> Int[np.ndarray, "_row"]:
    table = _table(path)
    if "row" in table.column_names:
        wanted = [row for row in table["row"].to_pylist() if row is not None]
        is_listed = np.isin(inputs.source_rows, wanted)
    else:
        is_listed = np.isin(inputs.ids, list(map(str, table["id"].to_pylist())))
    if not is_listed.any():
        raise InputError(f"--rows: expected rows of {inputs.source.name} in {path}, got none.")
    return np.flatnonzero(is_listed)


def _named(words: Sequence[str], inputs: ItemInputs) -> Int[np.ndarray, "_row"]:
    """Return the inputs that the words name; a word that matches none is split at commas."""
    rows: set[int] = set()
    for word in words:
        of_word = _of_name(word, inputs)
        for part in [word] if of_word else filter(None, word.split(",")):
            one = of_word or _of_name(part.strip(), inputs)
            if not one:
                labels = [*inputs.ids[:POOL], *map(inputs.place, range(min(POOL, len(inputs))))]
                raise InputError(
                    "--id: expected an id, a location or the number of a row of "
                    f"{inputs.source.name}, got {part.strip()!r}.{near(part.strip(), labels)} The "
                    f"first input is {inputs.ids[0]}, {inputs.place(0)}."
                )
            rows.update(one)
    return np.array(sorted(rows), dtype=np.int64)


def _of_name(word: str, inputs: ItemInputs) -> list[int]:
    """Return the inputs with this id, else with this location, else with this row number."""
    every, source, rows = range(len(inputs)), inputs.source, inputs.source_rows
    names: tuple[Callable[[int], str], ...] = (
        lambda i: inputs.ids[i],
        lambda i: hashed_id(inputs.ids[i]),  # what --hash-ids prints
        inputs.place,
        lambda i: source.where(int(inputs.listing.row[i])),
        lambda i: str(rows[i]),
    )
    matches = ([i for i in every if name(i) == word] for name in names)
    return next((which for which in matches if which), [])
