"""``sonde.trace_texts``: find the states that make the answers to two texts differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sonde.core._shown import document_html, document_line
from sonde.data.unloaded import require_task
from sonde.run.explaining.pairs import TextPair, read_pairs
from sonde.run.explaining.trace import Traced, trace, trace_document
from sonde.run.reading.for_gradients import load_for_gradients


@dataclass(frozen=True, eq=False)
class TextTrace:
    """States that cause the difference between the runs of two texts.

    Attributes
    ----------
    document : dict
        JSON, ``sonde-trace/1``: what ``sonde trace`` prints and its page shows.
    traced : list of Traced
        For each pair: patches, their estimates, and the circuit.
    notes : tuple of str
    """

    document: dict[str, Any]
    traced: list[Traced]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Trace of pairs of texts", self.document)


def trace_texts(
    model: Any,
    pairs: TextPair | Sequence[TextPair] | str | Path,
    sites: Sequence[str] = ("blocks",),
    *,
    how: Literal["denoise", "noise"] = "denoise",
    show_inputs: bool = True,
    progress: bool = True,
    **options: Any,
) -> TextTrace:
    """Find the states of a language model that make the answers to two texts differ.

    The states of one run are put into the other one by one, at each layer and position: the share
    of the difference that comes back says what that state carries. The same as ``sonde trace``.

    Parameters
    ----------
    model : str, path, Model or module
        Model, or what ``sonde.load`` takes: a folder, a name, a factory or a module.
    pairs : TextPair, sequence of TextPair, or path
        Texts of as many tokens, with their answers; or a JSONL file with the keys ``clean``,
        ``corrupt``, ``answer`` and maybe ``instead``.
    sites : sequence of str, default=("blocks",)
        Whose states are exchanged.
    how : {"denoise", "noise"}
        Clean states into the corrupted run, or the other way.
    show_inputs : bool, default=True
        Put the tokens into the document.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **options
        Options of ``sonde.load``, such as ``device`` and ``dtype``.

    Raises
    ------
    InputError
        If texts or answers do not fit, with the pair.
    """
    is_file = isinstance(pairs, str | Path)
    asked = (
        [pairs] if isinstance(pairs, TextPair) else read_pairs(Path(pairs)) if is_file else pairs
    )
    require_task(model, ("causal",), "trace: expected a language model with a tokenizer")
    opened, notes = load_for_gradients(model, **options)
    traced = trace(opened, asked, sites, how, progress=progress)
    document = trace_document(
        traced,
        model=opened.name,
        data=str(pairs) if is_file else None,
        how=how,
        show_inputs=show_inputs,
    )
    return TextTrace(document, traced, notes)
