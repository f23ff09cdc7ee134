import copy

import pytest
import torch

import sonde
from models import gpt2
from sonde.core import EditContext, InputError, Project, ShapeError, Site
from sonde.edit import Ablate, DirectionalAblation
from sonde.testing import check

SITE, NOTHING = Site("0"), EditContext()
WRITERS = ["transformer.wte", "transformer.wpe", "*.attn", "*.mlp"]


def two(seed=0, n=80, dim=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64) @ torch.rand(
        dim, dim, generator=generator, dtype=torch.float64
    )
    label = torch.arange(n) % 2
    return x + label[:, None] * torch.arange(dim), label


@pytest.mark.truth("the difference of means of all rows in memory")
def test_direction_and_centre():
    x, label = two()
    found = DirectionalAblation().fit(x, label)
    gap = x[label == 1].mean(0) - x[label == 0].mean(0)
    torch.testing.assert_close(found.vector * found.length, gap)
    torch.testing.assert_close(found.centre, x[label == 0].mean(0))
    spread = float((x @ found.vector).std(correction=0))
    assert found.value == pytest.approx(found.length / spread)
    moved = found.induce().apply(x[label == 0], SITE, NOTHING).mean(0)
    torch.testing.assert_close(moved, x[label == 1].mean(0))


def test_nothing_is_left_along_directions_that_are_not_at_right_angles():
    x, _ = two()
    a, b = torch.eye(6, dtype=torch.float64)[0], torch.full((6,), 0.5, dtype=torch.float64)
    edit = Ablate(torch.stack([a, b], 1))
    found = edit.apply(x, SITE, NOTHING)
    for direction in (a, b):
        assert float((found @ direction).abs().max()) < 1e-12
    torch.testing.assert_close(edit.apply(found, SITE, NOTHING), found)
    in_turn = Project(b).apply(Project(a).apply(x, SITE, NOTHING), SITE, NOTHING)
    assert float((in_turn @ a).abs().max()) > 0.1


def test_the_affine_form_keeps_the_usual_mean():
    x, label = two()
    found = DirectionalAblation().fit(x, label)
    usual = x[label == 0]
    kept = found.edit(affine=True).apply(usual, SITE, NOTHING)
    torch.testing.assert_close(kept.mean(0), usual.mean(0))
    assert float((kept @ found.vector).std()) < 1e-12
    half = found.edit(0.5, affine=True).apply(usual, SITE, NOTHING)
    torch.testing.assert_close(half, (kept + usual) / 2)


@pytest.mark.truth("weights of a GPT-2 with the direction projected out of all that writes states")
def test_edited_is_the_model_whose_writers_are_projected():
    model, ids = gpt2(), torch.arange(18).reshape(2, 9) + 3
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    edit = Ablate(direction[:, None])
    unit = direction / direction.norm()
    folded = copy.deepcopy(model)
    folded.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        body = folded.transformer
        body.wte.weight = torch.nn.Parameter(body.wte.weight.detach().clone())
        tables = [body.wte.weight, body.wpe.weight]
        for block in body.h:
            tables += [block.attn.c_proj.weight, block.mlp.c_proj.weight]
            tables += [block.attn.c_proj.bias[None], block.mlp.c_proj.bias[None]]
        for table in tables:
            table -= (table @ unit)[:, None] * unit
        want = folded(ids).logits
        with sonde.editing(model, edit, WRITERS), sonde.Tap(model, "*.h.*") as tap:
            got = model(ids).logits
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())
    left = max(float((rows @ unit).abs().max()) for rows in tap.rows.values())
    assert left < 1e-5


def test_laws():
    for made in Ablate.examples:
        check(Ablate(**made))


def test_what_is_no_direction_is_refused():
    x, label = two()
    found = DirectionalAblation().fit(x, label)
    with pytest.raises(InputError, match="expected a direction of length above 0, got length 0"):
        Ablate(torch.zeros(6, 1))
    with pytest.raises(InputError, match="expected a direction of length above 0, got length nan"):
        Ablate(torch.full((6, 1), float("nan")))
    with pytest.raises(InputError, match="expected linearly independent directions"):
        found.edit(others=[found])
    with pytest.raises(ShapeError, match="expected dim=6, that of its directions, got dim=5"):
        found.edit().apply(x[:, :5], SITE, NOTHING)
    with pytest.raises(InputError, match="rows of class 3 and of another"):
        DirectionalAblation(positive=3).fit(x, label)
    same = DirectionalAblation().fit(torch.ones(4, 2), [0, 1, 0, 1])
    assert "dead" in same.flags
    with pytest.raises(InputError, match="expected a direction"):
        same.induce()
