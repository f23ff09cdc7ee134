"""Merged experts: permuted copies, assignments by enumeration, means by hand."""

import copy
import json
from itertools import combinations, permutations

import pytest
import torch
from transformers import MixtralForCausalLM

import sonde
from cli_case import run_words
from compress.mixture_case import inputs, mixture
from sonde.compress import MergeExperts, expert_use
from sonde.compress.merge_experts import heads_of, matching, thin_and_columns
from sonde.core import InputError, StateError
from sonde.core.repacking import count_weights
from sonde.run.compressing.document import held_bytes
from sonde.weights import undo, unpacked
from sonde.weights.folder import weight_bytes

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
    with pytest.raises(StateError, match="measured on another model"):
        MergeExperts().plan(mixture(seed=1), {"calibration": expert_use(model, inputs(model))})
    with pytest.raises(InputError, match=r"stacked experts .* got none in Linear"):
        MergeExperts().plan(torch.nn.Linear(3, 2), {"calibration": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"keep in \(0, 1\], got 0\.0"):
        MergeExperts(keep=0.0)


@pytest.mark.truth("all choices of columns, and numpy's singular values")
def test_columns_are_the_best_of_all_choices_beside_the_nearest_thin_matrix():
    w = torch.randn(6, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    w[:, [2, 7]] *= 3.0
    left, right, columns, values = thin_and_columns(w, 0.7, 0.4)
    assert (left.shape[1], len(columns)) == (1, 2)  # 37.8 numbers: 2 x 7 and 1 x 15
    import numpy as np

    u, s, v = np.linalg.svd(w.numpy(), full_matrices=False)
    rest = w - torch.from_numpy(s[0] * np.outer(u[:, 0], v[0]))
    torch.testing.assert_close(w - left @ right, rest)
    made = left @ right
    made[:, columns] += values

    def error(kept):
        return float(rest[:, [j for j in range(9) if j not in kept]].square().sum())

    best = min(combinations(range(9), 2), key=error)
    assert tuple(columns.tolist()) == best
    assert float((w - made).square().sum()) == pytest.approx(error(best))
    torch.testing.assert_close(made[:, columns], w[:, columns])
    assert thin_and_columns(w, 0.7, 0.0)[0].shape[1] == 2
    left, _, columns, values = thin_and_columns(w, 1.0, 0.4)
    assert left.shape[1] == 0
    assert torch.equal(values, w[:, columns])
    assert len(columns) == 9


@pytest.mark.slow
@pytest.mark.truth("the plan with every copy, and the matrices joined by hand")
def test_shared_experts_answer_alike_in_memory_and_in_a_folder(tmp_path):
    mixture(dim=16).module.save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    ids, use = torch.arange(1, 31).reshape(2, 15), expert_use(model, inputs(model))
    whole = MergeExperts(keep=0.4).plan(model, {"calibration": use})
    merged = whole.fold(model)
    wanted = {1.0: merged(ids).logits}
    joined = copy.deepcopy(merged)
    for name in whole.changes:
        stack = joined.get_parameter(name)
        for i, w in enumerate(stack.detach().clone()):
            left, right, columns, values = thin_and_columns(w, 0.6, 0.5)
            stack.data[i] = left @ right
            stack.data[i][:, columns] += values
    wanted[0.6] = joined(ids).logits
    assert (wanted[0.6] - wanted[1.0]).abs().max() > 0.01
    held = [held_bytes(merged)]
    for size, logits in wanted.items():
        plan = MergeExperts(keep=0.4, shared=True, size=size, residual=0.5).plan(
            model, {"calibration": use}
        )
        new = plan.fold(model)
        plan.save(model, tmp_path / f"{size}")
        opened = sonde.load(str(tmp_path / f"{size}"), device="cpu").module
        plain = MixtralForCausalLM.from_pretrained(tmp_path / f"{size}").eval()
        for one in (new, opened, plain, copy.deepcopy(new), unpacked(new)):
            torch.testing.assert_close(one(ids).logits, logits, rtol=1e-5, atol=1e-5)
        assert count_weights(opened) == count_weights(model.module)
        held.append(held_bytes(opened))
        undo(tmp_path / f"{size}", tmp_path / f"back {size}")
        back = sonde.load(str(tmp_path / f"back {size}"), device="cpu").module
        assert torch.equal(back(ids).logits, model.module(ids).logits)
    one = 4 * 3 * 16 * 16  # bytes of an expert
    assert held[0] - held[1] > 6 * one - 2000  # four of ten are left; columns have places
    assert held[1] - held[2] > 0.35 * 4 * one
    sizes = [weight_bytes(tmp_path / name) for name in ("old", "1.0", "0.6")]
    assert sizes[0] - sizes[1] > 5 * one
    assert sizes[1] > sizes[2]
    assert torch.equal(merged(ids).logits, MergeExperts(keep=0.4, shared=True).plan(
        model, {"calibration": use}).fold(model)(ids).logits)  # fmt: skip


@pytest.mark.slow
def test_the_command_shares_and_compresses_experts(tmp_path):
    mixture(dim=16).module.save_pretrained(tmp_path / "old")
    draw = torch.Generator().manual_seed(0)
    lines = [{"input_ids": torch.randint(1, 32, (12,), generator=draw).tolist()} for _ in range(24)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ratio = {}
    for word in ("merge_experts(keep=0.4)", "merge_experts(keep=0.4,shared=True)",
                 "merge_experts(keep=0.4,size=0.5)"):  # fmt: skip
        told = run_words(
            "compress", tmp_path / "old", tmp_path / "texts.jsonl", "--method", word,
            "--limit", 12, "--held", 8, "-o", tmp_path / f"new {len(ratio)}", "--json",
        ).json()  # fmt: skip
        ratio[word] = told["bytes"][1] / told["bytes"][0]
    plain, shared, small = ratio.values()
    assert plain > 0.95
    assert shared < 0.7 * plain
    assert small < 0.8 * shared
