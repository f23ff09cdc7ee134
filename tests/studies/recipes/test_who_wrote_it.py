"""Writers who differ in names alone, in more than that, and in nothing."""

import numpy as np
import pytest

from sonde import InputError, load
from sonde_studies.parts.words import masked
from sonde_studies.recipes.who_wrote_it import who_wrote_it

SHARED = ["the", "cat", "saw", "a", "dog", "and", "ran", "home"]


def texts(kind, n=36, seed=0):
    """Return texts of three writers: their own names, their own habits, or neither."""
    draw, found = np.random.default_rng(seed), []
    names = {"ann": "Quibble", "bob": "Zarthan", "cid": "Moxley"}
    ends = {"ann": "!!", "bob": " ;", "cid": "..."}
    for i in range(3 * n):
        who = [*names][i % 3]
        words = [SHARED[int(k)] for k in draw.integers(0, 8, 12)]
        if kind == "names":
            words[3] = words[7] = names[who]
        end = ends[who] if kind == "habits" else "."
        found.append({"text": f"{end} ".join(" ".join(words[j : j + 4]) for j in (0, 4, 8)) + end,
                      "author": who})  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.truth("what the writers were made to differ in")
@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("names", "by their words"), ("habits", "by more than words"), ("neither", "not")],
)
def test_it_says_by_what_writers_are_told_apart(kind, verdict):
    found = who_wrote_it(load("sonde:stdlib"), texts(kind), progress=False)
    assert found.verdict == verdict
    arm = {row["arm"]: row["accuracy"] for row in found.rows}
    assert found.null == pytest.approx(1 / 3)
    assert (arm["states, as written"] > 0.8) == (kind != "neither")
    assert (arm["states, masked"] > 0.8) == (kind == "habits")


@pytest.mark.truth("the words that each writer uses, counted by hand")
def test_words_of_few_writers_become_lines():
    author = np.array(["a", "b", "c", "d", "e", "a"])
    said = ["x shared", "shared y", "y shared", "y shared", "y", "x? z, shared"]
    kept = ["shared y", "y shared", "y shared", "y"]
    assert masked(said, author) == ["_ shared", *kept, "_? _, shared"]


def test_a_writer_of_one_document_is_refused():
    rows = [{**row, "file": f"{row['author']}{i % 4}"} for i, row in enumerate(texts("names"))]
    with pytest.raises(InputError, match="5 or more groups of every class, got"):
        who_wrote_it(load("sonde:stdlib"), rows, group_column="file", progress=False)
