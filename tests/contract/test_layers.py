"""Every exported layer, with each of its examples, against every law of layers."""

import copy

import pytest
import torch
from torch import nn

import sonde
from sonde import layers
from sonde.core.errors import InputError
from sonde.layers import Layer
from sonde.testing import LayerCase, causal_model, laws_of
from sonde.testing.layer_laws import has_floats, has_tokens, moved, outputs


def feed_forward():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def batch_norm():
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), 0.5 + torch.rand(4)
    return norm


def made_by_hand():
    """Layers that wrap a module of the user, which no ``examples`` can hold."""
    return (
        layers.ParallelAdapters(feed_forward(), 4, 2, width=3),
        layers.ParallelAdapters(feed_forward(), 4, 2, gated=True),
        layers.UnMixNorm(batch_norm(), 3),
        layers.UnMixNorm(batch_norm(), 3, within=True, spread=0.2),
    )


def of_ids():
    """Layers that read whole numbers."""
    ids = torch.tensor([[3, 0], [1, 4], [3, 2]])
    kinds = ({"lookups": 2}, {"tables": "per_field"}, {"tables": "decoupled"})
    tables = [layers.SharedTable(2, 4, size=7, **kind) for kind in kinds]
    loop = layers.LatentLoop(causal_model().requires_grad_(False), 2)
    return [LayerCase(layer, (ids,)) for layer in (*tables, loop)]


def forks():
    """A layer that takes what the user's modules take."""
    fork = layers.Fork(nn.Linear(4, 3), [nn.Linear(3, 2), nn.Linear(3, 5)])
    return [LayerCase(fork, (torch.randn(3, 5, 4),))]


def cases():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        exported = (getattr(layers, name) for name in layers.__all__)
        kinds = [k for k in exported if isinstance(k, type) and issubclass(k, Layer)]
        made = [kind(**p) for kind in kinds if kind is not Layer for p in kind.examples]
        return [*(LayerCase(layer) for layer in (*made, *made_by_hand())), *of_ids(), *forks()]


CASES = cases()


def test_exported_set_is_tested_set():
    exported = (getattr(layers, name) for name in layers.__all__)
    kinds = {k for k in exported if isinstance(k, type) and issubclass(k, nn.Module)}
    assert {type(case.layer) for case in CASES} == kinds - {Layer}


@pytest.mark.parametrize(
    ("case", "law"),
    [pytest.param(c, law, id=f"{c!r}-{law.name}") for c in CASES for law in laws_of(c)],
)
def test_laws(case, law):
    law.hold(case)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_wrong_rank_or_width_names_the_axes(case):
    words = case.layer.layout[0]
    if words.startswith("*") and "dim" not in words:
        pytest.skip("takes any shape")
    wide = torch.zeros(*case.drawn()[0].shape[:-1], 99)
    sized = getattr(case.layer, words.split()[-1], None)
    with pytest.raises(ValueError, match=words.split()[-1].lstrip("*")):
        case.layer(wide if isinstance(sized, int) else torch.zeros(2))


MASKED = [c for c in CASES if has_tokens(c) and len(c.layer.layout) == 1]


@pytest.mark.parametrize("case", MASKED, ids=repr)
def test_a_mask_that_leaves_a_row_empty_is_refused(case):
    (x,) = case.drawn()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[1] = False
    with pytest.raises(InputError, match=f"expected a real {case.layer.layout[0].split()[1]}"):
        case.layer(x, mask=mask)


INSERTABLE = [c for c in CASES if c.layer.insertable and len(c.layer.layout) == 1]


@pytest.mark.parametrize("case", INSERTABLE, ids=repr)
def test_a_layer_comes_back_from_its_file(case, tmp_path):
    host = sonde.inserted(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), {"0": moved(case.layer)})
    own = layers.inserted_layers(host)["0"].eval()
    back = layers.load_layers(layers.save_layers(host, tmp_path / "one"))["0"].eval()
    x = tuple(t.float() for t in case.drawn())
    torch.manual_seed(1)
    wanted = outputs(own, x)
    torch.manual_seed(1)
    assert all(map(torch.equal, outputs(back, x), wanted))
    assert repr(LayerCase(back)) == repr(LayerCase(case.layer))


@pytest.mark.parametrize("case", [c for c in CASES if has_floats(c)], ids=repr)
def test_layers_run_under_autocast(case):
    own, x = moved(case.layer).float(), tuple(t.float() for t in case.drawn())
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(own, x)
    for y, wanted in zip(found, outputs(copy.deepcopy(own), x), strict=True):
        error = (y.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert float(error) < 0.03 or not case.layer.bfloat16_safe
