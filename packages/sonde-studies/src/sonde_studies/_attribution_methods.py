"""The attribution methods that studies compare, by what they read; most with their defaults."""

from sonde.explain import (
    AttentionRelevance,
    AttentionRollout,
    AttentionTimesGradient,
    Attributor,
    GradTimesInput,
    IntegratedGradients,
    NormGrad,
    Occlusion,
    RawAttention,
    Relevance,
    Saliency,
    SmoothGrad,
)

OF_INPUTS: dict[str, Attributor] = {
    "Saliency": Saliency(),
    "GradTimesInput": GradTimesInput(),
    "IntegratedGradients": IntegratedGradients(steps=20),
    "SmoothGrad": SmoothGrad(n=10),
    "NormGrad": NormGrad(),
    "Occlusion": Occlusion(),
    "Relevance": Relevance(),
}
OF_ATTENTIONS: dict[str, Attributor] = {
    "RawAttention": RawAttention(),
    "AttentionRollout": AttentionRollout(),
    "AttentionTimesGradient": AttentionTimesGradient(),
    "AttentionRelevance": AttentionRelevance(),
}
