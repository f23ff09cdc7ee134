"""Facts about a live model's call: tokens, padding, and the length of its cache."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sonde.core._kinds import is_dict
from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch
from sonde.core.model_config import is_encoder_decoder
from sonde.core.token_masks import REAL, MaskMeaning, real_of_pairs, sights
from sonde.tap.hooks.cache import cache_in, cached_length
from sonde.tap.hooks.outputs import arguments, decodes, known_names

MASKS = (REAL, "decoder_attention_mask")


class CallArguments:
    """The arguments of one call, in the form that rows need.

    Parameters
    ----------
    root : nn.Module
    args, kwargs
        What it is called with.
    decoding : bool, optional
        Whether it runs a decoder beside an encoder; by default what its configuration says.
    meaning : MaskMeaning, optional
        What masks meant in the calls before.

    Attributes
    ----------
    named : dict
        The arguments by name.
    past : int
        Tokens in the key-value cache that the call goes on from.
    fed : Tensor or None
        Ids of the tokens whose states the call makes.
    axis : {"pos", "pos2"}
        Their axis: ``pos2`` where an encoder has tokens of its own.
    """

    def __init__(
        self,
        root: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        decoding: bool | None = None,
        meaning: MaskMeaning | None = None,
    ) -> None:
        self.args, self.kwargs = args, kwargs
        self.named = arguments(root, args, kwargs) if args else kwargs
        cache = cache_in(self.named)
        self.past = 0 if cache is None else cached_length(cache)
        self.fed = fed_tokens(self.named)
        self._has_target = decodes(root, self.named) if decoding is None else decoding
        self.axis = "pos2" if self._has_target else "pos"
        self._masks = {name: _mask(self.named.get(name), self.past) for name in MASKS}
        names, n_fed = known_names(root), None if self.fed is None else self.fed.shape[-1]
        meaning = MaskMeaning() if meaning is None else meaning
        real = meaning.real_in(self.named, names, self.past, n_fed)
        self._masks[REAL] = self._masks[REAL] if real is None else real

    def inputs(self, n: int, special: Tensor | None) -> InputBatch:
        """Return the examples of the call, identified by index rather than content."""
        index = torch.arange(n)
        masks, own = dict(self._masks), MASKS[self._has_target]
        mask, first = masks[own], None
        if self.past:
            first = torch.full((n,), self.past)
            if mask is not None and mask.shape[1] > self.past:
                first = mask[:, : self.past].sum(dim=1).cpu()
            masks[own] = None if mask is None else mask[:, self.past :]
        keys = [b""] * n
        return InputBatch(
            args=self.args,
            kwargs=self.kwargs,
            ids=[str(i) for i in range(n)],
            keys=keys,
            order=index,
            occurrence=index,
            group_keys=keys,
            label=torch.full((n,), -1),
            mask=masks["attention_mask"],
            decoder_mask=masks["decoder_attention_mask"],
            special=special,
            first=first,
        )

    @property
    def mask(self) -> Bool[Tensor, "example pos"] | None:
        """Mask of real tokens, cached tokens first, or None if unknown."""
        return self._masks[MASKS[self._has_target]]

    def real(self, length: int) -> Bool[Tensor, "example pos"] | None:
        """Return the mask of real tokens among the ``length`` tokens that the call computes.

        None if nothing is padded, or if nothing is known.

        Raises
        ------
        SiteError
            If some tokens are padding, and there are not as many tokens as states.
        """
        mask = self.mask
        if mask is None:
            return None
        if mask.shape[1] not in (length, self.past + length):
            if bool(mask.all()):
                return None
            raise SiteError(
                f"expected {mask.shape[1] - self.past} tokens as in the attention mask, got "
                f"{length} states: it is not known which of them are padding."
            )
        return mask[:, mask.shape[1] - length :]

    def position(self, n: int, length: int) -> Int[Tensor, "example pos"]:
        """Return the document position of each token that the call computes."""
        given, mask = self.named.get("position_ids"), self.mask
        if isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] == length:
            return given.expand(n, length)
        if mask is not None and mask.shape[1] == self.past + length:
            return (mask.long().cumsum(1) - 1).clamp(min=0)[:, self.past :]
        return torch.arange(self.past, self.past + length).expand(n, length)

    def marked(self, special: Tensor, otherwise: Tensor | None) -> Tensor | None:
        """Return the mask of real tokens with one of the ids ``special``.

        ``otherwise`` are the ids to use if the call has no ``input_ids``.
        """
        ids = self.named.get("input_ids", otherwise)
        if not isinstance(ids, Tensor):
            return None
        is_special = torch.isin(ids.cpu(), special)
        mask = self._masks["attention_mask"]
        past = 0 if self._has_target else self.past
        real = None if mask is None else mask[:, past:].cpu()
        return is_special if real is None or real.shape != is_special.shape else is_special & real


def encoder_of(root: nn.Module) -> nn.Module | None:
    """Return the encoder of an encoder-decoder of ``transformers``, or None for other models."""
    is_pair = is_encoder_decoder(root.__dict__.get("config"))
    find = getattr(root, "get_encoder", None) if is_pair else None
    encoder = None if find is None else find()
    return encoder if isinstance(encoder, nn.Module) and encoder is not root else None


def _mask(masks: Any, past: int) -> Tensor | None:
    """Return the mask of real tokens, cached tokens first, from a mask for each query.

    For caches of a fixed size ``generate`` makes such masks. A padded query looks at nothing, or
    not at itself. A sliding window's cache does not tell which of the tokens before the call are
    real.
    """
    if is_dict(masks):
        kinds = [masks.get("full_attention"), *masks.values()]
        masks = next((x for x in kinds if isinstance(x, Tensor)), None)
    if isinstance(masks, Tensor) and masks.ndim == 4:
        return real_of_pairs(sights(masks), past, masks.shape[2])
    is_plain = isinstance(masks, Tensor) and masks.ndim == 2
    return masks.to(torch.bool, copy=True) if is_plain else None


def fed_tokens(named: Mapping[str, Any]) -> Tensor | None:
    """Return the ids of the tokens whose states a call computes, or None."""
    candidates = (named.get(name) for name in ("decoder_input_ids", "input_ids"))
    return next((ids for ids in candidates if isinstance(ids, Tensor)), None)
