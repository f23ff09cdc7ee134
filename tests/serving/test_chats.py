"""The OpenAI protocol of ``sonde serve``."""

import json
import threading

import pytest
import torch

import sonde
from serving.test_hanging import ready, run_apart
from serving_case import served
from sonde.detect import Mahalanobis
from sonde.serving import app
from sonde.serving.chat_pieces import TextPieces
from sonde.serving.chat_requests import ChatRequest, ProtocolError

PROMPT = "def area(width):\n    return"
TEMPLATE = (
    "{% for m in messages %}# {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}def {% endif %}"
)


@pytest.fixture(scope="module")
def model():
    found = sonde.load("sonde:stdlib", device="cpu")
    found.processor.chat_template = TEMPLATE
    return found


def texts(n, seed):
    """Beginnings of functions, as many letters long as the prompt or longer."""
    letters = torch.randint(20, 45, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    whole = "def {}(width):\n    return width * {}\n"
    names = ("area", "size", "volume", "length", "scaled", "wide")
    return [{"text": whole.format(names[k % 6], k)[:k]} for k in letters]


@pytest.fixture(scope="module")
def probe(model):
    stream = sonde.read(model, texts(80, 0), sites=["layers.0", "layers.1"], reducer="mean")
    fitted = sonde.fit([Mahalanobis(shrinkage=0.1)], stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, model, texts(60, 1), progress=False)


def asked(client, path, **body):
    return client.post(f"/v1/{path}", json={"temperature": 0, "max_tokens": 12, **body})


def events(answer):
    """The JSON of each server-sent event; the last one says that it is the last."""
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def greedy(model, text, n):
    """The model's own greedy tokens, and their log probabilities."""
    ids = torch.tensor([model.processor(text)["input_ids"]])
    out = model.module.generate(
        ids, max_new_tokens=n, do_sample=False, pad_token_id=0, use_cache=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    new = out.sequences[0, ids.shape[1] :]
    logprobs = torch.cat(out.logits).log_softmax(-1)
    return new.tolist(), logprobs.gather(1, new[:, None])[:, 0].tolist()


@pytest.mark.slow
@pytest.mark.truth("generate of the model alone; sonde.score of prompt and of the whole text")
def test_a_completion_with_its_verdicts(model, probe):
    ids, logprobs = greedy(model, PROMPT, 12)
    text = model.processor.decode(ids)
    whole = [{"text": PROMPT}, {"text": PROMPT + text}]
    table = sonde.score(probe, model, whole, progress=False)
    rows = zip(*(table[c].to_pylist() for c in ("row", "site", "p")), strict=True)
    wanted = {(row, site): p for row, site, p in rows}
    with served(model, probe) as client:
        found = asked(client, "completions", prompt=PROMPT, logprobs=2)
        streamed = events(
            asked(
                client, "completions", prompt=PROMPT, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        by_ids = asked(client, "completions", prompt=model.processor(PROMPT)["input_ids"])
    said, choice = found.json(), found.json()["choices"][0]
    assert choice["text"] == by_ids.json()["choices"][0]["text"] == text
    assert choice["finish_reason"] == "length"
    assert said["usage"] == {"prompt_tokens": 27, "completion_tokens": 12, "total_tokens": 39}
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=1e-4)
    assert [len(each) for each in choice["logprobs"]["top_logprobs"]] == [2] * 12
    for i, part in enumerate(("prompt", "answer")):
        for site, p in said["sonde"][part]["p_each"]["mahalanobis"].items():
            assert p == pytest.approx(wanted[i, site], abs=1e-6)
    least = min(said["sonde"][part]["p"] for part in ("prompt", "answer"))
    assert found.headers["x-sonde-p"] == f"{least:.6g}"
    assert "".join(e["choices"][0]["text"] for e in streamed[:-1]) == text
    assert streamed[-2]["sonde"] == said["sonde"]
    assert streamed[-1]["usage"] == said["usage"]


@pytest.mark.slow
@pytest.mark.truth("generate of the model alone on the text of the template")
def test_a_chat(model, probe):
    messages = [{"role": "user", "content": [{"type": "text", "text": "a function"}]}]
    ids, _ = greedy(model, "# user: a function\ndef ", 30)
    text = model.processor.decode(ids)
    with served(model, probe) as client:
        found = asked(client, "chat/completions", messages=messages, max_tokens=30).json()
        pieces = events(
            asked(client, "chat/completions", messages=messages, stream=True, max_tokens=30)
        )
        stopped = asked(
            client, "chat/completions", messages=messages, max_tokens=30, stop=["(", "zz"]
        ).json()
        two = asked(
            client, "chat/completions", messages=messages, temperature=1.0, seed=3, n=2
        ).json()
        again = asked(
            client, "chat/completions", messages=messages, temperature=1.0, seed=3, n=2
        ).json()
    assert found["choices"][0]["message"]["content"] == text
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == text
    assert stopped["choices"][0]["message"]["content"] == text.partition("(")[0]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    texts = [choice["message"]["content"] for choice in two["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert texts[0] != texts[1]


@pytest.mark.slow
def test_an_alarm_withholds_the_answer_if_it_is_asked_to(model, probe, caplog):
    strange = "这是一个关于神经网络隐藏状态的测试文本内容"
    options = {"alpha": 0.1}
    with served(model, probe, on_alarm="refuse", **options) as client:
        for stream in (False, True):
            refused = asked(client, "completions", prompt=strange, stream=stream)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "content_filter"
            assert refused.headers["x-sonde-alarm"] == "true"
    with served(model, probe, on_alarm="refuse", alpha=0.001) as client:  # too low for an alarm
        given = asked(client, "completions", prompt=strange)
    assert given.status_code == 200
    assert given.headers["x-sonde-alarm"] == "unknown"
    with served(model, probe, on_alarm="log", **options) as client:
        kept = asked(client, "completions", prompt=strange, stream=True)
    assert kept.status_code == 200
    assert events(kept)[-1]["sonde"]["prompt"]["alarm"] is True
    assert sum("alarm on cmpl-" in record.message for record in caplog.records) == 1
    assert strange not in caplog.text


@pytest.mark.slow
def test_the_model_is_listed_and_errors_have_the_shape_of_the_protocol(model):
    with served(model) as client:
        listed = client.get("/v1/models").json()["data"][0]
        assert client.get(f"/v1/models/{listed['id']}").json() == listed
        assert client.get("/v1/models/other").status_code == 404
        wrong = {
            "prompt": {"prompt": 5},
            "model": {"prompt": "x", "model": "other"},
            "tools": {"prompt": "x", "tools": [{"type": "function"}]},
            "messages": {"prompt": "x" * 300},
            "stop": {"prompt": "x", "stop": [""]},
        }
        for param, body in wrong.items():
            answer = asked(client, "completions", **body)
            assert answer.status_code in (400, 404)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.json()["error"]["param"] == param
        counted = client.get("/metrics").text
    for code, n in (("200", 2), ("404", 1)):
        assert f'sonde_requests_total{{code="{code}",route="metadata"}} {n}.0' in counted
    assert 'code="500"' not in counted


@pytest.mark.slow
def test_the_reason_of_a_chat_template_reaches_the_client():
    model = sonde.load("sonde:stdlib", device="cpu")
    model.processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with served(model) as client:
        answer = asked(client, "chat/completions", messages=[{"role": "user", "content": "a"}])
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "rejects these messages: roles must alternate. Check" in message


def test_a_net_without_a_text_says_that_it_does_not_continue():
    with served(torch.nn.Linear(2, 3)) as client:
        answer = client.post("/v1/completions", json={"prompt": "x"})
    assert answer.status_code == 404
    assert "does not continue texts" in answer.json()["error"]["message"]


def pieces_of(texts, stop=(), ends=()):
    """The pieces of an answer whose tokens are bytes."""
    found = []
    pieces = TextPieces(
        lambda ids: bytes(ids).decode("utf-8", "replace"), ends, tuple(stop), None, found.append
    )
    pieces.put(torch.zeros(1, 3))
    for token in texts.encode():
        if not pieces.is_over:
            pieces.put(torch.tensor([token]))
    pieces.end()
    return found, pieces


def test_pieces_are_whole_characters_and_hold_back_the_beginning_of_a_stop_text():
    found, pieces = pieces_of("aé…b")
    assert found == ["a", "é", "…", "b"]
    found, pieces = pieces_of("one STAY then STOP and more", stop=("STOP",))
    assert "".join(found) == pieces.text == "one STAY then "
    assert pieces.stopped
    assert not any(piece.endswith("S") for piece in found[:-1])
    found, pieces = pieces_of("ends in ST", stop=("STOP",))
    assert "".join(found) == "ends in ST"
    found, pieces = pieces_of("ab\x03cd", ends=(3,))
    assert ("".join(found), pieces.stopped) == ("ab", True)


def test_what_is_sampled_by_default():
    parsed = ChatRequest.parse({"prompt": "x"}, False, "m").settings
    assert (parsed.new_tokens, parsed.temperature, parsed.top_p) == (16, 1.0, 1.0)
    assert parsed.for_generate()["top_k"] == 0  # transformers would draw among 50
    with pytest.raises(ProtocolError, match="'temperature' to be a number up to 2"):
        ChatRequest.parse({"prompt": "x", "temperature": 3}, False, "m")


@pytest.mark.slow
@pytest.mark.truth("the official client of the protocol")
def test_the_official_client_works_unchanged(model, probe):
    openai = pytest.importorskip("openai", reason="needs the package openai")
    import uvicorn

    from sonde.serving import app

    server = uvicorn.Server(uvicorn.Config(app(model, probe), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client:
            name = wait_for(client)
            plain = client.completions.create(
                model=name, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1
            )
            chat = [{"role": "user", "content": "a function"}]
            settings = {"model": name, "messages": chat, "max_tokens": 8, "temperature": 0}
            whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
            parts = list(client.chat.completions.create(**settings, stream=True))
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                client.completions.create(model="other", prompt="x")
    finally:
        server.should_exit = True
        thread.join(30)
    assert plain.choices[0].text == model.processor.decode(greedy(model, PROMPT, 8)[0])
    assert len(plain.choices[0].logprobs.tokens) == 8
    text = "".join(p.choices[0].delta.content or "" for p in parts)
    assert text == whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    assert parts[-1].sonde["prompt"]["p"] == whole.sonde["prompt"]["p"]


def wait_for(client):
    """The name of the model once it is loaded; the client tries again after 503."""
    return client.with_options(max_retries=20).models.list().data[0].id


@pytest.mark.slow
@pytest.mark.truth("the number of forward passes")
def test_an_answer_ends_when_its_client_has_gone(model):
    n = 0

    def count(*_):
        nonlocal n
        n += 1

    async def scenario():
        client = await ready(app(model))
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 1}
        assert (await client.ask("/v1/completions", body))[0] == 200
        long = body | {"max_tokens": 100, "stop": ["\0"]}
        assert (await client.ask("/v1/completions", long, stays=0.01))[0] == 499
        assert (await client.ask("/v1/completions", body))[0] == 200

    hook = model.module.register_forward_hook(count)
    try:
        run_apart(scenario())
    finally:
        hook.remove()
    assert n < 50
