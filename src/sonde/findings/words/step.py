"""The next step of a finding, as a command or call that reads the same rows again."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

MORE_DATA: Final = "MORE_DATA"
DETECTOR: Final = "mahalanobis"


@final
@dataclass(frozen=True)
class Step:
    """A next step: read a site, scan or explain with some options, or score OTHER.

    Parameters
    ----------
    word : {"read", "scan", "score", "explain"}
    options : mapping of str to value
        Named options that differ from those of the scan. None resets an option to its default;
        ``versus``, whatever its value, names the second data set.
    data : str, default=""
        Data in place of those of the scan; ``MORE_DATA`` where the user has to name them.
    scale : (float, float) or None, default=None
        Factor and offset that every number of the inputs needs; ``image_mean`` and ``image_std`` of
        the scan are changed so that pixels get them.
    """

    word: Literal["read", "scan", "score", "explain"]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: str = ""
    scale: tuple[float, float] | None = None


@final
@dataclass(frozen=True)
class Again:
    """Arguments with which a scan read its rows, for commands that read the rows again.

    Parameters
    ----------
    model, data : str or None
        As typed; None for an object in a call from Python, or for the data if a store is scanned.
    options : mapping of str to value
        Named options of the reading that differ from their defaults.
    is_command : bool, default=False
        Whether the scan was a command; else it was a call from Python.
    is_stored : bool, default=False
        Whether ``model`` is a store: its rows are there already, and none can be read otherwise.
    other : str or None, default=None
        OTHER as typed.

    Examples
    --------
    >>> again = Again("net", "a b.csv", {"text_column": "body", "limit": 9}, is_command=True)
    >>> again.text(Step("read", {"sites": "layers.3"}))
    "sonde read net 'a b.csv' --sites layers.3 --text-column body --limit 9 -o acts_layers.3"
    >>> again.text(Step("scan", {"deep": True, "limit": None}))
    "sonde scan net 'a b.csv' --deep --text-column body"
    >>> again = Again("net", "a.csv", is_command=True, other="b.csv")
    >>> for command in again.text(Step("score", {"sites": "layers.3"})).split(" && "):
    ...     print(command)
    sonde fit mahalanobis net a.csv --sites layers.3 -o probe.sonde
    sonde score probe.sonde net b.csv --explain 3 -o other.html
    >>> again = Again("net", "photos", {"image_mean": "0", "image_std": "1"}, is_command=True)
    >>> again.text(Step("scan", scale=(2.0, -1.0)))
    'sonde scan net photos --image-mean 0.5 --image-std 0.5'
    >>> Again(None, "a.csv", {"text_column": "body"}).text(Step("read", {"sites": "layers.3"}))
    "sonde.read(model, 'a.csv', sites='layers.3', text_column='body')"
    """

    model: str | None
    data: str | None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_command: bool = False
    is_stored: bool = False
    other: str | None = None

    def text(self, step: Step | None) -> str:
        """Return the step as a command or call that can be run; empty if there is none."""
        is_list = step is not None and "rows" in step.options
        if step is None or (self.is_stored and step.word in ("scan", "explain") and not is_list):
            return ""
        if not self.is_command and (step.word == "explain" or is_list):
            return ""  # nothing that a call returns, but a page or a file that a command writes
        if step.scale is not None:
            return self.text(self._rescaled(step.scale))
        kept = {k: v for k, v in self.options.items() if k not in step.options}
        options = {k: v for k, v in (dict(step.options) | kept).items() if v is not None}
        if "versus" in step.options:
            options["versus"] = self.other
        if not self.is_command:
            return self._call(step, options)
        if step.word == "score":
            return self._scored(options)
        if self.is_stored and is_list:
            beside = {"versus": self.other} if "versus" in step.options else {}
            return shlex.join(
                ("sonde", "scan", str(self.model), *flags_of({**step.options, **beside}))
            )
        if self.is_stored:
            file = ("-o", "rows.parquet", "--rows")
            return shlex.join(("sonde", "export", str(self.model), *flags_of(step.options), *file))
        data = step.data or str(self.data)
        written = {"read": _folder(options), "explain": "explain.html"}.get(step.word)
        place = () if written is None else ("-o", written)
        return shlex.join(("sonde", step.word, str(self.model), data, *flags_of(options), *place))

    def _rescaled(self, scale: tuple[float, float]) -> Step | None:
        """Return the step that scans rescaled pixels; None if no option scales pixels."""
        factor, offset = scale
        if not {"image_mean", "image_std"} & self.options.keys() or factor == 0:
            return None
        mean, std = (
            _each(self.options.get(name, usual))
            for name, usual in (("image_mean", 0.0), ("image_std", 1.0))
        )
        n = max(len(mean), len(std))
        means, stds = (x * (n // len(x)) for x in (mean, std))
        moved = [m - offset * s / factor for m, s in zip(means, stds, strict=True)]
        options = {"image_mean": moved, "image_std": [s / factor for s in stds]}
        return Step("scan", {name: self._written(values) for name, values in options.items()})

    def _written(self, values: list[float]) -> str | float | tuple[float, ...]:
        """Format numbers as a command-line flag or as a keyword argument."""
        if self.is_command:
            return ",".join(f"{value:.6g}" for value in values)
        return values[0] if len(values) == 1 else tuple(values)

    def _scored(self, options: dict[str, Any]) -> str:
        """Return the commands that produce a page of OTHER's most unusual rows."""
        rows = (str(self.model),) if self.is_stored else (str(self.model), str(self.data))
        whose, page = () if self.is_stored else (str(self.model),), ("-o", "other.html")
        fit = ("sonde", "fit", DETECTOR, *rows, *flags_of(options), "-o", "probe.sonde")
        score = ("sonde", "score", "probe.sonde", *whose, str(self.other), "--explain", "3", *page)
        return f"{shlex.join(fit)} && {shlex.join(score)}"

    def _call(self, step: Step, options: dict[str, Any]) -> str:
        model = "model" if self.model is None else repr(self.model)
        dtype, deep = options.pop("dtype", None), options.pop("deep", False)
        if dtype is not None and self.model is None:
            return ""
        model = model if dtype is None else f"sonde.load({model}, dtype={dtype!r})"
        name = "data" if step.data == "" else "more_data"
        data = step.data or self.data
        data = name if data in (None, MORE_DATA) else repr(data)
        words = [model, *([] if self.is_stored else [data])]
        words += [f"{name}={_expression(name, value)}" for name, value in options.items()]
        words += ["settings=ScanSettings(deep=True)"] if deep else []
        if step.word == "score":
            other = "other" if self.other is None else repr(self.other)
            whose = "" if self.is_stored else f"{model}, "
            fit = f"sonde.fit(sonde.detect.Mahalanobis(), sonde.read({', '.join(words)}))"
            return f"sonde.score({fit}, {whose}{other}, explain=3)"
        return f"sonde.{step.word}({', '.join(words)})"


def _each(value: str | float | Sequence[float]) -> list[float]:
    """Return the numbers of an option, one per channel."""
    if isinstance(value, int | float):
        return [float(value)]
    return [float(x) for x in (value.split(",") if isinstance(value, str) else value)]


def _folder(options: Mapping[str, Any]) -> str:
    """Return a folder name for the rows of a site, different for each site."""
    return re.sub(r"[^\w.]+", "_", f"acts_{options.get('sites', '')}".removesuffix(":out"))


def flags_of(options: Mapping[str, Any]) -> list[str]:
    """Return options as command-line flags."""
    flags: list[str] = []
    for name, value in options.items():
        flags.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list | tuple):
            flags += map(str, value)
        elif value is not True:
            flags.append(str(value))
    return flags


def _expression(name: str, value: Any) -> str:
    """Return a plain value as Python source; for an object return the option's name."""
    parts = value if isinstance(value, list | tuple) else (value,)
    plain = all(isinstance(part, str | int | float) for part in parts)
    return repr(value) if plain else name
