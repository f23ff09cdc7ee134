"""Tiny random models: architectures of transformers, modules of torch, and pipelines."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

VOCABULARY = 61
Takes = Literal["ids", "pair", "image", "image and ids", "sound", "numbers", "sequence"]


@dataclass(frozen=True)
class Architecture:
    """How to build a tiny model, and what plain torch code has to know about its states.

    Parameters
    ----------
    name : str
    build : callable
        Returns the model in eval mode.
    takes : str
        What one example is.
    prefix : int, default=0
        Tokens before the patches of an image.
    time_first : bool, default=False
        States are (time, row, dim).
    generates : bool, default=False
        Whether ``generate`` with a cache of keys and values makes sense.
    task : str, default=""
        Task of the pipeline that the model is called through.
    size : int, default=24
        Height and width of an image, steps of a sequence, or samples of sound.
    """

    name: str
    build: Callable[[], nn.Module]
    takes: Takes = "ids"
    prefix: int = 0
    time_first: bool = False
    generates: bool = False
    task: str = ""
    size: int = 24
    further: dict[str, Tensor] = field(default_factory=dict)

    @property
    def saves(self) -> bool:
        """Whether transformers writes the model as a folder."""
        return not self.name.startswith("torch ")


def _of(name: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
    """Return what builds a class of transformers from its own configuration class."""

    def build() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, name)
        return made(made.config_class(**settings)).eval()

    return build


_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_TEXT = {"vocab_size": VOCABULARY} | _SIZES | _IDS | {"max_position_embeddings": 64}
_DROP = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_LLAMA = _TEXT | {"num_key_value_heads": 2, "head_dim": 8}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GPT2 |= _IDS
_PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
} | _IDS
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
_T5 |= {"num_heads": 4, "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
_LABELS = {"num_labels": 5}
_SEEN = _SIZES | _DROP | _LABELS | {"image_size": 24, "patch_size": 6}
_SOUND = _SIZES | {
    "vocab_size": VOCABULARY,
    "num_labels": 5,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}

_CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 4}
        | {"intermediate_size": 48, "max_position_embeddings": 64}
        | _IDS,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", _TEXT),
    "gptj": ("GPTJForCausalLM", _GPT2 | {"rotary_dim": 4}),
    "codegen": ("CodeGenForCausalLM", _GPT2 | {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", _GPT2),
    "bloom": (
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4} | _IDS,
    ),
    "opt": ("OPTForCausalLM", _TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("FalconForCausalLM", _TEXT),
    "mpt": (
        "MptForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
        | _IDS,
    ),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "mistral": ("MistralForCausalLM", _LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", _LLAMA),
    "phi": ("PhiForCausalLM", _TEXT),
    "phi3": ("Phi3ForCausalLM", _LLAMA),
    "gemma": ("GemmaForCausalLM", _LLAMA),
    "gemma2": ("Gemma2ForCausalLM", _LLAMA | {"sliding_window": 4}),
    "gemma3": (
        "Gemma3ForCausalLM",
        _LLAMA | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "olmo": ("OlmoForCausalLM", _TEXT),
    "olmo2": ("Olmo2ForCausalLM", _TEXT),
    "cohere": ("CohereForCausalLM", _LLAMA),
    "stablelm": ("StableLmForCausalLM", _TEXT | {"num_key_value_heads": 4}),
    "starcoder2": ("Starcoder2ForCausalLM", _LLAMA),
    "granite": ("GraniteForCausalLM", _LLAMA),
    "nemotron": ("NemotronForCausalLM", _LLAMA),
    "glm": ("GlmForCausalLM", _LLAMA),
    "smollm3": ("SmolLM3ForCausalLM", _LLAMA),
    "mixtral": ("MixtralForCausalLM", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        _LLAMA | _MIXTURE | {"shared_expert_intermediate_size": 24},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", _LLAMA | _MIXTURE),
    "olmoe": ("OlmoeForCausalLM", _TEXT | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssForCausalLM",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "minimax_m2": (
        "MiniMaxM2ForCausalLM",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        _LLAMA
        | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
        | {"interleave_moe_layer_step": 1, "attention_chunk_size": 16}
        | {"layer_types": ["chunked_attention", "full_attention"]},
    ),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
        | _IDS,
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
        | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
        | _IDS,
    ),
}
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", _TEXT | _DROP | _LABELS),
    "bert_model": ("BertModel", _TEXT | _DROP),
    "roberta": (
        "RobertaForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"max_position_embeddings": 66},
    ),
    "xlm_roberta": (
        "XLMRobertaForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"max_position_embeddings": 66},
    ),
    "camembert": (
        "CamembertForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"max_position_embeddings": 66},
    ),
    "electra": (
        "ElectraForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"embedding_size": 16},
    ),
    "albert": ("AlbertForSequenceClassification", _TEXT | _DROP | _LABELS | {"embedding_size": 16}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        | _LABELS,
    ),
    "mpnet": ("MPNetForSequenceClassification", _TEXT | _DROP | _LABELS),
    "deberta_v2": ("DebertaV2ForSequenceClassification", _TEXT | _DROP | _LABELS),
    "xlnet": (
        "XLNetForSequenceClassification",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
        | _LABELS
        | _IDS,
    ),
    "modernbert": (
        "ModernBertForSequenceClassification",
        _TEXT | _LABELS | {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"embedding_size": 16, "intra_bottleneck_size": 16},
    ),
    "longformer": (
        "LongformerForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"attention_window": 4, "max_position_embeddings": 66},
    ),
    "fnet": ("FNetForSequenceClassification", _TEXT | _LABELS | {"hidden_dropout_prob": 0.0}),
    "esm": (
        "EsmForSequenceClassification",
        _TEXT | _DROP | _LABELS | {"mask_token_id": 4, "max_position_embeddings": 66},
    ),
    "t5_encoder": ("T5EncoderModel", _T5),
}
_PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", _T5),
    "mt5": ("MT5ForConditionalGeneration", _T5),
    "bart": ("BartForConditionalGeneration", _PAIR),
    "mbart": ("MBartForConditionalGeneration", _PAIR),
    "marian": ("MarianMTModel", _PAIR | {"decoder_vocab_size": VOCABULARY}),
    "pegasus": ("PegasusForConditionalGeneration", _PAIR),
    "m2m_100": ("M2M100ForConditionalGeneration", _PAIR),
}
_IMAGES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "vit": ("ViTForImageClassification", _SEEN, 1, 24),
    "deit": ("DeiTForImageClassification", _SEEN, 2, 24),
    "beit": ("BeitForImageClassification", _SEEN, 1, 24),
    "dinov2": ("Dinov2ForImageClassification", _SEEN | {"mlp_ratio": 2}, 1, 24),
    "dinov2_registers": (
        "Dinov2WithRegistersForImageClassification",
        _SEEN | {"mlp_ratio": 2, "num_register_tokens": 4},
        5,
        24,
    ),
    "clip_vision": ("CLIPVisionModel", _SEEN, 1, 24),
    "siglip_vision": ("SiglipVisionModel", _SEEN, 0, 24),
    "swin": (
        "SwinForImageClassification",
        _LABELS
        | {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "window_size": 2}
        | {"num_heads": [1, 2]},
        0,
        32,
    ),
    "convnext": (
        "ConvNextForImageClassification",
        _LABELS
        | {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
        | {"image_size": 32},
        0,
        32,
    ),
    "resnet": (
        "ResNetForImageClassification",
        _LABELS
        | {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1]}
        | {"layer_type": "basic"},
        0,
        32,
    ),
    "segformer": (
        "SegformerForImageClassification",
        _LABELS
        | {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1]}
        | {"hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2]}
        | {"num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
        | {"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0},
        0,
        32,
    ),
    "poolformer": (
        "PoolFormerForImageClassification",
        _LABELS | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "mlp_ratio": 2.0},
        0,
        64,
    ),
    "mobilenet_v2": (
        "MobileNetV2ForImageClassification",
        _LABELS | {"depth_multiplier": 0.25, "image_size": 32, "min_depth": 8},
        0,
        32,
    ),
}
_SOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", _SOUND),
    "hubert": ("HubertForSequenceClassification", _SOUND),
    "wavlm": ("WavLMForSequenceClassification", _SOUND),
}


class Steps(nn.Module):
    """A module of torch over sequences of numbers, with a head on the mean over time."""

    def __init__(self, inner: nn.Module, time_first: bool) -> None:
        super().__init__()
        self.up, self.inner, self.head = nn.Linear(6, 8), inner, nn.Linear(8, 5)
        self.time_first = time_first

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of sequences (row, time, number)."""
        x = torch.tanh(self.up(x))
        x = self.inner(x.transpose(0, 1) if self.time_first else x)
        x = x[0] if isinstance(x, tuple) else x
        return self.head(x.mean(0 if self.time_first else 1))


