"""Trajectories: texts in steps, read as one text with the step of each token.

A step sees the prompt and all steps before it. A trajectory that is longer than the context cannot
be cut into chunks, because a later chunk would not see the steps before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from sonde.core.errors import InputError
from sonde.core.hashing import bytes_key
from sonde.data._located import check_locates, collated_parts, located, units
from sonde.data.columns import STEPS
from sonde.data.encoder import Collated, Encoder, Piece, Prepared
from sonde.data.sources import Row
from sonde.data.text import TextEncoder

PARTS = ("thought", "action", "observation")
RIGHT, WRONG_SOMEWHERE, UNKNOWN = -1, -2, -3
_VERDICTS = {"0": 0, "1": 1, "false": 0, "true": 1}


@final
@dataclass(frozen=True, eq=False)
class TrajectoryEncoder(Encoder):
    """One list of steps per row, optionally after a prompt.

    Batches carry ``segment``, the step of each token, and the column ``first_error``: the first
    wrong step; -1 if no step is wrong, -2 if an unknown step is wrong, -3 if nothing is known.

    Parameters
    ----------
    text : TextEncoder
        How a text becomes tokens and a batch.
    prompt, label : str or None
        Columns of what stands before the steps, and of the verdict: 0 right, 1 wrong.
    """

    text: TextEncoder
    prompt: str | None = None
    label: str | None = None
    kind: str = "trajectory"

    def __post_init__(self) -> None:
        check_locates(self.text, "trajectories")

    @property
    def even(self) -> bool:
        """True if padding is not allowed."""
        return self.text.even

    def key(self, row: Row) -> bytes:
        """Hash the UTF-8 of the prompt and the steps."""
        return bytes_key("\0".join(self._parts(row)).encode("utf-8", "surrogatepass"))

    def size(self, row: Row) -> int:
        """Return the bytes of the prompt and the steps."""
        return sum(len(part.encode("utf-8", "surrogatepass")) for part in self._parts(row))

    def other_content(self, row: Row) -> bytes:
        """Return the label of the first wrong step."""
        return str(self._first_error(row)).encode()

    def pieces(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return one example for each row; final steps that do not fit are dropped."""
        out: list[list[Piece]] = []
        for row in rows:
            ids, kept, _ = self._read(row)
            around = len(self.text.vocabulary.before) + len(self.text.vocabulary.after)
            out.append([Piece(0, kept + around, len(ids) - kept)])
        return out

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Tokenise each row and store the step of each token."""
        before, after = self.text.vocabulary.before, self.text.vocabulary.after
        out: list[Prepared] = []
        for number, _ in wanted:
            all_ids, kept, all_steps = self._read(rows[number])
            ids = [*before, *all_ids[:kept], *after]
            segment = [*(RIGHT for _ in before), *all_steps[:kept], *(RIGHT for _ in after)]
            first_error = _within(
                self._first_error(rows[number]), max(segment), kept < len(all_ids)
            )
            out.append(Prepared(((ids, {}, None, None), segment, first_error), len(ids)))
        return out

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Pad the tokens and their steps on the right."""
        collated = collated_parts(self.text, items)
        first_error = torch.tensor([item.value[2] for item in items])
        return replace(collated, columns={**collated.columns, "first_error": first_error})

    def identity(self) -> dict[str, Any]:
        """Return columns, truncation and tokenizer as identity."""
        inputs = [STEPS] if self.prompt is None else [STEPS, self.prompt]
        return {**self.text.identity(), "kind": "trajectory", "inputs": inputs}

    def notes(self) -> list[str]:
        """Return the notes of the text's encoder."""
        return self.text.notes()

    def _parts(self, row: Row) -> list[str]:
        """Return the prompt, empty if it is missing, and the text of every step."""
        steps = row.get(STEPS)
        if not isinstance(steps, list | tuple | np.ndarray):
            raise InputError(f"expected a list of steps, got {type(steps).__name__}")
        if len(steps) == 0:
            raise InputError("a trajectory has no step")
        prompt = "" if self.prompt is None or row.get(self.prompt) is None else row[self.prompt]
        if not isinstance(prompt, str):
            raise InputError(f"expected a text in column {self.prompt!r}")
        return [prompt, *(step_text(step, place) for place, step in enumerate(steps))]

    def _first_error(self, row: Row) -> int:
        steps = len(self._parts(row)) - 1
        return first_error_of(row.get(self.label or "label"), row.get("first_error"), steps)

    def _read(self, row: Row) -> tuple[list[int], int, list[int]]:
        """Return the tokens, the number read, and the step of each (-1 = prompt)."""
        prompt, *steps = self._parts(row)
        parts = [f"{part}\n" for part in ([prompt] if prompt else [])]
        parts += [f"{part}\n" for part in steps[:-1]] + [steps[-1]]
        ids, last = located(self.text, "".join(parts))
        ends = np.cumsum([units(self.text, part) for part in parts])
        segment = np.searchsorted(ends, last, side="right") - bool(prompt)
        missing = sorted(set(range(len(steps))) - set(segment.tolist()))
        if missing:
            raise InputError(f"step {missing[0]} gives no token of its own")
        return ids, self._room(segment), segment.tolist()

    def _room(self, segment: np.ndarray) -> int:
        """Return the number of tokens read: all, or those of the steps that fit completely."""
        limit, words = self.text.max_length, self.text.vocabulary
        room = len(segment) if limit is None else limit - len(words.before) - len(words.after)
        if len(segment) <= room:
            return len(segment)
        if self.text.long != "truncate":
            raise InputError(
                f"a trajectory has {len(segment)} tokens, but the model reads at most {room}, "
                "and a trajectory cannot be cut into chunks, because each step depends on "
                "earlier steps; pass long='truncate' (--long truncate), which leaves out the "
                "last steps"
            )
        fits = [step for step in range(int(segment.max()) + 1) if (segment <= step).sum() <= room]
        if not fits:
            raise InputError(f"the first step does not fit into the {room} tokens of the context")
        return int((segment <= fits[-1]).sum())


