"""`make test`, `make test-rest` and `make test-studies` run every test, and no test twice."""

import re
from itertools import chain, combinations
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()
MARKERS = ("essential", "slow", "more", "browser", "gpu")


def expression(name):
    (found,) = re.findall(rf"^{name} := (.+)$", MAKEFILE, re.M)
    return Expression.compile(found)


def recipe(target):
    (found,) = re.findall(rf"^{target}: install\n\t(.+)$", MAKEFILE, re.M)
    return found


@pytest.mark.parametrize(
    "marks", chain.from_iterable(combinations(MARKERS, n) for n in range(len(MARKERS) + 1))
)
def test_every_test_is_in_one_part(marks):
    parts = [
        expression(name).evaluate(lambda word, **_: word in marks) for name in ("QUICK", "REST")
    ]
    assert sorted(parts) == [False, True]


def test_the_parts_differ_in_their_expression_and_in_one_folder():
    whole = recipe("test-all")
    assert recipe("test-studies") == f"{whole} $(OF_STUDIES)"
    assert recipe("test") == f'{whole} --ignore $(OF_STUDIES) -m "$(QUICK)"'
    assert recipe("test-rest") == f'{whole} --ignore $(OF_STUDIES) -m "$(REST)"'
    assert MAKEFILE.count("--ignore") == 2
    assert re.findall(r"^OF_STUDIES := (.+)$", MAKEFILE, re.M) == ["tests/studies"]
    assert "--deselect" not in MAKEFILE


def test_ci_runs_all_parts():
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert re.findall(r"^make (\S+)", script, re.M) == ["test", "test-rest", "test-studies"]
