from collections.abc import Sequence
from typing import Any

import torch

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd048 import SND048, _number
from sonde.findings.rule import Check

LABEL = torch.randint(3, (400,), generator=torch.Generator().manual_seed(0))
BY_LABEL = torch.argsort(torch.argsort(LABEL, stable=True)).tolist()


def ended(values: Sequence[Any], inputs: tuple[str, ...] = ()) -> Check:
    def columns(examples: Sequence[int]) -> dict[str, list[Any]]:
        return {"key": [values[i] for i in examples]}

    facts = {"key_columns": columns, "inputs": inputs}
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    return SND048().check(arrays.evidence_of(x, label=LABEL, facts=facts))


def test_a_key_that_tells_the_label_is_worse_where_the_model_is_given_it() -> None:
    assert_raised(ended([f"a_{i:04d}.png" for i in BY_LABEL]), "note")
    finding = assert_raised(ended([float(i) for i in BY_LABEL], ("key",)), "warning")
    assert "99 % of neighbouring rows have equal labels" in finding.sentence
    assert_clear(ended(list(range(400))))


def test_what_does_not_number_rows_is_no_key() -> None:
    for values in (
        [i + 0.5 for i in BY_LABEL],
        [i * 1000 for i in BY_LABEL],
        [i // 10 for i in BY_LABEL],
        [f"text {i}" for i in BY_LABEL],
    ):
        assert ended(values).state == "not_applicable"
    assert [_number(v) for v in (True, 3, 3.0, 3.5, "x7y08", "a b1", None)] == [
        None, 3, 3, None, 8, None, None,
    ]  # fmt: skip
