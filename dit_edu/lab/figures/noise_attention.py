"""The figure of the chapter on noise-aware attention: one token's attention under every rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dit_edu.attention import attention_entropy, record_attention
from dit_edu.lab import zoo
from dit_edu.lab.charts import Curves, Heatmap, Line, Table
from dit_edu.lab.data import dataset
from dit_edu.lab.experiments.noise_attention import RULES, entropies
from dit_edu.lab.panels import Axis, Tokens
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.widgets import Figure
from dit_edu.noise_attention import NoiseAwareDiT
from dit_edu.windows import token_distance

STEPS = (0, 100, 200, 300, 500, 700, 900, 999)
QUERIES = {"on the object": (3, 4), "corner": (0, 0), "left edge": (4, 0)}  # row and column
LAYER = 1  # whose attention is mapped, from 0
#: The rules that are shown, and what the slider calls them.
SHOWN = {
    "plain": "plain",
    "temperature as written": "Temp written",
    "temperature as summed up": "Temp summary",
    "sharper at low noise": "sharp, low t",
    "sharper at high noise": "sharp, high t",
    "mask as written": "mask written",
    "raster, narrow at noise": "raster mask",
    "narrow at noise": "narrowing",
    "wide at noise, at least 3 × 3": "widening",
    "always 3 × 3": "always 3 × 3",
}


def ruled(rule: str, name: str = "small-shapes-dit") -> tuple[NoiseAwareDiT, Recipe]:
    """A model of the zoo as it is, but for a rule that its attention has to follow from now on.

    Args:
        rule: a key of :data:`~dit_edu.lab.experiments.noise_attention.RULES`.
        name: of a plain DiT.

    Returns:
        The model and the recipe of the one that was trained. What the rule adds is fresh.
    """
    trained, card = zoo.load(name)
    recipe = Recipe.from_dict(card["recipe"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NoiseAwareDiT(**recipe.model, **RULES[rule]).eval()
    missing = model.load_state_dict(trained.state_dict(), strict=False)
    assert not missing.unexpected_keys
    return model, recipe


def _text(model: NoiseAwareDiT, t: torch.Tensor) -> tuple[str, str]:
    """The factor on the logits, and the reach, of a step, in words."""
    factor = "1"
    if model.noise_mask is not None:
        factor = f"{float(model.noise_mask.mlp(model.t_embedder(t)).sigmoid()):.2f} or 0"
    elif model.temperature is not None:
        factor = f"{float(model.factor_at[t]):.3g}"
    return factor, "all" if model.window is None else str(int(model.reach(t)))


@torch.no_grad()
def attention_by_noise(images: int = 16) -> Figure:
    """Where a token of one scene looks, under each rule and at each noise level.

    Args:
        images: how many held-out scenes the entropies are means of.
    """
    x0, y = dataset("small-shapes").load("heldout")
    one = slice(3, 4)
    noise = torch.randn(x0[one].shape, generator=torch.Generator().manual_seed(0))
    places = [row * 8 + column for row, column in QUERIES.values()]
    maps, rows, widths, seen = [], [], [], []
    for rule in SHOWN:
        model, recipe = ruled(rule)
        process, grid = recipe.process.build(), model.x_embedder.grid
        found: list[Any] = []
        for step in STEPS:
            t = torch.tensor([step])
            x_t = process.q_sample(x0[one], t, noise)
            with record_attention(model) as weights:
                model(x_t, t, y[one])
            weight = weights[LAYER][0].mean(0)[places]  # (queries, N), a mean over the heads
            maps.append(100 * weight.unflatten(1, grid))  # (queries, h, w), in percent
            factor, reach = _text(model, t)
            near = (weight * (token_distance(grid)[places] < 2)).sum(1)  # (queries,)
            found.append(
                [
                    [
                        ["factor on the logits", factor],
                        ["reach k", reach],
                        ["its attention within 3 × 3", f"{100 * n:.0f} %"],
                        ["tokens it looks at, exp(entropy)", f"{e:.0f} of 64"],
                    ]
                    for n, e in zip(near, attention_entropy(weight).exp(), strict=True)
                ]
            )
            if rule == "plain":
                seen.append(x_t[0].clamp(-1, 1).numpy())
        rows.append(found)
        widths.append(entropies(model, process, x0[:images], y[:images], STEPS))  # (t, L)
    by_layer = 100 * torch.stack(widths).numpy()  # (rules, t, L)
    shares = torch.stack(maps).unflatten(0, (len(SHOWN), len(STEPS))).numpy()
    return Figure(
        name="attention-by-noise",
        title="Where does a token look when it is told the noise?",
        caption="One trained model, which was never told a rule. Move *rule*: it is laid on the "
        "attention that the model has learnt. The map is that of one token (layer "
        f"{LAYER + 1}, mean of its heads), the curves are means over all tokens, heads and "
        f"{images} scenes: 100 is *to all alike*, 0 *to one only*. Move *t* from image to noise, "
        "and compare the two temperatures from one source. Then look at the masks that narrow with "
        "the noise: the written one, which is multiplied, and those that mask, in reading order "
        "(*raster*) and on the grid (*narrowing*). *Widening* keeps 3 × 3 at least.",
        alt="A noisy scene on a grid of eight by eight tokens beside a map of the attention of one "
        "token. Under the plain model the map is soft; under the temperature as written it is "
        "even at small t; under true masks it is a square around the token that grows or shrinks "
        "with t. A chart shows the entropy of four layers against t.",
        axes=[
            Axis("rule", "rule", range(len(SHOWN)), list(SHOWN.values())),
            Axis("query", "token", range(len(QUERIES)), list(QUERIES), 0, True),
            Axis("t", "t", STEPS, start=STEPS.index(500)),
        ],
        play="t",
        panels=[
            Tokens(
                title="The noisy scene, in tokens",
                alt="A noisy scene under a grid of eight by eight squares.",
                axes=("t",),
                frames=np.stack(seen),
                tokens=np.tile(grid, (len(STEPS), 1)),
            ),
            Heatmap(
                title="Where the token looks",
                alt="A map of eight by eight squares: the attention of the chosen token.",
                axes=("rule", "t", "query"),
                values=shares.round(1),
                rows=("row", [str(i) for i in range(8)]),
                columns=("column", [str(i) for i in range(8)]),
                limits=(0.0, 15.0),
                unit="% of its attention",
            ),
            Table(
                title="The rule at this step",
                alt="Factor, reach, share of the attention nearby, and how many tokens are seen.",
                axes=("rule", "t", "query"),
                columns=("what", "now"),
                rows=np.array(rows, dtype=object),
            ),
            Curves(
                title="Entropy by layer, % of its largest value",
                alt="Four lines over t, one for each layer, under the chosen rule.",
                axes=("rule",),
                x=STEPS,
                x_label="t",
                cursor="t",
                lines=[
                    Line(f"layer {layer + 1}", by_layer[:, :, layer])
                    for layer in range(by_layer.shape[-1])
                ],
                limits=(0.0, 100.0),
                wide=True,
            ),
        ],
    )
