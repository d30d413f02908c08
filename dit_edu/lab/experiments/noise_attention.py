"""Attention that is told the noise level: a race of all its rules, and the time that windows save.

The stage is the digits, with 16 tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_edu.attention import attention_entropy, record_attention
from dit_edu.interpolant import Interpolant
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.dynamic import MODEL as OF_STAGE
from dit_edu.lab.experiments.dynamic import RECIPE as ON_STAGE
from dit_edu.lab.experiments.multiscale import fitted
from dit_edu.lab.experiments.training import quality
from dit_edu.lab.recipes import Recipe
from dit_edu.windows import Window, gathered_attention

MODEL: dict[str, Any] = {**OF_STAGE, "depth": 4}
RECIPE: dict[str, Any] = {**ON_STAGE, "steps": 400}
LEVELS = (0, *range(50, 1000, 50), 999)  # steps at which attention is looked at
LOOKED = 50  # held-out images whose attention is looked at


@torch.no_grad()
def entropies(
    model: nn.Module,
    process: Interpolant,
    images: Tensor,
    labels: Tensor,
    levels: Sequence[int] = LEVELS,
) -> Tensor:
    """How widely tokens look, by step and by layer: entropy over ln N, in [0, 1].

    Args:
        model: any whose attention can be recorded.
        process: that it was trained for.
        images, labels: clean images (B, C, H, W), and (B,).
        levels: the steps at which is looked.

    Returns:
        (levels, L), means over images, heads and tokens.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for level in levels:
        t = torch.full((len(images),), level)
        with record_attention(model) as weights:  # L x (B, h, N, N)
            model(process.q_sample(images, t, noise), t, labels)
        widest = math.log(weights[0].shape[-1])  # ln N
        found.append([attention_entropy(w).mean() / widest for w in weights])
    return torch.tensor(found)


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its rule on top of what all share."""
    model = {**MODEL, **setting["model"]}
    return Recipe(name="noise-aware", kind="NoiseAwareDiT", model=model, **RECIPE)


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, measure on the held-out digits, and look at the attention."""
    recipe = recipe_of(setting)
    model = fitted(recipe, seed, digits("train"))
    found = quality(model, recipe, Sampling(steps=10))
    looked = (part[:LOOKED] for part in digits("heldout"))
    found["entropy"] = plain(entropies(model, recipe.process.build(), *looked).tolist(), 4)
    if model.learned is not None:
        emb = model.t_embedder(torch.tensor(LEVELS))  # (levels, D)
        factor = model.learned(emb).mean(2).flatten(1)  # (L, levels), means over the heads
        found["factor"] = plain(factor.T.tolist(), 4)
    return found


@torch.no_grad()
def cost_cell(setting: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Milliseconds of attention alone, three heads of 64 channels, in turn; the least of a few.

    The time is that of the processor: on a shared machine the clock on the wall also counts the
    work of others. The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    side, reach = setting["side"], setting["reach"]
    q, k, v = (torch.randn(1, 3, side * side, 64) for _ in range(3))
    window = Window((side, side), torch.tensor([reach]))
    mask = window.allowed()
    ways = {
        "none": partial(F.scaled_dot_product_attention, q, k, v),
        "mask": partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask),
        "gathered": partial(gathered_attention, q, k, v, window),
    }
    best = dict.fromkeys(ways, math.inf)
    for turn in range(3 if side > 32 else 10):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:  # the first warms up
                best[name] = min(best[name], time.process_time() - start)
    return {
        "density": plain(mask.double().mean().item(), 6),
        **{name: plain(1000 * seconds, 5) for name, seconds in best.items()},
    }


#: Every rule by name: those of the notes, and others.
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature as written": {"temperature": "as-written"},
    "temperature as summed up": {"temperature": "as-summed-up"},
    "sharper at low noise": {"temperature": "sharper-at-low-noise"},
    "sharper at high noise": {"temperature": "sharper-at-high-noise"},
    "temperature learned": {"temperature": "learned"},
    "mask as written": {"window": "as-written"},
    "raster, narrow at noise": {"window": "narrow-at-noise", "distance": "raster"},
    "narrow at noise": {"window": "narrow-at-noise"},
    "wide at noise": {"window": "wide-at-noise"},
    "wide at noise, at least 3 × 3": {"window": "wide-at-noise", "least": 2},
    "always 3 × 3": {"window": "fixed", "least": 2},
}
EXPERIMENTS = (
    Experiment(
        name="noise-attention",
        about="Attention told the noise level: loss and entropy by noise, digits, 16 tokens",
        settings={rule: {"stage": "digits", "model": RULES[rule]} for rule in RULES},
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="noise-attention-cost",
        about="Milliseconds of attention in windows: no mask, a dense mask, gathered",
        settings={
            f"N = {side * side}, {2 * reach - 1} × {2 * reach - 1}": {"side": side, "reach": reach}
            for side in (16, 32, 64)
            for reach in ((2, 3, 5, 9, 17) if side == 64 else (2, 3, 5, 9))
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
