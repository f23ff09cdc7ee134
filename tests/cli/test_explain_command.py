"""``sonde explain``: pictures and texts, and what is refused."""


def test_pictures_are_explained_and_drawn_where_asked(run, tmp_path):
    path = tmp_path / "explain.html"
    words = ("explain", "sonde:digits", "sonde:digits/test", "--limit", 4)
    few = ("--methods", "integrated_gradients(steps=8)")
    ran = run(*words, *few, "-o", path, "--show-inputs")
    assert ran.code == 0, ran.err
    assert "integrated_gradients(steps=8)" in ran.out
    page = path.read_text("utf-8")
    assert page.count("data:image/png") >= 8
    found = run(*words, "--methods", "saliency", "--target", 3, "--json").json()
    assert (found["schema"], found["objective"]) == ("sonde-explain/1", "logit[3]")
    assert (
        "no attribution is called 'mahalanobis'" in run(*words, "--methods", "mahalanobis").error()
    )
    assert "at most 256" in run(*words[:3], "--limit", 999).error()
    assert "a class or token id" in run(*words, "--target", "cat").error()
