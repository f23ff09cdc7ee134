"""Which token ids a tokenizer declares special."""

from typing import Any


def special_ids(processor: Any) -> frozenset[int]:
    """Return the ids that are left out of ``mean`` and ``tokens``; none without a tokenizer.

    An unknown token that has an id of its own stands for text and is no special one.
    """
    declared = getattr(processor, "all_special_ids", None)
    if declared is None:
        return frozenset()
    special = {int(i) for i in declared}
    if processor.unk_token_id not in (processor.bos_token_id, processor.eos_token_id):
        special.discard(processor.unk_token_id)
    return frozenset(special)
