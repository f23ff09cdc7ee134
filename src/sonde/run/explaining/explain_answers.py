"""``sonde.explain_answers``: explain a model's answers by several methods, each of them tested."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError, SondeError
from sonde.core.inputs import InputBatch, Model
from sonde.core.renaming import renamed
from sonde.data import open_inputs, similarity_to
from sonde.data.inputs import ItemInputs
from sonde.data.pieces import pieces_of, texts_of
from sonde.data.sentence_encoder import SentenceEncoder
from sonde.explain import Attribution, Attributor, Baseline, Objective
from sonde.run.explaining.answers import answers_of
from sonde.run.explaining.choosing import POOL, Choice
from sonde.run.explaining.dictionaries import DictionaryFile
from sonde.run.explaining.explanations import (
    DEFAULTS,
    explain,
    explain_document,
    find_attributor,
    leading,
    name_of,
)
from sonde.run.explaining.judged import Judged
from sonde.run.instruments.words import parse_methods
from sonde.run.reading.class_order import in_sorted_order
from sonde.run.reading.for_gradients import load_for_gradients
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name
from sonde.run.scoring.exhibit import pixels_of

MOST, USUAL = 256, 32
PIECES, TOKENS = 8, 128
FIRST, LARGEST = 6, 4
INPUT = "input"


@dataclass(frozen=True, eq=False)
class Explained:
    """Explanations of answers, each with the tests that could have refuted it.

    Attributes
    ----------
    document : dict
        JSON, ``sonde-explain/1``: what ``sonde explain`` prints and its page shows.
    judged : sequence of Judged
        The explanations of each method, with their tests.
    shown_inputs : list of dict
        The inputs as the page draws them: pieces of text, pixels or values.
    notes : tuple of str
    """

    document: dict[str, Any]
    judged: Sequence[Judged]
    shown_inputs: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Explanation of answers", self.document)


@renamed("loading", progress="say")
def explain_answers(
    model: Any,
    data: Any,
    *,
    methods: str | Sequence[Attributor] | None = None,
    site: str = INPUT,
    target: str | int = "predicted",
    answer: int | None = None,
    choice: Choice | None = None,
    dictionary: str | Path | None = None,
    limit: int | None = None,
    seconds: float = 60.0,
    show_inputs: bool = True,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
    directory: Path | None = None,
    progress: bool | Callable[[str], None] = True,
    **reading: Any,
) -> Explained:
    """Attribute the answers of a model by several methods, each tested in the same run.

    Some inputs of ``data`` are explained, spread over classes, right and wrong. Beside each method
    stand the tests that can refute it. The same as ``sonde explain``.

    Parameters
    ----------
    model : str, path, Model or module
        Model, or what ``sonde.load`` takes: a folder, a name, a factory or a module.
    data : data
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    methods : str or sequence of Attributor, optional
        Attribution methods, as words (``integrated_gradients(steps=20),saliency``) or objects; by
        default the methods that suit the model.
    site : str, default="input"
        Where answers are explained: the input, or a site of the model.
    target : str or int, default="predicted"
        A class or token id; for sentence embeddings a text.
    answer : int, optional
        For language models: explain the last tokens as one answer.
    choice : Choice, optional
        Which inputs: wrong answers alone, rows of a table or by id, one class, a pair of classes.
    dictionary : path, optional
        Say also which features of a dictionary the answers depend on, at its site.
    limit : int, optional
        How many inputs: 32 by default, or 8 pieces of 128 tokens for a language model.
    seconds : float, default=60.0
        Time for methods and their tests. The first method runs in any case; a further one starts
        only if it is likely to end in time, and stops between its tests when the time is over. The
        document names those that are missing. 0 runs all.
    show_inputs : bool, default=True
        Put the inputs themselves into ``shown_inputs``.
    seed : int, default=0
        Draws the inputs.
    device : str or torch.device, default="auto"
        Device of the model; ``auto`` takes cuda, mps or cpu, as ``sonde.load``.
    dtype : str or torch.dtype, default="auto"
        Type of the weights; ``auto`` takes the type that the configuration names.
    trust_remote_code : bool, default=False
        Whether Python code that comes with the checkpoint may run.
    processor : object, optional
        Tokenizer, image processor, or function that turns an item into a tensor; by default the
        model's own.
    directory : Path, optional
        Where explanations are kept, so that they go on if they were stopped.
    progress : bool or callable, default=True
        Whether a bar is shown. A function is called, beside the bar, with a line for each input as
        soon as the first method has an explanation, which is long before its tests end.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Raises
    ------
    InputError
        If a method is unknown, or more inputs are asked for than 256.
    SondeError
        If no method fits the model.
    """
    _check_amounts(limit, seconds)
    say = progress if callable(progress) else None
    asked = _methods(methods)
    chosen = Choice() if choice is None else choice
    chosen.check()
    given = _dictionary(dictionary, site)
    opened, notes = _load(
        given, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
        processor=processor,
    )  # fmt: skip
    if is_embedding := isinstance(opened.module, SentenceEncoder):
        opened = similarity_to(opened, _text(target))
    objective = Objective() if is_embedding else _objective(target, answer)
    is_causal, named = opened.task == "causal", chosen.rows is not None or bool(chosen.ids)
    options = dict(reading)
    if is_causal and options.get("max_length") is None and not answer and not named:
        options["max_length"] = TOKENS  # a next token can be asked for anywhere, and costs less
        notes = (*notes, f"note: texts are read in chunks of {TOKENS} tokens (--max-length).")
    every = in_sorted_order(opened, open_inputs(opened, data, **options, logits=True, seed=seed))
    n = limit or max(PIECES if is_causal else USUAL, min(len(chosen.ids), MOST))
    inputs = replace(chosen.of(opened, every, n, seed), batch_size=n)
    columns = inputs.typed.get("number_columns") or ()
    baseline = _mean_row(opened, every, seed) if columns and site == INPUT else None
    refused: dict[str, str] = {}
    batch, judged = explain(
        opened,
        inputs,
        asked,
        objective,
        site,
        progress=bool(progress),
        directory=directory,
        baseline=baseline,
        seconds=seconds or math.inf,
        ready=None if say is None else _FirstLook(say, inputs.place, opened.processor, columns),
        refused=partial(_note_refusal, refused, say),
    )
    led = leading(judged) if is_embedding or target == "predicted" else None
    classes = _classes(opened, inputs, judged[0].inputs["label"])
    own, numbers = classes if inputs.own_labels else {}, inputs.listing.target
    targets = () if numbers is None else numbers[batch.order.numpy()].tolist()
    document = explain_document(
        judged,
        batch,
        model=opened.name,
        data=data_name(data),
        features=columns,
        classes=classes,
        answers=answers_of(opened, batch, led, site, own, targets, baseline),
        where=[inputs.place(i) for i in batch.order.tolist()],
        baseline=baseline,
        not_run=[w for w in map(name_of, asked) if w not in {o.word for o in judged} | {*refused}],
        refused=refused,
    )
    if given is not None:
        document["features"] = given.effects(opened, batch, objective)
    is_shown = show_inputs and site == INPUT
    n_shown = len(document["examples"]) if is_shown else 0
    return Explained(document, judged, _drawn(opened, batch, n_shown, bool(columns)), notes)


def _check_amounts(limit: int | None, seconds: float) -> None:
    """Raise if too many inputs are asked for, or a negative time."""
    if limit is not None and limit > MOST:
        raise InputError(f"--limit: expected at most {MOST} inputs to explain, got {limit}.")
    if seconds < 0:
        raise InputError(f"--seconds: expected 0 or more, got {seconds:g}.")


@dataclass
class _FirstLook:
    """Prints the positions of the first explanation, and a line when each method is done."""

    say: Callable[[str], None]
    place: Callable[[int], str]
    processor: Any
    columns: Sequence[str]
    is_said: bool = False

    def __call__(self, batch: InputBatch, word: str, found: Attribution) -> None:
        """Print the strongest positions of the first inputs, or that the method is computed."""
        largest = [self._largest(batch, found, i) for i in range(min(FIRST, found.n))]
        if self.is_said or not any(largest):
            self.say(f"note: the attribution by {word} is computed; its tests follow.")
            return
        self.is_said = True
        self.say(
            f"note: a first attribution by {word}, not tested yet; the parts of the input that "
            "change the answer most are"
        )
        for i, names in enumerate(largest):
            if names:
                self.say(f"  {self.place(int(batch.order[i]))}: {', '.join(names)}")

    def _largest(self, batch: InputBatch, found: Attribution, i: int) -> list[str]:
        """Return the names of the positions with the largest values; empty without names."""
        size, pieces = (
            found.per_place[i].flatten().abs(),
            pieces_of(batch, self.processor, False, i),
        )
        if batch.mask is not None and len(pieces) < len(size) == batch.mask.shape[1]:
            size = size[batch.mask[i].bool().to(size.device)]
        names = pieces or list(self.columns)
        if len(names) != len(size):
            return []
        return [
            repr(names[k].strip() or names[k])
            for k in size.argsort(descending=True)[:LARGEST].tolist()
        ]


def _note_refusal(
    refused: dict[str, str], say: Callable[[str], None] | None, word: str, error: SondeError
) -> None:
    """Keep why a method does not fit the model, and say it at once."""
    refused[word] = str(error)
    if say is not None:
        say(f"note: {word} is left out: {error}")


def _methods(methods: str | Sequence[Attributor] | None) -> Sequence[Attributor]:
    if isinstance(methods, str):
        return parse_methods(methods, find_attributor)
    return DEFAULTS if methods is None else methods


def _text(target: str | int) -> str:
    """Return the text whose embedding those of the inputs are compared with."""
    if target == "predicted" or isinstance(target, int):
        raise InputError(
            "explain: the model embeds texts as vectors, which have no most likely class. "
            "Name a text: --target TEXT explains the similarity of each input to this text."
        )
    return target


def _objective(target: str | int, answer: int | None) -> Objective:
    if answer is not None:
        return Objective("answer", length=answer)
    if target == "predicted":
        return Objective()
    if not str(target).isdigit():
        raise InputError(f"--target: expected a class or token id, got {target!r}.")
    return Objective(target=int(target))


def _load(
    given: DictionaryFile | None, model: Any, **options: Any
) -> tuple[Model, tuple[str, ...]]:
    """Return the model, compared with that of a dictionary before packed layers are unpacked."""
    loaded = load(model, **options)
    if given is not None:
        given.check(loaded)
    return load_for_gradients(loaded)


def _dictionary(path: str | Path | None, site: str) -> DictionaryFile | None:
    """Return the dictionary of a file, checked to have a site; None if no file is named."""
    if path is None:
        return None
    dictionary = DictionaryFile.read(path, None if site == INPUT else site)
    if not dictionary.site:
        raise InputError(f"--dictionary: {path} does not name its site. Name it with --sites.")
    return dictionary


def _classes(model: Model, inputs: ItemInputs, labels: list[str]) -> dict[str, str]:
    """Return the names of the classes or tokens that are explained."""
    if model.task == "causal":
        tokens = [label for label in set(labels) if label.isdigit()]
        return {t: repr(texts_of([int(t)], model.processor)[0]) for t in tokens}
    return {str(i): str(name) for i, name in enumerate(inputs.label_names)}


def _mean_row(model: Model, inputs: ItemInputs, seed: int) -> Baseline:
    """Return the mean of each column, the baseline for tables, where zero may be impossible."""
    return Baseline.fit(model, inputs.drawn(POOL, seed))


def _drawn(model: Model, batch: InputBatch, n: int, is_table: bool) -> list[dict[str, Any]]:
    """Return the data of the first inputs that a page displays."""
    if n == 0:
        return []
    given = (*batch.args, *batch.kwargs.values())
    if is_table:
        rows = next(v for v in given if v.ndim == 2)
        return [{"values": rows[i].tolist()} for i in range(n)]
    if pixels_of(batch) is None:
        return [{"pieces": pieces_of(batch, model.processor, example=i)} for i in range(n)]
    images = next(v for v in given if v.ndim == 4)
    return [{"pixels": images[i].detach().float().cpu()} for i in range(n)]
