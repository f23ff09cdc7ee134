"""Tiny random classes of transformers whose attentions are read, and what they are fed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import models
from models import _IDS, _LLAMA, _TEXT, VOCABULARY, _hf
from sonde.core.site import ATTENTION_PORTS as PORTS
from sonde.tap import Tap
from sonde.tap.attention.places import attentions_at
from sonde.tap.hooks.names import ModuleNames

HEADS = 4

GROUPED = _LLAMA | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}

TEXTS: dict[str, Callable[[], Any]] = {
    "gpt2": models.gpt2,
    "llama": models.llama,
    "qwen2": models.qwen2,
    "opt": models.opt,
    "bert": models.bert,
    "roberta": models.roberta,
    "albert": models.albert,
    "mixtral": models.mixtral,
    "mistral": _hf("MistralForCausalLM", "MistralConfig", **GROUPED, sliding_window=4),
    "qwen3": _hf("Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=8),
    "gemma": _hf("GemmaForCausalLM", "GemmaConfig", **GROUPED, head_dim=8),
    "gemma2": _hf("Gemma2ForCausalLM", "Gemma2Config", **GEMMA),
    "gpt_neox": _hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **_LLAMA),
    "gpt_oss": _hf(
        "GptOssForCausalLM",
        "GptOssConfig",
        **GROUPED,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=4,
    ),
    "distilbert": _hf(
        "DistilBertModel",
        "DistilBertConfig",
        **_TEXT,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=64,
    ),
    "t5": models.t5,
    "bart": _hf(
        "BartForConditionalGeneration",
        "BartConfig",
        **_TEXT,
        **_IDS,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        decoder_start_token_id=2,
    ),
}
IMAGES: dict[str, Callable[[], Any]] = {
    "vit": models.vit,
    "dinov2": models.dinov2,
    "clip_vision": models.clip_vision,
}
EVERY = TEXTS | IMAGES


def inputs_of(name: str, model: Any, padded: bool) -> dict[str, Tensor]:
    """Return two examples, of 7 and 4 real tokens where they are padded."""
    generator = torch.Generator().manual_seed(0)
    if name in IMAGES:
        dtype = next(model.parameters()).dtype
        return {"pixel_values": torch.randn(2, 3, 24, 24, generator=generator).to(dtype)}
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if padded:
        found["attention_mask"][1, 4:] = 0
    if model.config.is_encoder_decoder:
        found["decoder_input_ids"] = ids[:, :5]
    return found


def read(model: Any, inputs: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Return what is at the ports of each attention, and the model's output."""
    paths = attentions_at("", ModuleNames(model))
    with Tap(model, [f"{path}@last:{port}" for path in paths for port in PORTS]) as tap:
        output = model(**inputs)[0]
    return [{p: tap.rows[f"{path}@last:{p}"] for p in PORTS} for path in paths], output


def heads_of(ports: dict[str, Tensor]) -> Tensor:
    """Return probabilities times values, of the queries' heads side by side."""
    probs = ports["probs"].unflatten(2, (HEADS, -1)).double()
    width = ports["heads"].shape[2] // HEADS
    values = ports["values"].unflatten(2, (-1, width)).double()
    values = values.repeat_interleave(HEADS // values.shape[2], 2)
    return torch.einsum("bqhk,bkhd->bqhd", probs, values).flatten(2)
