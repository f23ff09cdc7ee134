"""Each law is seen to fail on a twin that breaks it, and to hold for one that does not."""

import pytest
import torch

from contract import (
    broken,
    broken_caches,
    broken_codecs,
    broken_layers,
    broken_methods,
    broken_packings,
    broken_rewrites,
    broken_tokens,
)
from contract.statistics import rank_error
from contract.test_explainers import JUDGED, NAMES, MeanAnswer, Slopes
from sonde.core import (
    CachePacking,
    CacheRule,
    Codec,
    Detector,
    Edit,
    Explainer,
    InputError,
    Instrument,
    Judge,
    Learner,
    Shift,
    Statistic,
    TokenRule,
)
from sonde.core.plan import Split
from sonde.layers import Layer
from sonde.stats import Moments
from sonde.tap import Decode
from sonde.testing import KINDS, Case, ExplainerCase, LayerCase, RewriteCase, check, laws_of
from sonde.testing.rows import make_columns
from sonde.weights import MergeRule, Rewrite

TWINS = [
    (Statistic, "split", broken.AddsMeans(), "state"),
    (Statistic, "split", broken.IndexSample(), "state"),
    (Statistic, "split", broken.SplitsGroups(), "state"),
    (Statistic, "split", broken_methods.CutSteps(), r"state\.total"),
    (Statistic, "atoms", broken.AddsMeans(), r"state\.mean"),
    (Statistic, "update", broken.OtherUpdate(), r"state\.n"),
    (Statistic, "size", broken.KeepsRows(), "bytes for 1024 rows"),
    (Statistic, "pure", broken.ChangesOperand(), "left operand"),
    (Statistic, "pure", broken.ChangesRows(), "column x changed"),
    (Statistic, "sizes", broken.NanOfOneRow(), "not finite for n=1"),
    (Statistic, "half", broken.HalfSums(), r"state\.mean"),
    (Statistic, "offset", broken.RawSquares(), r"state\.scatter"),
    (Statistic, "influence", broken.HalfInfluence(), "of the largest effect"),
    (Statistic, "save", broken.UntypedState(), None),
    (Statistic, "identity", broken.OtherState(), "named HistogramState"),
    (Statistic, "bound", Case(broken.BoastsOfItsBound(), error=rank_error), "off by"),
    (Learner, "learner", broken.Unseeded(), "two runs differ"),
    (Learner, "learner", broken.MergingLearner(), "a learner merged"),
    (Instrument, "value", broken.WithoutCount(), "n = 0"),
    (Instrument, "degenerate", broken.SwallowsNan(), "1 rows: value"),
    (Instrument, "sizes", broken.SwallowsNan(), "rows of 1: value"),
    (Instrument, "unlabelled", broken.OfTheFirstClass(), "no label column: IndexError"),
    (Instrument, "order", broken.AsksTheFirstRow(), "not close"),
    (Instrument, "order", broken_methods.PathLength(broken_methods.StepsByRow()), "not close"),
    (
        Instrument,
        "ragged",
        broken_methods.PathLength(broken_methods.StepsAsTheyCome()),
        "not close",
    ),
    (Instrument, "persons", broken.CountsRows(), "the error 0.45 times as large"),
    (Instrument, "again", broken.Rolls(), "not (close|equal)"),
    (Instrument, "company", broken.HearsOthers(), "not (close|equal)"),
    (Instrument, "then", broken.IgnoresFirstPass(), "ignores the result"),
    (Detector, "score_finite", broken.Distance("nan"), "non-finite rows"),
    (Detector, "score_alone", broken.Distance("batch"), "not close"),
    (Detector, "score_direction", broken.Distance("flipped"), "far rows score"),
    (Shift, "itself", broken_methods.OfMeans(p=0.0), "against itself"),
    (Shift, "far", broken_methods.OfMeans(p=1.0), "of a large shift"),
    (Shift, "far", broken_methods.OfMeans(p=0.0), "without change"),
    (Shift, "order", broken_methods.OfMeans("first row"), "in another order"),
    (Shift, "merged", broken_methods.OfMeans("merge"), "merged from parts"),
    (Shift, "again", broken_methods.OfMeans("random"), "two runs differ"),
    (Shift, "groups", broken_methods.OfMeans(), "of 40 groups"),
    (Shift, "degenerate", broken_methods.OfMeans("nan p"), "without a flag"),
    (Shift, "degenerate", broken_methods.OfMeans("nan value"), "without a flag"),
    (Edit, "strength", broken_methods.Shifts("copies"), "another tensor"),
    (Edit, "kept", broken_methods.Shifts("shape"), "shape"),
    (Edit, "kept", broken_methods.Shifts("widens"), "float64 of torch.float16"),
    (Edit, "kept", broken_methods.Shifts("in place"), "in place"),
    (Edit, "rows", broken_methods.Shifts("batch"), "other examples moved"),
    (Edit, "again", broken_methods.Shifts("random"), "two runs differ"),
    (Edit, "padding", broken_methods.Shifts("looks at padding"), "real tokens moved"),
    (Edit, "rounding", broken_methods.Shifts("rounds float32"), "float32 is off"),
    (Edit, "untouched", broken_methods.Shifts("in place"), "padding changed"),
    (Edit, "restored", broken_methods.Shifts("draws"), "another random state"),
    (Edit, "generates", broken_methods.Shifts("first place"), "logits with a cache are off"),
    (Decode, "strength", broken_methods.Sharpens("copies"), "gives other logits"),
    (Decode, "kept", broken_methods.Sharpens("in place"), "logits was changed in place"),
    (Decode, "kept", broken_methods.Sharpens("empty"), "no token left"),
    (Decode, "constant", broken_methods.Sharpens("logits"), "moved by constants"),
    (Decode, "rows", broken_methods.Sharpens("batch"), "moved by other texts"),
    (Decode, "recomputed", broken_methods.Sharpens("remembers"), "than without cache"),
    (Decode, "untouched", broken_methods.Sharpens("random"), "random state"),
    (CachePacking, "form", broken_packings.Rounds("double"), "of torch.bfloat16"),
    (CachePacking, "form", broken_packings.Rounds("in place"), "changed the keys"),
    (CachePacking, "padding", broken_packings.Rounds("padding"), "what stands at padding"),
    (CachePacking, "rows", broken_packings.Rounds("batch"), "the other rows of the batch"),
    (CachePacking, "rows", broken_packings.Rounds("order"), "in another order"),
    (CachePacking, "heads", broken_packings.Rounds("heads"), "otherwise alone"),
    (CachePacking, "steps", broken_packings.Rounds("grows"), "steps of other lengths"),
    (TokenRule, "leads", broken_tokens.EveryOther("chain"), "itself led or dropped"),
    (TokenRule, "padding", broken_tokens.EveryOther("padding"), "if padding holds other keys"),
    (TokenRule, "alone", broken_tokens.EveryOther("batch"), "in a batch"),
    (TokenRule, "shape", broken_tokens.EveryOther("width"), "with the other rows of the batch"),
    (CacheRule, "score", broken_caches.Newest("NaN"), "scores NaN"),
    (CacheRule, "score", broken_caches.Newest("in place"), "changed what it was shown"),
    (CacheRule, "empty", broken_caches.Newest("all slots"), "with what lies in empty slots"),
    (CacheRule, "alone", broken_caches.Newest("batch"), "with the other texts of the batch"),
    (CacheRule, "budget", broken_caches.KeepsMore(), "by the budget"),
    (CacheRule, "whole", broken_caches.Evicts(), "although nothing was evicted"),
    (Codec, "round_trip", broken_codecs.Plain("loses"), "of the squared norm"),
    (Codec, "round_trip", broken_codecs.Plain("shape"), "of shape"),
    (Codec, "same_bytes", broken_codecs.Plain("random"), "two streams of one tensor differ"),
    (Codec, "truncated", broken_codecs.Trusting(), "was decoded"),
    (Codec, "flipped", broken_codecs.Trusting(looks=True), "flipped was decoded"),
    (Codec, "refused", broken_codecs.Trusting(), "was encoded"),
    (Rewrite, "named", broken_rewrites.Halves("names"), "reads names"),
    (Rewrite, "untouched", broken_rewrites.Halves("writes"), "the model changed at 11.bias"),
    (Rewrite, "untouched", broken_rewrites.Halves("trains"), "another training mode"),
    (Rewrite, "untouched", broken_rewrites.Halves("draws"), "another random state"),
    (Rewrite, "again", broken_rewrites.Halves("random"), "two runs differ"),
    (Rewrite, "shared", broken_rewrites.CopiesAll(), "is not shared"),
    (Rewrite, "once", broken_rewrites.Halves("forgets"), "folded into its own result"),
    (Rewrite, "saved", broken_rewrites.Halves("folds"), "11.weight is off by"),
    (Rewrite, "undone", broken_rewrites.DoesNothing(), "the saved weights are the old ones"),
    (Rewrite, "half", broken_rewrites.Halves("half"), "is not finite"),
    (Rewrite, "tied", broken_rewrites.Halves("tie"), "the plan does not say"),
    (Rewrite, "missing", broken_rewrites.Halves("takes anything"), "was taken"),
    (Rewrite, "finite", broken_rewrites.Trusts(), "nan in 0.weight was taken"),
    (Layer, "start", broken_layers.Mixes("starts"), "first output is off"),
    (Layer, "gradients", broken_layers.Mixes("detached"), "finite differences"),
    (Layer, "again", broken_layers.Mixes("random"), "two runs differ"),
    (Layer, "again", broken_layers.Mixes("in place"), "in place"),
    (Layer, "alone", broken_layers.Mixes("batch"), "alone is off"),
    (Layer, "symmetry", broken_layers.Mixes("first token"), "permutation of token is off"),
    (Layer, "symmetry", broken_layers.Lags("place"), "translation of time is off"),
    (Layer, "padding", broken_layers.Mixes("padding"), "1 padded tokens move"),
    (Layer, "saved", broken_layers.forgetful(), "new layer gives another"),
    (Layer, "bfloat16", broken_layers.Mixes("coarse"), "bfloat16 is off by"),
    (Layer, "start", broken_layers.Mixes("half"), "first output is off by nan in torch.float16"),
    (Layer, "large", broken_layers.Mixes("half"), "numbers of torch.float16 are not finite"),
    (Layer, "keyword", broken_layers.Mixes("unchecked"), "x: RuntimeError by keyword, ShapeError"),
    (Layer, "causal", broken_layers.Lags("ahead"), "tokens before 1 move by"),
    (Layer, "recomputed", broken_layers.Lags("counts"), "gradient 0 is off by"),
    (Layer, "unseen", broken_layers.Mixes("learns"), "first rows changed map.weight"),
    (Layer, "unseen", broken_layers.Mixes("late"), "first rows made parameters"),
    (Layer, "counted", broken_layers.Mixes("flops"), "flops 241, counted 240"),
    (Layer, "counted", broken_layers.Mixes("numbers"), "n_parameters 17, counted 16"),
    (MergeRule, "rule_kept", broken_rewrites.MeanOf("widens"), "float64 of torch.float32"),
    (MergeRule, "rule_kept", broken_rewrites.MeanOf("in place"), "an operand changed"),
    (MergeRule, "rule_again", broken_rewrites.MeanOf("random"), "two runs differ"),
    (MergeRule, "rule_same", broken_rewrites.MeanOf("shrinks"), "off by"),
]
TWINS += [(Explainer, name, ExplainerCase(Slopes(name)), None) for name in NAMES]
TWINS += [(Judge, name, ExplainerCase(MeanAnswer(name)), None) for name in JUDGED]
GOOD = [
    Case(Moments()),
    Case(broken.SplitsGroups(), "group"),
    Case(broken_methods.Steps(), "example"),
    broken.Distance(),
    broken_methods.PathLength(),
    broken_methods.PathRatio(),
    broken_methods.Shifts(),
    broken_methods.Sharpens(),
    broken_codecs.Plain(),
    RewriteCase(broken_rewrites.Halves()),
    LayerCase(broken_layers.Mixes()),
    LayerCase(broken_layers.Lags()),
    broken_rewrites.MeanOf(),
]


