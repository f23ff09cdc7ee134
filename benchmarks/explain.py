"""What explanations cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.generating import language_model
from benchmarks.nets import VOCABULARY
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.explain import ActivationPatching, AttributionPatching, Objective

PATCHING_BUDGET, ATTRIBUTION_BUDGET = 0.55, 4.0


def patching_rows(size: Size) -> list[Row]:
    """Time of every patch of one pair against whole forwards, and of its estimate."""
    depth, width, length = size.pick((12, 768, 64), (2, 64, 6))
    net: Any = language_model(depth, width)
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(1, VOCABULARY, (2, 1, length), generator=generator)
    first, second = ({"input_ids": ids, "logits_to_keep": 1} for ids in (clean, corrupt))
    goal = Objective("margin", target=1, other=2)

    def whole() -> Tensor:
        return _whole(net, clean, corrupt)

    def ours() -> Tensor:
        return ActivationPatching(rows=length).trace(net, first, second, goal).effects[0]

    gap = float((whole().double() - ours()).abs().max())
    rounds = size.pick(min(size.rounds, 2), 2)
    arms: dict[str, Callable[[], object]] = {PLAIN: whole, "ours": ours, AGAIN: whole}
    ratio = ratio_of(interleaved(arms, rounds, warm_ups=0), "ours")
    what = f"every layer and position of one pair, {depth} layers x {length} tokens, last logits"
    found = [
        Row(
            "patch",
            f"patching {what}, against whole forwards",
            ratio.median,
            "x",
            PATCHING_BUDGET,
            ratio.spread,
            ratio.rounds,
            f"{ratio.noise}; effects differ by at most {gap:.1e}",
        )
    ]
    estimate = AttributionPatching(ig_steps=1, check=0)

    def plain() -> object:
        with torch.no_grad():
            return net(input_ids=clean, logits_to_keep=1, use_cache=False)

    arms = {PLAIN: plain, "ours": lambda: estimate.trace(net, first, second, goal), AGAIN: plain}
    ratio = ratio_of(interleaved(arms, size.rounds, warm_ups=2), "ours")
    found.append(
        Row(
            "patch",
            f"attribution patching of {what}, one step, in plain forwards of one text",
            ratio.median,
            "x",
            ATTRIBUTION_BUDGET,
            ratio.spread,
            ratio.rounds,
            ratio.noise,
        )
    )
    return found


def _whole(net: Any, clean: Tensor, corrupt: Tensor) -> Tensor:
    """Return the effect of each patch, by forwards from the first layer on."""
    length = clean.shape[1]
    seen: dict[int, Tensor] = {}
    rows: list[Tensor] = []

    def margins(ids: Tensor) -> Tensor:
        logits = net(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
        return logits[:, 1] - logits[:, 2]

    with torch.no_grad():
        blocks = list(net.transformer.h)
        keep = [
            block.register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out))
            for i, block in enumerate(blocks)
        ]
        margins(clean)
        for handle in keep:
            handle.remove()
        base = margins(corrupt)
        at = torch.arange(length)
        for i, block in enumerate(blocks):

            def hook(module: Any, args: Any, out: Tensor, i: int = i) -> Tensor:
                new = out.clone()
                new[at, at] = seen[i][0]
                return new

            handle = block.register_forward_hook(hook)
            rows.append(margins(corrupt.expand(length, -1)) - base)
            handle.remove()
    return torch.stack(rows)
