"""What units, directions and inputs stand for, with the tests that can refute it."""

from sonde.explain.activation_max import ActivationMax, ActivationMaxResult
from sonde.explain.affine_lens import AffineLens, AffineLensResult
from sonde.explain.answers import AnswerMargin
from sonde.explain.attention import (
    AttentionRelevance,
    AttentionRollout,
    AttentionTimesGradient,
    RawAttention,
)
from sonde.explain.attribution import Attribution, Attributor
from sonde.explain.baseline import Baseline
from sonde.explain.causal_graph import CausalEdges, CausalGraph
from sonde.explain.circuits import Circuit, CircuitSearch
from sonde.explain.class_activation import GradCam, GradCamPP, HiResCam, LayerCam, upsampled
from sonde.explain.codebook import Codebook, CodebookResult
from sonde.explain.comet import Comet, CometResult
from sonde.explain.concept_bottleneck import ConceptBottleneck, ConceptBottleneckResult
from sonde.explain.concept_marginal import ConceptMarginal, ConceptMarginalResult
from sonde.explain.concept_matrix_search import ConceptMatrix, ConceptMatrixSearch
from sonde.explain.control_task import ControlTask, ControlTaskResult
from sonde.explain.crosscoder import Crosscoder
from sonde.explain.das import Alignment, Das, Interchange, InterchangeIntervention
from sonde.explain.dictionary import Dictionary, DictionaryEdit, load_dictionary
from sonde.explain.edges import EdgeAttribution, EdgeEffects, EdgePatching
from sonde.explain.exemplars import Exemplar, Exemplars, ExemplarsResult
from sonde.explain.faithfulness import (
    Comprehensiveness,
    Deletion,
    FaithfulnessResult,
    Insertion,
    Sufficiency,
)
from sonde.explain.faithfulness_violation import FaithfulnessViolation, ViolationResult
from sonde.explain.fault_lines import FaultLines, FaultLinesResult
from sonde.explain.gradients import (
    ExpectedGradients,
    GradTimesInput,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from sonde.explain.lens import LensResult, LogitLens, TunedLens
from sonde.explain.mask_sensitivity import MaskSensitivity, MaskSensitivityResult
from sonde.explain.mdl_probe import MdlProbe, MdlProbeResult
from sonde.explain.mean_attribution import MeanAttribution, MeanAttributionResult
from sonde.explain.neuron_lens import NeuronLens, NeuronLensResult
from sonde.explain.normgrad import ClassSensitivity, MetaSaliency, NormGrad, combined
from sonde.explain.objective import FixedObjective, Objective
from sonde.explain.patching import ActivationPatching, AttributionPatching, PatchEffects
from sonde.explain.probe import Probe, ProbeResult
from sonde.explain.probe_baselines import ProbeBaselines, ProbeBaselinesResult
from sonde.explain.relevance import Relevance
from sonde.explain.roar import DiffRoar, DiffRoarResult, Ranked, Roar, RoarResult
from sonde.explain.sanity import SanityChecks, SanityResult
from sonde.explain.sensitivity import Infidelity, InfidelityResult, SensitivityN, SensitivityResult
from sonde.explain.shapley import Occlusion, Shapley
from sonde.explain.skip_transcoder import SkipTranscoder
from sonde.explain.sparse_autoencoder import SparseAutoencoder
from sonde.explain.subspace_patch import SubspacePatch, SubspaceVerdict
from sonde.explain.surrogate import Rule, SurrogateResult, SurrogateRules
from sonde.explain.tcav import Tcav, TcavResult
from sonde.explain.transcoder import Transcoder
from sonde.explain.unit_labels import UnitLabels, UnitLabelsResult

__all__ = [
    "ActivationMax",
    "ActivationMaxResult",
    "ActivationPatching",
    "AffineLens",
    "AffineLensResult",
    "Alignment",
    "AnswerMargin",
    "AttentionRelevance",
    "AttentionRollout",
    "AttentionTimesGradient",
    "Attribution",
    "AttributionPatching",
    "Attributor",
    "Baseline",
    "CausalEdges",
    "CausalGraph",
    "Circuit",
    "CircuitSearch",
    "ClassSensitivity",
    "Codebook",
    "CodebookResult",
    "Comet",
    "CometResult",
    "Comprehensiveness",
    "ConceptBottleneck",
    "ConceptBottleneckResult",
    "ConceptMarginal",
    "ConceptMarginalResult",
    "ConceptMatrix",
    "ConceptMatrixSearch",
    "ControlTask",
    "ControlTaskResult",
    "Crosscoder",
    "Das",
    "Deletion",
    "Dictionary",
    "DictionaryEdit",
    "DiffRoar",
    "DiffRoarResult",
    "EdgeAttribution",
    "EdgeEffects",
    "EdgePatching",
    "Exemplar",
    "Exemplars",
    "ExemplarsResult",
    "ExpectedGradients",
    "FaithfulnessResult",
    "FaithfulnessViolation",
    "FaultLines",
    "FaultLinesResult",
    "FixedObjective",
    "GradCam",
    "GradCamPP",
    "GradTimesInput",
    "HiResCam",
    "Infidelity",
    "InfidelityResult",
    "Insertion",
    "IntegratedGradients",
    "Interchange",
    "InterchangeIntervention",
    "LayerCam",
    "LensResult",
    "LogitLens",
    "MaskSensitivity",
    "MaskSensitivityResult",
    "MdlProbe",
    "MdlProbeResult",
    "MeanAttribution",
    "MeanAttributionResult",
    "MetaSaliency",
    "NeuronLens",
    "NeuronLensResult",
    "NormGrad",
    "Objective",
    "Occlusion",
    "PatchEffects",
    "Probe",
    "ProbeBaselines",
    "ProbeBaselinesResult",
    "ProbeResult",
    "Ranked",
    "RawAttention",
    "Relevance",
    "Roar",
    "RoarResult",
    "Rule",
    "Saliency",
    "SanityChecks",
    "SanityResult",
    "SensitivityN",
    "SensitivityResult",
    "Shapley",
    "SkipTranscoder",
    "SmoothGrad",
    "SparseAutoencoder",
    "SubspacePatch",
    "SubspaceVerdict",
    "Sufficiency",
    "SurrogateResult",
    "SurrogateRules",
    "Tcav",
    "TcavResult",
    "Transcoder",
    "TunedLens",
    "UnitLabels",
    "UnitLabelsResult",
    "ViolationResult",
    "combined",
    "load_dictionary",
    "upsampled",
]
