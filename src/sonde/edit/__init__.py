"""Change what a model computes: its activations, its next tokens, its weights."""

from sonde.edit._eraser import Erase, Eraser, Subtract
from sonde.edit._facts import Fact, log_probability
from sonde.edit._linear import linear_layers
from sonde.edit.adversarial_mask import AdversarialMask
from sonde.edit.attention_steer import AttentionSteer, attention_mass
from sonde.edit.batch_edit import BatchEdit
from sonde.edit.choose_ablation import AblationChoice, AblationTrial, choose_ablation
from sonde.edit.clamp import ClampFeature, ClampUnit, MeanAblate, ScaleUnit
from sonde.edit.clean_unlearning import CleanUnlearning
from sonde.edit.coda import CoDa
from sonde.edit.conditional_steering import ConditionalSteering, ConditionScorer
from sonde.edit.contrastive_decode import ContrastiveDecode
from sonde.edit.directional_ablation import Ablate, AblationDirection, DirectionalAblation
from sonde.edit.dola import DoLa
from sonde.edit.drop_passive import DropPassive
from sonde.edit.emulated_finetune import EmulatedFinetune
from sonde.edit.find_backdoor import (
    BackdoorFinding,
    Triggered,
    find_backdoor,
    remove_backdoor,
)
from sonde.edit.fine_prune import FinePrune
from sonde.edit.forgetting import Forgotten, Standing, forgotten, membership_attack
from sonde.edit.function import Function
from sonde.edit.gated_adapter import GatedAdapter, LowRankAdapter, soft_gate
from sonde.edit.head_steering import HeadDirections, HeadSteering
from sonde.edit.inject import Inject, increment_penalty
from sonde.edit.inlp import Inlp
from sonde.edit.joined_attention import joined_attention
from sonde.edit.label_agnostic_forget import LabelAgnosticForget
from sonde.edit.leace import Leace, PairedLeace
from sonde.edit.limit_attention import LimitAttention
from sonde.edit.lipschitz_prune import LipschitzPrune
from sonde.edit.log_linear import LogLinear, log_linear
from sonde.edit.merge_arithmetic import Dare, TaskArithmetic, Ties
from sonde.edit.merge_means import FisherMerge, RegMean, Slerp
from sonde.edit.null_space import NullSpace, NullSpaceResult
from sonde.edit.over_trust_decode import AttentionColumns, OverTrustDecode
from sonde.edit.probes import Probed, probe_accuracy, probes_along
from sonde.edit.random_direction import RandomDirection
from sonde.edit.rank_one_edit import RankOneEdit
from sonde.edit.representation_reading import (
    Amplify,
    ContrastVector,
    ReadingScorer,
    RepresentationReading,
)
from sonde.edit.request_detector import RequestDetector, RequestScorer, layer_rows
from sonde.edit.sal import Sal
from sonde.edit.second_moment import SecondMoment, SecondMomentResult
from sonde.edit.selective_dampening import SelectiveDampening
from sonde.edit.steering_vector import SteeringDirection, SteeringVector
from sonde.edit.superposed_generate import NGrams, SuperposedGenerate, linearity
from sonde.edit.temporal_correction import TemporalCorrection
from sonde.edit.twin_merge import LinearRouter, TwinMerge, TwinModel
from sonde.edit.unlearning import GradientAscent, NegPreference, RandomLabel, Retrain

__all__ = [
    "Ablate",
    "AblationChoice",
    "AblationDirection",
    "AblationTrial",
    "AdversarialMask",
    "Amplify",
    "AttentionColumns",
    "AttentionSteer",
    "BackdoorFinding",
    "BatchEdit",
    "ClampFeature",
    "ClampUnit",
    "CleanUnlearning",
    "CoDa",
    "ConditionScorer",
    "ConditionalSteering",
    "ContrastVector",
    "ContrastiveDecode",
    "Dare",
    "DirectionalAblation",
    "DoLa",
    "DropPassive",
    "EmulatedFinetune",
    "Erase",
    "Eraser",
    "Fact",
    "FinePrune",
    "FisherMerge",
    "Forgotten",
    "Function",
    "GatedAdapter",
    "GradientAscent",
    "HeadDirections",
    "HeadSteering",
    "Inject",
    "Inlp",
    "LabelAgnosticForget",
    "Leace",
    "LimitAttention",
    "LinearRouter",
    "LipschitzPrune",
    "LogLinear",
    "LowRankAdapter",
    "MeanAblate",
    "NGrams",
    "NegPreference",
    "NullSpace",
    "NullSpaceResult",
    "OverTrustDecode",
    "PairedLeace",
    "Probed",
    "RandomDirection",
    "RandomLabel",
    "RankOneEdit",
    "ReadingScorer",
    "RegMean",
    "RepresentationReading",
    "RequestDetector",
    "RequestScorer",
    "Retrain",
    "Sal",
    "ScaleUnit",
    "SecondMoment",
    "SecondMomentResult",
    "SelectiveDampening",
    "Slerp",
    "Standing",
    "SteeringDirection",
    "SteeringVector",
    "Subtract",
    "SuperposedGenerate",
    "TaskArithmetic",
    "TemporalCorrection",
    "Ties",
    "Triggered",
    "TwinMerge",
    "TwinModel",
    "attention_mass",
    "choose_ablation",
    "find_backdoor",
    "forgotten",
    "increment_penalty",
    "joined_attention",
    "layer_rows",
    "linear_layers",
    "linearity",
    "log_linear",
    "log_probability",
    "membership_attack",
    "probe_accuracy",
    "probes_along",
    "remove_backdoor",
    "soft_gate",
]
