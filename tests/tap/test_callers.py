"""Sessions belong to the module: what they do for callers in other threads and tasks."""

import asyncio
import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from transformers import TextIteratorStreamer

from cache_name import CACHE
from models import gpt2, llama, mlp, t5
from sonde import caching, editing, shortening, training
from sonde.compress import StreamingCache, TokenPruning
from sonde.core.edit import Scale
from sonde.core.errors import SondeWarning
from sonde.tap import Tap, live_stream
from sonde.tap.hand.recording import intercepted
from tap_inputs import Arrays

DRAW = torch.Generator().manual_seed(3)
INPUTS = [3 * torch.randn(1 + i % 5, 8, generator=DRAW) for i in range(60)]


@pytest.fixture
def quick_switches():
    """Let threads take turns often, so that what they share mixes if it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_pool(call, inputs, workers=8):
    def without_gradients(x):
        with torch.no_grad():
            return call(x)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(without_gradients, inputs))


def assert_no_hooks(net):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def all_equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.truth("the same inputs in the thread that opened the edit, one after the other")
def test_an_edit_acts_for_every_thread_and_task(quick_switches):
    net = mlp()
    with torch.no_grad():
        plain = [net(x) for x in INPUTS]
    with editing(net, Scale(2.0), ["0", "2:in"]):
        with torch.no_grad():
            expected = [net(x) for x in INPUTS]
        found = in_pool(net, INPUTS)

        async def serve():
            async def handle(x):
                await asyncio.sleep(0)
                with torch.no_grad():
                    return net(x)

            return await asyncio.gather(*map(handle, INPUTS[:20]))

        tasks = asyncio.run(serve())
    assert all_equal(found, expected)
    assert all_equal(tasks, expected[:20])
    assert not any(map(torch.equal, expected, plain))
    assert all_equal(in_pool(net, INPUTS), plain)
    assert_no_hooks(net)
    with editing(net, Scale(2.0), "0", here=True):
        with torch.no_grad():
            net(INPUTS[0])
        assert all_equal(in_pool(net, INPUTS), plain)


@pytest.mark.essential
@pytest.mark.truth("each thread's own rows, by calling the first layer alone")
@pytest.mark.parametrize("reducer", [None, "mean"])
def test_taps_in_several_threads_hold_the_rows_of_their_own_forwards(quick_switches, reducer):
    net = gpt2()
    texts = [torch.randint(3, 60, (1 + i % 3, 2 + i % 7), generator=DRAW) for i in range(48)]
    sites = ["transformer.h.0", "transformer.h.1:in", "transformer.h.1.attn:heads"]

    def read(ids):
        with Tap(net, sites, reducer, here=True) as tap:
            net(input_ids=ids)
            return tap.rows

    expected = in_pool(read, texts, 1)
    with Tap(net, sites, reducer) as shared:

        def own(ids):
            net(input_ids=ids)
            return shared.rows, read(ids)

        found = in_pool(own, texts)
    for rows, (of_shared, of_own) in zip(expected, found, strict=True):
        for site, x in rows.items():
            assert torch.equal(of_shared[site], x)
            assert torch.equal(of_own[site], x)
    assert_no_hooks(net)


@pytest.mark.truth("each stream alone")
def test_streams_of_one_model_in_several_threads_stay_apart(quick_switches):
    net = mlp().train()

    def rows(x):
        stream = live_stream(net, Arrays(x), ["0", "2"])
        return [batch.rows for batch in stream.batches(0, len(x))]

    data = [torch.cat(INPUTS[i : i + 9]) for i in range(0, 54, 9)]
    expected = [rows(x) for x in data]
    with Tap(net, "0"):  # sees these forwards too, and changes nothing
        found = in_pool(rows, data, 6)
    for own, alone in zip(found, expected, strict=True):
        for a, b in zip(own, alone, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
    assert net.training
    assert_no_hooks(net)


class Words:
    """A tokenizer that writes the number of each token."""

    def decode(self, ids, **_):
        return " ".join(map(str, torch.as_tensor(ids).flatten().tolist())) + "\n"


@pytest.mark.truth("the tokens that generate makes in the thread that opened the edit")
def test_a_generation_thread_writes_steered_text():
    net = gpt2()
    ids = torch.tensor([[5, 9, 11]])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    def streamed():
        streamer = TextIteratorStreamer(Words())
        thread = threading.Thread(
            target=net.generate, args=(ids,), kwargs={**how, "streamer": streamer}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        return [int(word) for word in text.split()]

    plain = net.generate(ids, **how)[0].tolist()
    with editing(net, Scale(-1.0), "transformer.h.1", where="generated"):
        expected = net.generate(ids, **how)[0].tolist()
        steered = streamed()
    assert steered == expected != plain
    assert streamed() == plain


@pytest.mark.slow
@pytest.mark.truth("each generation alone")
def test_generations_of_an_encoder_and_decoder_in_several_threads_are_edited_apart(quick_switches):
    net = t5()
    texts = [torch.randint(3, 40, (1, 3 + i % 4), generator=DRAW) for i in range(6)]
    how = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}

    def generated(ids):
        mask = torch.ones_like(ids)
        mask[:, -1] = 0
        return net.generate(ids, attention_mask=mask, **how)

    sites = ["encoder.block.0", "decoder.block.1"]
    with editing(net, Scale(-2.0), sites, where=["prompt", "generated"]):
        expected = [generated(ids) for ids in texts]
        assert all_equal(in_pool(generated, texts, 3), expected)


@pytest.mark.truth("the same conversation in the thread that opened the cache")
def test_a_cache_that_evicts_and_shorter_texts_work_in_another_thread():
    net = llama()
    ids = torch.randint(3, 40, (2, 12), generator=DRAW)

    said = r"caching: saw 0 of 1 forward pass of \w+\. No call received the cache"
    with pytest.warns(SondeWarning, match=said), caching(net, StreamingCache(budget=6)):
        net(ids)
    found = []
    for workers in (0, 1):
        with torch.no_grad(), caching(net, StreamingCache(budget=6)) as cache:
            call = partial(net.generate, ids, max_new_tokens=4, do_sample=False, **{CACHE: cache})
            tokens = in_pool(lambda _, call=call: call(), [0], 1)[0] if workers else call()
            found.append((tokens, cache.size_bytes))
    (expected, held), (tokens, in_thread) = found
    assert torch.equal(tokens, expected)
    assert in_thread == held
    texts = [torch.randint(3, 40, (1, 6 + i % 5), generator=DRAW) for i in range(12)]
    with shortening(net, TokenPruning(0.5, after=(0,))) as run:

        def shorter(ids):
            return net(ids).logits, run.counts, run.index

        alone, several = in_pool(shorter, texts, 1), in_pool(shorter, texts, 6)
    for (logits, counts, index), (logits2, counts2, index2) in zip(alone, several, strict=True):
        assert torch.equal(logits, logits2)
        assert counts == counts2
        assert torch.equal(index, index2)
    assert alone[0][1][-1] < texts[0].shape[1]


class Pull(nn.Module):
    """Pulls rows to a target of the same examples."""

    def forward(self, x, weight):
        return (weight * x.square().mean(1)).mean()


@pytest.mark.truth("the loss and gradient of each batch, one after the other")
def test_training_in_worker_threads_keeps_batches_apart(quick_switches):
    net = mlp()
    weights = [torch.rand(len(x), generator=DRAW) for x in INPUTS]
    parameter = net[0].weight

    with training(net, {"0": Pull()}) as terms:

        def step(i):
            net(INPUTS[i])
            value = terms.loss(weight=weights[i])
            return value.detach(), *torch.autograd.grad(value, parameter)

        expected = [step(i) for i in range(len(INPUTS))]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(step, range(len(INPUTS))))
        for own, alone in zip(found, expected, strict=True):
            assert all_equal(own, alone)
        thread = threading.Thread(target=net, args=(INPUTS[4],))  # the loss is asked for elsewhere
        thread.start()
        thread.join()
        assert torch.equal(terms.loss(weight=weights[4]).detach(), expected[4][0])
    assert_no_hooks(net)


def test_a_session_that_closes_waits_for_forwards_that_are_running():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Identity(), nn.Identity()
            self.begun, self.go = threading.Event(), threading.Event()

        def forward(self, x):
            x = self.first(x)
            self.begun.set()
            self.go.wait(10)
            return self.second(x)

    net, found = Slow(), []
    with ThreadPoolExecutor(1) as pool:
        with editing(net, Scale(3.0), ["first", "second"]):
            future = pool.submit(net, torch.ones(1, 2))
            assert net.begun.wait(10)
            threading.Timer(0.05, net.go.set).start()
        found.append(future.done())  # edited at both sites or at none
        assert future.result().tolist() == [[9.0, 9.0]]
    assert found == [True]
    assert_no_hooks(net)


def test_a_copy_of_a_watched_module_is_not_watched():
    net = mlp()
    with torch.no_grad():
        plain = net(INPUTS[0])
        with editing(net, Scale(2.0), "0"), Tap(net, "2") as tap:
            twin = copy.deepcopy(net)
            assert torch.equal(twin(INPUTS[0]), plain)
            net(INPUTS[0])
            assert not torch.equal(tap.rows["2:out"], plain)
        assert torch.equal(twin(INPUTS[0]), plain)


def test_a_forward_that_was_interrupted_is_not_open_in_the_next():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.first(x)
            if len(x) > 1:
                raise KeyboardInterrupt  # torch runs no hook behind the module then
            return self.second(x)

    net = Stops()
    with torch.no_grad(), Tap(net, ["first", "second"]) as tap:
        with pytest.raises(KeyboardInterrupt):
            net(INPUTS[1])
        net(INPUTS[0])
        assert tap.rows["second:out"].shape == (1, 8)
        assert tap._session.state is None


def test_functions_in_place_of_a_forward_end_in_any_order():
    net, x = nn.Sequential(nn.Identity()), torch.ones(1, 1)
    opened, closed, left = (threading.Event() for _ in range(3))

    def double(module, forward, args, kwargs):
        return 2 * forward(*args, **kwargs)

    def outer():
        with intercepted([net[0]], double):
            opened.set()
            closed.wait(10)
            assert net(x) == 2
        left.set()

    thread = threading.Thread(target=outer)
    thread.start()
    assert opened.wait(10)
    with intercepted([net[0]], double):
        closed.set()
        assert left.wait(10)
        assert net(x) == 2  # the other thread has ended in between
    thread.join()
    assert net(x) == 1
    assert "forward" not in net[0].__dict__
