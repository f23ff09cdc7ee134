"""The faults that each study's null arm could see, were they there.

A null arm of two runs that are equal by construction (another seed, order or half of the rows)
shows the noise of a difference and no fault of the study: it is *blind*.
"""

from typing import Literal, get_args

Fault = Literal["leak", "overfit probe", "chance level", "biased estimate", "side effect"]
FAULTS: dict[Fault, str] = {
    "leak": "rows or labels that judge are known to what was fitted",
    "overfit probe": "a probe that finds what is not there",
    "chance level": "a bar that is not what chance gives",
    "biased estimate": "a figure that is not 0 where there is nothing",
    "side effect": "a treatment, or unequal arms, that move the figure by other means",
}
_BLIND = ""
BLIND = frozenset(_BLIND.split())
"""Studies whose null arm is two equal runs. The list may only become shorter."""
_SEEN: dict[str, str] = {
    "leak": """pooled-sets steady-states leaving-locality alike-channels
        raster-decoding dense-levels
        pixels-in-context
        perception-in-words decoupled-queries
        anomaly-in-words enrolled-source explained-in-turns perceived-pictures
        costarr-pretrained nac-pretrained step-sharing memories attention-capacity
        attention-retrieval bottleneck-regression change-pairs clue codebook-bottleneck
        common-and-salient costarr nac overview fod simple-net pawn trajectories was-it-generated
        agents-in-scenes fused-sources through-states learned-together
        over-trust-decode gated-adapter forget-texts did-it-memorise label-agnostic ssd
        decoupled-cross-attention inject defined-anomaly document-retrieval factor-contrast
        feature-gaps grokking layer-readout local-learning locality mask-sensitivity
        masked-objectives missing-view parallel-adapters per-user-flow recall recolour
        identity-stream identity-code
        replication-check surrogate-rules twin-merge two-forms-of-a-fact volumes weak-groups
        which-model-wrote-it who-wrote-it zero-shot-text memory-without-recurrence
        attention-bottleneck pruned-pretrained rounded-pretrained active-variables
        alternating-fields attention-patterns complementary-transfer concept-bottleneck continual
        contrast-sequences curriculum-crops dynamic-filters extreme-labels grow-models
        informative-latents joint-objectives masked-units mixup next-tokens orthogonal-nets
        reversible-columns routed-dimensions structured-transfer view-sets dict-lookup
        routed-states
        two-stage-distillation attending-lookup
        referred-slots stacked-pretrained clue-pretrained random-pathways matches-of-three
        few-shot-tuning
        adverse-weather backdoor channel-regions comet conditional-latents
        contrast-domains dense-contrast entropic-student inpaint latent-belief
        latent-rewards next-pixel scale-generation where-tasks-part
        code-strip coarse-prompt shared-stream
        sentence-lines""",
    "overfit probe": """spoken-prefix
        alignment-quality attention-bottleneck bottleneck-regression clue
        common-and-salient decode-states disturbed-clips factor-contrast feature-fusion
        projection-head surrogate-rules volumes was-it-generated active-variables concept-bottleneck
        informative-latents joint-objectives masked-units view-sets
        channel-regions dense-contrast
        code-strip""",
    "chance level": """attributions bits-by-score bottleneck-degree concept-marginal
        correlation-match diff-roar faithfulness-violation family-of-models last-layer layer-bits
        learned-graph nac-me normgrad open-world-hierarchy route-by-score shortcut-bias
        slots-over-time subpopulation-curve swapped-codes tabular-attribution twin-merge
        depth-pretrained class-panel gradient-phases length-law
        abstopk aligned-maps depth-use""",
    "biased estimate": """bounded-messages compression curled-units cross-layer
        disparity-decomposition
        feature-complexity slice-context spurious-shift alignment-quality information-plane
        gradient-phases
        scalar-codes size-fidelity""",
    "side effect": """disentangled-encoder when-to-listen some-clients second-stream
        unlearned-pretrained sinks-pretrained facts-pretrained
        drafts-pretrained fault-lines stacked-blocks learned-mapping cached-pretrained
        codebook conditioning federated-bits field-selection latent-steps noisy-labels
        massive-states per-user-flow projection-head prompt-words rewrite-facts rounded-cache
        subspace-patch token-budgets tune-norms unmix-norm align-teacher attention-entropy
        attention-steer causal-graph coda domain-experts joined-attention lol merged-experts
        once-for-all prompt-compression skip-scaling slim-in-turn smooth-frames superposed-generate
        without-data two-bits rounded-runs false-names
        adaptive-learners eft increment-penalty neuron-lens reader-feedback stage-swap
        unlearning-audit dense-composites""",
}


def faults_seen(study: str) -> tuple[Fault, ...]:
    """Return the faults that a study's null arm could see; none for a blind arm.

    Parameters
    ----------
    study : str
        The word of ``sonde study``.
    """
    return tuple(fault for fault in get_args(Fault) if study in _SEEN[fault].split())
