"""Recipes: everything that decides how a model comes out, as one frozen record.

A recipe and a seed determine a training run. Recipes are compared field by field, so a checkpoint
knows whether it belongs to the one at hand; they travel as plain dictionaries in checkpoints and
cards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.bands import ByNoise
from dit_edu.dddit.auxiliary import AuxiliaryDiT
from dit_edu.dddit.baselines import CachedDiT, DiceDiT
from dit_edu.dddit.conditions import BudgetedDiT
from dit_edu.dddit.depth import DepthDiT
from dit_edu.dddit.exits import ExitDiT
from dit_edu.dddit.experts import ExpertDiT
from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.switched import SwitchedDiT
from dit_edu.dddit.timestep import TimestepDiT
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.flow import FlowMatching
from dit_edu.hidit.dynamic import DynamicDiT
from dit_edu.hidit.model import HiDiT
from dit_edu.hidit.multiscale import MultiscaleDiT
from dit_edu.lab.data import DATASETS, OWN
from dit_edu.lab.lora import LoRADiT
from dit_edu.landscape import TokenDensityDiT
from dit_edu.mixed import TextDiT
from dit_edu.noise_attention import NoiseAwareDiT
from dit_edu.unet import UNet
from dit_edu.video import VideoDiT
from dit_edu.video_unet import VideoUNet


def by_noise(
    bands: Sequence[Mapping[str, Any]], edges: Sequence[float], **settings: Any
) -> ByNoise:
    """A model for each band of t, fresh: at each step one of them runs.

    Args:
        bands: what each model has for itself, low noise first: a ``kind`` if it is no DiT, and
            keyword arguments of its class.
        edges: where bands meet, see :class:`~dit_edu.bands.ByNoise`.
        **settings: what the models share.

    Raises:
        TypeError, ValueError: an argument does not fit a model.
    """
    models = []
    for band in bands:
        own = {**settings, **band}
        kind = check_choice("kind", own.pop("kind", "DiT"), MODELS)
        models.append(MODELS[kind](**own))
    return ByNoise(models, edges)


#: The models that a recipe can name.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "DiT": DiT,
    "LoRADiT": LoRADiT,
    "NoiseAwareDiT": NoiseAwareDiT,
    "UNet": UNet,
    "MultiscaleDiT": MultiscaleDiT,
    "DynamicDiT": DynamicDiT,
    "HiDiT": HiDiT,
    "SwitchedDiT": SwitchedDiT,
    "ExpertDiT": ExpertDiT,
    "DepthDiT": DepthDiT,
    "ExitDiT": ExitDiT,
    "BudgetedDiT": BudgetedDiT,
    "ByNoise": by_noise,
    "TimestepDiT": TimestepDiT,
    "DDDiT": DDDiT,
    "DiceDiT": DiceDiT,
    "CachedDiT": CachedDiT,
    "AuxiliaryDiT": AuxiliaryDiT,
    "VideoDiT": VideoDiT,
    "VideoUNet": VideoUNet,
    "TextDiT": TextDiT,
    "TokenDensityDiT": TokenDensityDiT,
}
SCHEDULES = {"linear": GaussianDiffusion.linear, "cosine": GaussianDiffusion.cosine}
#: The schedules that are flows, by how they draw their times.
FLOWS = {"flow": "uniform", "flow-logit-normal": "logit-normal"}


@dataclass(frozen=True)
class Process:
    """The process of a recipe: noise schedule, what the network predicts, T, and the loss.

    Args:
        schedule: ``"linear"`` or ``"cosine"``; or a flow: ``"flow"``, ``"flow-logit-normal"``. A
            flow predicts v, has 1000 steps, and takes none of the options below.
        prediction, num_timesteps, variance, loss, min_snr, levels: see
            :class:`~dit_edu.diffusion.GaussianDiffusion`.

    Raises:
        TypeError, ValueError: a field is not allowed.
    """

    schedule: str = "cosine"
    prediction: str = "v"
    num_timesteps: int = 1000
    variance: str = "fixed-small"
    loss: str | None = None
    min_snr: float | None = None
    levels: int = 256

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, [*SCHEDULES, *FLOWS])
        self.build()  # it checks the rest

    @property
    def is_flow(self) -> bool:
        """Whether images are drawn by a flow's samplers."""
        return self.schedule in FLOWS

    def build(self) -> GaussianDiffusion | FlowMatching:
        """The process itself."""
        options = asdict(self)
        schedule = options.pop("schedule")
        if not self.is_flow:
            return SCHEDULES[schedule](**options)
        for name, value in options.items():
            if value != (usual := getattr(Process, name)):
                raise ValueError(
                    f"{name}={value!r} with schedule={schedule!r}; allowed: {usual!r}."
                )
        return FlowMatching(FLOWS[schedule])


