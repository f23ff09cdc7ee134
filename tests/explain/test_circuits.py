"""The circuit that is found, against one that was written by hand."""

import pytest
import torch

from circuits import ANSWER, CIRCUIT, CLEAN, CORRUPT, INSTEAD, Induction
from models import gpt2
from sonde.core import InputError
from sonde.explain import CircuitSearch, EdgeAttribution, EdgePatching, Objective

GOAL = Objective("margin", target=ANSWER, other=INSTEAD)


@pytest.mark.truth("the induction circuit, whose weights were written by hand")
@pytest.mark.parametrize("how", ["score", "greedy"])
def test_the_circuit_is_found_and_nothing_beside_it(how):
    found = CircuitSearch(how, ig_steps=2).explain(
        Induction(), CLEAN, corrupt=CORRUPT, objective=GOAL
    )
    assert set(found.edges) == CIRCUIT
    assert float(found) == pytest.approx(1.0, abs=1e-6)
    assert found.complement == pytest.approx(0.0, abs=1e-6)
    assert found.needed.tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert found.null == pytest.approx(0.0, abs=1e-6)


def test_no_edge_is_the_corrupted_run_and_all_are_the_clean_one():
    one, other = torch.tensor([[1, 5, 6, 7]]), torch.tensor([[1, 5, 2, 7]])
    search = CircuitSearch(ig_steps=1, enough=2.0)  # never enough: all edges
    found = search.explain(gpt2(), {"input_ids": one}, corrupt={"input_ids": other})
    assert found.sizes[0] == 0
    assert found.sizes[-1] == len(found.all_edges) == len(found.edges)
    assert float(found.curve[0]) == pytest.approx(0.0, abs=1e-4)
    assert float(found.curve[-1]) == pytest.approx(1.0, abs=1e-4)
    assert found.complement == pytest.approx(0.0, abs=1e-4)
    assert found.null == pytest.approx(1.0, abs=1e-4)  # any draw of all edges is all edges
    alone = EdgePatching("noise").explain(gpt2(), {"input_ids": one}, corrupt={"input_ids": other})
    assert found.all_edges == alone.edges
    ranked = EdgeAttribution("noise", 1).explain(
        gpt2(), {"input_ids": one}, corrupt={"input_ids": other}
    )
    torch.testing.assert_close(found.scores, ranked.value)
    torch.testing.assert_close(found.needed, alone.value, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="tau of at least 0"):
        CircuitSearch(tau=-1)
