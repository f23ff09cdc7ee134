"""Keep the tokens that the end of the prompt attends to, with their neighbours (SnapKV).

For long prompts whose question stands at the end. The window should be well below the budget: a
window of 16 leaves little of a budget of 12.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from sonde.core import CachedTokens, CacheRule, InputError
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class SnapKV(CacheRule):
    """Keep the newest tokens, and the tokens that the newest attend to, smoothed over neighbours.

    Formula: ``score_j = pool(mean_q a_qj)``, q the last ``window`` real tokens, j those before.

    Range        [0, 1], share of attention; infinite for the window; higher stays.
    Cost         attention of ``window`` queries beside the kernel, at each step; beside keys and
                 values the queries of the window.
    Assumes      the end of the prompt asks for what the answer needs.
    Differs      from the paper: tokens are also evicted while text is generated, by the same rule,
                 so that the budget holds for good; neighbours are those still in the cache.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.
    window : int, default=32
        Newest tokens whose queries are asked; they stay themselves, as far as the budget reaches.
    kernel : int, default=5
        Neighbouring tokens that are pooled, an odd number.
    pool : {"mean", "max"}, default="mean"
        How neighbours are pooled; the paper takes "max".

    References
    ----------
    li2024snapkv
    """

    budget: int | float = 0.25
    window: int = 32
    kernel: int = 5
    pool: Literal["mean", "max"] = "mean"
    paper: ClassVar[str] = "li2024snapkv"
    examples: ClassVar[tuple[dict, ...]] = (
        {"window": 2, "kernel": 3},
        {"budget": 5, "window": 2, "kernel": 1, "pool": "max"},
        {"budget": 1, "window": 3},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(
                "SnapKV: expected a window of 1 or more and an odd kernel, got "
                f"window={self.window}, kernel={self.kernel}."
            )
        check_ranges(self, pool=("mean", "max"))

    def reads_attention(self) -> int:
        """Return the size of the window."""
        return self.window

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the pooled attention of the window. The window itself is kept."""
        held = ((seen.index >= 0) & (seen.age >= self.window)).float()
        received, size, edge = seen.received() * held, self.kernel, self.kernel // 2
        # the window is no neighbour, and slots of padding are none
        if self.pool == "mean":
            count = avg_pool1d(held, size, 1, edge).clamp(min=1 / (2 * size))
            pooled = avg_pool1d(received, size, 1, edge) / count
        else:
            pooled = max_pool1d(received, size, 1, edge)
        return seen.with_newest(pooled, seen.keep.new_full(seen.keep.shape, self.window))
