"""ROME in plain torch, from the formulas of its paper: a peer of ``sonde.edit.RankOneEdit``.

It shares no code with sonde. Constants are those that its authors publish for GPT-2 XL: 20 steps of
Adam at 0.5, divergence 0.0625, decay 0.5, longest shift 4 lengths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

STEPS, RATE, DIVERGENCE, DECAY, LONGEST = 20, 0.5, 0.0625, 0.5, 4.0
PREFIXES = ("", "The ", "Then. ", "I think that ", "Yes, because ")


def rome_weight(
    module: Any, tokenizer: Any, layer: str, fact: tuple[str, str, str], second_moment: Tensor
) -> Tensor:
    """Return the new weight of a layer that writes a fact.

    Parameters
    ----------
    module : Module
        A causal language model.
    tokenizer : tokenizer
    layer : str
        Path of the linear layer.
    fact : (str, str, str)
        Prompt, subject and new answer.
    second_moment : Float[Tensor, "dim dim"]
        Mean of ``x x^T`` of the layer's inputs on plain text.
    """
    module.requires_grad_(False)  # only the shift is searched
    linear = module.get_submodule(layer)
    prompt, subject, target = fact
    weight = linear.weight.detach().double()
    texts = [prefix + prompt for prefix in PREFIXES]
    keys = [_input_at(module, linear, *_encoded(tokenizer, text, subject)) for text in texts]
    key = torch.stack(keys).mean(0).double()
    value = _value(module, tokenizer, linear, texts, subject, target, weight @ key)
    solved = torch.linalg.solve(second_moment.double(), key)
    gap = value - weight @ key
    return (weight + torch.outer(gap, solved) / (key @ solved)).to(linear.weight.dtype)


def _encoded(tokenizer: Any, text: str, subject: str) -> tuple[list[int], int]:
    """Return the tokens of a text, and the position of the subject's last token."""
    end = text.rindex(subject) + len(subject)
    whole = tokenizer(text)["input_ids"]
    return whole, len(tokenizer(text[:end])["input_ids"]) - 1


def _input_at(module: Any, linear: nn.Module, ids: Sequence[int], place: int) -> Tensor:
    """Return the input of a layer at one token."""
    found: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, given: found.append(given[0][0, place]))
    with torch.no_grad():
        module(input_ids=torch.tensor([list(ids)]))
    hook.remove()
    return found[0]


def _value(
    module: Any,
    tokenizer: Any,
    linear: nn.Module,
    texts: Sequence[str],
    subject: str,
    target: str,
    first: Tensor,
) -> Tensor:
    """Return the output of the layer, at the subject, that makes the answer likely."""
    shift = torch.zeros_like(first, dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=RATE)
    answer = tokenizer(target, add_special_tokens=False)["input_ids"]
    calm = f"{subject} is a"
    before: Tensor | None = None
    length = float(first.norm())
    for _ in range(STEPS):
        losses: list[Tensor] = []
        for text in texts:
            ids, place = _encoded(tokenizer, text, subject)
            log_p = _shifted(module, linear, [*ids, *answer], place, shift)
            rows = log_p[len(ids) - 1 : -1]
            losses.append(-rows[torch.arange(len(answer)), answer].mean())
        log_p = _shifted(module, linear, *_encoded(tokenizer, calm, subject), shift)[-1]
        before = log_p.detach() if before is None else before
        kl = (before.exp() * (before - log_p)).sum()
        decay = DECAY * shift.square().sum() / length**2
        loss = torch.stack(losses).mean() + DIVERGENCE * kl + decay
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            shift *= min(1.0, LONGEST * length / max(1e-12, float(shift.norm())))
    return first + shift.detach().double()


def _shifted(
    module: Any, linear: nn.Module, ids: Sequence[int], place: int, shift: Tensor
) -> Tensor:
    """Return log-probabilities with the layer's output shifted at one token, (pos, token)."""

    def add(_: Any, __: Any, out: Tensor) -> Tensor:
        here = torch.zeros(out.shape[1], 1)
        here[place] = 1.0
        return out + here * shift

    hook = linear.register_forward_hook(add)
    try:
        logits = module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        hook.remove()
    return logits.float().log_softmax(1)
