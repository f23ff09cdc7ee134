"""A tap leaves the model as it was, and reads what the next module receives, whatever happens."""

import threading
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import gpt2, mlp, resnet18
from narrow import expect
from sonde.core.edit import Scale
from sonde.core.inputs import Model
from sonde.tap import Tap, editing, live_stream
from sonde.tap.hooks.session import Stop
from tap_inputs import Arrays, images, texts
from tap_snapshot import assert_unchanged, snapshot

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.truth("the same net without in-place operations")
def test_all_outputs_of_a_resnet_survive_in_place_operations():
    pictures = images(32, keyword=None)
    nets = [resnet18(width=8, inplace=inplace) for inplace in (True, False)]
    rows = []
    for net in nets:
        probe = live_stream(Model(net), pictures).probe
        sites = [
            f"{path}@{call}" if probe.calls(path) > 1 else path
            for path in probe.trace
            for call in range(probe.calls(path))
        ]
        stream = live_stream(Model(net), pictures, sites, "flat")
        rows.append(next(iter(stream.batches(0, 4))).rows)
    assert len(rows[0]) == 76
    for site, value in rows[0].items():
        assert torch.equal(value, rows[1][site]), site


def test_the_planted_fault_is_seen_without_a_copy():
    """The same comparison with stored references fails, so the test above can fail."""
    net, seen = resnet18(width=8), {}
    net.bn1.register_forward_hook(lambda m, a, o: seen.setdefault("bn1", o) is None or None)
    with torch.no_grad():
        net(images(32, keyword=None).x)
    assert float(seen["bn1"].min()) == 0.0


ORDERS = ["user tap edit", "user edit tap", "tap user edit", "tap edit user", "edit user tap"]
ORDERS.append("edit tap user")


def plus_one(module: nn.Module, args: Any, output: Any) -> Any:
    return output + 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.truth("the input of the next module")
def test_a_tap_reads_what_the_next_module_receives(order):
    net, received = mlp(), {}
    net[1].register_forward_pre_hook(lambda m, args: received.update(x=args[0].clone()))
    before = list(net[0]._forward_hooks.items())
    contexts, tap, handles = [], Tap(net, "0"), []
    for who in order.split():
        if who == "user":
            handles.append(net[0].register_forward_hook(plus_one))
        else:
            context = tap if who == "tap" else editing(net, Scale(3.0), "0")
            context.__enter__()
            contexts.append(context)
    if order.startswith("tap user"):
        pass  # the edit, opened later, has put the tap's hook behind the user's
    elif order.endswith("user"):
        tap._session.move_to_end()
    net(X)
    for context in reversed(contexts):
        context.__exit__(None, None, None)
    assert torch.equal(tap.rows["0:out"], received["x"])
    handles[0].remove()
    assert list(net[0]._forward_hooks.items()) == before


def test_other_peoples_hooks_stay_in_their_order():
    net = mlp()
    for _ in range(3):
        net[0].register_forward_hook(lambda m, a, o: None)
    before = list(net[0]._forward_hooks.items())
    list(live_stream(Model(net), Arrays(X)))
    assert list(net[0]._forward_hooks.items()) == before


def test_flags_of_a_half_frozen_model_come_back():
    net = resnet18(width=8).train()
    net.layer1.eval()
    before = snapshot(net)
    for batch in live_stream(Model(net), images(32, keyword=None)):
        assert batch.rows
        assert_unchanged(before, net)
    assert_unchanged(before, net)


def test_reading_in_training_mode_gives_the_rows_of_eval_mode():
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    stream = live_stream(Model(net), Arrays(X), "2")
    rows = next(iter(stream.batches(0, 4))).rows["2:out"]
    assert net.training
    with torch.no_grad():
        assert torch.equal(rows, net.eval()(X))


def test_an_unfinished_stream_leaves_no_hooks():
    net = mlp()
    before = snapshot(net)
    iterator = expect(Generator, iter(live_stream(Model(net), Arrays(X, batch_size=1))))
    next(iterator)
    assert_unchanged(before, net)
    iterator.close()
    assert_unchanged(before, net)


