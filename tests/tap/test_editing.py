"""Edits at live sites: exact, reversible, refused where they would lie."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cache_name import CACHE
from models import cnn, gpt2, llama, mlp, t5
from narrow import present
from sonde.core.edit import Add, Clamp, Edit, EditContext, Project, Replace, Scale
from sonde.core.errors import ShapeError, SiteError, StateError
from sonde.core.inputs import Model
from sonde.edit import Ablate
from sonde.tap import Tap, cache_of, editing, live_stream
from tap_inputs import Arrays, images, padded, texts
from tap_snapshot import assert_unchanged, snapshot

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.truth("the rest of the net applied to the changed states by hand")
@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (Scale(2.0), lambda h: 2 * h),
        (Add(torch.ones(16), 0.5), lambda h: h + 0.5),
        (Clamp(-0.1, 0.1), lambda h: h.clamp(-0.1, 0.1)),
        (Replace(torch.zeros(16)), torch.zeros_like),
        (Project(torch.eye(16)[3]), lambda h: h * (torch.arange(16) != 3)),
    ],
)
def test_an_edit_changes_what_follows(edit, change):
    net = mlp()
    with torch.no_grad():
        plain = net(X)
        with editing(net, edit, "0"):
            edited = net(X)
        assert torch.equal(edited, net[1:](change(net[0](X))))
        assert torch.equal(net(X), plain)
    for site in ("1:in", "0:out"):
        with torch.no_grad(), editing(net, edit, site):
            assert torch.equal(net(X), edited)


EDITS = [
    Add(torch.ones(16), 0.0),
    Project(torch.ones(16), 0.0),
    Scale(3.0, 0.0),
    Clamp(0.0, 1.0, 0.0),
]


@pytest.mark.parametrize("edit", [*EDITS, Replace(torch.zeros(16), 0.0)])
def test_strength_zero_passes_the_very_tensor_on(edit):
    net, seen = mlp(), {}
    net[0].register_forward_hook(lambda m, a, o: seen.update(out=o))
    net[1].register_forward_pre_hook(lambda m, a: seen.update(into=a[0]))
    with editing(net, edit, "0"):
        net(X)
    assert seen["out"] is seen["into"]


def test_the_model_is_as_it_was_and_keeps_its_mode():
    net = mlp().train()
    before = snapshot(net)
    with editing(net, Scale(2.0), ["0", "2:in"]):
        assert net.training
        net(X)
    assert_unchanged(before, net)
    with pytest.raises(ZeroDivisionError), editing(net, Scale(2.0), "0"):
        net(X + 1 / 0)
    assert_unchanged(before, net)


def test_streams_and_taps_inside_read_edited_states():
    net = mlp()
    stream = live_stream(Model(net), Arrays(X), ["0"])
    plain = next(iter(stream)).rows["0:out"]
    with editing(net, Scale(3.0), "0"):
        assert torch.equal(next(iter(stream)).rows["0:out"], 3 * plain)
    with Tap(net, "0") as tap, editing(net, Scale(3.0), "0"):
        net(X)
    assert torch.equal(tap.rows["0:out"], 3 * plain)


@pytest.mark.truth("channels scaled by hand")
def test_features_of_a_map_are_its_channels():
    net, x = cnn(), images(8, channels=1).x
    direction = torch.arange(8.0)
    with Tap(net, "conv1") as plain, torch.no_grad():
        net(x)
    with editing(net, Add(direction), "conv1"), Tap(net, "conv1") as tap, torch.no_grad():
        net(x)
    expected = plain.rows["conv1:out"] + direction[:, None, None]
    assert torch.equal(tap.rows["conv1:out"], expected)


def test_the_first_leaf_of_a_tuple_is_edited_and_the_rest_kept():
    net = t5()
    batch = next(texts([4, 3], targets=[[0, 5], [0, 6]]).batches(0, 2))
    with editing(net, Scale(2.0), "encoder.block.0"), Tap(net, "encoder.block.1:in") as tap:
        net(**batch.kwargs)
    with Tap(net, "encoder.block.0") as plain:
        net(**batch.kwargs)
    mask = batch.kwargs["attention_mask"].bool()
    edited, states = tap.rows["encoder.block.1:in"], plain.rows["encoder.block.0:out"]
    assert torch.equal(edited, torch.where(mask[..., None], 2 * states, states))


def test_calls_of_a_shared_module_can_be_chosen():
    shared = nn.Linear(8, 8)
    net = nn.Sequential(shared, nn.Identity(), shared)
    with torch.no_grad():
        two, both = shared(shared(X)), 2 * shared(2 * shared(X))
        with editing(net, Scale(2.0), "0@1"):
            assert torch.equal(net(X), 2 * two)
        with editing(net, Scale(2.0), "0"):
            assert torch.equal(net(X), both)
        with (
            pytest.raises(SiteError, match="known to be the last only after"),
            editing(net, Scale(2.0), "0@last"),
        ):
            net(X)


@dataclass(frozen=True)
class Spy(Edit):
    """Notes what it is told."""

    seen: list[EditContext] = field(default_factory=list)

    def apply(self, x, site, context):
        self.seen.append(context)
        return x


def test_an_edit_knows_mask_positions_and_step():
    ids, mask = padded([[1, 5, 6], [1, 7]], "left")
    spy = Spy()
    with editing(gpt2(), spy, "h.0"):
        net = gpt2()
    net = gpt2()
    with editing(net, spy, "h.0"):
        net(input_ids=ids, attention_mask=mask.long())
        net(input_ids=ids)
    first, second = spy.seen
    assert torch.equal(present(first.mask), mask)
    assert present(first.position).tolist() == [[0, 1, 2], [0, 0, 1]]
    assert present(second.position).tolist() == [[0, 1, 2]] * 2
    assert (second.mask, first.call, second.call) == (None, 0, 1)


def test_generation_under_an_edit_and_the_warm_cache():
    net = llama()
    ids = torch.tensor([[1, 5, 6]])
    spy = Spy()
    options = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), editing(net, spy, "layers.1"):
        net.generate(ids, **options)
    assert [present(c.position).shape[1] for c in spy.seen] == [3, 1, 1]
    assert present(spy.seen[2].position).tolist() == [[4]]
    with torch.no_grad():
        cache = cache_of(net(ids, use_cache=True))
        with (
            editing(net, spy, "layers.1"),
            pytest.raises(SiteError, match="filled without the edit"),
        ):
            net(ids[:, :1], **{CACHE: cache})


@dataclass(frozen=True)
class Widens(Edit):
    def apply(self, x, site, context):
        return torch.cat((x, x), dim=-1)


def test_edits_that_cannot_be_are_refused():
    net = mlp()
    with (
        pytest.raises(ShapeError, match=r"Widens.apply: expected shape \(4, 16\)"),
        editing(net, Widens(), "0"),
    ):
        net(X)
    with (
        pytest.raises(SiteError, match="gradients cannot be edited"),
        editing(net, Scale(2.0), "0:grad"),
    ):
        pass
    holder = nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)})
    holder.forward = lambda x: holder["used"](x)
    with (
        pytest.raises(SiteError, match=r"unused:out never ran"),
        editing(holder, Scale(2.0), "unused"),
    ):
        holder(X)


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("site", ["2", "2:in"])
def test_an_edit_in_a_checkpointed_part_is_refused_in_training(reentrant, site):
    net = Checkpointed(mlp(), reentrant)
    x = X.clone().requires_grad_()
    with (
        editing(net, Scale(3.0), f"net.{site}"),
        pytest.raises(StateError, match="recomputed in the backward"),
    ):
        net(x)
    with editing(net, Scale(3.0), "net.0"):
        net(x).sum().backward()  # runs before the part that is recomputed
    with torch.no_grad(), editing(net, Scale(3.0), f"net.{site}"):
        net(x)


class Checkpointed(nn.Module):
    """A net whose middle is recomputed in the backward pass."""

    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        run = self.net[1:4]
        return self.net[4](checkpoint(run, self.net[0](x), use_reentrant=self.reentrant))


@pytest.mark.truth("numeric gradients, and an edit made anew after each step")
@pytest.mark.parametrize("kind", [Project, Ablate])
def test_an_edit_of_a_trained_direction_follows_it(kind):
    net, x = mlp().double(), X.double()
    shape = (16, 2) if kind is Ablate else (16,)
    direction = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    edit, optimizer = kind(direction, strength=0.7), torch.optim.SGD([direction], 0.5)

    def edited(of):
        with editing(net, of, "2"):
            return net(x)

    for _ in range(2):
        optimizer.zero_grad()
        edited(edit).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(edited(edit), edited(kind(direction.detach().clone(), strength=0.7)))
    torch.autograd.gradcheck(lambda d: edited(kind(d, strength=0.7)), direction)
    still = kind(direction.detach(), strength=0.7)
    before = edited(still)
    with torch.no_grad():
        direction.neg_().add_(1.0)
    assert not torch.allclose(edited(still), before)
