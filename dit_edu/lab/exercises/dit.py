"""Exercises of the chapter on the model: first loss, parameters, the block, what wakes when."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dit_edu.conditioning import AdaLNZeroBlock, modulate
from dit_edu.dit import DiT
from dit_edu.lab.exercises import Exercise

Forward = Callable[[AdaLNZeroBlock, Tensor, Tensor], Tensor]


# Predict: the loss of a model that answers 0, for each prediction.


def _first_loss(prediction: str, alpha_bar: float, power: float) -> float:
    return {"eps": 1.0, "x0": power, "v": alpha_bar + (1 - alpha_bar) * power}[prediction]


def _judge_first_loss(answer: Callable[[str, float, float], float]) -> str | None:
    for alpha_bar, power in ((0.9, 0.25), (0.3, 0.6), (0.5, 1.0)):
        for prediction in ("eps", "x0", "v"):
            got = float(answer(prediction, alpha_bar, power))
            if abs(got - _first_loss(prediction, alpha_bar, power)) < 1e-9:
                continue
            where = f'first_loss("{prediction}", {alpha_bar}, {power}) = {got:.6g}.'
            if prediction == "v" and abs(got - alpha_bar * power - (1 - alpha_bar)) < 1e-9:
                return f"{where} That is E[x_t²]; in v the two weights change places."
            if prediction == "v" and got < _first_loss("v", alpha_bar, power):
                return f"{where} Squaring a sum: weights come squared, and the variance of ε is 1."
            return f"{where} The model answers 0, so the loss is the mean square of the target."
    return None


# Derive: how many parameters a DiT trains.


def _count(
    hidden_size: int, depth: int, patch_size: int, in_channels: int, num_classes: int
) -> int:
    d, patch = hidden_size, patch_size**2 * in_channels
    embedders = (patch * d + d) + (256 * d + d + d * d + d) + (num_classes + 1) * d
    blocks = depth * (18 * d * d + 15 * d)
    final = (d * 2 * d + 2 * d) + (d * 2 * patch + 2 * patch)  # twice the channels: learnt variance
    return embedders + blocks + final


def _count_no_biases(hidden_size, depth, patch_size, in_channels, num_classes):
    d, patch = hidden_size, patch_size**2 * in_channels
    return patch * d + 256 * d + d * d + (num_classes + 1) * d + 18 * depth * d * d + (
        2 * d * d + 2 * patch * d
    )  # fmt: skip


def _with_positions(hidden_size, depth, patch_size, in_channels, num_classes):
    positions = (32 // patch_size) ** 2 * hidden_size
    return _count(hidden_size, depth, patch_size, in_channels, num_classes) + positions


def _judge_count(answer: Callable[..., int]) -> str | None:
    for d, depth, p, c, k in ((24, 3, 4, 3, 10), (48, 2, 2, 4, 5), (1152, 28, 2, 4, 1000)):
        sizes = dict(hidden_size=d, depth=depth, patch_size=p, in_channels=c, num_classes=k)
        with torch.device("meta"):
            model = DiT(**sizes, num_heads=4)
        want = sum(w.numel() for w in model.parameters() if w.requires_grad)
        off = int(answer(**sizes)) - want
        if not off:
            continue
        fixed, out = model.pos_embed.numel(), 2 * p * p * c
        known = {
            fixed: "You count the position embedding, which is fixed.",
            -d: "One row of D is missing: the null class has an embedding too.",
            -depth * 6 * d * (d + 1): "adaLN's own layer is missing from every block.",
            -depth * 15 * d: "The blocks' biases are missing: 4D, 5D and 6D in each.",
            -(d + 1) * out // 2: "The last layer has 2C channels: half of them for the variance.",
            depth * 4 * d: "LayerNorm has no parameters here: scale and shift come from c.",
            -2 * d * (d + 1): "The final layer has an adaLN of its own, with two vectors.",
        }
        of_weights = _count_no_biases(**sizes) - want
        why = known.get(off, "Go part by part: print the shapes of model.named_parameters().")
        if off == of_weights:
            why = "All weights are there, and not one bias."
        return f"count(D={d}, L={depth}, p={p}, C={c}, K={k}) is off by {off:+,}. {why}"
    return None


# Derive: the share of adaLN in a block's weights.


def _share(mlp_ratio: float, cross_attention: bool) -> float:
    return 6 / (4 + 2 * mlp_ratio + 6 + 4 * cross_attention)


def _judge_share(answer: Callable[[float, bool], float]) -> str | None:
    for ratio, cross in ((4.0, False), (4.0, True), (2.0, False), (3.0, True)):
        got, want = float(answer(ratio, cross)), _share(ratio, cross)
        if abs(got - want) < 1e-9:
            continue
        where = f"share({ratio}, {cross}) = {got:.6g}."
        if abs(got - 6 / (4 + 2 * ratio + 4 * cross)) < 1e-9:
            return f"{where} That is adaLN against the rest; a share is a part of the whole."
        if abs(got - 6 / (4 + 2 * ratio + 6)) < 1e-9:
            return f"{where} Cross-attention is missing: it has query, key, value and output too."
        if abs(got - 6 / (4 + ratio + 6 + 4 * cross)) < 1e-9:
            return f"{where} The MLP has two matrices, D to rD and rD to D."
        return f"{where} Count in units of D²: attention, MLP, adaLN, cross-attention."
    return None


# Build: the block's forward from its parts.


def _forward(block: AdaLNZeroBlock, x: Tensor, c: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(c).chunk(6, dim=1)
    x = x + gate1[:, None] * block.attn(modulate(block.norm1(x), shift1, scale1))  # (B, N, D)
    return x + gate2[:, None] * block.mlp(modulate(block.norm2(x), shift2, scale2))  # (B, N, D)


def _changed(
    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    *,
    plus_one: bool = True,
    residual: bool = True,
    gate_all: bool = False,
    silu: bool = True,
    norm: bool = True,
) -> Forward:
    """A block's forward with one thing wrong."""

    def forward(block: AdaLNZeroBlock, x: Tensor, c: Tensor) -> Tensor:
        made = (block.adaLN_modulation if silu else block.adaLN_modulation[1])(c)
        six = [made.chunk(6, dim=1)[i] for i in order]  # 6 x (B, D)
        branches = ((block.norm1, block.attn), (block.norm2, block.mlp))
        for (layer_norm, branch), (shift, scale, gate) in zip(
            branches, (six[:3], six[3:]), strict=True
        ):
            inner = modulate(layer_norm(x) if norm else x, shift, scale if plus_one else scale - 1)
            h = branch(inner)  # (B, N, D)
            g = gate.unsqueeze(1)  # (B, 1, D)
            x = g * (x + h) if gate_all else g * h + (x if residual else 0)
        return x

    return forward


