"""Pictures put into words by one model, and questions that another answers from the words."""

from collections import Counter
from typing import Any

import numpy as np

from sonde import Model
from sonde.core import bars
from sonde.report import Answer
from sonde_studies.parts.choice import unless_untold
from sonde_studies.parts.figures import ACCURACY, error_of, gained, is_sure, names
from sonde_studies.parts.heads import linear_head, said_by_kind
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import group_means, groups_told, owners_of
from sonde_studies.parts.readers import SentenceReader
from sonde_studies.parts.rows import apart, classes_of, rows_with
from sonde_studies.parts.states import last_states

QUESTION = "Do wrong answers come from perception or from reasoning?"
LEAST, TEST = 60, 0.4
PERCEIVED, TOLD, LOT, DIRECT = "perceived words", "true words", "words by lot", "no words"


@copies_once()
def perception_in_words(
    perceiver: Model,
    reasoner: Model,
    data: Any,
    *,
    input_column: str = "image",
    word_column: str = "word",
    question_column: str = "question",
    label_column: str = "label",
    sentence: str = "This is a picture of {}.",
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Answer questions from what one model sees in words, and say which of the two models errs.

    A linear head on the perceiver's states learns the true word of an input. The reasoner, a
    language model, reads a sentence with the word and the question, and gives the answer whose
    log-probability rises most by the sentence. It also answers from the true words, so that what is
    wrong then is the reasoner's, and what is wrong from the perceived words alone is the
    perceiver's; from the words of other rows; and a head on the perceiver's states answers each
    question without words. Four tenths of the rows judge.

    Example: sonde recipe perception-in-words EYES READER DATA -o words.html

    Parameters
    ----------
    perceiver : Model
        Reads the inputs; its states are read, not its outputs.
    reasoner : Model
        Causal language model with its tokenizer.
    data : str, path or iterable
        Rows with an input, its true word, a question and its answer.
    input_column : str, default="image"
        Column of what the perceiver reads.
    word_column : str, default="word"
        Column of the true word, or words, for the input.
    question_column : str, default="question"
        Column of the question: a text that breaks off where the answer begins.
    label_column : str, default="label"
        Column of the answer.
    sentence : str, default="This is a picture of {}."
        Text for the reasoner; ``{}`` is the word.
    site : str, default="auto"
        Where the perceiver's states are read; "auto" is after the last block.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge.
    """
    columns = [input_column, word_column, question_column, label_column]
    rows = rows_with("perception_in_words", data, columns, LEAST, limit)
    word = classes_of("perception_in_words", rows, word_column, LEAST)
    label = classes_of("perception_in_words", rows, label_column, LEAST)
    asked = np.array([str(row[question_column]) for row in rows])
    states = last_states(perceiver, [row[input_column] for row in rows], site, progress).numpy()
    owner = owners_of(data, group_column, limit)[: len(rows)]
    kept, held = apart(word, TEST, seed, ordered=False, owner=owner)
    seen = linear_head().fit(states[kept], word[kept]).predict(states[held])
    lot = np.random.default_rng(seed).permutation(word[held])
    answers = {q: sorted({*label[asked == q]}) for q in {*asked}}
    reads = SentenceReader(reasoner, sentence, answers)
    said = {
        arm: np.array([reads(w, q) for w, q in zip(words, asked[held], strict=True)])
        for arm, words in {PERCEIVED: seen, TOLD: word[held], LOT: lot}.items()
    }
    said[DIRECT] = said_by_kind(states, label, asked, kept, held)
    right = {arm: values == label[held] for arm, values in said.items()}
    by_eyes, by_reader = right[TOLD] & ~right[PERCEIVED], ~right[TOLD]
    more = group_means(by_eyes * 1.0 - by_reader, owner[held])
    verdict = "neither more than the other"
    for name, side in (("perception", more), ("reasoning", -more)):
        verdict = name if is_sure(side) else verdict
    score = {arm: float(r.mean()) for arm, r in right.items()}
    points = [{"from": arm, "accuracy": value} for arm, value in score.items()]
    usual = Counter(label[held]).most_common(1)[0][1] / len(held)
    told = {arm: r for arm, r in right.items() if arm != LOT}
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, told, label[held], is_bad=verdict == "reasoning"),
        sentence=f"From the words that were perceived the reasoner is right on "
        f"{score[PERCEIVED]:.1%} of {len(held)} rows, from the true words on {score[TOLD]:.1%}. "
        f"Perception loses {by_eyes.mean():.1%} of the rows, reasoning {by_reader.mean():.1%}.",
        **gained(more),
        rows=tuple(
            {"from": arm, "accuracy": score[arm], "se": error_of(r, owner[held])}
            for arm, r in right.items()
        ),
        drawn=bars("Accuracy of answers from words", points, names("from"), ACCURACY),
        facts={
            "lost by perception": f"{by_eyes.mean():.3f}",
            "lost by reasoning": f"{by_reader.mean():.3f}",
            "words perceived": f"{(seen == word[held]).mean():.3f}",
            "most frequent answer": f"{usual:.3f}",
        }
        | groups_told(owner),
        advice=(
            "A reasoner that is wrong from the true words is not mended by a better perceiver. "
            "What no word says is lost to both: compare with the answers without words.",
        ),
    )
