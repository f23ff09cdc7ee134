"""Find a module's task from its class and configuration."""

import sys
from typing import Any

from torch import nn

from sonde.core.model_config import is_encoder_decoder


def task_of(module: nn.Module) -> str:
    """Return the meaning of a module's outputs; see ``Model.task``.

    Parameters
    ----------
    module : Module
        Module whose outputs are asked about.
    """
    config = config_of(module)
    return "tensor" if config is None else task_of_class(type(module).__name__, config)


def task_of_class(name: str, config: Any) -> str:
    """Return the task of a class of transformers with this configuration: see ``Model.task``."""
    if "ForSequenceClassification" in name:
        return "classifier"
    if "ForImageClassification" in name:
        return "image_classifier"
    if is_encoder_decoder(config):
        return "encoder" if name.endswith("EncoderModel") else "seq2seq"
    from transformers.models.auto import modeling_auto as auto

    kind, causal = getattr(config, "model_type", ""), auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    answers = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    if name in {*causal.values(), *answers} or name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if kind in causal and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and "For" not in name:
        return "causal"
    return "encoder"


def config_of(module: nn.Module) -> Any:
    """Return the Hugging Face configuration of a module, or None."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    config = getattr(module, "config", None)
    return config if isinstance(config, transformers.PretrainedConfig) else None
