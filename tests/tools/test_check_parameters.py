"""The lint of parameters sees a missing and a dependent sentence, and accepts a whole one."""

from tools.check_parameters import described, faults


def documented(a, b, c=0):
    """Do something.

    Parameters
    ----------
    a : int
        Number of rows.
    b : int
        Of the columns.
    c : int, default=0
    """


def test_a_missing_sentence_and_a_dependent_sentence_are_faults():
    assert [fault.split(": ")[1] for fault in faults("x", documented)] == [
        "b does not stand by itself",
        "c has no sentence",
    ]


def test_names_that_share_a_line_share_the_sentence():
    text = described(
        "Do.\n\nParameters\n----------\na, b : int\n    Sizes of\n    both.\n**c\n    More.\n"
    )
    assert text == {"a": "Sizes of both.", "b": "Sizes of both.", "c": "More."}
