"""The layers that may be drawn: each writes itself where it fits the tensor, or returns False."""

from collections.abc import Callable
from dataclasses import replace

from tools.fuzz.writing import DIM, FREE, MAYBE, MERGED, POS, ROW, SIZES, Axis, Writer

Layer = Callable[[Writer], bool]
ELEMENTWISE = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.GELU()", "nn.Tanh()", "nn.Sigmoid()",
    "nn.SiLU(inplace=True)", "nn.Hardtanh()", "nn.Softplus()", "nn.ELU(inplace=True)", 
    "nn.LeakyReLU(0.1, inplace=True)", "Halve()", "Add()",
)  # fmt: skip
TEXT_INPLACE = ("x.mul_(1.5)", "x += 0.25", "x.relu_()", "x.clamp_(-2.0, 2.0)", "x.neg_()")


def _fixed(w: Writer, i: int) -> bool:
    return w.axes[i].word in (DIM, MAYBE, FREE)


def elementwise(w: Writer) -> bool:
    """Write a layer that changes each number by itself."""
    w.layer(w.rng.choice(ELEMENTWISE))
    return True


def linear(w: Writer) -> bool:
    """Write a linear layer over the last axis, whatever it holds."""
    if not _fixed(w, -1) or (w.axes[-1].special and w.words[-1] != DIM):
        return False
    size = w.rng.choice((*SIZES[1:], w.size(-1)))
    w.layer(_linear(w, size), w.featured(len(w.axes) - 1, size), own=True)
    return True


def _linear(w: Writer, size: int) -> str:
    return f"nn.Linear({w.size(-1)}, {size}, bias={w.rng.random() < 0.5})"


def layer_norm(w: Writer) -> bool:
    """Write a norm over the last axis."""
    if not _fixed(w, -1) or w.axes[-1].special:
        return False
    affine = w.rng.random() < 0.7
    kind = w.rng.choice(("nn.LayerNorm", "nn.RMSNorm"))
    axes = w.normed(len(w.axes) - 1)
    w.layer(f"{kind}({w.size(-1)}, elementwise_affine={affine})", axes)
    return True


def channel_norm(w: Writer) -> bool:
    """Write a norm that takes axis 1 for channels."""
    n = len(w.axes)
    if w.words[0] != ROW or not 2 <= n <= 4 or not _fixed(w, 1) or w.axes[1].special or w.mask:
        return False
    if any(a.special for a in w.axes):
        return False
    size, kinds = w.size(1), [f"nn.GroupNorm(1, {w.size(1)})"]
    kinds.append(f"nn.BatchNorm{max(1, n - 2)}d({size}, affine={w.rng.random() < 0.5})")
    if n > 2 and all(a.size > 1 for a in w.axes[2:]):
        kinds.append(f"nn.InstanceNorm{n - 2}d({size}, affine={w.rng.random() < 0.3})")
    w.layer(w.rng.choice(kinds), w.normed(1), own=True)
    return True


def convolution(w: Writer) -> bool:
    """Write a convolution over all axes after the channels."""
    n = len(w.axes)
    spatial = w.axes[2:]
    if n not in (3, 4) or w.words[0] != ROW or not _fixed(w, 1) or w.mask:
        return False
    if any(not _fixed(w, i) or w.axes[i].special for i in range(1, n)) or any(
        a.size < 3 for a in spatial
    ):
        return False
    size, kernel, pad = w.rng.choice(SIZES[1:]), w.rng.choice((1, 3)), w.rng.choice((0, 1))
    bias = w.rng.random() < 0.5
    change = 1 - kernel + 2 * pad
    axes = w.featured(1, size)
    axes = (*axes[:2], *(replace(a, size=a.size + change) for a in axes[2:]))
    made = f"nn.Conv{n - 2}d({w.size(1)}, {size}, {kernel}, padding={pad}, bias={bias})"
    w.layer(made, axes, own=True)
    return True


