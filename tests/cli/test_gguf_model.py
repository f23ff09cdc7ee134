"""Models in GGUF files."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sonde
from sonde.core import InputError
from sonde.data.gguf_model import described, dtype_of
from sonde.data.loading import load
from sonde.files.gguf import GGUFHeader, write_control_vector

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "a", "b", "▁a", "▁b"]
CONFIG = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def gguf():
    return pytest.importorskip("gguf", reason="needs the extra gguf")


def interleaved(weight, heads):
    """Return rows in llama.cpp's order: the two halves of each head's rotation alternate."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_llama(gguf, path, model, kind, facts=()):
    """Write a Llama as llama.cpp's converter does; put the rounded matrices into the model."""
    writer = gguf.GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(TOKENS) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, value in facts:
        writer.add_uint16(name, value)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = getattr(gguf.GGMLQuantizationType, kind)
    for name, x in model.named_parameters():
        head = name.removeprefix("model.").removesuffix(".weight")
        for theirs, ours in NAMES.items():
            head = head.replace(theirs, ours)
        head = head.replace("layers.", "blk.").replace("embed_tokens", "token_embd")
        head = "output_norm" if head == "norm" else head
        values, n = x.detach().numpy(), heads.get(head.rpartition(".")[2])
        if values.ndim == 1:
            writer.add_tensor(f"{head}.weight", values)
            continue
        packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        rounded = gguf.quants.dequantize(packed, kind).astype(np.float32)
        if n is not None:
            packed = gguf.quants.quantize(np.ascontiguousarray(interleaved(values, n)), kind)
        writer.add_tensor(f"{head}.weight", packed, raw_dtype=kind)
        x.data.copy_(torch.from_numpy(rounded))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def written(gguf, tmp_path_factory):
    """A file of 8-bit blocks, and the model that it must open as."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    for x in model.parameters():  # norms of ones and tiny weights would hide a wrong place
        x.data.add_(torch.randn_like(x) * 0.1)
    write_llama(gguf, path, model, "Q8_0")
    return path, model


@pytest.mark.truth("the same weights rounded by the package gguf, in a model of transformers")
def test_a_file_opens_as_the_model_it_was_written_from(written, tmp_path):
    path, model = written
    found = load(path, device="cpu")
    tokens = torch.tensor([[1, 5, 262, 9, 260, 263]])
    assert torch.equal(found.module(tokens).logits, model(tokens).logits)
    assert found.task == "causal"
    assert next(found.module.parameters()).dtype == torch.float32
    chat = [{"role": "user", "content": "a b"}]
    assert found.processor.apply_chat_template(chat, tokenize=False) == "<user>a b"
    told = described(GGUFHeader.read(path), torch.float32)
    assert told == "Q8_0 of GGUF, read as float32, 307 KiB"
    in_folder = load(path.parent, device="cpu", dtype="bfloat16")
    assert next(in_folder.module.parameters()).dtype == torch.bfloat16


@pytest.mark.slow
def test_an_edit_of_a_file_writes_an_ordinary_folder(written, run, tmp_path):
    path, model = written
    data = tmp_path / "t.jsonl"
    data.write_text("".join(json.dumps({"text": "a b " * n}) + "\n" for n in range(1, 9)))
    out = tmp_path / "small"
    ran = run("compress", path, data, "--to", "8bit", "--held", 2, "-o", out)
    assert ran.code == 0, ran.err
    small = load(out, device="cpu")
    tokens = torch.tensor([[1, 5, 262, 9]])
    gap = (small.module(tokens).logits - model(tokens).logits).abs().max()
    assert 0 < gap < 0.1
    assert small.processor.chat_template == TEMPLATE


def test_what_a_file_holds_is_printed(written, run, tmp_path):
    path, model = written
    facts = run("info", path, "--json").json()
    assert facts["kind"] == "model in GGUF"
    assert (facts["n_blocks"], facts["dim"], facts["vocabulary"]) == (2, 64, len(TOKENS))
    assert facts["parameters"] == sum(x.numel() for x in model.parameters())
    assert [one["type"] for one in facts["types"]] == ["Q8_0", "F32"]


def test_a_control_vector_is_described_and_is_no_model(run, tmp_path):
    path = tmp_path / "v.gguf"
    write_control_vector(path, "llama", {n: torch.ones(7) for n in (1, 3)})
    ran = run("info", path)
    assert ran.code == 0
    assert "control vector in GGUF" in ran.out
    assert "1, 3" in ran.out
    with pytest.raises(InputError, match="is a control vector, not a model"):
        sonde.load(path)


def test_files_of_plain_numbers_keep_their_type():
    def of(*types):
        return GGUFHeader({}, {t: (2,) for t in types}, {t: t for t in types})

    assert dtype_of(of("F32", "BF16")) == torch.bfloat16
    assert dtype_of(of("F32")) == dtype_of(of("F16", "Q4_K")) == torch.float32


def test_what_cannot_be_opened_is_said(written, gguf, tmp_path):
    path, model = written
    raw = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (3, 4, 30, 400, 6000):
        cut.write_bytes(raw[:size])
        with pytest.raises(InputError, match=r"no GGUF file|cut or damaged"):
            load(cut)
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(raw.replace(b"llama", b"lluma"))
    with pytest.raises(InputError, match=r"cannot open .*architecture lluma.*safetensors"):
        load(strange)
    part = tmp_path / "part.gguf"
    write_llama(gguf, part, model, "Q8_0", [("split.count", 2)])
    with pytest.raises(InputError, match=r"one of 2 parts.*llama-gguf-split --merge"):
        load(part)
    with pytest.raises(InputError, match=r"holds 3 GGUF files \(cut.gguf"):
        load(tmp_path)
