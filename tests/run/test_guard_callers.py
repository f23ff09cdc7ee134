"""A guard belongs to the module: it sees every caller, and tells each caller its own scores."""

import asyncio
import json
import threading
import urllib.request
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

import sonde
from models import mlp
from sonde import Guard
from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.run.watching.metrics import PrometheusMetrics

DRAW = torch.Generator().manual_seed(0)
ROWS = torch.randn(300, 8, generator=DRAW)
FAR = [40 * torch.randn(1 + i % 3, 8, generator=DRAW) + 30 for i in range(200)]


@pytest.fixture(scope="module")
def net():
    return mlp()


@pytest.fixture(scope="module")
def probe(net):
    stream = sonde.read(net, list(ROWS), sites=["0", "2"])
    return sonde.fit(["mahalanobis", "knn"], stream, progress=False)


@pytest.fixture(scope="module")
def expected(net, probe):
    """Return the scores and number of alarms of each input, called one after the other."""
    with Guard(net, probe) as guard, torch.no_grad():
        return [(net(x), guard.scores, len(guard.alarms))[1:] for x in FAR]


def assert_same(found, scores):
    assert found.keys() == scores.keys()
    assert all(torch.equal(found[key], scores[key]) for key in scores)


def answer(net, guard, i):
    """Call the model as a handler does, and return what the guard saw of this very call."""
    with torch.no_grad():
        net(FAR[i])
    return guard.last(here=True)


def by_pool(net, guard):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda i: answer(net, guard, i), range(200)))


def by_server(net, guard):
    seen = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            i = int(self.path[1:])
            seen[i] = answer(net, guard, i)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(seen[i].forwards).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda i: urllib.request.urlopen(f"{address}/{i}").read(), range(20)))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return [seen[i] for i in range(20)]


def by_executor(net, guard):
    async def serve():
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(None, answer, net, guard, i) for i in range(20))
        return await asyncio.gather(*calls)

    return asyncio.run(serve())


def by_tasks(net, guard):
    async def handle(i):
        with torch.no_grad():
            net(FAR[i])
        await asyncio.sleep(0)  # other tasks of this thread call the model meanwhile
        return guard.last(here=True)

    async def serve():
        await asyncio.create_task(start(guard))  # its context is no parent of the others
        return await asyncio.gather(*(asyncio.create_task(handle(i)) for i in range(20)))

    async def start(guard):
        guard.__enter__()

    guard.__exit__(None, None, None)
    return asyncio.run(serve())


@pytest.mark.essential
@pytest.mark.parametrize(
    ("caller", "n"), [(by_pool, 200), (by_server, 20), (by_executor, 20), (by_tasks, 20)]
)
@pytest.mark.truth("the same inputs, called one after the other by the thread of the guard")
def test_every_caller_is_seen_and_gets_its_own_scores(net, probe, expected, caller, n):
    alarms, metrics = [], PrometheusMetrics()
    with Guard(net, probe, on_alarm=alarms.append, metrics=metrics) as guard:
        texts = caller(net, guard)
    assert guard.n_forwards == n
    assert f"sonde_forwards_total {float(n)}" in metrics.text()
    for text, (scores, n_alarms) in zip(texts, expected[:n], strict=True):
        assert_same(text.scores, scores)
        assert len(text.alarms) == n_alarms >= 2  # both detectors at the first site: all are far
    assert sorted(number for text in texts for number in text.forwards) == list(range(n))
    assert Counter(a.forward for a in alarms) == Counter(
        {text.forwards[0]: len(text.alarms) for text in texts}
    )
    assert guard.n_alarms == len(alarms)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_who_has_not_called_the_model_gets_the_last_text_unless_it_asks_for_its_own(net, probe):
    with Guard(net, probe) as guard:
        thread = threading.Thread(target=net, args=(FAR[0],))
        thread.start()
        thread.join()
        assert guard.n_forwards == 1
        assert len(guard.scores["knn", "0:out"]) == len(FAR[0])
        with pytest.raises(
            StateError,
            match=r"got 1 forward pass of other threads or tasks\. Read Guard.last in the function",
        ):
            guard.last(here=True)


