"""Experiments of papers at a size that runs here, with intervals, null arms and verdicts.

Each study is one file; ``STUDIES`` finds it by the word of ``sonde study``.
"""

import importlib

from sonde.core import InputError, near
from sonde_studies import recipes
from sonde_studies.study import Claim, Outcome, Study, StudyTable, run_study
from sonde_studies.text import as_text

STUDIES: dict[str, str] = {
    "abstopk": "AbsTopKStudy",
    "active-variables": "ActiveVariablesStudy",
    "align-teacher": "AlignTeacherStudy",
    "alignment-quality": "AlignmentQualityStudy",
    "attention-bottleneck": "AttentionBottleneckStudy",
    "attention-capacity": "AttentionCapacityStudy",
    "alternating-fields": "AlternatingFieldsStudy",
    "attention-patterns": "AttentionPatternsStudy",
    "attention-steer": "AttentionSteerStudy",
    "attributions": "AttributionsStudy",
    "backdoor": "BackdoorStudy",
    "bits-by-score": "BitsByScoreStudy",
    "bottleneck-degree": "BottleneckDegreeStudy",
    "bottleneck-regression": "BottleneckRegressionStudy",
    "bounded-messages": "BoundedMessagesStudy",
    "causal-graph": "CausalGraphStudy",
    "change-pairs": "ChangePairsStudy",
    "clue": "CLUEStudy",
    "coda": "CoDaStudy",
    "code-strip": "CodeStripStudy",
    "codebook": "CodebookStudy",
    "codebook-bottleneck": "CodebookBottleneckStudy",
    "comet": "CometStudy",
    "common-and-salient": "CommonAndSalientStudy",
    "compression": "CompressionStudy",
    "concept-bottleneck": "ConceptBottleneckStudy",
    "concept-marginal": "ConceptMarginalStudy",
    "conditional-latents": "ConditionalLatentsStudy",
    "conditioning": "ConditioningStudy",
    "continual": "ContinualStudy",
    "correlation-match": "CorrelationMatchStudy",
    "costarr": "COSTARRStudy",
    "curriculum-crops": "CurriculumCropsStudy",
    "decode-states": "DecodeStatesStudy",
    "decoupled-cross-attention": "DecoupledCrossAttentionStudy",
    "defined-anomaly": "DefinedAnomalyStudy",
    "depth-use": "DepthUseStudy",
    "dict-lookup": "DictLookupStudy",
    "did-it-memorise": "DidItMemoriseStudy",
    "diff-roar": "DiffRoarStudy",
    "disparity-decomposition": "DisparityDecompositionStudy",
    "document-retrieval": "DocumentRetrievalStudy",
    "domain-experts": "DomainExpertsStudy",
    "eft": "EFTStudy",
    "entropic-student": "EntropicStudentStudy",
    "extreme-labels": "ExtremeLabelsStudy",
    "faithfulness-violation": "FaithfulnessViolationStudy",
    "family-of-models": "FamilyOfModelsStudy",
    "fault-lines": "FaultLinesStudy",
    "feature-complexity": "FeatureComplexityStudy",
    "feature-fusion": "FeatureFusionStudy",
    "feature-gaps": "FeatureGapsStudy",
    "federated-bits": "FederatedBitsStudy",
    "field-selection": "FieldSelectionStudy",
    "fod": "FODStudy",
    "gated-adapter": "GatedAdapterStudy",
    "gradient-phases": "GradientPhasesStudy",
    "grokking": "GrokkingStudy",
    "grow-models": "GrowModelsStudy",
    "increment-penalty": "IncrementPenaltyStudy",
    "information-plane": "InformationPlaneStudy",
    "informative-latents": "InformativeLatentsStudy",
    "inject": "InjectStudy",
    "label-agnostic": "LabelAgnosticStudy",
    "last-layer": "LastLayerStudy",
    "layer-bits": "LayerBitsStudy",
    "layer-readout": "LayerReadoutStudy",
    "learned-graph": "LearnedGraphStudy",
    "length-law": "LengthLawStudy",
    "local-learning": "LocalLearningStudy",
    "locality": "LocalityStudy",
    "lol": "LOLStudy",
    "mask-sensitivity": "MaskSensitivityStudy",
    "memories": "MemoriesStudy",
    "memory-without-recurrence": "MemoryWithoutRecurrenceStudy",
    "merged-experts": "MergedExpertsStudy",
    "missing-view": "MissingViewStudy",
    "mixup": "MixupStudy",
    "nac": "NACStudy",
    "nac-me": "NACMEStudy",
    "neuron-lens": "NeuronLensStudy",
    "next-pixel": "NextPixelStudy",
    "noisy-labels": "NoisyLabelsStudy",
    "normgrad": "NormGradStudy",
    "once-for-all": "OnceForAllStudy",
    "open-world-hierarchy": "OpenWorldHierarchyStudy",
    "orthogonal-nets": "OrthogonalNetsStudy",
    "over-trust-decode": "OverTrustDecodeStudy",
    "overview": "OverviewStudy",
    "parallel-adapters": "ParallelAdaptersStudy",
    "pawn": "PAWNStudy",
    "per-user-flow": "PerUserFlowStudy",
    "projection-head": "ProjectionHeadStudy",
    "recall": "RecallStudy",
    "recolour": "RecolourStudy",
    "replication-check": "ReplicationCheckStudy",
    "reversible-columns": "ReversibleColumnsStudy",
    "rewrite-facts": "RewriteFactsStudy",
    "route-by-score": "RouteByScoreStudy",
    "routed-dimensions": "RoutedDimensionsStudy",
    "shortcut-bias": "ShortcutBiasStudy",
    "simple-net": "SimpleNetStudy",
    "size-fidelity": "SizeFidelityStudy",
    "slice-context": "SliceContextStudy",
    "skip-scaling": "SkipScalingStudy",
    "slots-over-time": "SlotsOverTimeStudy",
    "spurious-shift": "SpuriousShiftStudy",
    "ssd": "SSDStudy",
    "stage-swap": "StageSwapStudy",
    "subpopulation-curve": "SubpopulationCurveStudy",
    "subspace-patch": "SubspacePatchStudy",
    "superposed-generate": "SuperposedGenerateStudy",
    "surrogate-rules": "SurrogateRulesStudy",
    "tabular-attribution": "TabularAttributionStudy",
    "trajectories": "TrajectoriesStudy",
    "tune-norms": "TuneNormsStudy",
    "twin-merge": "TwinMergeStudy",
    "two-bits": "TwoBitsStudy",
    "two-stage-distillation": "TwoStageDistillationStudy",
    "two-forms-of-a-fact": "TwoFormsOfAFactStudy",
    "unlearning-audit": "UnlearningAuditStudy",
    "unmix-norm": "UnMixNormStudy",
    "view-sets": "ViewSetsStudy",
    "was-it-generated": "WasItGeneratedStudy",
    "weak-groups": "WeakGroupsStudy",
    "where-tasks-part": "WhereTasksPartStudy",
    "who-wrote-it": "WhoWroteItStudy",
}

__all__ = [
    "STUDIES",
    "Claim",
    "Outcome",
    "Study",
    "StudyTable",
    "as_text",
    "recipes",
    "run_study",
    "study_of",
]


def study_of(word: str) -> Study:
    """Return a study by its word.

    Raises
    ------
    InputError
        If there is no such study.
    """
    if word not in STUDIES:
        raise InputError(
            f"study: expected one of {', '.join(STUDIES)}, got {word!r}.{near(word, STUDIES)}"
        )
    module = importlib.import_module(f"sonde_studies.{word.replace('-', '_')}")
    return getattr(module, STUDIES[word])()
