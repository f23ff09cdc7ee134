"""A tiny language model in a folder, and what both engines are asked about it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sonde
from sonde.detect import Mahalanobis

WORDS = ["<s>", "</s>", *(f"w{n}" for n in range(126))]


def texts(n, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 90, (n,), generator=generator).tolist()
    return [
        {"text": " ".join(f"w{i}" for i in torch.randint(126, (k,), generator=generator).tolist())}
        for k in lengths
    ]


def probe_of(model, seed=2):
    stream = sonde.read(model, texts(40, seed), sites="blocks", reducer="tokens")
    fitted = sonde.fit([Mahalanobis(shrinkage=0.2)], stream, calibrate=0)
    return sonde.calibrate(fitted, model, texts(30, 3))


def in_order(text):
    """Return the scores of a guarded text by detector, site, example and position."""
    return {
        (*key, *where): pytest.approx(score, rel=1e-3)
        for key, scores in text.scores.items()
        for *where, score in zip(
            text.example[key].tolist(), text.position[key].tolist(), scores.tolist(), strict=True
        )
    }


def save_model(path):
    """Save the model and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

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
