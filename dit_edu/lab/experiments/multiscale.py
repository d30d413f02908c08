"""Tokens of two sizes: the premises, a stage on which small patches pay, and the race on it.

The stage is one plain object near the middle of 16 × 16 pixels (``small-shapes``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.dit import DiT
from dit_edu.hidit.multiscale import MultiscaleDiT
from dit_edu.lab import zoo
from dit_edu.lab.data import Labelled, dataset
from dit_edu.lab.depth import LeftOut, OnMeans, looks_by_block, replaced
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.scaling import counted
from dit_edu.lab.experiments.training import heldout_loss
from dit_edu.lab.features import load_features
from dit_edu.lab.metrics import accuracy, frechet_distance
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.lab.train import train

DATA = "small-shapes"
MODEL: dict[str, Any] = dict(RECIPES["small-shapes-dit"].model)
RECIPE: dict[str, Any] = {"data": DATA, "steps": 300, "batch_size": 64, "lr": 8e-3, "warmup": 50}
SAMPLING = Sampling(steps=10, scale=1.5)
N = 500  # held-out images that a model is measured against
JUDGED = 100  # held-out images that blocks are judged by
LEVELS = (50, 300, 700)  # steps at which the blocks are looked at
LATENT = {"input_size": 8, "in_channels": 4}  # of 32 × 32 pixels


class BackAlone(nn.Module):
    """A join without a skip: what comes back from the coarse tokens is all there is."""

    def forward(self, fine: Tensor, back: Tensor) -> Tensor:
        """(B, N, D) twice → (B, N, D)."""
        return back


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe whose model may forget its fine tokens where it merges them.

    Args:
        forget: take the skip away.
    """

    forget: bool = False

    def build_model(self) -> nn.Module:
        """A fresh model, changed after it has drawn its start values."""
        model = super().build_model()
        if self.forget:
            model.join = BackAlone()
        return model


def recipe_of(setting: Mapping[str, Any]) -> Variant:
    """The recipe of a setting: its own fields on top of what all share."""
    model = {**MODEL, **setting["model"]}
    return Variant(**{"name": "stage", **RECIPE, **setting, "model": model})


@cache
def half(split: str) -> Labelled:
    """The stage's images and labels."""
    return dataset(DATA).load(split)


def fitted(recipe: Recipe, seed: int, data: Labelled) -> nn.Module:
    """The average of a training run."""
    *_, last = train(recipe, seed=seed, device="cpu", data=data)
    return last.ema


# ---------------------------------------------------------------------- the search for the stage


def stage_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on scenes of one kind, or their latents, and measure the held-out loss."""
    recipe = recipe_of({name: setting[name] for name in setting if name != "scenes"})
    info, vae = dataset(recipe.data), zoo.load_vae(recipe)
    model = fitted(recipe, seed, info.load("train", **setting["scenes"]))
    images, labels = (part[:N] for part in info.load("heldout", **setting["scenes"]))
    data = (vae.encode(images) if vae else images, labels)
    return {
        **counted(recipe),
        "loss": plain(heldout_loss(model, recipe.process.build(), data=data).mean(), 6),
    }


# ---------------------------------------------------------------------- the race


def judged(
    model: nn.Module,
    recipe: Recipe,
    seed: int,
    seen: Labelled,
    unseen: Labelled,
    sampling: Sampling = SAMPLING,
) -> dict[str, Any]:
    """Loss and samples of a trained model, against images that it has not seen.

    The Fréchet distance is given over that of as many training images.
    """
    process, features = recipe.process.build(), load_features(f"{DATA}-features")
    real, asked = (part[:N] for part in unseen)
    loss = heldout_loss(model, process, data=(real, asked))
    samples = draw(model, process, asked, sampling, seed=seed)
    limit = frechet_distance(seen[0][:N], real, features)
    return {
        "loss": plain(loss.mean(), 6),
        "loss_by_bin": plain(loss.tolist(), 6),
        "accuracy": plain(accuracy(samples, asked, seen, dataset(DATA).judge)),
        "fd_ratio": plain(frechet_distance(samples, real, features) / limit),
    }


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on the stage, measure on its held-out half: loss, samples, cost."""
    recipe = recipe_of(setting)
    model = fitted(recipe, seed, half("train"))
    found = counted(recipe) | judged(model, recipe, seed, half("train"), half("heldout"))
    if isinstance(weight := getattr(getattr(model, "join", None), "weight", None), Tensor):
        found["skip_weight"] = plain(weight.item())
    return found


# ---------------------------------------------------------------------- the premises


