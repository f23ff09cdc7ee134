from sonde.report._versus_words import label_sentences, matched_sentence


def _share(value: float, low: float, high: float):
    return {"value": value, "low": low, "high": high, "n_rows": 400}


def _versus(**more):
    row = {"label": "ash", "labels_data": 0.5, "labels_other": 0.2, "corrected": 0.25}
    rows = [row | {"answers_data": 0.4, "answers_other": 0.3}]
    known = {"copies": {"data": 200, "n_data": 400, "other": 210, "n_other": 9000}}
    known |= {"accuracy": {"data": _share(0.9, 0.87, 0.93), "other": _share(0.6, 0.55, 0.65)}}
    known["accuracy"]["expected"] = 0.88
    known |= {"classes": rows, "label_shift": {"difference": 0.3, "p": 1e-9}}
    known |= {"new": {"data": [], "other": ["yew"]}}
    return {"labels": known, "matched": None} | more


def test_copies_are_counted_on_the_side_of_which_they_are_the_larger_share() -> None:
    said = [line.replace("\u00a0", " ") for line in label_sentences(_versus(), ("TEST", "TRAIN"))]
    assert said[0] == (
        "correct on 90 % of TEST (87 % to 93 %) and 60 % of TRAIN (55 % to 65 %); the change in "
        "class proportions alone would give 88 %"
    )
    assert said[1] == "labels, TEST to TRAIN: ash 50 % to 20 %"
    assert "only TRAIN has the labels yew; TEST has none of them" in said
    assert said[-1] == "200 of 400 rows of TEST are copies of rows of TRAIN, byte for byte"
    other = _versus()
    other["labels"]["copies"] |= {"data": 3, "other": 8000}
    *_, last = label_sentences(other, ("TEST", "TRAIN"))
    assert last.startswith("8,000 of 9,000 rows of TRAIN are copies of rows of TEST")


def test_a_shift_of_labels_is_told_apart_from_one_of_inputs() -> None:
    found = {"site": "a", "auroc": 0.51, "low": 0.45, "high": 0.57, "n_rows": 150}
    assert matched_sentence(_versus(matched=found)).endswith("the inputs within a class do not")
    moved = found | {"auroc": 0.9, "low": 0.85, "high": 0.94}
    assert matched_sentence(_versus(matched=moved)).endswith("the inputs themselves differ")
    assert matched_sentence({"matched": None}) == ""
    assert list(label_sentences({}, ("a", "b"))) == []
