"""Mutants change one thing each, and a method's own test is run on them."""

from pathlib import Path

import pytest
from tools.mutate import SOURCE, method_test, mutants, notices

FORMULA = '''"""Say 1 + 1."""


def f(x: float = 3.0, *, loud: bool = False) -> float:
    """Return 2 * x."""
    if x < 0.5:
        raise ValueError(f"{x + 1} is below {2 * x}")
    return -x * 4 + 1e-9
'''


def test_each_mutant_changes_one_formula_and_no_message():
    found = [(m.line, m.change) for m in mutants(FORMULA)]

    assert sorted(found) == sorted(
        [
            (6, "x < 0.5 -> x <= 0.5"),
            (6, "0.5 -> 0.75"),
            (8, "-x * 4 + 1e-09 -> -x * 4 - 1e-09"),
            (8, "-x * 4 -> -x / 4"),
            (8, "-x -> x"),
            (8, "4 -> 5"),
        ]
    )
    assert all(compile(m.text, "f", "exec") for m in mutants(FORMULA))


@pytest.mark.slow
def test_a_wrong_formula_is_noticed_and_the_right_one_is_not():
    path = SOURCE / "sonde" / "measure" / "stable_rank.py"
    text, test = path.read_text(encoding="utf-8"), method_test(path)
    assert isinstance(test, Path)

    assert not notices(path, text, test, 120)
    assert notices(path, text.replace("return ", "return 2 * "), test, 120)