def test_every_law_has_a_twin_that_breaks_it():
    laws = {(kind, law.name) for kind, laws in KINDS.items() for law in laws}
    assert laws == {(kind, name) for kind, name, _, _ in TWINS}


@pytest.mark.parametrize(
    ("kind", "name", "twin", "message"),
    [pytest.param(*t, id=f"{t[0].__name__}-{t[1]}-{i}") for i, t in enumerate(TWINS)],
)
def test_a_twin_breaks_its_law(kind, name, twin, message):
    (law,) = (law for law in KINDS[kind] if law.name == name)
    fails = (ValueError, TypeError) if name == "save" else AssertionError
    with pytest.raises(fails, match=message):
        law.hold(_case(twin))


def _case(twin):
    if isinstance(twin, Statistic):
        return Case(twin)
    if isinstance(twin, Layer):
        return LayerCase(twin)
    return RewriteCase(twin) if isinstance(twin, Rewrite) else twin


@pytest.mark.slow
@pytest.mark.parametrize("method", GOOD, ids=lambda m: type(getattr(m, "statistic", m)).__name__)
def test_a_good_twin_keeps_every_law(method):
    assert len(laws_of(method)) > 2
    check(method)


def test_what_breaks_a_law_is_named_with_its_parameters():
    said = r"Distance\(fault='nan'\) breaks the law 'score_finite' \(Finite rows .*non-finite rows"
    with pytest.raises(AssertionError, match=said):
        check(broken.Distance("nan"))
    with pytest.raises(AssertionError, match=r"CutSteps\(\).*breaks the law 'split'"):
        check(broken_methods.PathLength(broken_methods.CutSteps()))


def test_a_law_is_left_out_by_its_name():
    check(broken.Distance("flipped"), without={"score_direction"})
    with pytest.raises(InputError, match=r"no law \['direction'\]. Its laws: .*score_direction"):
        check(broken.Distance(), without={"direction"})


def test_what_cannot_be_held_to_laws_is_said():
    with pytest.raises(InputError, match=r"in Statistic, Learner, .*got <class 'dict'>"):
        check(dict)
    with pytest.raises(InputError, match=r"error of its states, got none"):
        check(broken.BoastsOfItsBound())


def assert_whole_groups_held(split, columns, draw):
    """The rows of one group are all held out, or all not."""
    held, group = split.is_held(draw), columns["group"]
    both = set(group[held].tolist()) & set(group[~held].tolist())
    assert not both, f"{len(both)} groups are in both parts"
    assert bool(held.any()), "nothing is held out"


def test_split_by_group():
    columns = make_columns(300, 3, seed=7, dtype=torch.float64)
    assert_whole_groups_held(Split(0.5), columns, columns["group_draw"])
    with pytest.raises(AssertionError, match="in both parts"):
        assert_whole_groups_held(broken.RowSplit(0.5), columns, columns["draw"])