class Fails(nn.Module):
    """Raises at a chosen call."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)
        self.at, self.n, self.error = at, 0, error

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.n += 1
        if self.n == self.at:
            raise self.error
        return self.second(x)


@pytest.mark.parametrize("error", [RuntimeError("inside"), KeyboardInterrupt("inside")])
def test_an_exception_inside_the_forward(error):
    net = Fails(6, error).train()
    stream = live_stream(Model(net), Arrays(X, batch_size=1))
    _ = stream.schema
    before = snapshot(net)
    with pytest.raises(type(error), match="inside"):
        list(stream)
    assert_unchanged(before, net)


def test_an_unknown_module_when_a_tap_opens_changes_nothing():
    net = mlp()
    before = snapshot(net)
    with pytest.raises(LookupError), Tap(net, "nowhere"):
        pass
    assert_unchanged(before, net)


def test_a_hook_that_fails_inside_is_taken_off():
    net = mlp().train()
    before = snapshot(net)
    with pytest.raises(LookupError, match="no such"), Tap(net, "0:out.5"):
        net(X)
    assert_unchanged(before, net)


# threads ----------------------------------------------------------------------------------------


def test_three_threads_read_their_own_rows_only():
    net = mlp()
    inputs = [torch.full((2, 8), float(i)) for i in range(3)]
    barrier, found = threading.Barrier(3), {}

    def work(i: int) -> None:
        with Tap(net, "0") as tap:
            barrier.wait()
            for _ in range(20):
                net(inputs[i])
            barrier.wait()
        found[i] = tap.rows["0:out"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert torch.equal(found[i], net[0](inputs[i]).detach())
    assert torch._dynamo.eval_frame._stance.stance == "default"


# early stop -------------------------------------------------------------------------------------


class Counts(nn.Module):
    """Adds one, counts its calls, and swallows every Exception of its child."""

    def __init__(self, child: nn.Module | None = None) -> None:
        super().__init__()
        self.child, self.n = child, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        if self.child is not None:
            try:
                x = self.child(x)
            except Exception:
                x = x * 0
        return x + 1


def chain(n: int = 4) -> nn.Sequential:
    return nn.Sequential(*[Counts(nn.Linear(8, 8)) for _ in range(n)]).eval()


def part(net: nn.Sequential, i: int) -> Counts:
    return expect(Counts, net[i])


def test_a_forward_ends_after_the_last_site_when_no_logits_are_read():
    net = chain()
    stream = live_stream(Model(net), Arrays(X), ["0", "1"], logits=False)
    _ = stream.schema
    counted = [part(net, i).n for i in range(4)]
    rows = next(iter(stream.batches(0, 4))).rows
    assert [part(net, i).n - counted[i] for i in range(4)] == [1, 1, 0, 0]
    with torch.no_grad():
        assert torch.equal(rows["1:out"], net[1](net[0](X)))
        assert [torch.equal(net(X), net(X))] == [True]


def test_logits_an_objective_or_a_foreign_always_hook_forbid_the_stop():
    def ran(net, **options) -> int:
        stream = live_stream(Model(net), Arrays(X), ["0"], **options)
        _ = stream.schema
        part(net, 3).n = 0
        list(stream.batches(0, 4))
        return part(net, 3).n

    assert ran(chain(), logits=False) == 0
    assert ran(chain(), logits=False, objective=lambda out, batch: out.sum()) == 1
    watched = chain()
    watched[1].register_forward_hook(lambda m, a, o: None, always_call=True)
    assert ran(watched, logits=False) == 1
    headed = nn.Sequential(*chain(), nn.Linear(8, 3)).eval()
    assert ran(headed, logits=True) == 1


def test_tap_stops_only_its_own_forward():
    net = chain()
    with Tap(net, "0", stop=True) as outer, Tap(net, "2", stop=True) as inner:
        assert inner.run(X) is None
        assert part(net, 3).n == 0
        assert outer.rows["0:out"].shape == inner.rows["2:out"].shape
        part(net, 3).n = 0
        assert outer.run(X) is None
        assert part(net, 1).n == 1
        assert net(X) is not None


def test_a_stop_restores_modes_and_random_state():
    net = chain().train()
    before = snapshot(net)
    with torch.autocast("cpu", dtype=torch.bfloat16), Tap(net, "1", stop=True) as tap:
        tap.run(X)
        assert torch.is_autocast_enabled("cpu")
    assert_unchanged(before, net)
    assert not issubclass(Stop, Exception)


# compile, checkpointing -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_model_that_has_run_is_read_and_stays_compiled():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    net = mlp()
    compiled = expect(nn.Module, torch.compile(net, backend=counter))
    with torch.no_grad():
        expected = compiled(X)
    frames = counter.frame_count
    assert frames >= 1
    with Tap(compiled, ["0", "4"]) as tap:
        compiled(X)
    assert torch.equal(tap.rows["4:out"], expected)
    assert torch.equal(tap.rows["0:out"], net[0](X).detach())
    stream = live_stream(Model(compiled), Arrays(X))
    assert [s.key for s in stream.schema] == [f"{i}:out" for i in range(5)]
    with torch.no_grad():
        compiled(X)
    assert counter.frame_count == frames


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.norm, self.block, self.head = nn.LayerNorm(8), mlp(8, 8, 8), nn.Linear(8, 1)
        self.reentrant = reentrant

    def inner(self, x: Tensor) -> Tensor:
        return self.block(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.head(self.inner(x))
        return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant))


@pytest.mark.truth("the same net without checkpointing")
def test_recomputation_under_checkpointing_is_ignored():
    found = []
    for reentrant in (None, True, False):
        torch.manual_seed(0)
        net = Checkpointed(reentrant).train()
        x = X.clone().requires_grad_(True)
        with Tap(net, ["norm@all", "block@all", "block.2@all", "head@all"]) as tap:
            net(x).sum().backward()
        assert {k: len(v) for k, v in tap.rows.items()} == dict.fromkeys(tap.rows, 4)
        found.append(tap.rows)
    for site, value in found[0].items():
        assert torch.equal(value, found[1][site])
        assert torch.equal(value, found[2][site])


# what transformers does itself ------------------------------------------------------------------


@pytest.mark.truth("hidden_states of a deep copy (transformers)")
def test_blocks_equal_the_hidden_states_of_a_copy():
    import copy

    net = gpt2()
    inputs = texts([6, 6, 6], batch_size=3)
    before = snapshot(net)
    sites = ["blocks", "ln_f:in"]
    stream = live_stream(
        Model(net, config=net.config, task="causal"), inputs, sites, "tokens", keep_special=True
    )
    rows = next(iter(stream.batches(0, 3))).rows
    assert_unchanged(before, net)
    batch = next(inputs.batches(0, 3))
    with torch.no_grad():
        states = copy.deepcopy(net)(**batch.kwargs, output_hidden_states=True).hidden_states
    for i in range(2):
        assert torch.equal(rows[f"transformer.h.{i}:out"], states[i + 1].flatten(0, 1))
    last = rows["transformer.h.2:out"]
    assert torch.equal(last, rows["transformer.ln_f:in"])
    assert not torch.equal(last, states[3].flatten(0, 1))
