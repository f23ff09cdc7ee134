"""Equal experts held once."""

import copy
import io

import pytest
import torch

from compress.mixture_case import inputs, mixture
from sonde.compress import MergeExperts, share_experts


@pytest.mark.truth("the answers of the model that holds every copy")
def test_a_model_with_merged_experts_is_smaller_and_the_same():
    model = mixture()
    plan = MergeExperts(keep=0.4).plan(model, {"calibration": inputs(model)})
    new = plan.fold(model)
    shared = share_experts(new)
    ids = torch.arange(1, 31).reshape(2, 15)
    with torch.no_grad():
        # tokens of equal experts are multiplied together, which rounds otherwise
        torch.testing.assert_close(shared(ids).logits, new(ids).logits, rtol=1e-6, atol=1e-6)
        assert not torch.equal(new(ids).logits, model.module(ids).logits)
        out = shared.generate(ids, max_new_tokens=4, do_sample=False)
        assert out.equal(new.generate(ids, max_new_tokens=4, do_sample=False))
    one = 3 * 8 * 8  # the numbers of an expert
    n_saved = sum(p.numel() for p in new.parameters()) - sum(p.numel() for p in shared.parameters())
    assert n_saved == 6 * one
    file = io.BytesIO()
    torch.save(shared, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(ids).logits, shared(ids).logits)
    copied = copy.deepcopy(shared)
    assert torch.equal(copied(ids).logits, shared(ids).logits)


def test_different_experts_stay():
    model = mixture()
    same = share_experts(model)
    assert [n for n, _ in same.named_parameters()] == [
        n for n, _ in model.module.named_parameters()
    ]
