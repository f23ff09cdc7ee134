"""A language model run by vLLM, read as the module that transformers builds of the same folder.

The module keeps its names, weights and configuration; its blocks give the states that vLLM computed
of the same tokens. So sites, reducers, detectors and files are those of transformers, and whatever
reads a module reads vLLM. Edits that map each state by itself are applied inside vLLM. What cannot
be had so is refused by name:

- sites other than blocks, logits, gradients and ports inside attentions;
- other edits, caches and training that act on a forward pass: they would not reach vLLM;
- an architecture whose states in vLLM are not those of transformers: both run once on a few tokens
  when the model is opened.

Captured graphs and the cache of prefixes skip states, so both are off.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data.loading import load
from sonde.data.text_encoding import context_of
from sonde.engines._engine import Engine, require_vllm, sampling_params
from sonde.engines._module import Shell, sampling_settings
from sonde.engines._requests import AsyncRequests, Requests, require_states
from sonde.engines._shared_engine import (
    NewTokens,
    SharedEngine,
    given_states,
    shared_engine,
)

__all__ = [
    "NewTokens",
    "SharedEngine",
    "given_states",
    "on_vllm",
    "require_vllm",
    "sampling_settings",
    "shared_engine",
    "shared_on_vllm",
    "watched",
]
DRAWN = 12
"""Tokens on which vLLM is compared with transformers."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest relative difference of states that counts as rounding."""


def on_vllm(model: Model, **options: Any) -> Model:
    """Return a model whose forward passes and texts come from vLLM.

    Parameters
    ----------
    model : Model
        A language model that was loaded from a folder, on the CPU: its weights say which model it
        is.
    **options
        Options of ``vllm.LLM``, such as ``max_model_len`` or ``gpu_memory_utilization``.

    Raises
    ------
    InputError
        If vLLM is not installed, or the model is not one that it reads as transformers does.
    """
    return _opened(model, Engine, options)


def shared_on_vllm(model: Model, **options: Any) -> Model:
    """Return a model as ``on_vllm`` does, whose vLLM answers many callers at once.

    A server uses it: forward passes of several threads and texts that are generated meanwhile
    share the steps of vLLM. Edits are refused.

    Parameters
    ----------
    model : Model
        A language model that was loaded from a folder, on the CPU.
    **options
        Options of ``vllm.LLM``.

    Raises
    ------
    InputError
        If vLLM is not installed, or the model is not one that it reads as transformers does.
    """
    return _opened(model, SharedEngine, options)


def _opened(
    model: Model, kind: type[Engine] | type[SharedEngine], options: Mapping[str, Any]
) -> Model:
    folder = model.name
    if model.task != "causal" or not folder:
        raise InputError(
            f"engine vllm: expected a language model from a folder, got {model!r}. Leave engine "
            "out."
        )
    module, blocks = model.module, _blocks(model.module)
    expected, dtype = _states_here(module, blocks), next(module.parameters()).dtype
    engine = kind.start(folder, dtype, context_of(model), options)
    _check_names(folder, blocks, engine.modules())
    ids, here = expected
    one = sampling_params(max_tokens=1, temperature=0, detokenize=False)
    engine.tell([("sonde_watch", ([*blocks], []))])
    engine.orders.watched = tuple(blocks)
    there = engine.run([ids[0].tolist()], [one])[1][0]
    _check_alike(type(module).__name__, here, there, dtype)
    Shell(module, engine, blocks).attach()
    if isinstance(engine, SharedEngine):
        engine.attach(module)
    return replace(model, module=module)


@contextmanager
def watched(llm: Any, finished: Callable[[Any], None] | None = None) -> Iterator[Model]:
    """Give the states of a running vLLM to whatever watches the returned model.

    Open a ``Guard`` on the model, or an edit, and go on to use ``llm`` itself. When a request is
    finished, the hooks on the model see its prompt in one forward pass and the generated tokens but
    the last in another one; the completions of one prompt (``n``) are a batch. Aborted requests
    are not seen. An edit acts on all requests of ``llm`` while it is open.

    Parameters
    ----------
    llm : vllm.LLM or vllm.v1.engine.async_llm.AsyncLLM
        Started with ``worker_extension_cls="sonde.engines.vllm_worker.StateWorker"``,
        ``enforce_eager=True`` and ``enable_prefix_caching=False``.
    finished : callable, optional
        Called with each finished ``RequestOutput`` after the hooks: ``guard.last(here=True)`` then
        gives the scores of this request.

    Yields
    ------
    Model
        The model of transformers of the same folder, for ``Guard`` and ``editing``; it is not
        called by the user.

    Raises
    ------
    InputError
        If vLLM was started so that states would be missing, or a request asks for an adapter.
    """
    is_plain = isinstance(llm, require_vllm().LLM)
    config = llm.llm_engine.vllm_config if is_plain else llm.vllm_config
    require_states(config)
    chosen = config.model_config
    model = load(str(chosen.model), "cpu", chosen.dtype, bool(chosen.trust_remote_code))
    blocks = _blocks(model.module)
    ids, here = _states_here(model.module, blocks)
    kind = type(model.module).__name__

    def check(names: Mapping[str, str], there: Mapping[str, Tensor]) -> None:
        _check_names(str(chosen.model), blocks, names)
        _check_alike(kind, here, there, chosen.dtype)

    shell = Shell(model.module, None, blocks)
    shell.attach()
    requests = (Requests if is_plain else AsyncRequests)(llm, shell, finished)
    with requests.open(ids[0].tolist(), check):
        yield model


def _blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Return a language model's blocks by name.

    Raises
    ------
    InputError
        If there is no list of blocks.
    """
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            return {f"{path}.{i}": block for i, block in enumerate(part)}
    raise InputError(
        f"engine vllm: expected a model with a list of blocks, got {type(module).__name__}. Leave "
        "engine out."
    )


def _check_names(folder: str, blocks: Iterable[str], names: Mapping[str, str]) -> None:
    """Raise if vLLM calls blocks otherwise than transformers."""
    if missing := [path for path in blocks if path not in names]:
        raise InputError(
            f"engine vllm: vLLM has no module {missing[0]} in {folder}, so its states cannot "
            "be matched with those of transformers. Leave engine out."
        )


def _drawn(module: nn.Module) -> Tensor:
    size = int(getattr(module.config, "vocab_size", 256))
    return torch.arange(1, DRAWN + 1).mul(7919).remainder(max(2, size - 1)).add(1)[None]


def _states_here(
    module: nn.Module, blocks: Mapping[str, nn.Module]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a few tokens, and transformers' states of them behind each block."""
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            kept[path] = (output[0] if isinstance(output, tuple) else output)[0].float()

        return hook

    handles = [block.register_forward_hook(keep(path)) for path, block in blocks.items()]
    try:
        with torch.no_grad():
            module(input_ids=(ids := _drawn(module)))
    finally:
        for handle in handles:
            handle.remove()
    return ids, kept


def _check_alike(
    kind: str, here: Mapping[str, Tensor], there: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Raise if vLLM's states of a few tokens are not those of transformers."""
    for path, expected in here.items():
        gap = float((there[path].float() - expected).norm() / expected.norm())
        if not gap <= TOLERANCE.get(dtype, 1e-3):
            raise InputError(
                f"engine vllm: the states of {kind} behind {path} differ from those of "
                f"transformers by {gap:.1%}, so sonde does not read this architecture in vLLM. "
                "Leave engine out."
            )
