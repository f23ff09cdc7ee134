"""``sonde serve --engine vllm`` against the same server with transformers; ``make test-vllm``."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Queue

import pytest
import torch

import sonde
from cli_case import run_words
from served_process import free_port
from serving.test_chats import TEMPLATE, events
from serving_case import served
from sonde.core import InputError
from sonde.core.edit import Add
from sonde.engines._engine import sampling_params
from sonde.tap import editing
from vllm_case import probe_of, texts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CHAT = [{"role": "user", "content": "w3 w9 w27 w81"}]
TEXT = "w5 w25 w125 w12 w60"


@pytest.fixture(scope="module")
def both(folder):
    """The model in transformers, and in a vLLM that many callers share."""
    from sonde.engines.vllm import shared_on_vllm

    plain, there = (sonde.load(folder, device="cpu") for _ in range(2))
    there = shared_on_vllm(there, max_model_len=256, max_num_seqs=4)
    for model in (plain, there):
        model.processor.chat_template = TEMPLATE
    return plain, there


@pytest.fixture(scope="module")
def probe(both):
    return probe_of(both[0])


def worker_of(model):
    from sonde.engines.vllm import shared_engine

    engine = shared_engine(model.module)
    return engine, engine._loop.llm.llm_engine.model_executor.driver_worker.worker


def rounded(answer):
    """An answer without what differs from request to request, with numbers to rounding."""
    if isinstance(answer, dict):
        return {k: rounded(v) for k, v in answer.items() if k not in ("id", "created")}
    if isinstance(answer, list | tuple):
        return [rounded(one) for one in answer]
    return round(answer, 3) if isinstance(answer, float) else answer


ASKED = {
    "plain": ("completions", {"prompt": TEXT, "max_tokens": 12}),
    "probabilities": ("completions", {"prompt": TEXT, "max_tokens": 5, "logprobs": 3}),
    "several": ("completions", {"prompt": [TEXT, "w1", "w7 w8"], "max_tokens": 9}),
    "chat": ("chat/completions", {"messages": CHAT, "logprobs": True, "top_logprobs": 2}),
    "context": ("completions", {"prompt": "w1 " * 240, "max_tokens": 40}),
    "wrong": ("completions", {"prompt": 5}),
    "tools": ("chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}),
    "model": ("completions", {"prompt": "w1", "model": "other"}),
}


@pytest.mark.truth("the same server with transformers, greedy")
@pytest.mark.parametrize("has_probe", [False, True])
def test_answers_are_those_of_transformers(both, probe, has_probe):
    found = []
    for model in both:
        with served(model, probe if has_probe else None) as client:
            first = client.post("/v1/completions", json={"prompt": TEXT, "temperature": 0}).json()
            word = first["choices"][0]["text"].split()[2]
            stop = {"prompt": TEXT, "max_tokens": 12, "stop": [word, "zz"]}
            answers = {}
            for name, (path, body) in (ASKED | {"stop": ("completions", stop)}).items():
                body = {"temperature": 0, "max_tokens": 8, **body}
                whole = client.post(f"/v1/{path}", json=body)
                answers[name] = whole.status_code, whole.json()
                if whole.status_code == 200:
                    options = {"stream": True, "stream_options": {"include_usage": True}}
                    streamed = client.post(f"/v1/{path}", json=body | options)
                    answers[f"{name}, streamed"] = events(streamed)
            read = client.post("/predict", json={"inputs": [TEXT, "w7 w8"]}).json()["answers"]
            verdicts = [{k: v for k, v in one.items() if k in ("p", "alarm")} for one in read]
            answers["predict"] = 200, verdicts
            found.append(answers)
    here, there = found
    assert here.keys() == there.keys()
    assert len(here) == 5 * 2 + 3 + 1 + 1
    for name, answer in here.items():
        if answer[0] in (400, 404):
            mine, theirs = answer[1]["error"], there[name][1]["error"]
            assert (there[name][0], theirs["code"]) == (answer[0], mine["code"]), name
        else:
            assert rounded(there[name]) == rounded(answer), name
    assert here["stop"][1]["choices"][0]["finish_reason"] == "stop"
    assert here["context"][1]["error"]["code"] == "context_length_exceeded"


def test_the_official_client_is_answered(both, probe):
    openai = pytest.importorskip("openai", reason="needs the openai client: make test-vllm")
    with served(both[1], probe) as http:
        client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http)
        name = client.models.list().data[0].id
        how = {"model": name, "messages": CHAT, "max_tokens": 8}
        whole = client.chat.completions.create(**how, temperature=0)
        pieces = list(client.chat.completions.create(**how, temperature=0, stream=True))
        text = "".join(p.choices[0].delta.content or "" for p in pieces)
        assert text == whole.choices[0].message.content
        assert pieces[-1].sonde == whole.sonde
        assert set(whole.sonde) == {"alarm_rate", "prompt", "answer"}
        drawn = [
            client.chat.completions.create(**how, n=3, seed=4, temperature=1.0).choices
            for _ in range(2)
        ]
        each = [[one.message.content for one in choices] for choices in drawn]
        assert each[0] == each[1]
        assert len(set(each[0])) == 3
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="w1")


@pytest.mark.truth("each request asked alone")
def test_requests_share_the_steps_of_vllm(both, probe):
    bodies = [
        {"prompt": one["text"], "max_tokens": 4 + 3 * i, "temperature": 0}
        for i, one in enumerate(texts(7, 31))
        if len(one["text"].split()) < 80
    ]
    worker = worker_of(both[1])[1]
    most = []
    run = worker.model_runner.execute_model

    def count(scheduled, *args, **kwargs):
        most.append(len(scheduled.num_scheduled_tokens))
        return run(scheduled, *args, **kwargs)

    with served(both[1], probe) as client:

        def ask(body):
            return client.post("/v1/completions", json=body).json()

        alone = [ask(body) for body in bodies]
        worker.model_runner.execute_model = count
        try:
            with ThreadPoolExecutor(len(bodies)) as pool:
                together = list(pool.map(ask, bodies))
        finally:
            worker.model_runner.execute_model = run
    assert max(most) > 1
    for mine, theirs in zip(alone, together, strict=True):
        assert rounded(theirs) == rounded(mine)
    assert not worker._sonde.states


def test_an_answer_ends_when_its_client_has_gone(both, probe):
    engine, worker = worker_of(both[1])
    with served(both[1], probe) as client:
        body = {"prompt": TEXT, "max_tokens": 100, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
    until = time.monotonic() + 20
    while engine.is_busy or worker._sonde.states:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_alarm_withholds_the_answer_if_it_is_asked_to(both, probe):
    ask = {"prompt": "w1", "max_tokens": 40, "temperature": 2.0}
    with served(both[1], probe, on_alarm="refuse", alpha=0.9) as client:
        for stream in (False, True):
            refused = client.post("/v1/completions", json=ask | {"stream": stream})
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "content_filter"


def test_what_cannot_be_served_is_refused(both, folder, monkeypatch):
    from sonde.serving.running import Settings, check

    for changed, expected in (
        ({"replicas": 2}, "expected 1 with --engine vllm"),
        ({"batch_invariant": True}, "reads each text by itself"),
    ):
        with pytest.raises(InputError, match=expected):
            check(Settings(folder, engine="vllm", **changed))
    edit = Add(torch.ones(128), 1.0)
    with pytest.raises(InputError, match="no open edit"), editing(both[1], edit, "model.layers.1"):
        both[1].module(torch.tensor([[1, 2, 3]]))


@pytest.mark.truth("the greedy texts of transformers")
def test_the_command_serves(both, probe, folder, tmp_path):
    openai = pytest.importorskip("openai", reason="needs the openai client: make test-vllm")
    probe.save(tmp_path / "probe.sonde")
    port = free_port()
    words = ("serve", folder, tmp_path / "probe.sonde", "--engine", "vllm", "--port", port)
    process = subprocess.Popen([sys.executable, "-m", "sonde", *map(str, words)])
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client:
            name, until = None, time.monotonic() + 200
            while name is None:
                assert process.poll() is None
                assert time.monotonic() < until
                with suppress(openai.APIError):
                    name = client.models.list().data[0].id
            how = {"model": name, "prompt": TEXT, "max_tokens": 8, "temperature": 0}
            pieces = list(client.completions.create(**how, stream=True))
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    with served(both[0], probe) as client:
        body = {"prompt": TEXT, "max_tokens": 8, "temperature": 0}
        expected = client.post("/v1/completions", json=body).json()
    assert "".join(p.choices[0].text for p in pieces) == expected["choices"][0]["text"]
    assert rounded(pieces[-1].sonde) == rounded(expected["sonde"])
    assert code == 0


def test_without_vllm_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    ran = run_words("serve", "sonde:stdlib", "--engine", "vllm")
    assert "expected the package vllm" in ran.error()
    assert "pip install vllm" in ran.error()


def test_a_text_that_is_judged_holds_up_the_steps_for_a_moment(both, monkeypatch):
    monkeypatch.setattr("sonde.engines._request_loop.PATIENCE", 1.0)
    engine, worker = worker_of(both[1])
    steps = Queue()
    name = engine.begin([3, 4, 5], steps.put, holds=True, max_tokens=40, temperature=0.0)
    try:
        assert steps.get(timeout=60).tokens
        with pytest.raises(Empty):
            steps.get(timeout=0.3)
        engine.resume(name)
        assert steps.get(timeout=0.5).tokens
        second = Queue()
        other = engine.begin([6, 7], second.put, holds=True, max_tokens=40, temperature=0.0)
        assert second.get(timeout=60).tokens
        began = time.monotonic()
        engine.run([[8, 9]], [sampling_params(max_tokens=1)])  # as the thread that judges may
        assert time.monotonic() - began < 0.9
        engine.end(other).result()
    finally:
        engine.end(name).result()
    assert not worker._sonde.states