def _torch(kind: str, time_first: bool = False) -> Callable[[], nn.Module]:
    """Return what builds a model of torch's own modules."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        if kind == "mlp":
            parts = (nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
            return nn.Sequential(*parts).eval()
        if kind == "conv":
            first, second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
            pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
            norm = nn.BatchNorm2d(8)
            return nn.Sequential(first, norm, nn.ReLU(), second, nn.ReLU(), *pooled).eval()
        if kind == "encoder":
            layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=not time_first)
            inner: nn.Module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            inner = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](8, 8, batch_first=not time_first)
        return Steps(inner, time_first).eval()

    return build


def _every() -> list[Architecture]:
    """Return all architectures, in the order of the table."""
    found = [Architecture(n, _of(*a), generates="mamba" not in n) for n, a in _CAUSAL.items()]
    for name, a in _ENCODERS.items():
        # XLNet swaps the axes of its ids; the first examples have 5 tokens
        swaps = {"time_first": True, "size": 5} if name == "xlnet" else {}
        found.append(Architecture(name, _of(*a), **swaps))
    found += [Architecture(n, _of(*a), "pair", generates=True) for n, a in _PAIRS.items()]
    for name, (made, settings, prefix, size) in _IMAGES.items():
        found.append(Architecture(name, _of(made, settings), "image", prefix, size=size))
    found += [Architecture(n, _of(*a), "sound", size=400) for n, a in _SOUNDS.items()]
    for kind in ("encoder", "lstm", "gru"):
        for first in (False, True):
            name = f"torch {kind}, {'time' if first else 'batch'} first"
            made = _torch(kind, first)
            found.append(Architecture(name, made, "sequence", time_first=first, size=6))
    found.append(Architecture("torch convolutions", _torch("conv"), "image"))
    found.append(Architecture("torch mlp", _torch("mlp"), "numbers"))
    bert, features = (_of(*_ENCODERS[n]) for n in ("bert", "bert_model"))
    found.append(Architecture("pipeline text-classification", bert, task="text-classification"))
    found.append(Architecture("pipeline feature-extraction", features, task="feature-extraction"))
    llama = _of(*_CAUSAL["llama"])
    task = "text-generation"
    found.append(Architecture(f"pipeline {task}", llama, generates=True, task=task))
    return found


ARCHITECTURES = {a.name: a for a in _every()}
