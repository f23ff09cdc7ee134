"""Run a model with a key-value cache that drops tokens by a rule, or packs them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from sonde.core.cache_packing import CachePacking
from sonde.core.cache_rule import CacheRule
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.model_config import is_encoder_decoder
from sonde.tap.attention.interface import WITH_MASKS, kernels_through
from sonde.tap.attention.places import asks_interface
from sonde.tap.cache.layer import EvictingLayer, GrowingLayer, RealTokens
from sonde.tap.cache.packed import PackingGroup, PackingLayer
from sonde.tap.cache.rotation import GIVEN, turn_of
from sonde.tap.hooks.cache import cache_argument, cache_in
from sonde.tap.hooks.outputs import arguments
from sonde.tap.hooks.session import Followed, Session
from sonde.tap.hooks.sharding import require_whole

Form = CacheRule | CachePacking


class EvictingCache(Cache):
    """A cache of transformers whose full-attention layers drop or pack tokens.

    Parameters
    ----------
    module : nn.Module
        Model of transformers.
    rule : CacheRule, CachePacking or callable
        The rule or packing of all layers, or a function from a layer's number to it.
    """

    def __init__(self, module: nn.Module, rule: Form | Callable[[int], Form]) -> None:
        layers = DynamicCache(config=module.config).layers  # pyright: ignore[reportArgumentType]
        of = rule if not isinstance(rule, CacheRule | CachePacking) else lambda _: rule
        forms = [of(i) if type(layer) is DynamicLayer else None for i, layer in enumerate(layers)]
        super().__init__(layers=_layers(layers, forms))

    @property
    def evicting(self) -> list[EvictingLayer]:
        """The layers that drop tokens, in order of depth."""
        return [layer for layer in self.layers if isinstance(layer, EvictingLayer)]

    @property
    def smaller(self) -> list[GrowingLayer]:
        """The layers that drop or pack tokens, in order of depth."""
        return [layer for layer in self.layers if isinstance(layer, GrowingLayer)]

    @property
    def groups(self) -> list[PackingGroup]:
        """The groups of layers that are packed together, in order of depth."""
        packing = [layer for layer in self.layers if isinstance(layer, PackingLayer)]
        return [layer.group for layer in packing if layer is layer.group.layers[0]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all layers: keys, values, columns and the rules' memory."""
        own = sum(layer.size_bytes for layer in self.smaller)
        others = [x for x in self.layers if not isinstance(x, GrowingLayer)]
        held = [getattr(x, name, None) for x in others for name in ("keys", "values")]
        return own + sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))

    def start(self, mask: Tensor | None, n_rows: int, n_new: int, device: torch.device) -> None:
        """Pass the mask of real columns to all layers, before a call of the model."""
        total = self.get_seq_length() + n_new
        if mask is None:
            mask = torch.ones(n_rows, total, dtype=torch.bool, device=device)
        if mask.ndim != 2 or mask.shape != (n_rows, total):
            raise InputError(
                f"caching: expected attention_mask of shape ({n_rows}, {total}), one column for "
                f"each token seen so far, got {tuple(mask.shape)}."
            )
        real = RealTokens(mask.bool().to(device))
        for layer in self.smaller:
            layer.real = real
        for layer in self.evicting:
            layer.n_new = 0


@contextlib.contextmanager
def caching(
    model: Model | nn.Module, rule: Form | Callable[[int], Form], *, here: bool = False
) -> Iterator[EvictingCache]:
    """Run a language model with a cache that drops tokens by a rule, or stores them packed.

    Inside the block give the cache as ``cache`` (``past_key_values`` before transformers 5.24), to
    ``generate`` or to single calls, also for a second turn of the same conversation. A call first
    reads all that is kept together with its new tokens and evicts or packs afterwards. Batches may
    be padded on either side. With a rule, a row gives the same result as alone. A packing rounds
    columns together, padding included, so that padded rows differ by rounding. Layers with a
    sliding window and recurrent layers stay as they are. The model itself is not changed.

    Parameters
    ----------
    model : Model or nn.Module
        Causal language model of transformers; for a rule with ``sdpa`` or ``eager`` attention.
    rule : CacheRule, CachePacking or callable
        Which tokens stay, or the form in which all are held, in all layers; or a function from a
        layer's number to either. A packing of several layers groups adjacent layers that
        share the object.
    here : bool, default=False
        Serve the calls of the thread or task that opens the block alone; by default the cache may
        be given to calls in any thread.

    Yields
    ------
    EvictingCache
        Empty at the start; ``size_bytes`` is what it holds.

    Raises
    ------
    SiteError
        If the model has no cache of keys and values that can be made smaller.
    """
    module = model.module if isinstance(model, Model) else model
    _check_has_cache(module)
    require_whole("caching", module)
    cache = EvictingCache(module, rule)
    if not cache.smaller:
        raise SiteError(
            f"caching: every layer of {type(module).__name__} has a sliding window or a "
            "recurrent state, whose size does not grow, so there is nothing to evict or to "
            "pack. Generate without a cache rule."
        )
    if cache.evicting:
        _check_kernel(module)
    session = Session(
        module,
        inputs=list(_rotating(cache, module)),
        reading=False,
        follows=[Followed(module, partial(_begin, cache, module), _finish)],
        owner="caching",
        here=here,
        advice=f"No call received the cache. Pass {cache_argument(module)}=cache to the model.",
    )
    try:
        with session, kernels_through(partial(_attend, cache), here=here):
            yield cache
    finally:
        for layer in cache.smaller:
            layer.is_open = False


