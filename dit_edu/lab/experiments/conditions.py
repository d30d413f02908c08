"""Depth by caption and by content: what can be seen, what it could be worth, and what it is worth.

The stage is 16 × 16 pixels of one to three objects, plain or striped, in patches of four.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from dit_edu.dddit.complexity import (
    LearnedMeasure,
    SpectralMeasure,
    centroid,
    power,
)
from dit_edu.dddit.depth import DepthDiT
from dit_edu.dddit.exits import answers
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.lab.data import Labelled, batch_indices
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.multiscale import MODEL as OF_STAGE
from dit_edu.lab.experiments.multiscale import RECIPE as ON_STAGE
from dit_edu.lab.experiments.multiscale import fitted
from dit_edu.lab.experiments.training import heldout_batch
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import Scenes, shapes
from dit_edu.lab.train import train
from dit_edu.routing import record_routing
from dit_edu.text import PAD, Vocabulary

MODEL: dict[str, Any] = {**OF_STAGE, "patch_size": 4, "depth": 6}
RECIPE: dict[str, Any] = {**ON_STAGE, "steps": 400}
DEPTH, MEAN = 6, 3  # blocks, and how many run on average
GROUPS, BINS = 3, 10  # of complexity, equally large; of t
TRAINED, JUDGED = 4000, 500  # scenes
ASKED = (20, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900)  # steps at which is looked


@cache
def scenes(split: str) -> Scenes:
    """The scenes that are trained on (``"train"``), or others (``"heldout"``)."""
    n, seed = {"train": (TRAINED, 0), "heldout": (JUDGED, 1)}[split]
    return shapes(n, size=16, level="jittered", objects=(1, 3), texture=(0.0, 1.0), seed=seed)


def group(complexity: Tensor) -> Tensor:
    """Which third of the training scenes a complexity belongs to, 0 to 2."""
    edges = scenes("train").complexity.quantile(torch.arange(1, GROUPS) / GROUPS)  # (2,)
    return torch.bucketize(complexity, edges)


@cache
def vocabulary() -> Vocabulary:
    """All words of the training captions."""
    return Vocabulary.of(scenes("train").captions)


LONGEST = 13  # words of the longest caption


def data(split: str, told: str | None) -> Labelled:
    """Images, and what a model is told of them: its y.

    Args:
        split: see :func:`scenes`.
        told: ``"words"``, or ``"blanks"`` in their place; ``"more"``, ``"less"``, ``"random"`` and
            ``"same"``, a number of blocks that rises or falls with complexity, does not know it, or
            is one for all; ``"nothing"``; None for the bare label.
    """
    found = scenes(split)
    label = found.label[:, None]  # (n, 1)
    if told is None:
        return found.images, found.label
    if told == "nothing":
        return found.images, label
    if told in ("words", "blanks"):
        words = vocabulary().encode(found.captions, LONGEST)  # (n, M)
        words = words if told == "words" else torch.full_like(words, PAD)
        return found.images, torch.cat([label, words], dim=1)
    by = {"more": 1, "less": -1, "random": 1, "same": 0}[told]
    blocks = MEAN + by * (group(found.complexity) - 1)  # (n,)
    if told == "random":
        blocks = blocks[torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))]
    return found.images, torch.cat([label, blocks[:, None]], dim=1)


# ---------------------------------------------------------------------- what is measured


def table(values: Tensor, complexity: Tensor, t: Tensor) -> list[list[float]]:
    """Means by third of complexity and range of t: (n,) each → (3, 10)."""
    g, b = group(complexity), t * BINS // 1000  # (n,) each
    means = [[values[(g == i) & (b == k)].mean() for k in range(BINS)] for i in range(GROUPS)]
    return plain(torch.tensor(means).tolist(), 6)


PROCESS = Recipe(name="budgets").process.build()


def asked(split: str, told: str | None = None) -> tuple[Tensor, ...]:
    """``JUDGED`` scenes at eight steps each: x0, t, y, noise and complexity, (n, …) each."""
    batch = heldout_batch(PROCESS, tuple(part[:JUDGED] for part in data(split, told)))
    complexity = scenes(split).complexity[:JUDGED]
    return *batch, complexity.repeat(len(batch[1]) // JUDGED)


def shown() -> Tensor:
    """The held-out scenes of the figure: one of the simplest, one in the middle, a complex one."""
    order = scenes("heldout").complexity.argsort()
    return order[[JUDGED // 50, JUDGED // 2, -JUDGED // 50]]


def noisy(rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """These held-out scenes at one step, and that step: x_t (n, C, H, W) and t (n,)."""
    x0, t = scenes("heldout").images[rows], torch.full((len(rows),), step)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(step))
    return PROCESS.q_sample(x0, t, noise), t


@torch.no_grad()
def judged(model: nn.Module, told: str | None) -> dict[str, Any]:
    """Loss, MACs and, where images differ in depth, who gets how much."""
    x0, t, y, noise, complexity = asked("heldout", told)
    with record_routing(model) as trace:
        loss = PROCESS.losses(model, x0, t, y, noise=noise)["loss"]  # (n,)
    few = slice(512)
    macs = count(model, PROCESS.q_sample(x0, t, noise)[few], t[few], y[few], repeats=0).macs
    found = {
        "macs": plain(macs / 512, 8),
        "loss": plain(loss.mean(), 6),
        "loss_table": table(loss, complexity, t),
    }
    if trace.decisions:
        depth = trace.decisions[0].chosen.double().sum(1)  # (n,)
        soft = trace.decisions[0].soft.double().sum(1)  # (n,), a budget that is not rounded
        found |= {
            "depth": plain(depth.mean(), 4),
            "depth_table": table(depth, complexity, t),
            "soft_table": table(soft, complexity, t),
            "spread_table": plain(_spread(soft, t)),
            "follows": plain(_correlations(soft, complexity, t)),
        }
        y = data("heldout", told)[1][shown()]
        with record_routing(model) as trace:
            for step in ASKED:
                model(*noisy(shown(), step), y)
        found["shown"] = [d.chosen.sum(1).tolist() for d in trace.decisions]  # (steps, scenes)
    return found


def _spread(depth: Tensor, t: Tensor) -> list[float]:
    """Standard deviation between images, by range of t."""
    return [float(depth[t * BINS // 1000 == b].std()) for b in range(BINS)]


def _correlations(depth: Tensor, complexity: Tensor, t: Tensor) -> list[float]:
    """Rank correlation of depth and complexity by range of t; 0 where all are equally deep."""
    found = []
    for b in range(BINS):
        here = t * BINS // 1000 == b
        level = depth[here].std() < 1e-6
        found.append(0.0 if level else float(spearmanr(depth[here], complexity[here])[0]))
    return found


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on the stage, and measure on its held-out scenes."""
    recipe = Recipe(
        name="budgets", kind=setting["kind"], model={**MODEL, **setting["model"]}, **RECIPE
    )
    loss_fn = BudgetedLosses(MEAN / DEPTH, entropy=0.0, ramp=0) if setting.get("steered") else None
    part = data("train", setting.get("told"))
    *_, last = train(recipe, seed=seed, device="cpu", data=part, loss_fn=loss_fn)
    return judged(last.ema, setting.get("told"))


