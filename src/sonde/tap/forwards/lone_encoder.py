"""Output of an encoder that ``generate`` ran alone, for the passes of its decoder.

``generate`` runs the encoder once, outside the whole model, and hands its output to every step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sonde.tap.hooks.call import encoder_of
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.outputs import arguments, leaves
from sonde.tap.rows.kind import Kind


class EncoderRun:
    """One run of a model's encoder without the decoder.

    Parameters
    ----------
    encoder : nn.Module
    args, kwargs
        What it is called with.

    Attributes
    ----------
    taken : list of (Kind, Tensor, int)
        What was read, and from which call of the site.
    """

    def __init__(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.taken: list[tuple[Kind, Tensor, int]] = []
        self.is_running = True
        ids = arguments(encoder, args, kwargs).get("input_ids")
        self._ids = ids.clone() if isinstance(ids, Tensor) else None
        self._output: Tensor | None = None

    def end(self, output: Any) -> None:
        """Store the output, by which later decoder calls are matched to this run."""
        self.is_running, self._output = False, next(iter(leaves(output).values()), None)

    def times(self, named: dict[str, Any]) -> int:
        """Return how often a decoder call repeats each row of this run (beams), or 0."""
        given, own = named.get("encoder_outputs"), self._output
        whole = None if given is None else next(iter(leaves(given).values()), None)
        if own is None or whole is None or len(whole) % len(own):
            return 0
        times = len(whole) // len(own)
        return times if whole is own or torch.equal(whole[::times], own) else 0

    def repeated_ids(self, times: int) -> Tensor | None:
        """Return the tokens, repeated like the rows, or None without repeats or tokens."""
        return self._ids.repeat_interleave(times, 0) if times and self._ids is not None else None


class EncoderRuns:
    """Stores the last run of a model's encoder without the decoder, for each caller.

    Parameters
    ----------
    root : nn.Module
        An encoder-decoder of ``transformers``; any other model has no encoder here.
    """

    def __init__(self, root: nn.Module) -> None:
        self.encoder = encoder_of(root)
        self._latest: Latest[EncoderRun] = Latest()

    def clear(self) -> None:
        """Drop all runs."""
        self._latest.clear()

    def end(self, run: EncoderRun, output: Any) -> None:
        """Store a finished run."""
        run.end(output)
        self._latest.put(run)

    def before(self, named: dict[str, Any]) -> tuple[EncoderRun | None, int]:
        """Return the run that a call continues, and how often the call repeats its rows."""
        if named.get("encoder_outputs") is None:
            return None, 0
        own = self._latest.own()
        for run in (*(() if own is None else (own,)), *self._latest.values()):
            if times := run.times(named):
                return run, times
        return None, 0
