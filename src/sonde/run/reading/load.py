"""Load the model that the user names, with the inserted layers and packed weights of its folder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model
from sonde.data import loading

ENGINES = ("transformers", "vllm")


def load(
    model: Any,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
    *,
    engine: str = "transformers",
) -> Model:
    """Return the named model, with its processor of items.

    Parameters
    ----------
    model : str, path, nn.Module or Model
        A Hugging Face directory or name, a GGUF file, ``package.module:factory``,
        ``sonde:digits``, ``sonde:stdlib``, or a live module, which stays where it is; of a live
        model of sentence-transformers the stages are read as from its folder. Weights in a file,
        a state dictionary or safetensors, are ``package.module:factory@FILE``; a factory's model
        that `sonde compress` wrote is ``package.module:factory@FOLDER``. ``timm:NAME`` asks timm,
        ``sentence-transformers:NAME`` the hub.
    device : str or torch.device, default="auto"
        ``auto`` is cuda, mps or cpu for models that are loaded here; ``map`` spreads a checkpoint
        over the devices; else a torch device.
    dtype : {"auto", "float32", "bfloat16", "float16"} or torch.dtype, default="auto"
        ``auto`` is what the configuration says.
    trust_remote_code : bool, default=False
        Run Python code that comes with the checkpoint.
    processor : object, optional
        Tokenizer, image processor, or callable that turns one item into a tensor.
    engine : {"transformers", "vllm"}, default="transformers"
        What runs the tokens of a language model. With ``vllm`` the model's folder is opened by vLLM
        too, and blocks give the states that vLLM computes.

    Raises
    ------
    InputError
        If there is no such model, or it cannot be loaded safely and whole.
    """
    if engine not in ENGINES:
        raise InputError(
            f"load: expected an engine among {', '.join(ENGINES)}, got {engine!r}."
            f"{near(engine, ENGINES)}"
        )
    if engine == "vllm":
        device = "cpu"  # the weights that say which model it is; vLLM chooses its own device
    loaded = loading.load(
        model,
        device,
        dtype,
        trust_remote_code,
        processor,
        fill=_fill,
        insert=_insert,
    )
    if engine == "vllm":
        from sonde.engines.vllm import on_vllm

        return on_vllm(loaded)
    return loaded


def _fill(module: nn.Module, folder: Path) -> None:
    from sonde.weights.factory_folder import fill

    fill(module, folder)
    _insert(module, folder)


def _insert(module: nn.Module, folder: Path) -> None:
    from sonde.layers.saving import insert_saved_layers

    insert_saved_layers(module, folder)
