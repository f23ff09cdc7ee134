"""Untrained GPT-2 models of any size, and the loss of a language model on whole texts."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def gpt2(
    vocabulary: int,
    longest: int,
    width: int,
    layers: int,
    heads: int,
    special: int | None = None,
    **config: Any,
) -> Any:
    """Return an untrained GPT-2 without dropout, initialised by the global generator.

    Parameters
    ----------
    vocabulary : int
        Number of tokens.
    longest : int
        Tokens of the longest text.
    width, layers, heads : int
    special : int, optional
        Token that begins, ends and pads texts.
    **config
        Further options of ``transformers.GPT2Config``.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=longest,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), special),
            **config,
        )
    )


def next_token_loss(
    logits: Float[Tensor, "text pos token"], ids: Int[Tensor, "text pos"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of each token after the first, in nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
