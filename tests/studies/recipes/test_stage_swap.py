"""Halves of models: cut and joined again, nets that a linear map turns into one another."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from sonde import InputError, Model, load
from sonde_studies.parts.halves import cuts_of
from sonde_studies.recipes.family_of_models import family_of_models
from sonde_studies.recipes.stage_swap import stage_swap


def linear_nets(widths=(6, 6, 7), seed=0):
    """Return nets whose fronts can be undone by a linear map, and rows with labels."""
    torch.manual_seed(seed)
    nets = [nn.Sequential(nn.Linear(5, w), nn.Sequential(nn.Linear(w, 4))).eval() for w in widths]
    x = torch.randn(211, 5)
    label = torch.randint(0, 4, (211,))
    items = [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]
    return nets, x, label, items


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.first(x).relu().mean((2, 3)))


@pytest.mark.slow
@pytest.mark.truth("the models' own logits")
@pytest.mark.parametrize("kind", ["tokens", "pictures"])
def test_a_model_that_is_cut_and_joined_answers_as_before(kind):
    if kind == "tokens":
        model, data, site = load("sonde:digits"), "sonde:digits/test", "layers.1"
    else:
        torch.manual_seed(1)
        model, site = Model(Pictures().eval()), "first"
        data = [{"x": torch.randn(1, 4, 5), "label": i % 4} for i in range(60)]
    (cut,) = cuts_of("stage_swap", [model], data, site, 0)
    (half,), held = cut.halves, cut.held
    inputs = half.inputs
    states, said = half.front(held), []
    with torch.no_grad():
        for batch in inputs.at(held.numpy()).batches(0, len(held)):
            found = model.module(*batch.args, **batch.kwargs)
            said.append(getattr(found, "logits", found))
        got, moved = half.back(states), half.back(3 * states)
    assert torch.allclose(got, torch.cat(said), atol=1e-5)
    assert not torch.allclose(moved, torch.cat(said), atol=0.1)


@pytest.mark.truth("fronts that a linear map undoes: a net answers as the net of its back")
def test_a_swapped_net_answers_as_the_net_of_its_back():
    nets, x, label, items = linear_nets()
    models = [Model(net) for net in nets]
    found = stage_swap(
        models[0], models[1], items, third=models[2], sites="0", seed=3, progress=False
    )
    held = cuts_of("stage_swap", models, items, "0", 3)[0].held
    with torch.no_grad():
        want = [float((n(x[held]).argmax(1) == label[held]).double().mean()) for n in nets]
    for row in found.rows:
        got = [row[f"back of {name}"] for name in ("first", "second", "third")]
        assert got == pytest.approx(want, abs=0.011)  # a row may change sides: the map has a ridge
    assert max(want) - min(want) > 0.03
    assert float(found.value) < 0.05


@pytest.mark.slow
@pytest.mark.truth("which end of which net was damaged")
@pytest.mark.parametrize("end", ["front", "back"])
@pytest.mark.parametrize("is_related", [True, False])
def test_the_damaged_end_is_named_in_both_directions(end, is_related):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, generator=draw)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw))[0]
    plain = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 3)))
    with torch.no_grad():
        plain[0].weight.copy_(torch.eye(6))
        plain[1][0].weight.copy_(3 * torch.eye(6)[:3])
        for part in (plain[0], plain[1][0]):
            part.bias.zero_()
    other = deepcopy(plain)
    label = plain(x).argmax(1)
    with torch.no_grad():
        if not is_related:
            other[0].weight.copy_(turn)
            other[1][0].weight.copy_(plain[1][0].weight @ turn.T)
        if end == "front":
            other[0].weight.copy_(other[0].weight @ torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 1])))
        else:
            other[1][0].weight[0] = 0
    items = [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]
    models = [Model(net.eval()) for net in (plain, other)]
    for first, second in (models, models[::-1]):
        found = stage_swap(first, second, items, sites="0", progress=False)
        part = "front or the back" if end == "back" and not is_related else end
        assert found.verdict == f"the {part} differs"
        assert ("one origin" in found.facts["map between models"]) == is_related
    assert stage_swap(models[0], models[0], items, sites="0", progress=False).verdict == (
        "they are alike"
    )


@pytest.mark.slow
@pytest.mark.truth("one front on two backs")
def test_a_shared_front_hands_over_without_a_map():
    (first, second, wide), x, _, items = linear_nets(seed=5)
    shared = nn.Sequential(first[0], second[1]).eval()
    for item, row in zip(items, x, strict=True):
        item["label"] = int(shared(row[None]).argmax())
    found = family_of_models(Model(first), Model(shared), items, sites="0", progress=False)
    for item, row in zip(items, x, strict=True):
        item["label"] = int(second(row[None]).argmax())
    large = float(found.facts["large model"])
    assert found.rows[0]["as they are"] == pytest.approx(large, abs=1e-4)
    assert found.verdict == "hand over"
    alone = family_of_models(Model(first), Model(second), items, sites="0", progress=False)
    assert alone.verdict == "only with a map"
    other = family_of_models(Model(first), Model(wide), items, sites="0", progress=False)
    assert other.rows[0]["as they are"] is None


def test_rows_without_labels_and_few_rows_are_refused():
    nets, _, _, items = linear_nets()
    a, b = Model(nets[0]), Model(nets[1])
    bare = [{"x": item["x"]} for item in items]
    with pytest.raises(InputError, match=r"10[56] without a label"):
        stage_swap(a, b, bare, sites="0", progress=False)
    with pytest.raises(InputError, match="40 or more"):
        stage_swap(a, b, items[:30], sites="0", progress=False)


@pytest.mark.truth("labels that name the outputs in reverse")
def test_labels_in_another_order_than_the_outputs_are_told():
    nets, x, _, items = linear_nets()
    names = ["d", "c", "b", "a"]  # sorted, each has another place
    for item, row in zip(items, x, strict=True):
        item["label"] = names[int(nets[0](row[None]).argmax())]
    items[0]["label"] = items[1]["label"] = "b"  # a class that this net never names
    first, second = Model(nets[0]), Model(nets[0])
    with pytest.raises(InputError, match="3 is d: name the classes in the order"):
        stage_swap(first, second, items, sites="0", progress=False)
    found = family_of_models(first, second, items, sites="0", classes=names, progress=False)
    assert float(found.facts["small model"]) > 0.97
