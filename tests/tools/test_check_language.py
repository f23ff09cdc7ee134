"""The check of docstrings finds what a stranger reads twice, and leaves plain sentences alone."""

import ast

import pytest
from tools.check_language import found, vague_locals


@pytest.mark.parametrize(
    "text",
    [
        "Return whether a sample of rows is one of groups, or one of groups one of rows.",
        "Number of rows, None where there is none.",
        "Return the columns of which a hash is known.",
        "Keep one row in so many.",
    ],
)
def test_a_turn_of_phrase_is_found(text):
    assert found(text)


@pytest.mark.parametrize(
    "text",
    [
        "Return the rows one by one, or None if the file is missing.",
        "Return the rows.\n\nExamples\n--------\n>>> f('None where')\n",
        "Fit in one pass and return one result for each site.",
    ],
)
def test_a_plain_sentence_is_not(text):
    assert not found(text)


def test_a_vague_local_is_found_and_a_parameter_is_not():
    tree = ast.parse("def f(known):\n    if (made := known):\n        return made\n    own = known")
    assert list(vague_locals(tree)) == [(2, "made")]
