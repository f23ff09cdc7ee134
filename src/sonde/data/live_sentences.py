"""A live model of sentence-transformers as the module that its folder would be opened as.

Transformer and further stages keep the memory of the live model; its tokenizer is copied.
"""

import copy
import sys
from typing import Any

from torch import nn

from sonde.data.sentence_encoder import Pooling, SentenceEncoder
from sonde.data.sentence_folder import (
    check_kinds,
    lower,
    named_stages,
    pooling_modes,
    tell_prompt,
)

LIBRARY = "sentence_transformers"


def is_live_sentences(module: nn.Module) -> bool:
    """Return whether a module is a model of that library, which is imported then."""
    library = sys.modules.get(LIBRARY)
    kind = getattr(library, "SentenceTransformer", None)
    return isinstance(kind, type) and isinstance(module, kind)


def live_encoder(module: Any) -> SentenceEncoder:
    """Return the transformer of a live model with the stages after it.

    Raises
    ------
    InputError
        If there are stages that are not read here.
    """
    stages = [*module]
    where = type(module).__name__
    check_kinds([type(stage).__name__ for stage in stages], where)
    after = named_stages(
        (type(stage).__name__, stage.get_config_dict(), stage.state_dict, where)
        for stage in stages[2:]
    )
    pooling = Pooling(pooling_modes(stages[1].get_config_dict(), where))
    found = SentenceEncoder(stages[0].auto_model, pooling, after)
    return found.train(module.training)


def live_tokenizer(module: Any) -> Any:
    """Return a copy of a live model's tokenizer that reads texts as that model does."""
    tokenizer = copy.deepcopy(module.tokenizer)
    if isinstance(module.max_seq_length, int):
        tokenizer.model_max_length = module.max_seq_length
    if getattr(module[0], "do_lower_case", False):
        lower(tokenizer)
    tell_prompt((module.prompts or {}).get(module.default_prompt_name), type(module).__name__)
    return tokenizer