@dataclass(frozen=True)
class Recipe:
    """How to train one model.

    Args:
        name: what the model is called in the zoo.
        about: one line for the reader.
        data: a data set by name, whose training half is used; or what
            :func:`~dit_edu.lab.own.own_data` calls a folder of one's own.
        latents: an autoencoder of the zoo, or the folder of one of diffusers, on whose latents the
            model works; None for the images.
        kind: the class of the model, a key of ``MODELS``.
        model: keyword arguments of that class.
        process: the diffusion process.
        steps: updates of the weights.
        batch_size: images of one update, over all processes together.
        lr: the highest learning rate.
        warmup: steps in which the learning rate rises linearly to ``lr``.
        lr_floor: where the cosine ends, as a fraction of ``lr``.
        weight_decay, betas: of AdamW.
        grad_clip: the largest norm of a gradient; a larger one is scaled down to it.
        ema_decay: how much of the averaged weights a step keeps, once the average is warm.
        start: a model of the zoo whose weights training starts from; None for fresh ones.
        budget: of a DDDiT, the share of a full pass's MACs that dynamic mode is steered to. All
            three modes are then trained in turns, see :class:`~dit_edu.dddit.training.ModeLosses`.
        noise_bins: into how many ranges of t the loss is split for reporting.
        checkpoint_every: steps between two checkpoints.

    Raises:
        TypeError, ValueError: a field is not allowed; the message names it.
    """

    name: str
    about: str = field(default="", compare=False)
    data: str = "digits"
    kind: str = "DiT"
    model: Mapping[str, Any] = field(default_factory=dict)
    process: Process = field(default_factory=Process)
    steps: int = 1000
    batch_size: int = 128
    lr: float = 1e-3
    warmup: int = 50
    lr_floor: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    ema_decay: float = 0.99
    latents: str | None = None
    start: str | None = None
    budget: float | None = None
    noise_bins: int = 10
    checkpoint_every: int = field(default=500, compare=False)

    def __post_init__(self) -> None:
        if not self.data.startswith(OWN):
            check_choice("data", self.data, DATASETS)
        check_choice("kind", self.kind, MODELS)
        for name in ("steps", "batch_size", "noise_bins", "checkpoint_every"):
            check_positive_int(name, getattr(self, name))
        if not isinstance(self.warmup, int) or not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup={self.warmup!r}; allowed: an int from 0 to {self.steps}.")
        for name in ("lr", "grad_clip"):
            _check_range(name, getattr(self, name), low=0, open_low=True)
        for name in ("lr_floor", "ema_decay"):
            _check_range(name, getattr(self, name), low=0, high=1)
        _check_range("weight_decay", self.weight_decay, low=0)
        if self.budget is not None:
            _check_range("budget", self.budget, low=0, high=1)
            if self.kind != "DDDiT":
                raise ValueError(f"budget={self.budget} with kind={self.kind!r}; allowed: 'DDDiT'.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas!r}; allowed: two numbers in [0, 1).")

    def lr_at(self, step: int) -> float:
        """The learning rate of update ``step`` (0 is the first): warm-up, then a half cosine.

        η_k = η (k+1)/W for k < W, then η (f + (1-f) (1 + cos(π (k-W)/(K-W))) / 2), where W is
        ``warmup``, K is ``steps`` and f is ``lr_floor``.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.lr * (self.lr_floor + (1 - self.lr_floor) * cosine)

    def ema_decay_at(self, step: int) -> float:
        """The decay d of the average at update ``step``: min(d, (1+k)/(10+k)).

        The warm-up keeps the first, untrained weights from lingering in the average.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))

    def build_model(self) -> nn.Module:
        """A fresh model, initialised from torch's global random state."""
        return MODELS[self.kind](**self.model)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types (no tuples); :meth:`from_dict` reads them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """Rebuild a recipe from :meth:`as_dict`.

        Raises:
            ValueError: a field is missing or unknown: the dictionary is no recipe of this package.
        """
        try:
            process = Process(**content["process"])
            betas = tuple(content["betas"])
            return cls(**{**content, "process": process, "betas": betas})
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is not a recipe of this version: {error}") from error

    def difference(self, other: Recipe) -> str | None:
        """The first field in which two recipes would train differently, or None."""
        mine, theirs = self.as_dict(), other.as_dict()
        for name in (f.name for f in fields(self) if f.compare):
            if mine[name] != theirs[name]:
                return f"{name}: {mine[name]} against {theirs[name]}"
        return None


def _check_range(
    name: str, value: float, low: float, high: float = math.inf, open_low: bool = False
) -> None:
    inside = low < value if open_low else low <= value
    if not (inside and value <= high and math.isfinite(value)):
        limits = f"above {low}" if open_low else f"at least {low}"
        limits += "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name}={value!r}; allowed: a finite number {limits}.")