def pooling(w: Writer) -> bool:
    """Write a pooling over all axes after the channels, where these hold the features."""
    n = len(w.axes)
    if n not in (3, 4) or w.words[:2] != (ROW, DIM) or w.mask:
        return False
    if any(not _fixed(w, i) or w.axes[i].special or w.size(i) < 4 for i in range(2, n)):
        return False
    kind, one = w.rng.choice(("MaxPool", "AvgPool", "AdaptiveAvgPool")), n - 2
    to = 2 if kind.startswith("Adaptive") else 0
    axes = w.normed(1)
    axes = (*axes[:2], *(replace(a, size=to or a.size // 2) for a in axes[2:]))
    w.layer(f"nn.{kind}{one}d(2)", axes, own=True)
    return True


def moved_axes(w: Writer) -> bool:
    """Write another order of the axes, in a line or as a module, as a view or a copy."""
    n = len(w.axes)
    if n < 3:
        return False
    order = list(range(1, n))
    w.rng.shuffle(order)
    if w.words[0] != ROW or w.mask:
        return False
    order = [0, *order]
    axes = tuple(w.axes[i] for i in order)
    if w.rng.random() < 0.5:
        w.layer(f"Permute({', '.join(map(str, order))})", axes)
    else:
        copied = w.rng.choice(("", ".contiguous()", ".clone()"))
        w.line(f"x = x.permute({', '.join(map(str, order))}){copied}", axes)
    return True


def rows_second(w: Writer) -> bool:
    """Write a recurrent layer that takes the examples on its second axis."""
    if len(w.axes) != 3 or w.words[0] != ROW or not w.is_feature(2) or w.axes[1].special:
        return False
    size, kind = w.rng.choice(SIZES[1:]), w.rng.choice(("LSTM", "GRU", "RNN"))
    w.line("x = x.transpose(0, 1)", (w.axes[1], w.axes[0], w.axes[2]))
    w.layer(f"nn.{kind}({w.size(2)}, {size})", w.featured(2, size), own=True, keys=(0,))
    if w.rng.random() < 0.5:
        w.layer("nn.Tanh()")
    w.line("x = x.transpose(0, 1)", (w.axes[1], w.axes[0], w.axes[2]))
    return True


def recurrent(w: Writer) -> bool:
    """Write a recurrent layer over the second axis."""
    if len(w.axes) != 3 or w.words[0] != ROW or not w.is_feature(2) or w.axes[1].special:
        return False
    size, kind = w.rng.choice(SIZES[1:]), w.rng.choice(("LSTM", "GRU"))
    axes = w.featured(2, size)
    made = f"nn.{kind}({w.size(2)}, {size}, batch_first=True)"
    w.layer(made, axes, own=True, keys=(0,))
    return True


def attention(w: Writer) -> bool:
    """Write attention over the second axis, which follows the mask."""
    if len(w.axes) != 3 or w.words[0] != ROW or not w.is_feature(2):
        return False
    size = w.size(2)
    heads = 2 if size % 2 == 0 else 1
    mask = f", key_padding_mask=~{w.mask}" if w.mask else ""
    weights = "" if w.rng.random() < 0.5 else ", need_weights=False"
    call = "self.{name}(x, x, x" + mask + weights + ")"
    kept = w.rng.random() < 0.5
    if kept:
        w.lines.append("before = x")
    made = f"nn.MultiheadAttention({size}, {heads}, batch_first=True)"
    w.layer(made, w.normed(2), call=call, keys=(0,), own=True)
    if kept:
        w.line(w.rng.choice(("x = before + x", "x += before", "x = torch.add(x, before, out=x)")))
    return True


def encoder_layer(w: Writer) -> bool:
    """Write a layer of a transformer as torch has it, which follows the mask."""
    if len(w.axes) != 3 or w.words[0] != ROW or not w.is_feature(2):
        return False
    size = w.size(2)
    heads = 2 if size % 2 == 0 else 1
    mask = f", src_key_padding_mask=~{w.mask}" if w.mask else ""
    made = f"nn.TransformerEncoderLayer({size}, {heads}, {w.rng.choice(SIZES)}, batch_first=True)"
    w.layer(made, w.normed(2), call="self.{name}(x" + mask + ")", own=True)
    return True


def inplace(w: Writer) -> bool:
    """Write a line that changes what the layer before returned."""
    w.line(w.rng.choice(TEXT_INPLACE))
    return True


def container(w: Writer) -> bool:
    """Write a module that returns several things, one of them the tensor."""
    kind, keys, key = w.rng.choice(
        (
            ("Pair()", (0,), None),
            ("Second()", (1,), "1"),
            ("Named()", ("states",), "states"),
            ("Record()", (".states",), "states"),
            ("Nested()", (1, "states"), "1_states"),
        )
    )
    w.layer(kind, keys=keys, key=key)
    return True


def buffered(w: Writer) -> bool:
    """Write a module that returns a piece of its own buffer, which the next call writes over."""
    if w.words[0] != ROW or any(word in (POS, MERGED) for word in w.words):
        return False
    shape = ", ".join(str(a.size) for a in w.axes[1:])
    w.layer(f"Buffered({shape})")
    return True


def reused(w: Writer) -> bool:
    """Write one layer that runs two or three times."""
    if not w.is_feature(-1):
        return False
    size = w.size(-1)
    made = f"nn.Linear({size}, {size}, bias={w.rng.random() < 0.5})"
    name = w.layer(made, w.featured(len(w.axes) - 1, size), own=True)
    for _ in range(w.rng.choice((1, 2))):
        if w.rng.random() < 0.5:
            w.line("x = torch.tanh(x)")
        w.layer("", own=True, name=name)
    return True


def view_kept(w: Writer) -> bool:
    """Write modules that return what they got, or a view of it, and change the original later."""
    w.layer(w.rng.choice(("nn.Identity()", "Same()", "nn.Dropout(0.5)")))
    w.line(w.rng.choice(TEXT_INPLACE))
    return True


def merged_rows(w: Writer) -> bool:
    """Write a linear layer on rows and positions in one axis, and part them again."""
    if len(w.axes) != 3 or w.words[0] != ROW or not w.is_feature(2) or w.mask:
        return False
    rows, positions, dim = w.axes
    w.line("n = len(x)")
    w.line(f"x = x.reshape(-1, {dim.size})", (Axis(MERGED, positions.size), dim))
    size = w.rng.choice(SIZES[1:])
    w.layer(_linear(w, size), (w.axes[0], Axis(DIM, size)), own=True)
    parted = (rows, replace(positions, word=FREE), Axis(DIM, size))
    w.line(f"x = x.view(n, {positions.size}, {size})", parted)
    return True


def flattened(w: Writer) -> bool:
    """Write all axes into one, by a module or by a view that knows the width alone."""
    if len(w.axes) < 3 or w.words[0] != ROW or w.mask:
        return False
    size = 1
    for axis in w.axes[1:]:
        size *= axis.size
    if size > 400:
        return False
    axes = (w.axes[0], Axis(DIM, size))
    if w.rng.random() < 0.4:
        w.layer("nn.Flatten()", axes, own=True)
    elif w.rng.random() < 0.5:
        w.line(f"x = x.reshape(-1, {size})", axes)
    else:
        w.line("x = x.flatten(1)", axes)
    return True


LAYERS: tuple[tuple[int, Layer], ...] = (
    (4, elementwise), (5, linear), (2, layer_norm), (2, channel_norm), (4, convolution),
    (1, pooling), (2, moved_axes), (1, rows_second), (1, recurrent), (2, attention),
    (1, encoder_layer), (2, inplace), (2, container), (1, buffered), (2, reused),
    (1, view_kept), (1, merged_rows), (1, flattened),
)  # fmt: skip
