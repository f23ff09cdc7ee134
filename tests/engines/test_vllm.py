"""A model in vLLM against the same model in transformers; ``make test-vllm`` installs vLLM."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sonde
from sonde.core import InputError
from sonde.detect import KNN, Mahalanobis

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

WORDS = ["<s>", "</s>", *(f"w{n}" for n in range(126))]


def texts(n, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 90, (n,), generator=generator).tolist()
    return [
        {"text": " ".join(f"w{i}" for i in torch.randint(126, (k,), generator=generator).tolist())}
        for k in lengths
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    pytest.importorskip("vllm", reason="needs vllm: make test-vllm")
    path = tmp_path_factory.mktemp("vllm") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=128, intermediate_size=192, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>")
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def both(folder):
    """The model in transformers, and in a vLLM that reads prompts in pieces of 32 tokens."""
    from sonde.engines.vllm import on_vllm

    plain = sonde.load(folder, device="cpu")
    options = {"max_num_batched_tokens": 32, "max_model_len": 128, "enable_chunked_prefill": True}
    return plain, on_vllm(sonde.load(folder, device="cpu"), max_num_seqs=4, **options)


def rows(model, data, **options):
    stream = sonde.read(model, data, **options)
    return [batch for batch in stream], stream


@pytest.mark.truth("transformers, whose model the folder is")
@pytest.mark.parametrize("reducer", ["tokens", "mean", "last"])
def test_states_are_those_of_transformers(both, reducer):
    data = texts(12, 1)
    here, there = (rows(m, data, sites="blocks", reducer=reducer)[0] for m in both)
    for mine, theirs in zip(here, there, strict=True):
        assert mine.ids == theirs.ids
        for key, x in mine.rows.items():
            y = theirs.rows[key]
            gap = (x - y).norm(dim=1) / x.norm(dim=1)
            assert gap.max() < 1e-5
            assert torch.equal(mine.position[key], theirs.position[key])


@pytest.mark.truth("sonde.score with transformers")
def test_what_one_engine_fitted_scores_rows_of_the_other(both, tmp_path):
    files = []
    for i, model in enumerate(both):
        stream = sonde.read(model, texts(40, 2), sites="blocks", reducer="mean")
        fitted = sonde.fit([Mahalanobis(shrinkage=0.2), KNN(k=3)], stream, calibrate=0)
        fitted = sonde.calibrate(fitted, both[1 - i], texts(30, 3))
        fitted.save(tmp_path / f"{i}.sonde")
        files.append(fitted)
    tables = [sonde.score(f, m, texts(10, 4)).to_pydict() for f in files for m in both]
    for table in tables[1:]:
        assert table["id"] == tables[0]["id"]
        assert table["score"] == pytest.approx(tables[0]["score"], rel=1e-3)


@pytest.mark.truth("generate of transformers, greedy")
def test_generated_texts_and_their_states(both):
    data, how = texts(6, 5), {"max_new_tokens": 12}
    options = {"sites": "blocks", "reducer": "mean", "generate": how, "batch_size": 3}
    here, there = (rows(m, data, **options)[0] for m in both)
    for mine, theirs in zip(here, there, strict=True):
        assert torch.equal(mine.extra["generated"], theirs.extra["generated"])
        for key, x in mine.rows.items():
            assert torch.allclose(x, theirs.rows[key], rtol=0, atol=float(1e-5 * x.abs().max()))


def test_what_cannot_be_read_is_refused_by_name(both):
    model = both[1]
    with pytest.raises(sonde.SondeError, match="did not run in the probe forward"):
        rows(model, texts(2, 6), sites="model.layers.1.mlp")
    with pytest.raises(InputError, match=r"num_beams=2.*leave engine out"):
        rows(model, texts(2, 6), sites="blocks", generate={"max_new_tokens": 4, "num_beams": 2})
    with pytest.raises(InputError, match=r"at most 128 tokens with.*got 201.*max_model_len"):
        rows(model, [{"text": "w1 " * 200}], sites="blocks")
    with pytest.raises(InputError, match="expected engine='vllm' with the name of a model"):
        sonde.read(model, texts(2, 6), engine="vllm")


def test_without_vllm_the_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(InputError, match=r"expected the package vllm.*pip install vllm"):
        sonde.load(folder, engine="vllm")


def test_other_engines_and_other_models():
    with pytest.raises(InputError, match=r"among transformers, vllm, got 'vlm'"):
        sonde.load("sonde:stdlib", engine="vlm")
    with pytest.raises(InputError, match="expected a language model from a folder"):
        sonde.load("sonde:digits", engine="vllm")


def test_the_command_refuses_what_needs_transformers(tmp_path):
    from cli_case import run_words

    data = tmp_path / "t.jsonl"
    data.write_text(json.dumps({"text": "def f(x): return x"}) + "\n")
    ran = run_words("explain", "sonde:stdlib", data, "--engine", "vllm")
    assert "--engine vllm: this command needs transformers itself" in ran.error()