def premise_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the blocks of a trained DiT do and are worth, on held-out images.

    A model of the zoo is one training run, and the seed is that of the noise alone.
    """
    if "zoo" in setting:
        model, card = zoo.load(setting["zoo"])
        recipe = Recipe.from_dict(card["recipe"])
    else:
        recipe = recipe_of(setting)
        model = fitted(recipe, seed, dataset(recipe.data).load("train"))
    images, labels = (part[:JUDGED] for part in dataset(recipe.data).load("heldout"))
    if vae := zoo.load_vae(recipe):
        images = vae.encode(images)
    process = recipe.process.build()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    looks = []
    for level in LEVELS:
        t = torch.full((len(images),), level)
        looks.append(looks_by_block(model, process.q_sample(images, t, noise), t, labels))

    def loss() -> float:
        return float(heldout_loss(model, process, data=(images, labels)).mean())

    found = {"loss": loss(), "left_out": [], "on_means": []}
    for k, block in enumerate(model.blocks):
        for name, part in (
            ("left_out", LeftOut()),
            ("on_means", OnMeans(block, model.x_embedder.grid)),
        ):
            with replaced(model, k, part):
                found[name].append(loss())
    by_level = {name: [look[name] for look in looks] for name in looks[0]}  # (levels, blocks)
    return {name: plain(value, 6) for name, value in (found | by_level).items()}


# ---------------------------------------------------------------------- the cost

#: A model whose sequences are long enough that blocks, not calls, take the time: N = 256.
WIDE = {"input_size": 32, "in_channels": 4, "hidden_size": 128, "depth": 8, "num_heads": 4}
RUNS = 7  # of each forward pass


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A forward pass against a plain DiT's, run in turn; the seed only numbers the repetitions.

    The time is that of the processor: on a shared machine the clock on the wall also counts the
    work of others.
    """
    torch.manual_seed(seed)
    models = {
        "plain": DiT(**WIDE).eval(),
        "coarse": MultiscaleDiT(**WIDE, **setting["model"]).eval(),
    }
    n = setting["batch"]
    inputs = torch.randn(n, 4, 32, 32), torch.arange(n), torch.zeros(n, dtype=torch.long)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(RUNS):
        for name, model in models.items():
            start = time.process_time()
            model(*inputs)
            times[name].append(time.process_time() - start)
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    macs = {name: count(model, *inputs, repeats=0).macs for name, model in models.items()}
    return {
        "macs_ratio": plain(macs["plain"] / macs["coarse"], 6),
        "time_ratio": plain(seconds["plain"] / seconds["coarse"]),
        "seconds": plain(seconds["coarse"] / n),
    }


# ---------------------------------------------------------------------- the experiments


def dit(**model: Any) -> dict[str, Any]:
    """A setting: a plain DiT."""
    return {"model": model}


def two_sizes(fraction: float, forget: bool = False, **model: Any) -> dict[str, Any]:
    """A setting: the same with a fraction of its blocks on coarse tokens."""
    setting = dit(coarse_fraction=fraction, **model)
    return {**setting, "kind": "MultiscaleDiT", "forget": forget}


EXPERIMENTS = (
    Experiment(
        name="hidit-premises",
        about="What the blocks of trained DiTs look at, and what they are worth to the loss",
        settings={
            "digits-dit": {"zoo": "digits-dit"},
            "digits, 6 blocks": {
                **dit(input_size=8, in_channels=1, hidden_size=32, depth=6, num_classes=10),
                "data": "digits",
                "steps": 600,
                "lr": 0.016,
            },
            "shapes-dit": {"zoo": "shapes-dit"},
            "the stage": dit(),
        },
        seeds=range(3),
        compute=premise_cell,
    ),
    Experiment(
        name="hidit-stage",
        about="Where small patches pay: p = 2 against p = 4 at equally many updates, plain DiTs",
        settings={
            f"{name}, p = {p}": {**dit(patch_size=p, **model), "scenes": scenes, **latents}
            for name, scenes, model, latents in (
                ("centred", {"level": "centred"}, {}, {}),
                ("jittered", {"level": "jittered"}, {}, {}),
                ("free", {"level": "free"}, {}, {}),
                ("three objects", {"objects": 3}, {}, {}),
                ("fine stripes", {"texture": 1.0}, {}, {}),
                ("latents", {}, LATENT, {"data": "shapes", "latents": "shapes-vae"}),
            )
            for p in (2, 4)
        },
        seeds=(0,),
        compute=stage_cell,
    ),
    Experiment(
        name="multiscale",
        about="Tokens of two sizes against plain DiTs: loss, samples and cost on the stage",
        settings={
            "p = 2": dit(),
            "p = 4": dit(patch_size=4),
            "1/4 coarse": two_sizes(0.25, skip="concat"),
            "1/2 coarse": two_sizes(0.5, skip="concat"),
            "3/4 coarse": two_sizes(0.75, skip="concat"),
            "1/2 coarse, at the end": two_sizes(0.5, skip="concat", fine_first=2),
            "1/2 coarse, no skip": two_sizes(0.5, forget=True),
            "p = 2, 2 blocks": dit(depth=2),
            "p = 4, four times as long": {**dit(patch_size=4), "steps": 1200},
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="multiscale-lerp",
        about="The race with a lerp in place of the concatenation, and coarse blocks at the end",
        settings={
            "1/4 coarse": two_sizes(0.25),
            "1/2 coarse": two_sizes(0.5),
            "3/4 coarse": two_sizes(0.75),
            "1/2 coarse, at the end": two_sizes(0.5, fine_first=2),
        },
        seeds=(0,),
        compute=race_cell,
    ),
    Experiment(
        name="multiscale-cost",
        about="Time of a forward pass with coarse blocks against a plain DiT's, N = 256, D = 128",
        settings={
            f"{name} coarse, batch {batch}": {
                "model": {"coarse_fraction": fraction},
                "batch": batch,
            }
            for batch in (16, 4, 1)
            for name, fraction in (("1/4", 0.25), ("1/2", 0.5), ("3/4", 0.75))
        },
        seeds=range(5),
        compute=cost_cell,
    ),
)
