"""Tiny seeded models that tests share: built from configurations, never downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrow import present
from sonde.core.inputs import Model

VOCABULARY = 61


def mlp(n_in: int = 8, width: int = 16, n_out: int = 4, seed: int = 0) -> nn.Sequential:
    """Return a small net of leaf layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(n_in, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_out),
    ).eval()


class ResidualBlock(nn.Module):
    """Adds ``scale`` times a small net to what it reads."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.tanh(self.up(x)))


class Residual(nn.Module):
    """A net of residual blocks of one width, with a linear layer before and behind."""

    def __init__(self, n_in: int, n_blocks: int, width: int = 6, n_out: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, width)
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(n_blocks)])
        self.last = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class CNN(nn.Module):
    """Two convolutions, a global average and a head."""

    def __init__(self, channels: int = 1, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.act2 = nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def cnn(channels: int = 1, n_classes: int = 10, seed: int = 0) -> CNN:
    """Return a small convolutional net."""
    torch.manual_seed(seed)
    return CNN(channels, n_classes).eval()


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016); one ReLU called twice."""

    def __init__(self, n_in: int, n_out: int, stride: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.inplace = inplace
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            x += shortcut
        else:
            x = x + shortcut
        return self.relu(x)


class ResNet18(nn.Module):
    """The 18-layer residual net for images, 11.7 million parameters at width 64."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, n_classes: int, width: int, channels: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(4):
            first = BasicBlock(sizes[i], sizes[i + 1], 1 if i == 0 else 2, inplace)
            layer = nn.Sequential(first, BasicBlock(sizes[i + 1], sizes[i + 1], 1, inplace))
            setattr(self, f"layer{i + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(
    n_classes: int = 10, width: int = 64, channels: int = 3, inplace: bool = True, seed: int = 0
) -> ResNet18:
    """Return a ResNet-18 in eval mode, with batch statistics that are not the default 0 and 1."""
    torch.manual_seed(seed)
    model = ResNet18(n_classes, width, channels, inplace).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            present(module.running_mean).normal_(0, 0.1)
            present(module.running_var).uniform_(0.5, 1.5)
    return model


class Recurrent(nn.Module):
    """Embedding, LSTM, head at each step."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.fc = nn.Linear(width, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states, _ = self.lstm(self.embedding(input_ids))
        return self.fc(states)


def lstm(seed: int = 0) -> Recurrent:
    """Return a small recurrent net."""
    torch.manual_seed(seed)
    return Recurrent().eval()


@dataclass(frozen=True)
class Architecture:
    """How to build one tiny model, and what it takes."""

    name: str
    build: Callable[[], nn.Module]
    task: str
    takes: str


def _hf(class_name: str, config_name: str, **config: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        torch.manual_seed(0)
        settings = getattr(transformers, config_name)(**config)
        return getattr(transformers, class_name)(settings).eval()

    return build


_TEXT = {"vocab_size": VOCABULARY}
_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = _TEXT | _ENCODER | _IDS | {"max_position_embeddings": 64}

gpt2 = _hf(
    "GPT2LMHeadModel", "GPT2Config", **_TEXT, **_IDS, n_embd=32, n_layer=3, n_head=4, n_positions=64
)
llama = _hf("LlamaForCausalLM", "LlamaConfig", **_LLAMA)
qwen2 = _hf("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA, num_key_value_heads=2)
opt = _hf(
    "OPTForCausalLM",
    "OPTConfig",
    **_TEXT,
    **_IDS,
    hidden_size=32,
    word_embed_proj_dim=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    ffn_dim=48,
    max_position_embeddings=64,
)
bert = _hf("BertModel", "BertConfig", **_TEXT, **_ENCODER, max_position_embeddings=64)
roberta = _hf("RobertaModel", "RobertaConfig", **_TEXT, **_ENCODER, max_position_embeddings=66)
albert = _hf("AlbertModel", "AlbertConfig", **_TEXT, **_ENCODER, embedding_size=16)
t5 = _hf(
    "T5ForConditionalGeneration",
    "T5Config",
    **_TEXT,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=3,
    num_heads=4,
    decoder_start_token_id=0,
)
mamba = _hf(
    "MambaForCausalLM",
    "MambaConfig",
    **_TEXT,
    **_IDS,
    hidden_size=32,
    num_hidden_layers=3,
    state_size=4,
)
mixtral = _hf(
    "MixtralForCausalLM",
    "MixtralConfig",
    **_LLAMA,
    num_key_value_heads=2,
    num_local_experts=3,
    num_experts_per_tok=2,
)
vit = _hf(
    "ViTForImageClassification", "ViTConfig", **_ENCODER, image_size=24, patch_size=6, num_labels=5
)
small_vit = _hf(
    "ViTForImageClassification",
    "ViTConfig",
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=8,
    patch_size=4,
    num_channels=1,
    num_labels=3,
)
deit = _hf("DeiTModel", "DeiTConfig", **_ENCODER, image_size=24, patch_size=6)
clip_vision = _hf("CLIPVisionModel", "CLIPVisionConfig", **_ENCODER, image_size=24, patch_size=6)
dinov2 = _hf(
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersConfig",
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    mlp_ratio=2,
    image_size=24,
    patch_size=6,
    num_register_tokens=4,
)
swin = _hf(
    "SwinForImageClassification",
    "SwinConfig",
    image_size=32,
    patch_size=4,
    embed_dim=8,
    depths=[1, 1, 1],
    num_heads=[1, 2, 4],
    window_size=2,
    num_labels=5,
)
convnext = _hf(
    "ConvNextForImageClassification",
    "ConvNextConfig",
    hidden_sizes=[8, 16, 24],
    depths=[1, 1, 1],
    num_stages=3,
    patch_size=4,
    image_size=32,
    num_labels=5,
)

ARCHITECTURES = (
    Architecture("gpt2", gpt2, "causal", "text"),
    Architecture("llama", llama, "causal", "text"),
    Architecture("qwen2", qwen2, "causal", "text"),
    Architecture("opt", opt, "causal", "text"),
    Architecture("mamba", mamba, "causal", "text"),
    Architecture("bert", bert, "encoder", "text"),
    Architecture("albert", albert, "encoder", "text"),
    Architecture("t5", t5, "seq2seq", "pair"),
    Architecture("vit", vit, "image_classifier", "image24"),
    Architecture("dinov2", dinov2, "encoder", "image24"),
    Architecture("swin", swin, "image_classifier", "image32"),
    Architecture("convnext", convnext, "image_classifier", "image32"),
    Architecture("resnet18", lambda: resnet18(width=8), "tensor", "image32"),
    Architecture("lstm", lstm, "tensor", "text"),
)


def model_of(architecture: Architecture) -> Model:
    """Return one tiny architecture as a model."""
    module = architecture.build()
    return Model(
        module, config=module.__dict__.get("config"), name=architecture.name, task=architecture.task
    )
