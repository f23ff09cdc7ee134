"""Merged experts: permuted copies, assignments by enumeration, means by hand."""

from itertools import permutations

import pytest
import torch

from compress.mixture_case import inputs, mixture
from sonde.compress import MergeExperts, expert_use
from sonde.compress.merge_experts import heads_of, matching
from sonde.core import InputError, StateError

NAME = "model.layers.0.mlp.experts"


@pytest.mark.truth("all permutations of five hidden units")
def test_the_assignment_is_the_best_of_all():
    draw = torch.Generator().manual_seed(3)
    up, up2 = torch.randn(2, 10, 4, generator=draw, dtype=torch.float64)
    down, down2 = torch.randn(2, 4, 5, generator=draw, dtype=torch.float64)

    def likeness(order):
        order = list(order)
        return float(
            (up[:5] * up2[:5][order]).sum()
            + (up[5:] * up2[5:][order]).sum()
            + (down * down2[:, order]).sum()
        )

    best = max(permutations(range(5)), key=likeness)
    assert matching(up, down, up2, down2).tolist() == list(best)


@pytest.mark.truth("one expert, copied and permuted")
def test_permuted_copies_merge_to_the_original():
    model, draw = mixture(layers=1), torch.Generator().manual_seed(2)
    experts = model.module.get_submodule(NAME)
    with torch.no_grad():
        for e in range(1, 5):
            order = torch.randperm(8, generator=draw)
            up = experts.gate_up_proj[0].unflatten(0, (2, 8))[:, order]
            experts.gate_up_proj[e] = up.flatten(0, 1)
            experts.down_proj[e] = experts.down_proj[0][:, order]
    plan = MergeExperts(keep=0.2).plan(model, {"calibration": inputs(model)})
    ids = torch.arange(1, 20)[None]
    new = plan.fold(model)
    assert plan.figures["n_kept"] == 1
    torch.testing.assert_close(new(ids).logits, model.module(ids).logits)
    apart = MergeExperts(keep=0.2, align=False).plan(model, {"calibration": inputs(model)})
    gap = (apart.fold(model)(ids).logits - model.module(ids).logits).abs().max()
    assert gap > 0.01


@pytest.mark.truth("groups and means from the model's own router scores")
def test_groups_and_means_are_those_of_the_router():
    model = mixture(n_experts=6)
    use = expert_use(model, inputs(model))
    plan = MergeExperts(keep=0.5, align=False).plan(model, {"calibration": use})
    shares = torch.cat([use.share(0), use.share(1)])
    floor = shares.sort(descending=True).values[5]
    n_kept = 0
    for layer in range(2):
        stay = [e for e in range(6) if use.share(layer)[e] >= floor]
        n_kept += len(stay)
        scores = use.grams[layer]
        old = model.module.get_parameter(f"model.layers.{layer}.mlp.experts.down_proj").detach()
        new = plan.changes[f"model.layers.{layer}.mlp.experts.down_proj"].values
        groups = {h: [h] for h in stay}
        for e in set(range(6)) - set(stay):
            cosine = {h: float(scores[e, h] / (scores[e, e] * scores[h, h]) ** 0.5) for h in stay}
            groups[max(cosine, key=cosine.__getitem__)].append(e)
        for group in groups.values():
            n = use.counts[layer][group].double()
            mean = sum(w * old[e].double() for w, e in zip(n / n.sum(), group, strict=True))
            for e in group:
                torch.testing.assert_close(new[e].double(), mean, rtol=1e-6, atol=1e-7)
    assert n_kept == plan.figures["n_kept"] == 6


def test_no_group_is_larger_than_its_capacity():
    like = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    like[:, 2] = 1.0
    share = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.8, 0.0, 0.4], dtype=torch.float64)
    head = heads_of(like, torch.tensor([2, 4]), share, 4)
    assert torch.bincount(head).tolist() == [0, 0, 4, 0, 3]
    assert head[[2, 4, 6, 3, 1]].tolist() == [2, 4, 2, 2, 2]  # the most used choose first
    with pytest.raises(InputError, match=r"room for 7 experts, got 2 of at most 3\."):
        heads_of(like, torch.tensor([2, 4]), share, 3)


def test_other_models_are_refused():
    model = mixture()
    with pytest.raises(StateError, match="measured with other weights than this model has"):
        MergeExperts().plan(mixture(seed=1), {"calibration": expert_use(model, inputs(model))})
    with pytest.raises(InputError, match=r"stacked experts .* got none in Linear"):
        MergeExperts().plan(torch.nn.Linear(3, 2), {"calibration": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"keep in \(0, 1\], got 0\.0"):
        MergeExperts(keep=0.0)
