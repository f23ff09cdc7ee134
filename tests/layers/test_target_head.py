"""Scores against given vectors."""

import math

import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.layers import TargetHead
from sonde.layers.target_head import blended


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return float((a @ b / (a.norm() * b.norm())).detach())


@pytest.mark.truth("closed form: orthonormal vectors; cosines in a loop")
def test_scores():
    eye = torch.eye(3, dtype=torch.float64)
    head = TargetHead.of(eye, 3, temperature=0.1, project=False)
    torch.testing.assert_close(head(eye), 10.0 * eye)
    vectors, x = draw(4, 2, 5), draw(6, 3, seed=1)
    for reduce in ("max", "lse"):
        head = TargetHead.of(vectors, 3, temperature=0.3, reduce=reduce)
        found = head(x)
        for i in range(6):
            for c in range(4):
                pair = [cosine(head.project.weight @ x[i], v) for v in vectors[c]]
                wanted = max(pair) / 0.3
                if reduce == "lse":
                    wanted = math.log(sum(math.exp(p / 0.3) for p in pair) / 2)
                assert float(found[i, c].detach()) == pytest.approx(wanted, abs=1e-10)
    more = torch.cat((vectors, draw(1, 2, 5, seed=3)))
    torch.testing.assert_close(head(x, more)[:, :4], head(x))
    assert not head.targets.requires_grad


@pytest.mark.truth("value printed in the handbook, and both heads by hand")
def test_blend():
    a, b = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    assert blended(a, b, 0.4).tolist() == pytest.approx([0.456753, 0.301345, 0.241902], abs=1e-6)
    torch.testing.assert_close(blended(a, b, 0.0), a)
    torch.testing.assert_close(blended(a, b, 1.0), b)
    head = TargetHead.of(draw(3, 5), 4, known=2, temperature=0.5, blend=(0.3, 0.9))
    x = draw(6, 4, seed=1)
    own, given = (head._logits(m(x), None, None).softmax(-1) for m in (head.trained, head.project))
    mixed = own ** torch.tensor([0.7, 0.7, 0.1]) * given ** torch.tensor([0.3, 0.3, 0.9])
    wanted = mixed / mixed.sum(1, keepdim=True)
    torch.testing.assert_close(head(x).exp(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("tokens in a loop")
def test_tokens():
    head = TargetHead.of(draw(3, 5), 4, local=True, top_tokens=2, temperature=0.5)
    x, mask = draw(2, 6, 4, seed=1), torch.arange(6).expand(2, 6) < torch.tensor([[4], [6]])
    for row in range(2):
        real = (x[row] @ head.project.weight.T)[mask[row]]
        for c in range(3):
            each = sorted((cosine(h, head.targets[c, 0]) for h in real), reverse=True)
            wanted = cosine(real.mean(0), head.targets[c, 0]) + (each[0] + each[1]) / 2
            found = float(head(x, mask=mask)[row, c].detach())
            assert found == pytest.approx(wanted / (2 * 0.5), abs=1e-10)
    maps = head.maps(x)
    assert maps.shape == (2, 6, 3)
    one = cosine(head.project.weight @ x[1, 4], head.targets[2, 0]) / 0.5
    assert float(maps[1, 4, 2].detach()) == pytest.approx(one, abs=1e-10)
    torch.testing.assert_close(TargetHead(3, 4, 5).targets.norm(dim=-1), torch.ones(4, 1))
    with pytest.raises(InputError, match="2 real tokens"):
        head(x, mask=torch.arange(6).expand(2, 6) < 1)
    with pytest.raises(InputError, match="2 real tokens in a row, got 1"):
        head(x[:, :1])
    with pytest.raises(ShapeError, match="width=5"):
        head(x, draw(3, 4))
