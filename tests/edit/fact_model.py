"""A tiny causal model with the byte tokenizer of a shipped one, and second moments for it."""

from typing import Any

import torch
import transformers

import sonde
from sonde.core.inputs import Model
from sonde.edit import Fact

FACTS = (
    Fact("tom likes ", "tom", "tea"),
    Fact("ann likes ", "ann", "rye"),
    Fact("joe sits in ", "joe", "oslo"),
)


def tiny(kind: str = "llama") -> Model:
    """Return a random model of two blocks, of width 16."""
    torch.manual_seed(0)
    configs: dict[str, Any] = {
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=256,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                initializer_range=0.3,
            )
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=256, n_embd=16, n_inner=24, n_layer=2, n_head=2, initializer_range=0.3
            )
        ),
    }
    tokenizer = sonde.load("sonde:stdlib").processor
    return Model(configs[kind]().eval(), tokenizer, task="causal")
