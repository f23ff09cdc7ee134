"""Open dictionaries from a user's words, and measure the effect of their features on answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.explain import Dictionary, Objective, load_dictionary
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.live_model import require_model_of
from sonde.tap.streams.site_function import SiteFunction


@dataclass(frozen=True, eq=False)
class DictionaryFile:
    """A dictionary that was read from a file, before the model it belongs to is open.

    Attributes
    ----------
    path : Path
    dictionary : Dictionary
    site : str
        Empty if the file does not name it.
    header : dict or None
        Header of the fitted file, which says what model it was fitted on; None in other formats.
    """

    path: Path
    dictionary: Dictionary
    site: str
    header: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path | str, site: str | None = None) -> "DictionaryFile":
        """Read the only dictionary of a file, or that at ``site`` if there are several.

        Raises
        ------
        InputError
            If there is no dictionary, or several.
        """
        path = Path(path)
        if path.suffix != ".sonde":
            dictionary = load_dictionary(path)
            return cls(path, dictionary, site or str(dictionary.conventions.get("site") or ""))
        fitted = Fitted.load(path)
        dictionaries = [
            (result, key[1])
            for key, result in fitted
            if isinstance(result, Dictionary) and (site is None or key[1] in (site, f"{site}:out"))
        ]
        if len(dictionaries) != 1:
            raise InputError(
                f"--dictionary: expected one dictionary in {path}, got {len(dictionaries)} among "
                f"{', '.join(f'{word} at {place}' for word, place in fitted.names)}. Name its site."
            )
        return cls(path, *dictionaries[0], fitted.header)

    def check(self, model: Model) -> None:
        """Raise a StateError if the dictionary was fitted on another model."""
        require_model_of(self.header, model, "--dictionary", self.path)

    def effects(
        self, model: Model, batch: InputBatch, objective: Objective
    ) -> list[dict[str, Any]]:
        """Return the features that the answers of a batch depend on."""
        return feature_effects(model, batch, self.dictionary, objective, self.site)


def open_dictionary(
    path: Path | str, model: Model | None = None, site: str | None = None
) -> tuple[Dictionary, str]:
    """Return a dictionary and its site; the site is empty if the file does not name it.

    Parameters
    ----------
    path : path
        What ``sonde fit`` wrote, a safetensors file of ``Dictionary.save``, or a folder in the
        layout of SAELens.
    model : Model, optional
        The model that the dictionary must have been fitted on, if the file names its model.
    site : str, optional
        The site of the dictionary, if a fitted file holds several dictionaries.

    Raises
    ------
    InputError
        If there is no dictionary, or several.
    StateError
        If it was fitted on another model.
    """
    held = DictionaryFile.read(path, site)
    if model is not None:
        held.check(model)
    return held.dictionary, held.site


def parse_features(words: Sequence[str]) -> dict[int, float]:
    """Return features and their values from words such as ``123=4``.

    Examples
    --------
    >>> parse_features(["123=4", "7=-0.5"])
    {123: 4.0, 7: -0.5}
    """
    strengths: dict[int, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            strengths[int(name)] = float(value)
        except ValueError as error:
            raise InputError(
                f"--feature: expected NUMBER=VALUE, such as 123=4, got {word!r}."
            ) from error
    return strengths


def feature_effects(
    model: Model,
    batch: InputBatch,
    dictionary: Dictionary,
    objective: Objective,
    site: str,
    most: int = 10,
) -> list[dict[str, Any]]:
    """Return the features that the answers depend on most, by gradient times activation.

    The effect of a feature on an answer is its activation times the slope of the objective along
    its direction, summed over places. ``value`` is the mean effect over answers; features are
    sorted by the mean of the absolute effect. To first order the effect is the drop of the
    objective without the feature; ``ablated`` is the measured drop if the feature is taken out of
    the states, as a mean over answers.
    """
    function = SiteFunction(model, batch, site)
    fixed = objective.at(function)
    own, slope, _ = function.gradient(function.value, fixed.of)
    axis = function.feature_axis
    states, slopes = (t.detach().movedim(axis, -1) for t in (function.value, slope))
    with torch.no_grad():
        z = dictionary.encode(states)
        effect = z * (slopes @ dictionary.decoder.to(slopes).T)
        if function.mask is not None:
            effect = effect * function.mask.to(effect)[..., None]
        effect = effect.reshape(len(states), -1, dictionary.n_features).sum(1).double()
        active = (z != 0).reshape(-1, dictionary.n_features).double().mean(0)
    order = effect.abs().mean(0).argsort(descending=True)[:most].tolist()

    def lost(feature: int) -> float:
        """Return the mean drop of the objective if the model continues without a feature."""
        part = z[..., feature, None] * dictionary.decoder[feature].to(states)
        with torch.no_grad():
            left = fixed.of(function.run((states - part).movedim(-1, axis)))
        return float((own - left).double().mean())

    return [
        {
            "feature": i,
            "value": float(effect[:, i].mean()),
            "ablated": lost(i),
            "active": float(active[i]),
        }
        for i in order
        if bool((effect[:, i] != 0).any())
    ]
