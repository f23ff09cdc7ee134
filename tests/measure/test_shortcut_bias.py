import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.measure import ShortcutRows, shortcut_bias
from sonde.measure.shortcut_bias import axis, reliance


@pytest.mark.truth("closed form: areas beside a line through the middle of a square")
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.4091919])
def test_reliance_of_a_line(ratio):
    z = torch.cartesian_prod(axis(), axis())
    found = reliance(ratio * z[:, 0] + z[:, 1])
    # the axes of the grid have no sign there: 1/41 of its cells for each
    np.testing.assert_allclose(found, [ratio / 2, 1 - ratio / 2], atol=1.5 / 41)


@pytest.mark.truth("closed form: digits of the normal distribution, and errors counted on rows")
def test_the_generator_has_the_predictivity_that_it_says():
    rows = ShortcutRows(core=0.9, shortcut=0.7, availability=8.0)
    np.testing.assert_allclose(rows.strength, [0.5244005127, 1.2815515655], rtol=1e-9)
    assert rows.best_accuracy == pytest.approx(0.9169265773, rel=1e-9)
    x, label, z = rows.rows(40_000)
    for i, share in enumerate((0.7, 0.9)):
        assert float(((z[:, i] > 0) == (label == 1)).double().mean()) == pytest.approx(
            share, abs=0.01
        )
    spread = torch.linalg.svdvals(x.double() - x.double().mean(0))
    assert int((spread > 1e-4 * spread[0]).sum()) == 2
    assert float(spread[0] / spread[1]) == pytest.approx(8.0, rel=0.3)


@pytest.mark.truth("the best rule, and rules of one feature")
def test_the_best_rule_has_no_bias():
    rows = ShortcutRows(core=0.9, shortcut=0.7, dim=20)
    back = torch.linalg.pinv(rows.embedded(torch.eye(2, dtype=torch.float64)).double())
    z = rows.grid().double() @ back
    torch.testing.assert_close(z, torch.cartesian_prod(axis(), axis()), atol=1e-5, rtol=0)
    assert shortcut_bias(z @ rows.strength, rows).value == pytest.approx(0.0, abs=0.02)
    assert shortcut_bias(z[:, 0], rows).value > 1.0
    assert shortcut_bias(z[:, 1], rows).value < -0.3


@pytest.mark.truth("nets early in training lean on what is available")
def test_an_available_shortcut_is_used_early():
    found = {}
    for availability in (1.0, 8.0):
        rows = ShortcutRows(availability=availability)
        x, label, _ = rows.rows(600)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(100, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        steps = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(60):
            steps.zero_grad()
            odds = net(x)[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(odds, label.float()).backward()
            steps.step()
        found[availability] = shortcut_bias(net(rows.grid()).detach(), rows).value
    assert found[8.0] > 0.8 > 0.3 > abs(found[1.0])


def test_wrong_input_is_named():
    with pytest.raises(InputError, match=r"ShortcutRows: expected core in \(0.5, 1\), got 1.0"):
        ShortcutRows(core=1.0)
    with pytest.raises(InputError, match="expected 1681 answers, one for each row of grid"):
        shortcut_bias(torch.zeros(5), ShortcutRows())
    assert "dead" in shortcut_bias(torch.ones(1681), ShortcutRows()).flags