def _rotating(cache: EvictingCache, module: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Yield hooks on attention layers whose rotation the cache layer needs."""
    for part in module.modules():
        number = getattr(part, "layer_idx", None)
        if number is None or number >= len(cache.layers) or not asks_interface(type(part)):
            continue
        layer = cache.layers[number]
        if isinstance(layer, GrowingLayer) and layer.needs_rotation:
            yield part, partial(_note_rotation, cache, layer, part)


def _note_rotation(
    cache: EvictingCache, layer: GrowingLayer, part: nn.Module, args: Any, kwargs: Any
) -> None:
    """Pass to a cache layer how its attention rotates the columns of the running call."""
    named = arguments(part, args, kwargs)
    if not any(x is cache for x in named.values()):
        return
    if not layer.is_initialized:
        layer.turn = turn_of(part, {k: x for k, x in named.items() if x is not cache})
    if layer.turn is not None:
        layer.note(layer.turn, *named[GIVEN])


def _check_has_cache(module: nn.Module) -> None:
    config = getattr(module, "config", None)
    kind = type(module).__name__
    if config is None or not callable(getattr(module, "generate", None)):
        raise SiteError(
            f"caching: expected a language model of transformers with generate(), got {kind}."
        )
    if is_encoder_decoder(config):
        raise SiteError(
            f"caching: {kind} has an encoder; only decoder-only models have such caches."
        )
    if getattr(config.get_text_config(), "num_kv_shared_layers", 0):
        raise SiteError(f"caching: layers of {kind} share their caches. Use a plain cache.")


def _check_kernel(module: nn.Module) -> None:
    """Raise if attention cannot be masked separately for each head, which eviction needs."""
    kind, text = type(module).__name__, cast("Any", module).config.get_text_config()
    kernel = text._attn_implementation
    if kernel not in WITH_MASKS:
        raise SiteError(
            f"caching: expected attention 'sdpa' or 'eager', whose kernels take a mask for each "
            f"head, got {kernel!r}. Load the model with attn_implementation='sdpa'."
        )
    if not any(asks_interface(type(part)) for part in module.modules()):
        raise SiteError(
            f"caching: the attention of {kind} does not take its kernel from the interface of "
            "transformers, so its cache cannot be masked for each head."
        )


def _layers(plain: Sequence[Any], forms: Sequence[Form | None]) -> list[Any]:
    """Return the layers of a cache; adjacent layers with one packing form groups of its size."""
    layers, group = list[Any](), None
    for layer, form in zip(plain, forms, strict=True):
        if isinstance(form, CachePacking):
            if group is None or group.packing is not form or len(group.layers) == form.layers:
                group = PackingGroup(form)
            layers.append(PackingLayer(group))
        else:
            layers.append(layer if form is None else EvictingLayer(form))
    return layers


def _begin(cache: EvictingCache, module: nn.Module, args: Any, kwargs: Any) -> EvictingCache | None:
    """Record the real columns of a call on this cache; calls on other caches are ignored."""
    named = arguments(module, args, kwargs)
    if named.get("use_cache") is False:
        raise InputError(
            "caching: expected calls that use the cache, got use_cache=False: without a "
            "cache, every step of generate() reads the whole text again. Leave use_cache "
            "out, or call the model outside the with block. (A model with inserted layers "
            "that attend to other tokens always generates without a cache.)"
        )
    if cache_in(named) is not cache:
        return None
    given = named.get("input_ids")
    given = named["inputs_embeds"] if given is None else given
    cache.start(named.get("attention_mask"), given.shape[0], given.shape[1], given.device)
    return cache


def _finish(cache: EvictingCache) -> None:
    """Let every cache layer store what later calls need."""


def _attend(
    cache: EvictingCache,
    kernel: Callable[..., Any],
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a kernel on the tokens in a cache layer, then let the layer drop tokens."""
    layer = _layer_of(cache, module, key)
    if layer is None:
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)
    seen = layer.in_sight()
    if seen is not None:
        attention_mask = _mask(seen, query, implementation)
    out = kernel(module, query, key, value, attention_mask, *args, **kwargs)
    scale = kwargs.get("scaling")
    with torch.no_grad():
        layer.evict(query, query.shape[-1] ** -0.5 if scale is None else scale)
    return out


def _layer_of(cache: EvictingCache, module: nn.Module, key: Tensor) -> EvictingLayer | None:
    """Return the cache layer whose key tensor this is, or None."""
    number = getattr(module, "layer_idx", None)
    if number is None or number >= len(cache.layers):
        return None
    layer = cache.layers[number]
    return layer if isinstance(layer, EvictingLayer) and layer.keys is key else None


def _mask(seen: Tensor, query: Tensor, implementation: str) -> Tensor | None:
    """Return the mask of each query head in the format that the kernel accepts."""
    if bool(seen.all()):
        return None
    seen = seen.repeat_interleave(query.shape[1] // seen.shape[1], 1)
    if implementation == "sdpa":
        return seen
    hidden = torch.finfo(query.dtype).min
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, hidden)
