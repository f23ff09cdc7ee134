"""Information flow between users: one user's rows in another user's answers."""

from typing import Any

from sonde import InputError, Model
from sonde.core import bars
from sonde.report import Answer
from sonde_studies.parts.figures import SHARE, melted, names
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.rows import classes_of, rows_with
from sonde_studies.parts.serving import ONE_MODEL, OWN_MODELS, OWN_ROWS, PUBLIC, SERVED
from sonde_studies.parts.sharing import Sharing

QUESTION = "Can one user's rows change another user's answers?"
LEAST = 6
SHARED, LABELLED = "shared index", "index with labels"
REDACTED, TUNED = "shared index, redacted", "shared fine-tuning"
WORDED = {"another's row": "answers from another's row", "changed": "answers that changed"}


@copies_once()
def per_user_flow(
    model: Model,
    data: Any,
    *,
    user_column: str = "user",
    text_column: str = "text",
    epochs: int = 2,
    rate: float = 1e-4,
    own: bool = False,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Replace one user's rows and count whose answers change, by four ways to serve all users.

    Half of each user's texts are stored, the other half are queries; an answer is the stored text
    of the nearest state. Ways: one index for all; the same with a label of its user on each row,
    which a query must match; one index of texts without the words that a single user uses; and, of
    a causal model, a copy that is tuned on all stored texts, whose answer is the next token.

    Example: sonde recipe per-user-flow MODEL TEXTS --user-column user -o flow.html

    Parameters
    ----------
    model : Model
        A text model.
    data : str, path or iterable
        Rows with a text and its user.
    user_column : str, default="user"
        Column of the user.
    text_column : str, default="text"
        Column of the text.
    epochs : int, default=2
        Passes over the stored texts in fine-tuning; 0 leaves it out.
    rate : float, default=0.0001
        Rate of Adam.
    own : bool, default=False
        Also compare, for a causal model, how well queries are predicted by the model, by the model
        with votes of the user's own rows, by a copy that is tuned for each user, and by one copy
        for all; and whether the replaced rows change what they predict for others.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws what is stored, and the user whose rows are replaced.
    """
    tunes = epochs > 0 and model.task == "causal"
    if own and not tunes:
        raise InputError(
            "per_user_flow: own=True expects a causal model and epochs of at least 1, got a model "
            f"of the task {model.task!r} and epochs={epochs}. It tunes a copy for each user."
        )
    rows = rows_with("per_user_flow", data, [user_column, text_column], 2 * LEAST, limit)
    user = classes_of("per_user_flow", rows, user_column, 2 * LEAST, each=LEAST)
    users = Sharing(model, [str(row[text_column]) for row in rows], user, seed, progress)
    shared, tight = users.by_index(), users.by_index(labelled=True)
    ways = {SHARED: shared, LABELLED: tight, REDACTED: users.by_index(redacted=True)}
    n, other = len(users.asked), shared["another's row"]
    said = (
        f"With the rows of {users.gone} replaced, {shared['changed']:.1%} of {n} answers of other "
        f"users change if all share one index, and {tight['changed']:.1%} if rows carry labels. "
        f"Of the answers from the shared index {other:.1%} are another user's row."
    )
    if tunes:
        ways[TUNED] = after = users.by_tuning(epochs, rate)
        said += (
            f" After fine-tuning on all, {after['changed']:.1%} of next-token distributions "
            f"change, the most moved token by {after['nats']:.2g} nats on average."
        )
    if own:
        served = {way: users.by_serving(way, epochs, rate) for way in SERVED}
        ways |= {f"served by {way}": found for way, found in served.items()}
        nats = {way: f"{found['nats a token']:.4g}" for way, found in served.items()}
        said += (
            f" Queries cost the model {nats[PUBLIC]} nats a token, with votes of the user's own "
            f"rows {nats[OWN_ROWS]}, a model tuned for each user {nats[OWN_MODELS]}, and one tuned "
            f"on all {nats[ONE_MODEL]}."
        )
    leaks = any(found["changed"] > 0 for found in ways.values())
    table = [{"way": way, **found} for way, found in ways.items()]
    points = melted(table, "way", "share", "what", WORDED)
    return Answer(
        question=QUESTION,
        verdict="only behind labels" if leaks else "they cannot",
        level="error" if tight["changed"] > 0 else "warning" if leaks else "clear",
        sentence=said,
        value=shared["changed"],
        n=n,
        range=(0.0, 1.0),
        direction="lower",
        rows=tuple(table),
        drawn=bars("How far one user's rows reach", points, SHARE, names("way"), by="what"),
        facts={"users": str(len(set(user))), "rows replaced": users.gone},
        advice=(
            "Private words are words of one user alone, in answers to others. Labels are only as "
            "good as what sets them: this checks the index, not the login.",
        ),
    )
