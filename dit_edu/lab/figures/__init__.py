"""The moving figures of the chapters, by name; all their data is computed here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dit_edu.lab import zoo
from dit_edu.lab.figures.attention import where_heads_look
from dit_edu.lab.figures.bugs import what_bugs_do
from dit_edu.lab.figures.claims import taken_apart
from dit_edu.lab.figures.conditioning import conditioning_race, waves_of_time
from dit_edu.lab.figures.conditions import budget_by_image
from dit_edu.lab.figures.dddit_results import dddit_race
from dit_edu.lab.figures.denoising import noise_floors, step_back
from dit_edu.lab.figures.deployment import few_bits
from dit_edu.lab.figures.depth import depth_by_budget
from dit_edu.lab.figures.diffusion import forward_process
from dit_edu.lab.figures.dit import live_trajectory, loss_by_noise_bin, reverse_trajectory
from dit_edu.lab.figures.dynamic import layers_by_step
from dit_edu.lab.figures.experts import experts_by_step
from dit_edu.lab.figures.explorer import shipped_explorer
from dit_edu.lab.figures.factorized import two_tables
from dit_edu.lab.figures.flow import three_clocks
from dit_edu.lab.figures.guidance import guidance_scale
from dit_edu.lab.figures.landscape import landscape
from dit_edu.lab.figures.latents import latent_noise
from dit_edu.lab.figures.likelihood import bits_by_step
from dit_edu.lab.figures.modes import modes_by_step
from dit_edu.lab.figures.multiscale import tokens_by_depth
from dit_edu.lab.figures.noise_attention import attention_by_noise
from dit_edu.lab.figures.own_data import fine_tuning
from dit_edu.lab.figures.patchify import (
    beyond_the_grid,
    patch_loss_map,
    patchify_tokens,
    position_similarity,
)
from dit_edu.lab.figures.regimes import shared_out
from dit_edu.lab.figures.results import hidit_race
from dit_edu.lab.figures.router import noisy_switch, switches_by_update
from dit_edu.lab.figures.sampling import quality_by_steps, sampler_paths
from dit_edu.lab.figures.scaling import cost_calculator
from dit_edu.lab.figures.sequence_loss import next_patch
from dit_edu.lab.figures.stages import stages_of_training
from dit_edu.lab.figures.text import told_in_five_ways
from dit_edu.lab.figures.timestep import width_by_step
from dit_edu.lab.figures.training import expected_loss
from dit_edu.lab.figures.unet import larger_scenes, where_they_look
from dit_edu.lab.figures.video import moving_films
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.widgets import Figure

__all__ = [
    "FIGURES",
    "attention_by_noise",
    "beyond_the_grid",
    "bits_by_step",
    "budget_by_image",
    "conditioning_race",
    "cost_calculator",
    "dddit_race",
    "depth_by_budget",
    "expected_loss",
    "experts_by_step",
    "few_bits",
    "fine_tuning",
    "forward_process",
    "guidance_scale",
    "hidit_race",
    "landscape",
    "larger_scenes",
    "latent_noise",
    "layers_by_step",
    "live_trajectory",
    "loss_by_noise_bin",
    "modes_by_step",
    "moving_films",
    "next_patch",
    "noise_floors",
    "noisy_switch",
    "patch_loss_map",
    "patchify_tokens",
    "position_similarity",
    "quality_by_steps",
    "reverse_trajectory",
    "sampler_paths",
    "shared_out",
    "shipped_explorer",
    "stages_of_training",
    "step_back",
    "switches_by_update",
    "taken_apart",
    "three_clocks",
    "tokens_by_depth",
    "told_in_five_ways",
    "two_tables",
    "waves_of_time",
    "what_bugs_do",
    "where_heads_look",
    "where_they_look",
    "width_by_step",
]


def _digits_losses() -> Figure:
    return loss_by_noise_bin(zoo.card("digits-dit")["history"])


def _of_digits(figure: Callable[..., Figure]) -> Figure:
    """A figure of the digits model and its process."""
    model, card = zoo.load("digits-dit")
    return figure(model, Recipe.from_dict(card["recipe"]).process.build())


#: Without arguments; the last ten need the model that they show to be in the zoo.
FIGURES: dict[str, Callable[[], Figure]] = {
    "forward-process": forward_process,
    "step-back": step_back,
    "noise-floors": noise_floors,
    "bits-by-step": bits_by_step,
    "three-clocks": three_clocks,
    "sampler-paths": sampler_paths,
    "patchify-tokens": patchify_tokens,
    "position-similarity": position_similarity,
    "beyond-the-grid": beyond_the_grid,
    "waves-of-time": waves_of_time,
    "conditioning-race": conditioning_race,
    "expected-loss": expected_loss,
    "quality-by-steps": quality_by_steps,
    "cost-calculator": cost_calculator,
    "tokens-by-depth": tokens_by_depth,
    "guidance-scale": guidance_scale,
    "layers-by-step": layers_by_step,
    "depth-by-budget": depth_by_budget,
    "shared-out": shared_out,
    "taken-apart": taken_apart,
    "budget-by-image": budget_by_image,
    "width-by-step": width_by_step,
    "modes-by-step": modes_by_step,
    "switches-by-update": switches_by_update,
    "noisy-switch": noisy_switch,
    "experts-by-step": experts_by_step,
    "stages-of-training": stages_of_training,
    "loss-by-noise-bin": _digits_losses,
    "next-patch": partial(_of_digits, next_patch),
    "patch-loss-map": partial(_of_digits, patch_loss_map),
    "two-tables": partial(_of_digits, two_tables),
    "where-heads-look": partial(_of_digits, where_heads_look),
    "reverse-trajectory": partial(_of_digits, reverse_trajectory),
    "what-bugs-do": what_bugs_do,
    "latent-noise": latent_noise,
    "attention-by-noise": attention_by_noise,
    "few-bits": few_bits,
    "moving-films": moving_films,
    "where-they-look": where_they_look,
    "larger-scenes": larger_scenes,
    "told-in-five-ways": told_in_five_ways,
    "fine-tuning": fine_tuning,
    "hidit-race": hidit_race,
    "dddit-race": dddit_race,
    "landscape": landscape,
    "shapes-explorer": partial(shipped_explorer, "shapes-dddit"),
    "digits-explorer": partial(shipped_explorer, "digits-dddit"),
}