#: The recipes of the models that are shipped, by name.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits-dit",
            about="DiT with 0.2 M parameters on scikit-learn's 8x8 digits, v-prediction, cosine",
            model=dict(
                input_size=8,
                patch_size=2,
                in_channels=1,
                hidden_size=48,
                depth=4,
                num_heads=4,
                num_classes=10,
                class_dropout_prob=0.1,
                learn_sigma=False,
                embed_std=1.0,
                dropout=0.1,
            ),
            steps=3200,
            batch_size=128,
            lr=8e-3,
            warmup=100,
        ),
    )
}
#: The same model and the same training, but for the process.
RECIPES["digits-flow"] = replace(
    RECIPES["digits-dit"],
    name="digits-flow",
    about="digits-dit as a flow: straight lines from noise to images",
    process=Process("flow"),
)
RECIPES["shapes-dit"] = Recipe(
    name="shapes-dit",
    about="DiT with 0.3 M parameters on the 8x8x4 latents of shapes-vae, v-prediction, cosine",
    data="shapes",
    latents="shapes-vae",
    model=dict(
        input_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=64,
        depth=4,
        num_heads=4,
        num_classes=12,
        class_dropout_prob=0.1,
        learn_sigma=False,
        embed_std=1.0,
    ),
    steps=2000,
    batch_size=128,
    lr=8e-3,
    warmup=50,
)
#: For pictures of one's own: no autoencoder between the model and the pixels.
RECIPES["pixels-dit"] = Recipe(
    name="pixels-dit",
    about="DiT with 0.15 M parameters on RGB pixels, 16x16, v-prediction, cosine",
    data="small-shapes",
    model=dict(
        input_size=16,
        patch_size=2,
        in_channels=3,
        hidden_size=48,
        depth=3,
        num_heads=4,
        num_classes=12,
        class_dropout_prob=0.1,
        learn_sigma=False,
        embed_std=1.0,
    ),
    steps=800,
    batch_size=32,
    lr=4e-3,
    warmup=50,
)
#: A small HiDiT and the plain model that it is measured against, trained alike.
RECIPES["small-shapes-dit"] = Recipe(
    name="small-shapes-dit",
    about="DiT with 0.3 M parameters on RGB pixels, 16x16, the opponent of shapes-hidit",
    data="small-shapes",
    model={**RECIPES["pixels-dit"].model, "hidden_size": 64, "depth": 4},
    steps=1200,
    batch_size=64,
    lr=8e-3,
    warmup=50,
)
RECIPES["shapes-hidit"] = replace(
    RECIPES["small-shapes-dit"],
    name="shapes-hidit",
    about="HiDiT of the same width and depth: 3 of 4 blocks coarse, attention in two halves",
    kind="HiDiT",
    model={
        **RECIPES["small-shapes-dit"].model,
        "coarse_fraction": 0.75,
        "skip": "concat",
        "half": True,
    },
)
#: The two DiTs as models in three modes, fine-tuned.
RECIPES["digits-dddit"] = replace(
    RECIPES["digits-dit"],
    name="digits-dddit",
    about="digits-dit in three modes: heads and groups of channels switched by the step",
    kind="DDDiT",
    model={**RECIPES["digits-dit"].model, "pace": 3.0},
    start="digits-dit",
    budget=0.6,
    steps=400,
    lr=2e-3,
    warmup=50,
)
RECIPES["shapes-dddit"] = replace(
    RECIPES["shapes-dit"],
    name="shapes-dddit",
    about="shapes-dit in three modes: heads and groups of channels switched by the step",
    kind="DDDiT",
    model={**RECIPES["shapes-dit"].model, "pace": 3.0},
    start="shapes-dit",
    budget=0.6,
    steps=300,
    lr=2e-3,
)
#: Films: the factorized model of the chapter on video, deeper and trained for longer.
RECIPES["moving-digits-dit"] = Recipe(
    name="moving-digits-dit",
    about="DiT with 0.4 M parameters on films of moving digits, 8 frames of 16x16, factorized",
    data="moving-digits",
    kind="VideoDiT",
    model=dict(
        input_size=[8, 16, 16],
        patch_size=4,
        in_channels=1,
        attention="factorized",
        hidden_size=48,
        depth=8,
        num_heads=4,
        num_classes=10,
        class_dropout_prob=0.1,
        learn_sigma=False,
        embed_std=1.0,
    ),
    steps=6000,
    batch_size=32,
    lr=8e-3,
    warmup=100,
)


def get_recipe(name: str) -> Recipe:
    """A recipe of ``RECIPES`` by name.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    return RECIPES[check_choice("recipe", name, RECIPES)]
