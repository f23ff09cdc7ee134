"""Requests of several inputs of which some cannot be answered, and errors inside the model."""

import logging

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from serving_case import DIM, served
from sonde import load
from sonde.core.errors import MachineError

SECRET = "my-own-" + "secret"  # frames in the log show lines of code


class Fragile(nn.Module):
    """A net that fails in ways that the first number of an input chooses."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(DIM, 2)

    def forward(self, x):
        if (x[:, 0] == 77).any():
            raise KeyError(SECRET)
        if (x[:, 0] == 78).any():
            raise RuntimeError(f"a bug of the model: {SECRET}")
        if (x[:, 0] == 79).any():
            raise MachineError("out of memory with 1 example in a forward pass.")
        return self.inner(x)


def row(first):
    return [float(first), 0.5, -1.0, 2.0, 0.0]


def test_the_other_inputs_of_a_request_are_answered(caplog):
    with served(Fragile().eval()) as client:
        assert client.post("/predict", json={"inputs": [row(1)]}).status_code == 200
        inputs = [row(1), [1.0, "2"], row(77), row(78), row(79), row(2)]
        with caplog.at_level(logging.ERROR, "sonde"):
            found = client.post("/predict", json={"inputs": inputs})
        assert found.status_code == 200, found.text
        each = found.json()["answers"]
        assert [one.get("status") for one in each] == [None, 400, 500, 500, 503, None]
        assert [one["error"].partition(":")[0] for one in each[1:5]] == [
            f"Input {i}" for i in range(1, 5)
        ]
        assert each[0]["answer"] in ("class 0", "class 1")
        alone = client.post("/predict", json={"inputs": [row(78)]})
        assert alone.status_code == 500
        assert client.get("/metrics").text.count("sonde_inputs_refused_total 4.0") == 1
    assert "in forward" in caplog.text
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text + found.text + alone.text


def test_an_error_of_the_first_input_of_a_shape_is_the_clients():
    with served(Fragile().eval()) as client:
        assert client.post("/predict", json={"inputs": [row(78)]}).status_code == 400


@pytest.mark.parametrize(
    ("cell", "got"),
    [
        ("NaN", "a text"), ("1.5", "a text"), (True, "true or false"), (None, "no value"),
        (10**400, "a number that is too large"), ([1], "a list"),
    ],
)  # fmt: skip
def test_a_column_without_a_number_is_named(cell, got):
    model = nn.Sequential(nn.Linear(2, 3)).eval()
    with served(model, number_columns="age,dose") as client:
        found = client.post("/predict", json={"inputs": [{"age": 1, "dose": cell}]})
        assert found.status_code == 400
        assert found.json()["error"] == f"Input 0: expected a number in column 'dose', got {got}."
        infinite = b'{"inputs": [{"age": 1e400, "dose": 1}]}'
        kind = {"Content-Type": "application/json"}
        assert "too large" in client.post("/predict", content=infinite, headers=kind).text
        more = client.post("/predict", json={"inputs": [{"age": 1, "dose": 2, "agee": 3}]})
        assert more.json()["answers"][0]["ignored"] == ["agee"]


def reader_of_texts(context):
    """A BERT that classifies texts of words, with a context of some tokens."""
    words = {name: i for i, name in enumerate(("[PAD]", "[UNK]", "good", "bad", "film"))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]"
    )
    config = transformers.BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=context, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    return load(model, processor=tokenizer)


def test_a_text_that_is_cut_says_so():
    long, short = "film " * 30, "good film"
    with served(reader_of_texts(12)) as client:
        whole, cut = client.post("/predict", json={"inputs": [short, long]}).json()["answers"]
        assert "cut" not in whole
        assert (cut["cut"], cut["tokens_read"], cut["tokens_given"]) == (True, 12, 30)
        for blank in ("", " \n"):
            assert client.post("/predict", json={"inputs": [blank]}).status_code == 400
        assert "sonde_inputs_cut_total 1.0" in client.get("/metrics").text
        beside = client.post("/predict", json={"inputs": [short, ""]}).json()["answers"]
        assert [one.get("status") for one in beside] == [None, 400]
        state = client.app.state.service.state()  # pyright: ignore[reportFunctionMemberAccess]
        sums = {name: sum(one[name] for one in state["seconds"]) for name in ("cut", "refused")}
        assert sums == {"cut": 1, "refused": 1}
        assert state["refused"] == {"400": 1}
        mean = (2 * whole["probability"] + cut["probability"]) / 3
        assert state["confidence"] == pytest.approx(mean)
    with served(reader_of_texts(12), long="error") as client:
        assert client.post("/predict", json={"inputs": [long]}).status_code == 413
        beside = client.post("/predict", json={"inputs": [short, long]}).json()["answers"]
        assert [one.get("status") for one in beside] == [None, 413]


class Bag(nn.Module):
    """A classifier of texts that takes no mask."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, input_ids):
        return self.head(self.tokens(input_ids).mean(1))


@pytest.mark.truth("the answer to each text alone")
def test_nothing_is_padded_for_a_model_without_a_mask():
    texts = ["good film", "bad film film", "film film good"]
    processor = reader_of_texts(12).processor
    with served(load(Bag().eval(), processor=processor)) as client:
        together = client.post("/predict", json={"inputs": texts}).json()["answers"]
        alone = [client.post("/predict", json={"inputs": [text]}).json() for text in texts]
    wanted = [one["answers"][0]["probability"] for one in alone]
    assert [one["probability"] for one in together] == pytest.approx(wanted, rel=1e-5)
