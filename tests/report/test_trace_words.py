"""The sentence above a trace: which state carries the difference, and what is wrong with a pair."""

import pytest

from sonde.report.trace import document


def trace(shares, clean=-1.0, corrupt=-3.0, kept=0.95):
    tokens, changed = ["the", " terms", " License"], ["the", " terms", " Library"]
    best = [{"site": "layers.0", "position": at, "share": share} for at, share in shares]
    circuit = {"n_edges": 1, "n_all": 3, "faithfulness": kept, "random": 0.1, "without": 0.2}
    one = {
        "dropped": False, "objective": "log_prob[309]", "restart": "from each site on",
        "clean": clean, "corrupt": corrupt, "tokens": tokens, "corrupt_tokens": changed,
        "patched": [[0.0, 0.0, 1.0]], "estimated": [[0.0, 0.0, 1.0]], "gap": 0.1, "best": best,
        "circuit": circuit | {"edges": []}, "no_circuit": None,
    }  # fmt: skip
    found = {"pairs": [one], "sites": ["layers.0"], "n": 1, "n_dropped": 0, "how": "denoise"}
    return document(found | {"model": "m", "data": None})


def test_a_state_that_carries_nothing_is_not_said_to_carry_most():
    said = trace([(2, 1.0), (0, 0.0)]).verdict
    assert said.startswith("No state before the last position (' License' for ' Library') carries")
    assert "carries most" not in said
    assert "at position 0 ('the') carries most" in trace([(2, 1.0), (0, 0.4)]).verdict


def test_a_pair_whose_corrupted_text_prefers_the_answer_is_named():
    assert "check the answer, or exchange the texts" in trace([(2, 1.0)], -3.54, -3.19).verdict
    assert "exchange" not in trace([(2, 1.0)]).verdict


@pytest.mark.parametrize(("kept", "word"), [(0.95, "a circuit"), (2.08, "no circuit")])
def test_a_circuit_that_gives_twice_the_difference_is_none(kept, word):
    assert trace([(2, 1.0)], kept=kept).badge[1] == word
