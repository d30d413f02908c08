"""Captions told in five ways: what samples get right, attribute by attribute.

The stage is one or two plain objects anywhere on 32 × 32 pixels, as latents of 8 × 8. Three of the
twelve kinds of objects never occur in training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.attention import record_attention
from dit_edu.lab import zoo
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain, sprite_sheet
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import heldout_loss
from dit_edu.lab.profile import count
from dit_edu.lab.prompts import asked_for, prompt_accuracy
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import Scenes, shapes
from dit_edu.lab.train import train
from dit_edu.mixed import WAYS
from dit_edu.text import Vocabulary

STAGE: dict[str, Any] = {"size": 32, "level": "jittered", "objects": (1, 2)}
UNSEEN = ("green circle", "blue square", "red triangle")
WORDS, LONGEST = 11, 16  # words of the vocabulary, and of a caption that is said twice
MODEL: dict[str, Any] = {
    **{"input_size": 8, "patch_size": 2, "in_channels": 4, "learn_sigma": False, "embed_std": 1.0},
    **{"hidden_size": 48, "depth": 4, "num_heads": 4, "words": WORDS},
}
RECIPE: dict[str, Any] = {
    **{"data": "shapes", "kind": "TextDiT", "latents": "shapes-vae"},
    **{"steps": 400, "batch_size": 64, "lr": 1e-2, "warmup": 50},
}
SAMPLING = Sampling(steps=10, scale=3.0)
N = 100  # prompts of each set
#: The captions of the figure. The first two hold the same words.
SHOWN = (
    "a red circle left of a blue triangle",
    "a blue circle left of a red triangle",
    "a red circle right of a blue triangle",
    "a blue square left of a yellow circle",
)
ASKED = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # its guidance scales
FILMED = 0  # the seed whose runs the figure shows
LOOKED = 400  # the step t at which attention is looked at


# ---------------------------------------------------------------------- the stage


def is_seen(caption: str) -> bool:
    """Whether a caption names no object that training leaves out."""
    return not any(" ".join(pair) in UNSEEN for pair in asked_for(caption)[0])


@cache
def scenes(split: str) -> Scenes:
    """The scenes that are trained on (``"train"``), or others (``"heldout"``)."""
    n, seed = {"train": (8000, 0), "heldout": (1000, 1)}[split]
    return shapes(n, seed=seed, **STAGE)


def rows(split: str, seen: bool = True) -> Tensor:
    """Which scenes of a split name only objects that are seen in training, or one that is not."""
    return torch.tensor([k for k, c in enumerate(scenes(split).captions) if is_seen(c) == seen])


@cache
def vocabulary() -> Vocabulary:
    """All words of the training captions."""
    return Vocabulary.of(scenes("train").captions)


def told(captions: Sequence[str]) -> Tensor:
    """Captions as a model's y: (n, M)."""
    return vocabulary().encode(captions, LONGEST)


def twice(caption: str) -> str:
    """The same said from both sides: "A left of B" becomes "A left of B B right of A"."""
    one, way, other = re.split(r" (left|right) of ", caption)
    return f"{caption} {other} {'right' if way == 'left' else 'left'} of {one}"


def latents(split: str, of: Tensor) -> Tensor:
    """These scenes of a split as the autoencoder has them: (n, 4, 8, 8)."""
    return zoo.load_vae(recipe_of({})).encode(scenes(split).images[of])


def captions(split: str, of: Tensor) -> list[str]:
    """The captions of these scenes of a split."""
    return [scenes(split).captions[k] for k in of.tolist()]