def _parallel(block: AdaLNZeroBlock, x: Tensor, c: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(c).chunk(6, dim=1)
    h1 = block.attn(modulate(block.norm1(x), shift1, scale1))  # (B, N, D)
    h2 = block.mlp(modulate(block.norm2(x), shift2, scale2))  # (B, N, D)
    return x + gate1[:, None] * h1 + gate2[:, None] * h2


#: Wrong forwards by name, each with what to say about it. Every one gives the right shape.
WRONG_FORWARDS: Mapping[str, tuple[Forward, str]] = {
    "scale before shift": (
        _changed((1, 0, 2, 4, 3, 5)),
        "Scale and shift have changed places: the order is shift, scale, gate.",
    ),
    "gate first": (
        _changed((1, 2, 0, 4, 5, 3)),
        "The gate is taken from the first place: the order is shift, scale, gate.",
    ),
    "MLP's vectors for attention": (
        _changed((3, 4, 5, 0, 1, 2)),
        "The first three vectors belong to attention, the last three to the MLP.",
    ),
    "no 1 +": (_changed(plus_one=False), "The scale acts as 1 + scale, so that 0 means unchanged."),
    "no residual": (_changed(residual=False), "The gate multiplies the branch; x itself is added."),
    "gated sum": (
        _changed(gate_all=True),
        "The gate multiplies x as well; with a closed gate nothing would be left of it.",
    ),
    "no SiLU": (_changed(silu=False), "c goes through SiLU before the linear layer."),
    "no norm": (_changed(norm=False), "modulate acts on the normalised tokens."),
    "parallel": (
        _parallel,
        "The MLP must see what attention has already added; you run both on the same x.",
    ),
}


def _awake_block(dim: int = 16, heads: int = 2) -> AdaLNZeroBlock:
    """A block with random weights everywhere: with closed gates every forward looks right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = AdaLNZeroBlock(dim, heads).double()
        for weight in block.parameters():
            nn.init.normal_(weight, std=0.3)
    return block


def _judge_block(answer: Forward) -> str | None:
    g = torch.Generator().manual_seed(1)
    block = _awake_block()
    x = torch.randn(3, 5, 16, generator=g, dtype=torch.float64)  # (B, N, D)
    c = torch.randn(3, 16, generator=g, dtype=torch.float64)  # (B, D)
    got, want = answer(block, x.clone(), c.clone()), block(x, c)
    if not isinstance(got, Tensor) or got.shape != want.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        return f"The result is {shape}; expected a tensor of shape {tuple(want.shape)}."
    if torch.allclose(got, want, rtol=1e-8, atol=1e-8):
        return None
    for wrong, why in WRONG_FORWARDS.values():
        if torch.allclose(got, wrong(block, x, c), rtol=1e-8, atol=1e-8):
            return why
    if torch.allclose(got, x):
        return "You return x itself. That is right only for closed gates; here they are open."
    off = float((got - want).abs().max())
    return f"The shape is right, the numbers are off by up to {off:.3g}."


# Explain: at which update does each part get its first gradient?

#: The first update whose gradient is not zero, for each part of a fresh model.
FIRST_GRADIENT = {
    "final linear": 1,
    "final adaLN": 2,
    "patch embedding": 2,
    "gates": 2,
    "shifts and scales": 3,
    "attention": 3,
    "MLP": 3,
    "timestep embedder": 3,
    "label embedder": 3,
}
_WHY_THEN = {
    "final linear": "its weight is 0, but its input and the error are not: the gradient is there",
    "final adaLN": "the gradient has to pass the final linear layer, whose weight is 0 at first",
    "patch embedding": "closed blocks let the gradient pass; only the final linear layer stops it",
    "gates": "their gradient is the branch times what arrives from above, once anything arrives",
    "shifts and scales": "they act inside a branch, and the branch is multiplied by a closed gate",
    "attention": "it is multiplied by a closed gate: nothing arrives until the gate has moved",
    "MLP": "it is multiplied by a closed gate: nothing arrives until the gate has moved",
    "timestep embedder": "c reaches the output through adaLN's layers alone, whose weights are 0",
    "label embedder": "c reaches the output through adaLN's layers alone, whose weights are 0",
}


def _judge_wake(answer: Mapping[str, int]) -> str | None:
    if not isinstance(answer, Mapping):
        return f"Give a dictionary with the keys {', '.join(FIRST_GRADIENT)}."
    if missing := [part for part in FIRST_GRADIENT if part not in answer]:
        return f"These parts are missing: {', '.join(missing)}."
    for part, first in FIRST_GRADIENT.items():
        if answer[part] != first:
            late = "later" if answer[part] < first else "earlier"
            return f"{part}: {late} than update {answer[part]}. Think of this: {_WHY_THEN[part]}."
    return None


# Build: a test that tells a block that starts as the identity from one that only nearly does.


def _reinitialised(block: AdaLNZeroBlock) -> AdaLNZeroBlock:
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return block


def _open_rows(block: AdaLNZeroBlock, which: int) -> AdaLNZeroBlock:
    dim = block.adaLN_modulation[1].in_features
    nn.init.xavier_uniform_(block.adaLN_modulation[1].weight.data[which * dim : (which + 1) * dim])
    return block


def _open_bias(block: AdaLNZeroBlock) -> AdaLNZeroBlock:
    nn.init.constant_(block.adaLN_modulation[1].bias, 0.01)
    return block


def _fresh(change: Callable[[AdaLNZeroBlock], AdaLNZeroBlock] = lambda block: block) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = AdaLNZeroBlock(16, 2)
        block.zero_init()
        return change(block)


#: Blocks whose initialisation went wrong, by name; not one of them is the identity.
BROKEN_STARTS: Mapping[str, Callable[[AdaLNZeroBlock], AdaLNZeroBlock]] = {
    "zeroed, then initialised once more with everything else": _reinitialised,
    "the gate of attention is open": lambda block: _open_rows(block, 2),
    "the gate of the MLP is open": lambda block: _open_rows(block, 5),
    "the weight is zero, the bias is not": _open_bias,
}


def _judge_identity(answer: Callable[[nn.Module], bool]) -> str | None:
    if not answer(_fresh()):
        return "Your test rejects a block whose gates are closed, which is the identity."
    if not answer(_fresh(lambda block: _open_rows(block, 0))):
        return (
            "Your test rejects a block whose shift is not zero but whose gates are closed. "
            "It is the identity all the same: ask what the block does, not what its weights are."
        )
    for name, change in BROKEN_STARTS.items():
        try:
            passed = bool(answer(_fresh(change)))
        except AssertionError:
            passed = False
        if passed:
            return f"A block that is not the identity passes your test: {name}."
    return None


def _is_identity(block: nn.Module) -> bool:
    x, c = torch.randn(2, 5, 16), torch.randn(2, 16)
    return torch.equal(block(x, c), x)


def _zero_condition(block: nn.Module) -> bool:
    x = torch.randn(2, 5, 16)
    return torch.equal(block(x, torch.zeros(2, 16)), x)


def _weights_only(block: nn.Module) -> bool:
    return not block.adaLN_modulation[1].weight.any()


def _shape_only(block: nn.Module) -> bool:
    return block(torch.randn(2, 5, 16), torch.randn(2, 16)).shape == (2, 5, 16)


EXERCISES = {
    "dit-first-loss": Exercise(
        judge=_judge_first_loss,
        hints=(
            "The answer is 0, so the loss is E[target²]. What is the target of each prediction?",
            "v = sqrt(ᾱ) ε - sqrt(1-ᾱ) x_0, and ε is independent of x_0 with mean 0.",
            "E[v²] = ᾱ E[ε²] + (1-ᾱ) E[x_0²], and E[ε²] = 1.",
        ),
        solution=_first_loss,
        wrong={
            "always one": lambda prediction, alpha_bar, power: 1.0,
            "mean square of x_t": lambda prediction, alpha_bar, power: (
                alpha_bar * power + 1 - alpha_bar
                if prediction == "v"
                else _first_loss(prediction, alpha_bar, power)
            ),
            "x0 in [-1, 1] means 1/3": lambda prediction, alpha_bar, power: _first_loss(
                prediction, alpha_bar, 1 / 3
            ),
        },
    ),
    "dit-count": Exercise(
        judge=_judge_count,
        hints=(
            "nn.Linear(a, b) has a·b + b parameters, nn.Embedding(n, D) n·D, our LayerNorm none.",
            "A block: qkv 3D² + 3D, proj D² + D, MLP 8D² + 5D, adaLN 6D² + 6D.",
            "Embedders: p²C·D + D, 256D + D² + 2D, (K+1)D. Final: 2D² + 2D and (D+1)·2p²C.",
        ),
        solution=_count,
        wrong={
            "positions counted": _with_positions,
            "no null class": lambda **s: _count(**s) - s["hidden_size"],
            "no biases": _count_no_biases,
            "blocks alone": lambda **s: s["depth"] * 18 * s["hidden_size"] ** 2,
        },
    ),
    "dit-share": Exercise(
        judge=_judge_share,
        hints=(
            "Leave biases out and divide everything by D²: what is left of each part is a number.",
            "Attention 4, MLP 2r, adaLN 6. Cross-attention has four matrices like attention.",
            "6 over the sum of all parts that the block has.",
        ),
        solution=_share,
        wrong={
            "ratio": lambda r, cross: 6 / (4 + 2 * r + 4 * cross),
            "cross forgotten": lambda r, cross: 6 / (10 + 2 * r),
            "one matrix in the MLP": lambda r, cross: 6 / (10 + r + 4 * cross),
            "always a third": lambda r, cross: 1 / 3,
        },
    ),
    "dit-block": Exercise(
        judge=_judge_block,
        hints=(
            "First make the six vectors: block.adaLN_modulation(c).chunk(6, dim=1).",
            "They come as shift, scale, gate for attention, then the same three for the MLP.",
            "x + gate[:, None] * block.attn(modulate(block.norm1(x), shift, scale)), then the MLP.",
        ),
        solution=_forward,
        wrong={name: wrong for name, (wrong, _) in WRONG_FORWARDS.items()}
        | {"identity": lambda block, x, c: x},
    ),
    "dit-wake": Exercise(
        judge=_judge_wake,
        hints=(
            "For a product a·b the gradient of a is b times what arrives. Which factors are 0?",
            "Update 1 moves the final linear layer alone. What does the gradient reach then?",
            "A part wakes one update after the last zero weight between it and the loss has moved.",
        ),
        solution=FIRST_GRADIENT,
        wrong={
            "all at once": dict.fromkeys(FIRST_GRADIENT, 1),
            "gates stop everything": FIRST_GRADIENT | {"patch embedding": 3},
            "embedders with the gates": FIRST_GRADIENT | {"label embedder": 2},
            "one part": {"gates": 2},
        },
    ),
    "dit-identity": Exercise(
        judge=_judge_identity,
        hints=(
            "A block is the identity if block(x, c) is x. For which x and c must you ask?",
            "With c = 0 the weight of adaLN's layer has no say, only its bias.",
            "Draw x and c at random and use torch.equal.",
        ),
        solution=_is_identity,
        wrong={
            "condition zero": _zero_condition,
            "looks at the weight": _weights_only,
            "shape": _shape_only,
            "rejects all": lambda block: False,
        },
    ),
}
