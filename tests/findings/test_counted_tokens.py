import math
from collections import Counter

import pytest
import torch

from findings._counting import WORDS
from findings._counting import Counter as CountingModel
from findings._nets import texts_of, tokens
from sonde.findings.evidence.texts.counted_tokens import _Counts, counted_losses
from sonde.tap.streams.small_batches import single


def brute(train: list[list[int]], text: list[int], order: int) -> list[float]:
    """Return Witten and Bell's losses from dictionaries, one token after the other."""
    size = 1 + max(map(max, train))

    def chance(context: tuple[int, ...], word: int) -> float:
        lower = chance(context[1:], word) if context else 1 / (size + 1)
        n = len(context) + 1
        after: Counter[int] = Counter(
            t[i + n - 1]
            for t in train
            for i in range(len(t) - n + 1)
            if tuple(t[i : i + n - 1]) == context
        )
        total, kinds = sum(after.values()), len(after)
        return lower if total == 0 else (after[word] + kinds * lower) / (total + kinds)

    return [
        -math.log(chance(tuple(text[max(0, i - order + 1) : i]), text[i]))
        for i in range(1, len(text))
    ]


@pytest.mark.truth("brute force: dictionaries of counts, one token after the other")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_losses_are_those_of_dictionaries(order: int) -> None:
    draw = torch.Generator().manual_seed(3)
    train = [torch.randint(0, 7, (n,), generator=draw) for n in (23, 1, 40, 2)]
    text = torch.tensor([3, 6, 0, 0, 5, 2, 3, 6])
    found = _Counts(train).losses(text)[order - 1]
    wanted = brute([t.tolist() for t in train], text.tolist(), order)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_a_text_does_not_count_for_itself() -> None:
    stream = tokens(CountingModel((1.0,)).eval(), [20] * 40, task="causal", vocabulary=WORDS)
    texts_of(stream)[7][:] = [30, 31] * 10  # no other text has this pair in a row
    batch = single(stream.inputs, 7)
    assert batch is not None
    own = counted_losses(stream.inputs, [batch], 0)[0]
    assert own.shape == (3, 19)
    assert float(own[2].mean()) > math.log(10)