def step_text(step: Any, place: int) -> str:
    r"""Return the text of a step: itself, its ``text``, or thought, action and observation.

    Examples
    --------
    >>> step_text({"thought": "Add.", "action": "add 2 3", "observation": "5"}, 0)
    'Thought: Add.\nAction: add 2 3\nObservation: 5'
    """
    text = step
    if isinstance(step, Mapping):
        text = step.get("text")
        if text is None:
            written = [(part, _written(step.get(part))) for part in PARTS]
            text = "\n".join(f"{part.capitalize()}: {words}" for part, words in written if words)
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"step {place} has no text; expected 'text', or 'thought', 'action' and 'observation'"
        )
    return text


def first_error_of(label: Any, first_error: Any, n_steps: int) -> int:
    """Return the first wrong step; -1 = none, -2 = unknown step, -3 = unlabelled.

    Examples
    --------
    >>> first_error_of(1, 2, 5), first_error_of(0, None, 5), first_error_of(True, None, 5)
    (2, -1, -2)
    """
    verdict = _verdict(label)
    if first_error is None or first_error != first_error:
        return {0: RIGHT, 1: WRONG_SOMEWHERE, None: UNKNOWN}[verdict]
    place = int(first_error) if first_error == int(first_error) else None
    if place is None or not -1 <= place < n_steps:
        raise InputError(
            f"expected first_error as one of the steps 0 to {n_steps - 1}, or -1 for none, got "
            f"{first_error!r}"
        )
    if verdict is not None and verdict != (place >= 0):
        raise InputError(f"label {label!r} and first_error {place} contradict each other")
    return place


def _verdict(label: Any) -> int | None:
    if label is None or label == -1 or label == "" or label != label:
        return None
    verdict = _VERDICTS.get(str(label).strip().lower().removesuffix(".0"))
    if verdict is None:
        raise InputError(f"expected label 0 (correct) or 1 (wrong) of a trajectory, got {label!r}")
    return verdict


def _within(first_error: int, last: int, is_cut: bool) -> int:
    """Return the label of the first wrong step, restricted to the steps that are read."""
    if first_error > last:
        return RIGHT
    return UNKNOWN if is_cut and first_error == WRONG_SOMEWHERE else first_error


def _written(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.strip()
