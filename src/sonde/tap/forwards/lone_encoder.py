"""What an encoder brought when ``generate`` ran it alone, for the forwards of its decoder.

``generate`` runs the encoder once, outside the whole model, and hands its output to every step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sonde.tap.hooks.call import encoder_of
from sonde.tap.hooks.outputs import arguments, leaves
from sonde.tap.rows.kind import Kind


class EncoderRun:
    """Keeps the last run of a model's encoder outside the whole model.

    Parameters
    ----------
    root : nn.Module
        An encoder-decoder of ``transformers``; any other model has no encoder here.
    """

    def __init__(self, root: nn.Module) -> None:
        found = encoder_of(root)
        self.encoder = [] if found is None else [found]
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.taken: list[tuple[Kind, Tensor, int]] = []
        self.is_running = False
        self._ids: Tensor | None = None
        self._output: Tensor | None = None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget the run before this one."""
        self.clear()
        self.is_running = True
        ids = arguments(self.encoder[0], args, kwargs).get("input_ids")
        self._ids = ids.clone() if isinstance(ids, Tensor) else None

    def end(self, output: Any) -> None:
        """Remember the output, by which a call of the decoder is known to follow from this run."""
        self.is_running, self._output = False, next(iter(leaves(output).values()), None)

    def times(self, named: dict[str, Any]) -> int:
        """Return how often a call of the decoder repeats each row of this run (beams), or 0."""
        given, own = named.get("encoder_outputs"), self._output
        found = None if given is None else next(iter(leaves(given).values()), None)
        if own is None or found is None or len(found) % len(own):
            return 0
        times = len(found) // len(own)
        return times if found is own or torch.equal(found[::times], own) else 0

    def repeated_ids(self, times: int) -> Tensor | None:
        """Return the tokens, repeated for every copy of a row, or None if rows are not repeated."""
        return self._ids.repeat_interleave(times, 0) if times and self._ids is not None else None
