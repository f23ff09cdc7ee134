"""Information for an edit about one call of a model, and the states that it may change."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sonde.core.edit import EditContext
from sonde.core.errors import InputError, SiteError
from sonde.tap.hand.texts import GrowingTexts
from sonde.tap.hand.where import TermPlaces
from sonde.tap.hooks.call import CallArguments

Recorded = Mapping[str, Mapping[str, Tensor]]
"""The name of a run, then of a site (as ``Tap.rows`` names it), then its whole outputs."""


class EditedCall:
    """One call of a model, or of its encoder alone.

    Contexts and selections depend on the number of states alone, so sites of one call share them.

    Parameters
    ----------
    call : CallArguments
    texts : GrowingTexts

    Attributes
    ----------
    asked : dict of str to Tensor
        Rows of the sites of a gate that have run.
    """

    def __init__(self, call: CallArguments, texts: GrowingTexts) -> None:
        self.call, self.texts = call, texts
        self.asked: dict[str, Tensor] = {}
        self._known: dict[tuple[int, int, torch.device], EditContext] = {}
        self._selected: dict[tuple[int, int, torch.device], Tensor | bool] = {}

    def context(self, x: Tensor, has_tokens: bool, n_before: int) -> EditContext:
        """Return the information that an edit receives about an activation.

        Parameters
        ----------
        x : Tensor
            Examples first; ``has_tokens`` says that tokens come next.
        n_before : int
            How many activations the edit met at the site before.
        """
        if not has_tokens:
            row, texts = self._row(len(x), x.device), self.texts
            return EditContext(row=row, n_rows=texts.n_first, step=texts.step, call=n_before)
        whole = self._of_tokens(x.shape[0], x.shape[1], x.device)
        return whole if n_before == whole.call else replace(whole, call=n_before)

    def _of_tokens(self, n: int, length: int, device: torch.device) -> EditContext:
        key = n, length, device
        if key not in self._known:
            call = self.call
            mask, fed = call.real(length), call.fed
            generated = torch.zeros(n, length, dtype=torch.bool, device=device)
            generated[:, self._prompt_length(length) :] = True
            self._known[key] = EditContext(
                mask=None if mask is None else mask.to(device).expand(n, length),
                position=call.position(n, length).to(device),
                tokens=None if fed is None or fed.shape != (n, length) else fed.to(device),
                generated=generated,
                row=self._row(n, device),
                n_rows=self.texts.n_first,
                step=self.texts.step,
                call=self.texts.step,
            )
        return self._known[key]

    def _row(self, n: int, device: torch.device) -> Tensor | None:
        """Return where each example began, or None if these are not the call's examples."""
        return self.texts.origin.to(device) if n == len(self.texts.origin) else None

    def selected(self, places: TermPlaces, x: Shaped[Tensor, "example pos dim"]) -> Tensor | bool:
        """Return the states to edit: all, none, or ``Bool[Tensor, "example pos 1"]``.

        Raises
        ------
        SiteError
            If there is not one state for each token, and not every token is meant.
        """
        n, length = x.shape[:2]
        key = n, length, x.device
        if key not in self._selected:
            fed = self.call.fed
            if not places.is_all and fed is not None and fed.shape[-1] != length:
                raise SiteError(
                    f"editing: expected a state for each of {fed.shape[-1]} tokens, got "
                    f"{length}: it is not known which state belongs to which token. Use "
                    "where='all'."
                )
            context = self._of_tokens(*key)
            chosen = places.select(context, self._prompt_length(length))
            if context.mask is not None:
                chosen = chosen & context.mask
            n_found = int(torch.count_nonzero(chosen))
            some = 0 < n_found < chosen.numel()
            self._selected[key] = chosen.unsqueeze(2) if some else n_found > 0
        return self._selected[key]

    def is_gathered(self, x: Shaped[Tensor, "row *axes"]) -> bool:
        """Return whether the rows are a subset of the tokens, as in an expert layer."""
        fed = self.call.fed
        return fed is not None and x.ndim == 2 and len(x) not in (1, *fed.shape, fed.numel())

    def gated(self, n: int, device: torch.device) -> Float[Tensor, "example"]:
        """Return the gate's opening for each example, in [0, 1].

        Raises
        ------
        SiteError
            If the gate's site has not run yet.
        """
        decided, origin = self.texts.decided, self.texts.origin
        if decided is None:
            raise SiteError(
                "editing: the edited site ran before the site of the gate, so the gate had "
                "made no decision yet. Give Gate(site=...) a module that runs before the "
                "edited modules."
            )
        if n != len(origin):
            raise SiteError(
                f"editing: expected the {len(origin)} examples that the gate decided about, "
                f"got {n}. Edit a module whose output has one entry for each example of the "
                "model's call."
            )
        return decided.to(device)[origin.to(device)]

    def others(
        self,
        recorded: Recorded,
        name: str,
        x: Shaped[Tensor, "..."],
        context: EditContext,
        per: str = "token",
    ) -> dict[str, Tensor]:
        """Return the states of other runs at a site, an example for each of ``x``.

        ``per="token"`` needs a state for each state of ``x``; ``"example"`` takes any number.

        Raises
        ------
        InputError
            If a run has no such site, or other examples or states.
        """
        return {
            run: self._aligned(of_run, run, name, x, context, per)
            for run, of_run in recorded.items()
        }

    def _aligned(
        self,
        of_run: Mapping[str, Tensor],
        run: str,
        name: str,
        x: Tensor,
        context: EditContext,
        per: str,
    ) -> Tensor:
        other, past = of_run.get(name), self.call.past
        if other is None:
            raise InputError(
                f"editing: expected others[{run!r}] to have the edited site {name}, got "
                f"{', '.join(of_run) or 'none'}. Read this site in the other run too: Tap(model, "
                "sites).rows."
            )
        shape = tuple(other.shape)
        try:
            other = context.of_examples(other.to(x.device))
        except InputError as error:
            error.add_note(f"others[{run!r}] at {name}")
            raise
        if per == "example":
            if other.ndim != x.ndim or len(other) != len(x) or other.shape[-1] != x.shape[-1]:
                raise InputError(
                    f"editing: expected others[{run!r}] to hold {len(x)} examples of "
                    f"{x.shape[-1]} features at {name}, got shape {shape}. Run both on the "
                    "same examples in the same order."
                )
            return other
        if x.ndim == 3 and other.ndim == 3 and other.shape[1] > x.shape[1]:
            other = other[:, past : past + x.shape[1]]
        if other.shape != x.shape:
            raise InputError(
                f"editing: expected others[{run!r}] to hold a state for each of "
                f"{tuple(x.shape)} at {name}, got shape {shape}. Run both on the same "
                "examples in the same order, padded to the same length; with where='prompt', "
                "generated tokens need no state."
            )
        return other

    def _prompt_length(self, length: int) -> int:
        """Return how many of ``length`` states belong to the prompt, which comes first."""
        texts = self.texts
        if texts.step == 0:
            return length
        return min(texts.prompt_length, length) if texts.grows else 0
