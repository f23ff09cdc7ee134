"""A few examples of one size: texts of any lengths are cut, not lost."""

from lm_twin_case import twin
from sonde.data import open_inputs
from sonde.tap.streams.small_batches import small_batches


def test_texts_are_cut_further_where_too_few_would_remain() -> None:
    """Of 30 texts of 30 lengths, half are as long as the median; 24 share a shorter length."""
    texts = ["People" + " in Spain pay" * (1 + i) for i in range(30)]
    inputs = open_inputs(twin(), texts)
    median, enough = (
        small_batches(twin(), inputs, range(30), None, least=least) for least in (0, 24)
    )
    assert len(median) == 15
    assert 24 <= len(enough) < 30
    lengths = sorted(len(twin().processor(text)["input_ids"]) for text in texts)
    assert median.length == lengths[15]
    assert enough.length == lengths[6]
    assert {one.kwargs["input_ids"].shape[1] for one in enough.singles} == {lengths[6]}