# ---------------------------------------------------------------------- what a choice could give


def hindsight(loss: Tensor, mean: float) -> Tensor:
    """How deep each image would best go, if its loss at every depth were known: (L, n) → (n,).

    The price of a block is such that ``mean`` blocks run on average.
    """
    low, high = 0.0, float(loss.max())
    blocks = torch.arange(1, len(loss) + 1)[:, None]  # (L, 1)
    for _ in range(60):
        price = (low + high) / 2
        best = (loss + price * blocks).argmin(0) + 1  # (n,)
        if best.double().mean() > mean:
            low = price
        else:
            high = price
    return best


@torch.no_grad()
def at_every_depth(model: DepthDiT, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """The loss after each block, (L, n), with complexity and step, (n,)."""
    x0, t, y, noise, complexity = asked(split)
    said = answers(model, PROCESS.q_sample(x0, t, noise), t, y)
    loss = [PROCESS.losses(lambda *_, out=out: out, x0, t, y, noise=noise)["loss"] for out in said]
    return torch.stack(loss), complexity, t


def ceiling_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One model at every depth: loss by complexity and t, on training and on held-out scenes."""
    recipe = Recipe(
        name="budgets", kind=setting["kind"], model={**MODEL, **setting["model"]}, **RECIPE
    )
    model: DepthDiT = fitted(recipe, seed, data("train", None))
    found: dict[str, Any] = {}
    for split in ("train", "heldout"):
        loss, complexity, t = at_every_depth(model, split)  # (L, n), (n,), (n,)
        found[f"{split}_table"] = [table(at, complexity, t) for at in loss]  # (L, 3, 10)
    best = hindsight(loss, MEAN)  # (n,), of the held-out scenes
    return found | {
        "loss": plain(loss.mean(1).tolist(), 6),
        "hindsight": plain(loss.gather(0, best[None] - 1).mean(), 6),
        "hindsight_depth": table(best.double(), complexity, t),
        "hindsight_follows": plain(_correlations(best.double(), complexity, t)),
    }


# ---------------------------------------------------------------------- what can be seen


def measure_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """How well complexity is told from x_t, by several measures: rank correlations at ``ASKED``."""
    dense = fitted(Recipe(name="budgets", model=MODEL, **RECIPE), seed, data("train", None))
    learned, clean = (estimator(seed, through_noise) for through_noise in (True, False))
    found = scenes("heldout")
    x0, true, every = found.images, found.complexity, torch.arange(JUDGED)
    said: dict[str, list[float]] = {}
    seen = []

    def note(name: str, values: Tensor) -> None:
        said.setdefault(name, []).append(float(spearmanr(values, true)[0]))

    spectral = SpectralMeasure(PROCESS.alphas_cumprod)
    with torch.no_grad():
        for step in ASKED:
            x_t, t = noisy(every, step)
            guess = PROCESS.to_x0(dense(x_t, t, found.label), x_t, t)
            note("noise left in", centroid(power(x_t)))
            note("noise taken off", spectral(x_t, t))
            note("of the guess", centroid(power(guess)))
            note("learnt", learned(x_t, t))
            seen.append(learned(*noisy(shown(), step)).tolist())
        note("spectrum of x_0", centroid(power(x0)))
        note("learnt from x_0", clean(x0, torch.zeros_like(every)))
    note("number of objects", found.count.double())
    return {name: plain(values, 4) for name, values in said.items()} | {"shown": plain(seen, 4)}


def estimator(seed: int, through_noise: bool, updates: int = 600) -> LearnedMeasure:
    """A :class:`LearnedMeasure` that was taught the complexity of noisy, or of clean, scenes."""
    found = scenes("train")
    want = (found.complexity - found.complexity.mean()) / found.complexity.std()  # (n,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LearnedMeasure(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for step in range(updates):
            rows = batch_indices(len(want), 128, seed, step)
            x0 = found.images[rows]
            t = torch.randint(0, 1000 if through_noise else 1, (len(rows),))
            x = PROCESS.q_sample(x0, t, torch.randn_like(x0)) if through_noise else x0
            loss = (model(x, t) - want[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


# ---------------------------------------------------------------------- the experiments


def budgeted(policy: str, told: str, **model: Any) -> dict[str, Any]:
    """A setting: a policy that learns is steered to the mean depth."""
    steered = {"steered": True} if policy != "given" else {}
    return {"kind": "BudgetedDiT", "model": {"policy": policy, **model}, "told": told, **steered}


EXPERIMENTS = (
    Experiment(
        name="conditions",
        about="Depth for each scene, three of six blocks on average, against the same for all",
        settings={
            **{f"{k} for all": {"kind": "DiT", "model": {"depth": k}} for k in (3, 2, 4)},
            "more for complex": budgeted("given", "more"),
            "less for complex": budgeted("given", "less"),
            "random": budgeted("given", "random"),
            "same for all": budgeted("given", "same"),
            "no text": budgeted("text", "blanks", words=14),
            "text": budgeted("text", "words", words=14),
            "spectrum": budgeted("spectrum", "nothing"),
            "estimate": budgeted("estimate", "nothing"),
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="conditions-ceiling",
        about="What any choice of depth by scene and step could gain: one model at every depth",
        settings={"every depth": {"kind": "DepthDiT", "model": {"drawn": "image"}}},
        seeds=range(3),
        compute=ceiling_cell,
    ),
    Experiment(
        name="conditions-measures",
        about="Rank correlation of measures of x_t with the complexity of the scene",
        settings={"measures": {}},
        seeds=range(3),
        compute=measure_cell,
    ),
)
