"""Pictures of two domains, their partners, and a content code that is blind to negatives."""

import pytest
import torch

from sonde_studies._domain_swaps import Arm, Codes, brighter, fitted, likeness, partners, world
from sonde_studies.worlds.learning import digit_images, drawn


@pytest.mark.truth("the digits and the formula of each domain, picture by picture")
def test_twins_are_the_same_digits_in_the_other_domain():
    seen, (digits, label) = world(3), digit_images(3)
    assert torch.equal(seen.label, label)
    dark = seen.domain == 1
    for bright, digit in zip(
        torch.cat([seen.x[~dark], seen.twin[dark]]),
        torch.cat([digits[~dark], digits[dark]]),
        strict=True,
    ):
        scale = bright.sum() / digit.sum()
        assert 0.6 <= float(scale) <= 1.0
        torch.testing.assert_close(bright, scale * digit)
    empty = torch.nn.functional.max_pool2d(digits, 3, 1, 1) == 0
    ground = torch.cat([seen.x[dark][empty[dark]], seen.twin[~dark][empty[~dark]]])
    assert float(ground.min()) >= 0.75 - 0.15 * 2**0.5 - 1e-6
    line = torch.linspace(-1, 1, 8)
    i = int(torch.nonzero(dark)[5])
    shade = 0.75 + 0.15 * (seen.toward[i, 0] * line + seen.toward[i, 1] * line[:, None])
    torch.testing.assert_close(seen.x[i, 0][empty[i, 0]], shade[empty[i, 0]])
    ramp = 0.3 * seen.toward[:, :1, None] * line + 0.3 * seen.toward[:, 1:, None] * line[:, None]
    found = torch.nn.functional.normalize(brighter(ramp[:, None]), dim=1)
    torch.testing.assert_close(found, seen.toward)


@pytest.mark.truth("the domains of both pictures")
def test_partners_are_of_the_other_domain_or_of_their_own():
    domain = torch.tensor([0, 1, 1, 0, 1, 1, 1])
    draw = torch.Generator().manual_seed(0)
    drawn_rows = torch.stack([partners(domain, draw) for _ in range(50)])
    assert bool((domain[drawn_rows] == 1 - domain).all())
    assert {*drawn_rows[:, 0].tolist()} == {1, 2, 4, 5, 6}
    assert bool((domain[partners(domain, draw, other=False)] == domain).all())


@pytest.mark.truth("a picture and its negative, at another contrast")
def test_a_content_code_without_signs_is_blind_to_negatives():
    x = world(1).x[:6]
    for signs in (False, True):
        net = drawn(lambda signs=signs: Codes(signs), 2).eval()
        with torch.no_grad():
            apart = float((net.content(x) - net.content(0.9 - 0.5 * x)).abs().max())
        # contrasts are made even but for the small number under the root
        assert apart > 0.05 if signs else apart < 0.02
    assert likeness(x, 0.3 + 0.5 * x) == pytest.approx(1.0, abs=1e-5)
    assert likeness(x, 0.9 - 0.5 * x) == pytest.approx(-1.0, abs=1e-5)


def test_each_part_of_a_training_changes_the_codes():
    seen = world(2)[:200]
    whole = fitted(seen.x, seen.domain, Arm(), 0, 4)
    before = whole.content(seen.x[:3])
    for arm in (Arm(swaps=False), Arm(again=False), Arm(adversary=False)):
        other = fitted(seen.x, seen.domain, arm, 0, 4)
        assert not torch.allclose(other.content(seen.x[:3]), before)
    again = fitted(seen.x, seen.domain, Arm(), 0, 4)
    assert torch.equal(again.content(seen.x[:3]), before)
