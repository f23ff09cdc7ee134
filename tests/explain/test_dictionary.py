"""Dictionaries by hand: what they read, what they write, their files and their edits."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from sonde.core import EditContext, InputError, Site, StateError, StoreError
from sonde.explain import Dictionary, load_dictionary

N, DIM = 5, 3


def _made(**more):
    source = torch.Generator().manual_seed(0)
    shapes = {"encoder": (N, DIM), "bias": (N,), "centre": (DIM,)}
    shapes |= {"decoder": (N, DIM), "offset": (DIM,)}
    parts = {n: torch.randn(*s, generator=source) for n, s in shapes.items()}
    return Dictionary(**{**parts, **more})


X = torch.randn(4, 2, DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.truth("the formulas, row by row and feature by feature")
@pytest.mark.parametrize("act", ["relu", "topk", "abstopk", "jumprelu"])
def test_rows_are_read_and_rebuilt_by_the_formula(act):
    threshold = torch.full((N,), 0.4) if act == "jumprelu" else None
    skip = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(2))
    found = _made(act=act, k=2, threshold=threshold, skip=skip)
    z, out = found.encode(X), found.rebuild(X)
    assert z.shape == (4, 2, N)
    for place in ((0, 0), (3, 1)):
        x = X[place]
        pre = [float(found.encoder[i] @ (x - found.centre) + found.bias[i]) for i in range(N)]
        size = [abs(p) if act == "abstopk" else p for p in pre]
        top = sorted(range(N), key=lambda i: -size[i])[:2]
        want = {
            "relu": [max(p, 0.0) for p in pre],
            "jumprelu": [p if p > 0.4 else 0.0 for p in pre],
            "topk": [max(p, 0.0) if i in top else 0.0 for i, p in enumerate(pre)],
            "abstopk": [p if i in top else 0.0 for i, p in enumerate(pre)],
        }[act]
        assert z[place].tolist() == pytest.approx(want, abs=1e-5)
        sums = sum(v * found.decoder[i] for i, v in enumerate(want)) + found.offset + skip @ x
        torch.testing.assert_close(out[place], sums)


@pytest.mark.truth("lengths by hand")
def test_shares_are_lengths_in_the_scale_of_each_site():
    found = _made(widths=(1, 2), scales=(2.0, 0.5))
    first = 2.0 * found.decoder[:, 0].abs()
    second = 0.5 * found.decoder[:, 1:].norm(dim=1)
    torch.testing.assert_close(found.shares[0], first / (first + second))
    with pytest.raises(InputError, match="3 units in and 3 out, of 2 sites"):
        found.edit()


def test_figures_that_are_not_known_are_said_so():
    found = _made()
    assert math.isnan(found.l0)
    assert math.isnan(found.dead_share)
    density = torch.tensor([0.5, 0.0, 0.25, 0.0, 0.0]).double()
    found = _made(value=0.1, density=density, n=8)
    assert (found.l0, found.dead_share) == (0.75, pytest.approx(0.6))
    assert [row["value"] for row in found.table().to_pylist()] == density.tolist()


@pytest.mark.truth("x + strength ((value - z) d) by hand, and a weighted mean")
def test_edits_act_with_their_strength():
    found, site, context = _made(act="relu"), Site("0"), EditContext()
    z = found.encode(X)
    gap = (torch.tensor([2.0, -1.0]) - z[..., [1, 4]]) @ found.decoder[[1, 4]]
    edit = found.edit(0.25, features={4: -1.0, 1: 2.0})
    torch.testing.assert_close(edit.apply(X, site, context), X + 0.25 * gap)
    half = found.edit(0.5).apply(X, site, context)
    torch.testing.assert_close(half, (X + found.rebuild(X)) / 2)
    first = found.edit(features={0: 3.0}).apply(X, site, context)
    torch.testing.assert_close(first, X + (3.0 - z[..., :1]) * found.decoder[0])
    with pytest.raises(InputError, match=r"features from 0 to 4, got \[-1, 5\]"):
        found.edit(features={5: 1.0, 0: 1.0, -1: 1.0})


@pytest.mark.truth("the formula of the layout: the offset is taken off rows and added again")
def test_a_centre_beside_the_offset_is_kept_in_the_layout_of_saelens(tmp_path):
    found = _made(act="relu")
    found.save_saelens(tmp_path)
    t = load_file(tmp_path / "sae_weights.safetensors")
    z = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    torch.testing.assert_close(z, found.encode(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z @ t["W_dec"] + t["b_dec"], found.rebuild(X), rtol=1e-4, atol=1e-5)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "d.safetensors"
    _made(act="topk", k=2, value=0.5, n=3).save(path, site="layers.0")
    good = load_file(path)
    told = {"format": "sonde-dictionary/1", "act": "topk", "k": 2, "widths": [], "scales": []}
    told |= {"site": "", "n": 3, "value": None}

    def written(tensors, about):
        save_file(tensors, path, {"sonde": json.dumps(about)})
        return path

    assert math.isnan(float(load_dictionary(written(good, told))))
    for tensors, about, said in (
        (good, told | {"format": "other"}, "another safetensors file"),
        (good, {k: v for k, v in told.items() if k != "act"}, "is damaged"),
        ({n: t for n, t in good.items() if n != "bias"}, told, "is damaged"),
        (good | {"decoder": good["decoder"][:-1]}, told, "contradict each other"),
        (good, told | {"k": 0}, "contradict each other"),
        (good, told | {"act": "jumprelu"}, "contradict each other"),
    ):
        with pytest.raises(StateError, match=said):
            load_dictionary(written(tensors, about))
    with pytest.raises(StoreError, match=r"no cfg\.json"):
        load_dictionary(tmp_path)
    (tmp_path / "cfg.json").write_text('{"architecture": "temporal"}')
    save_file(good, tmp_path / "sae_weights.safetensors")
    with pytest.raises(StateError, match="got temporal"):
        load_dictionary(tmp_path)
