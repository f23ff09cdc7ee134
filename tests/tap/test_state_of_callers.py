"""State of a running call belongs to its thread: rules, routed models and queues in several."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import models
from compress.two_domains_case import DOMAINS, TwoDomains, texts
from sonde.compress import ExtractExperts
from sonde.core.errors import StateError
from sonde.edit import ContrastiveDecode, LinearRouter, TwinMerge
from sonde.layers import StateQueue

DRAW = torch.Generator().manual_seed(3)


@pytest.fixture(autouse=True)
def quick_switches():
    """Let threads take turns often, so that what they share mixes if it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(call, given):
    """Run a call for each input in a thread of its own, all begun at once."""
    start = threading.Barrier(len(given))

    def own(one):
        start.wait()
        with torch.no_grad():
            return call(one)

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(own, given))


def assert_alone(call, given):
    """Check that threads at once find what each finds alone."""
    with torch.no_grad():
        alone = [call(one) for one in given]
    for found, expected in zip(in_threads(call, given), alone, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.truth("each generation alone")
def test_one_bound_rule_serves_generations_in_several_threads():
    model, amateur = models.gpt2(), models.gpt2()
    for p in amateur.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=DRAW)
    ids = [torch.randint(3, 60, (1 + i, 3 + i % 2), generator=DRAW) for i in range(3)]
    with ContrastiveDecode(amateur).bind(model) as rule:
        how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert_alone(lambda x: model.generate(x, logits_processor=[rule], **how), ids)


@pytest.mark.truth("each call alone")
def test_routed_models_keep_the_weights_of_each_thread():
    torch.manual_seed(0)
    base, experts = models.mlp(), []
    for _ in range(2):
        experts.append(copy.deepcopy(base))
        for p in experts[-1].parameters():
            p.data += 0.3 * torch.randn_like(p)
    router = LinearRouter("0", torch.randn(2, 16), torch.zeros(2))
    twin = TwinMerge(1.0).join(base, experts, lambda _: router)
    x = torch.randn(3, 8)
    assert_alone(twin, [torch.randn(3, 8) for _ in range(4)])

    def mixed(weights):
        with twin.routed(weights):
            return torch.stack([twin.model(x) for _ in range(40)])

    assert_alone(mixed, [torch.eye(2)[[i, i, 1 - i]] for i in (0, 1, 0)])
    sliced = ExtractExperts(keep=0.4, top=0.1).extract(TwoDomains(), {n: texts(n) for n in DOMAINS})
    ids = torch.tensor([[0, 7, 3, 9]])

    def cut(expert):
        with sliced.routed(torch.tensor([expert])) as routed:
            return torch.stack([routed(ids).logits for _ in range(40)])

    assert_alone(cut, [0, 1, 0, 1])


def test_a_thread_without_a_block_has_that_of_the_only_other():
    torch.manual_seed(0)
    base = models.mlp()
    expert = copy.deepcopy(base)
    for p in expert.parameters():
        p.data += 0.3 * torch.randn_like(p)
    router = LinearRouter("", torch.zeros(1, 4), torch.zeros(1))
    twin, x = TwinMerge(1.0).join(base, [expert], lambda _: router), torch.randn(2, 8)
    with twin.routed(torch.ones(2, 1)), torch.no_grad():
        torch.testing.assert_close(in_threads(twin.model, [x])[0], expert(x))  # generates for us
        start, go = threading.Event(), threading.Event()

        def other():
            with twin.routed(torch.zeros(2, 1)):
                start.set()
                go.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        assert start.wait(10)
        with pytest.raises(StateError, match="it is not known which block applies to this call"):
            in_threads(twin.model, [x])
        go.set()
        thread.join()


@pytest.mark.truth("each stream alone")
def test_streams_in_several_threads_have_queues_of_their_own():
    layer = StateQueue(4, 3, streaming=True).eval()
    with torch.no_grad():
        layer.taps.normal_(generator=DRAW)

    def streamed(x):
        layer.reset()
        return torch.cat([layer(part) for part in x.split(2, 1)], 1)

    assert_alone(streamed, [torch.randn(2, 12, 4, generator=DRAW) for _ in range(3)])
    twin = copy.deepcopy(layer)
    assert twin.kept is None
    assert layer.kept is not None
