"""Docstrings as pages: lists of names, facts and code."""

import pytest
from tools.reference import sections

DOC = """Count rows.

Range        [0, 1]; higher = more.
Cost         one pass,
             of ``dim`` numbers.

Parameters
----------
by : {"a", "b"}, default="a"
    A column of *x*; see
    ``group``.
n : int

Examples
--------
>>> 1 + 1
2
"""


@pytest.mark.truth("written by hand")
def test_parameters_facts_and_examples_of_a_docstring():
    assert sections(DOC) == [
        "Count rows.",
        "- **Range**: \\[0, 1\\]; higher = more.\n- **Cost**: one pass, of `dim` numbers.",
        "**Parameters**",
        '- `by` (*\\{"a", "b"\\}, default="a"*): A column of \\*x\\*; see `group`.\n- `n` (*int*)',
        "**Examples**",
        "```pycon\n>>> 1 + 1\n2\n```",
    ]


def test_a_description_with_a_layout_of_its_own_stays_as_it_is_written():
    body = "by : str\n    A column:\n\n    - one\n    - two"
    assert sections(f"Count.\n\nParameters\n----------\n{body}")[2] == f"```text\n{body}\n```"