@cache
def known() -> tuple[Tensor, Tensor]:
    """What is trained on: latents (n, 4, 8, 8) and captions (n, M)."""
    of = rows("train")
    return latents("train", of), told(captions("train", of))


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting, its model on top of what all share."""
    return Recipe(name="text", model={**MODEL, **setting}, **RECIPE)


def drawn(model: nn.Module, prompts: Sequence[str], seed: int, sampling: Sampling) -> Tensor:
    """An image for each prompt: (n, 3, 32, 32)."""
    recipe = recipe_of({})
    process, vae = recipe.process.build(), zoo.load_vae(recipe)
    return draw(model, process, told(prompts), sampling, vae=vae, seed=seed)


# ---------------------------------------------------------------------- what is measured


def scrambled(prompts: Sequence[str], how: str) -> Tensor:
    """What a model is told instead of each caption: (n, M).

    Args:
        prompts: captions.
        how: ``"right"``, the caption; ``"shuffled"``, its words in another order; ``"another's"``;
            ``"nothing"``.
    """
    if how == "nothing":
        return torch.zeros_like(told(prompts))
    if how == "another's":
        return told(prompts).roll(1, 0)
    texts = list(prompts)
    if how == "shuffled":
        g = torch.Generator().manual_seed(0)
        orders = ((text.split(), torch.randperm(len(text.split()), generator=g)) for text in texts)
        texts = [" ".join(words[k] for k in order) for words, order in orders]
    return told(texts)


TELLINGS = ("right", "shuffled", "another's", "nothing")


@torch.no_grad()
def attention_to_words(model: nn.Module, latent: Tensor, prompt: str) -> Tensor:
    """How image tokens share out their attention over the words: (4, 4, words), the start left out.

    The mean over blocks and heads, at step ``LOOKED`` of one latent (4, 8, 8).
    """
    process = recipe_of({}).process.build()
    t, noise = torch.tensor([LOOKED]), torch.randn(8, *latent.shape, generator=_generator())
    x_t = process.q_sample(latent.expand_as(noise), t.expand(8), noise)
    with record_attention(model.blocks) as weights:
        model(x_t, t.expand(8), told([prompt]).expand(8, -1))
    mean = torch.stack(weights).mean((0, 1, 2))  # (N + 1 + M, N + 1 + M)
    n = len(prompt.split())
    return mean[:16, 17 : 17 + n].unflatten(0, (4, 4))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on captions; what samples get right of prompts, and what the words are worth."""
    *_, last = train(recipe_of(setting), seed=seed, device="cpu", data=known())
    one = torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.long), told(SHOWN[:1])[:, :8]
    found = measured(last.ema, seed) | {
        "params": sum(p.numel() for p in last.ema.parameters()),
        "macs": count(last.ema, *one, repeats=0).macs,
    }
    return found | filmed(last.ema, setting["way"]) if seed == FILMED else found


def filmed(model: nn.Module, way: str) -> dict[str, Any]:
    """What the figure shows: samples of its captions by guidance scale, and where they look.

    Captions are drawn one at a time, so that all get the same noise.
    """
    images = torch.cat(
        [
            drawn(model, [prompt], FILMED, Sampling(steps=SAMPLING.steps, scale=scale))
            for scale in ASKED
            for prompt in SHOWN
        ]
    )  # (scales * captions, 3, 32, 32)
    found: dict[str, Any] = {"shown": sprite_sheet(images.numpy(), levels=32)["sprite"]}
    if way == "joint":
        latents = zoo.load_vae(recipe_of({})).encode(images).unflatten(0, (-1, len(SHOWN)))
        found["maps"] = [
            [
                plain(attention_to_words(model, z, c).tolist())
                for z, c in zip(row, SHOWN, strict=True)
            ]
            for row in latents
        ]
    return found


def measured(model: nn.Module, seed: int) -> dict[str, Any]:
    """Prompt accuracy on three sets of prompts, and the held-out loss under four tellings."""
    known, unknown = (captions("heldout", rows("heldout", seen)) for seen in (True, False))
    two = [c for c in known if len(c.split()) == 8]
    sets = {"": (known, known), "unseen ": (unknown, unknown), "twice ": (two, map(twice, two))}
    found: dict[str, Any] = {}
    for name, (asked, said) in sets.items():
        images = drawn(model, list(said)[:N], seed, SAMPLING)
        right = prompt_accuracy(images, asked[:N])
        found |= {f"{name}{what}": plain(share, 4) for what, share in right.items()}
    x0, process = latents("heldout", rows("heldout")[:N]), recipe_of({}).process.build()
    for how in TELLINGS:
        loss = heldout_loss(model, process, data=(x0, scrambled(known[:N], how))).mean()
        found[f"loss {how}"] = plain(loss, 6)
    return found


def limit_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the judge says of real images, and of the same through the autoencoder."""
    found: dict[str, Any] = {}
    for name, seen in (("", True), ("unseen ", False)):
        of = rows("heldout", seen)[:N]
        images = scenes("heldout").images[of]
        if setting["decoded"]:
            images = zoo.load_vae(recipe_of({})).decode(latents("heldout", of))
        right = prompt_accuracy(images, captions("heldout", of))
        found |= {f"{name}{what}": plain(share, 4) for what, share in right.items()}
    return found


# ---------------------------------------------------------------------- the experiments

EXPERIMENTS = (
    Experiment(
        name="text-judge",
        about="What the judge of prompts says of real images: the limit of what it can see",
        settings={"real": {"decoded": False}, "through the autoencoder": {"decoded": True}},
        seeds=(0,),
        compute=limit_cell,
    ),
    Experiment(
        name="text",
        about="Five ways to tell a caption: prompt accuracy by attribute, and held-out loss",
        settings={way: {"way": way} for way in WAYS},
        seeds=range(3),
        compute=race_cell,
    ),
)
