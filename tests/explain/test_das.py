"""Subspaces that are exchanged, for a variable planted along a known direction."""

from typing import Any

import pytest
import torch
from torch import nn

import sonde
from circuits import linear
from narrow import present
from sonde.core import InputError, ShapeError
from sonde.explain import Das, InterchangeIntervention
from sonde.tap import Tap


def planted() -> tuple[Any, torch.Tensor]:
    """Return a net of the signs of two numbers, and the axes of its hidden layer."""
    drawn = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    axes = torch.linalg.qr(drawn)[0]
    head = torch.zeros(4, 6)
    head[:, 0] = torch.tensor([-4.0, -4.0, 4.0, 4.0])  # class = 2 [a > 0] + [b > 0]
    head[:, 1] = torch.tensor([-4.0, 4.0, -4.0, 4.0])
    return nn.Sequential(linear(axes), linear(head.double() @ axes.T)), axes


def pairs(n: int = 128):
    generator = torch.Generator().manual_seed(1)
    base, source = torch.randn(2, n, 6, generator=generator, dtype=torch.float64)
    expected = 2 * (source[:, 0] > 0).long() + (base[:, 1] > 0).long()
    return base, source, expected


def given() -> dict[str, Any]:
    """Return the pairs by name, at the site of the variable."""
    base, source, expected = pairs()
    return {"inputs": base, "source": source, "expected": expected, "site": "0"}


@pytest.mark.truth("the direction along which the variable was planted")
def test_the_planted_direction_is_found():
    net, axes = planted()
    found = Das(steps=60, rate=0.1).fit(net, *pairs(), "0")
    assert float(found) == pytest.approx(1.0, abs=0.04)
    assert float(present(found.null)) < 0.8
    angle = torch.rad2deg(torch.acos((present(found.subspace)[:, 0].double() @ axes[:, 0]).abs()))
    assert float(angle) < 5
    assert found.losses[-1] < found.losses[0]


@pytest.mark.truth("closed form: exchanged along the planted direction, the answer is known")
def test_the_true_subspace_gives_every_answer_and_the_whole_site_does_not():
    net, axes = planted()
    judge = InterchangeIntervention()
    assert float(judge.explain(net, **given(), subspace=axes[:, :1])) == 1.0
    base, source, expected = pairs()
    whole = judge.explain(net, base, source=source, expected=expected, site="0")
    share = (expected == net(source).argmax(1)).double()
    assert float(whole) == pytest.approx(float(share.mean()))
    assert present(whole.se) == pytest.approx(float(share.std()) / len(share) ** 0.5)
    assert whole.unpatched == pytest.approx(
        float((expected == net(base).argmax(1)).double().mean())
    )


@pytest.mark.truth("the exchange along the drawn direction by hand")
def test_the_null_is_the_accuracy_of_a_drawn_direction():
    net, axes = planted()
    base, source, expected = pairs()
    found = InterchangeIntervention(seed=4).explain(net, **given(), subspace=axes[:, :1])
    drawn = torch.randn(6, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    unit = drawn / drawn.norm()
    moved = net[0](base) + (net[0](source) - net[0](base)) @ unit @ unit.T
    right = (net[1](moved).argmax(1) == expected).double().mean()
    assert present(found.null) == pytest.approx(float(right))
    assert 0.3 < float(right) < 0.9


@pytest.mark.truth("answers at the last position, which takes its own state alone")
def test_one_position_is_exchanged():
    net, axes = planted()
    base, source, expected = pairs()
    others = torch.randn(2, 128, 6, generator=torch.Generator().manual_seed(7)).double()
    texts = [torch.stack(two, 1) for two in zip(others, (base, source), strict=True)]
    judge, column = InterchangeIntervention(), axes[:, :1]
    shares = {
        at: judge.explain(
            net,
            texts[0],
            source=texts[1],
            expected=expected,
            site="0",
            subspace=column,
            position=at,
        )
        for at in (0, 1)
    }
    assert float(shares[0]) == shares[0].unpatched < 0.8
    assert float(shares[1]) == 1.0
    with pytest.raises(InputError, match=r"position in -2\.\.1"):
        judge.explain(net, texts[0], source=texts[1], expected=expected, site="0", position=2)
    with pytest.raises(InputError, match="states with positions"):
        judge.explain(net, **given(), position=0)


def test_the_edit_gives_the_answers_and_is_a_projection():
    net, axes = planted()
    base, source, expected = pairs()
    edit = InterchangeIntervention().explain(net, **given(), subspace=axes[:, :1]).edit()
    with Tap(net, "0") as tap:
        net(source)
    other = {"source": tap.rows}
    with sonde.editing(net, edit, "0", others=other):
        once = net(base)
        with sonde.editing(net, edit, "0", others=other):
            twice = net(base)
    assert bool((once.argmax(1) == expected).all())
    torch.testing.assert_close(once, twice)


def test_what_does_not_fit_is_refused():
    net, axes = planted()
    with pytest.raises(ShapeError, match="of 6 dimensions"):
        InterchangeIntervention().explain(net, **given(), subspace=axes[:3, :1])
    with pytest.raises(InputError, match="at most 6"):
        Das(k=7).fit(net, *pairs(), "0")
    with pytest.raises(InputError, match="Use Replace"):
        InterchangeIntervention().explain(net, **given()).edit()
    with pytest.raises(InputError, match=r"held_out in \(0, 1\), got 1\.0"):
        Das(held_out=1.0)
