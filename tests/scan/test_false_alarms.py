import pytest

from scan._zoo import HEADER, examine, summary, zoo

LEARNED = 0.95


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_healthy_zoo_raises_no_error_and_at_most_one_warning() -> None:
    rows = []
    print(f"\n{HEADER}")
    for animal in zoo():
        rows.append(examine(animal))
        print(rows[-1], flush=True)
    print(summary(rows))
    assert len(rows) >= 40
    assert [r.name for r in rows if r.failed] == []
    learned = [r.accuracy for r in rows if r.name.startswith("trained") and r.accuracy is not None]
    assert len(learned) == 20
    assert min(learned) >= LEARNED
    assert [(r.name, r.levels["error"]) for r in rows if r.levels["error"]] == []
    warned = [(r.name, code) for r in rows for code in r.levels["warning"]]
    assert len(warned) <= 1, warned