def test_a_guard_of_one_context_counts_what_passes_by_and_warns_if_it_saw_nothing(net, probe):
    metrics = PrometheusMetrics()
    with (
        pytest.warns(SondeWarning, match=r"saw 0 of 3 forward passes of Sequential.*here=True"),
        Guard(net, probe, metrics=metrics, here=True) as guard,
        ThreadPoolExecutor(2) as pool,
    ):
        list(pool.map(net, FAR[:3]))
    assert guard.n_forwards == 0
    assert "sonde_forwards_passed_by_total 3.0" in metrics.text()
    with Guard(net, probe, metrics=metrics, here=True) as guard, ThreadPoolExecutor(1) as pool:
        net(FAR[0])
        pool.submit(net, FAR[1]).result()
        assert len(guard.scores["knn", "0:out"]) == len(FAR[0])
    assert "sonde_forwards_passed_by_total 4.0" in metrics.text()


def test_metrics_that_lack_a_method_are_refused(net, probe):
    class Old:
        def forward(self): ...

        def rows(self, key, n, n_alarms, p_values): ...

    with pytest.raises((InputError, TypeError), match="Metrics"):  # the latter by the type checker
        Guard(net, probe, metrics=Old())


NEAR = {"rtol": 1e-5, "atol": 0.0}  # float32, in other batches
SPLITS: list[bool] = []  # no attribute: the guard would take it for another model


class Splits(nn.Module):
    """Calls itself on each row of a batch if asked, and raises at a row that begins with zero."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        if SPLITS and len(x) > 1:
            return torch.cat([self(row[None]) for row in x])
        if x[0, 0] == 0:  # of the first row, or of the only one
            raise ValueError("a fault of the model")
        return self.inner(x)


def test_a_model_that_calls_itself_or_raises_leaves_nothing_open(expected):
    net = Splits(mlp())
    probe = sonde.fit("mahalanobis", sonde.read(net, list(ROWS), sites="inner.2"), progress=False)
    SPLITS.append(True)
    broken = FAR[2].clone()
    broken[2, 0] = 0.0
    with Guard(net, probe) as guard:
        with pytest.raises(ValueError, match="a fault"):
            net(broken)  # three rows, each a call of its own; the third one raises
        assert guard.n_forwards == 2
        net(FAR[0])
        assert guard.n_forwards == 3
        net(FAR[1])  # the outer call has no rows of its own: the inner ones were seen
        assert guard.n_forwards == 5
        torch.testing.assert_close(
            guard.scores["mahalanobis", "inner.2:out"],
            expected[1][0]["mahalanobis", "2:out"][1:],
            **NEAR,
        )
    with guard:  # none of the calls above is open still
        net(FAR[0])
    torch.testing.assert_close(
        guard.scores["mahalanobis", "inner.2:out"], expected[0][0]["mahalanobis", "2:out"], **NEAR
    )


def of_call(net: nn.Module, x: torch.Tensor) -> None:
    """Call the model with other weights for this call alone."""
    weights = {name: 1.5 * w for name, w in net.named_parameters()}
    torch.func.functional_call(net, weights, (x,))


def in_place(net: nn.Module, x: torch.Tensor) -> None:
    """Change a weight, call the model, and change the weight back."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    net[2].weight.mul_(2)
    net(x)
    net.load_state_dict(state)


@pytest.mark.parametrize("change", [of_call, in_place])
def test_weights_that_change_under_a_guard_are_told_once(probe, change) -> None:
    net = mlp()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with Guard(net, probe) as guard:
            for x in FAR[:3]:
                net(x)
            with pytest.warns(SondeWarning, match="the weight .* was changed, or exchanged"):
                change(net, FAR[0])
            change(net, FAR[0])
            assert guard.n_forwards == 5
