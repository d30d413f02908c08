"""One model, two layouts: the published names of DiT's weights, and those of diffusers.

The numbers are the same. diffusers has queries, keys and values in three matrices where the
published model has one, and a copy of both embedders in every block where it has one of each;
and it computes the positions itself where the published files store them.

Names are not all. Two constants of diffusers' stock DiT are not the published ones: the exponent of
the timestep's waves is k / (half - 1), not k / half, and the second norm of a block has ε = 1e-5,
not 1e-6. :func:`correct` sets them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dit import DiT
from dit_edu.positions import sincos_pos_embed

# Linear layers (and the convolution), by their published name: outside the blocks …
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
# … the embedders, of which every block of diffusers has a copy …
_COPIED = {
    "t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "norm1.emb.class_embedder.embedding_table.weight",
}
# … and inside a block.
_INSIDE = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
State = Mapping[str, Tensor]


def state_to_diffusers(state: State) -> dict[str, Tensor]:
    """A state dict of the published layout under diffusers' names.

    Args:
        state: of a :class:`~dit_edu.dit.DiT` with the conditioning ``"adaln-zero"``, or what a
            published checkpoint holds. Its tensors are not copied.

    Returns:
        What ``DiTTransformer2DModel.load_state_dict`` takes.

    Raises:
        ValueError: names are missing or unknown (the message names them), or the positions are not
            the sines and cosines of a square grid, which diffusers computes and does not store.
    """
    depth = _depth(state, "blocks", "the published layout")
    copied = {ours: [f"transformer_blocks.{i}.{theirs}" for i in range(depth)]
              for ours, theirs in _COPIED.items()}  # fmt: skip
    names = [*copied, *(ours for ours, _ in _stacks(depth)), "pos_embed"]
    _check_names(state, names, "the published layout")
    _check_positions(state["pos_embed"])
    found = {name: state[ours] for ours, theirs in copied.items() for name in theirs}
    for ours, theirs in _stacks(depth):
        parts = state[ours].chunk(len(theirs))  # (3D, …) -> 3 x (D, …), or one as it is
        found |= dict(zip(theirs, parts, strict=True))
    return found


def state_from_diffusers(state: State, grid: int | tuple[int, int]) -> dict[str, Tensor]:
    """A state dict of diffusers' ``DiTTransformer2DModel`` under the published names.

    Args:
        state: of the model, whole.
        grid: tokens per column and per row, for the positions.

    Returns:
        What :class:`~dit_edu.dit.DiT` and the published code load.

    Raises:
        ValueError: names are missing or unknown (the message names them), or the blocks' copies of
            an embedder are not equal, so that no DiT has these weights.
    """
    depth = _depth(state, "transformer_blocks", "diffusers' layout")
    blocks = [f"transformer_blocks.{i}" for i in range(depth)]
    names = [f"{block}.{name}" for block in blocks for name in _COPIED.values()]
    names += [name for _, theirs in _stacks(depth) for name in theirs]
    _check_names(state, names, "diffusers' layout")
    found = {}
    for ours, theirs in _COPIED.items():
        found[ours] = first = state[f"{blocks[0]}.{theirs}"]
        for block in blocks[1:]:
            if not torch.equal(state[f"{block}.{theirs}"], first):
                raise ValueError(
                    f"{block}.{theirs} differs from the copy in {blocks[0]}; "
                    "a DiT has one embedder for all blocks."
                )
    for ours, theirs in _stacks(depth):
        found[ours] = torch.cat([state[name] for name in theirs])  # 3 x (D, …) -> (3D, …)
    dim, like = found["x_embedder.proj.bias"].shape[0], found["x_embedder.proj.bias"]
    return {"pos_embed": sincos_pos_embed(dim, grid).to(like).unsqueeze(0), **found}  # (1, N, D)


def to_diffusers(model: DiT) -> DiTTransformer2DModel:
    """The same function as a model of diffusers, in evaluation mode, with weights of its own.

    Raises:
        ValueError: diffusers has no such model: another conditioning, an image that is not square,
            an MLP that is not four times as wide as the tokens, or no null class.
    """
    if model.kind is not AdaLNZeroBlock:
        raise ValueError(f"blocks of kind {model.kind.__name__}; allowed: AdaLNZeroBlock.")
    if model.input_size[0] != model.input_size[1]:
        raise ValueError(f"input_size={model.input_size} is not square; diffusers' DiT is.")
    if not model.class_dropout_prob > 0:
        raise ValueError("class_dropout_prob=0; diffusers' DiT always has a null class.")
    state = state_to_diffusers(model.state_dict())
    dim, depth, block = model.pos_embed.shape[-1], len(model.blocks), model.blocks[0]
    if (width := block.mlp.fc1.out_features) != 4 * dim:
        raise ValueError(f"mlp_ratio={width / dim:g}; diffusers' DiT has 4.")
    with torch.random.fork_rng(devices=[]):
        theirs = DiTTransformer2DModel(
            num_attention_heads=block.attn.num_heads,
            attention_head_dim=dim // block.attn.num_heads,
            in_channels=model.in_channels,
            out_channels=model.out_channels,
            num_layers=depth,
            sample_size=model.input_size[0],
            patch_size=model.patch_size,
            num_embeds_ada_norm=model.num_classes,
            norm_eps=1e-6,
        )
    like = model.pos_embed
    if like.dtype != torch.float32 or like.device.type != "cpu":
        theirs.to(like.device, like.dtype)
    theirs.load_state_dict(state)
    return correct(theirs).eval()


def from_diffusers(theirs: DiTTransformer2DModel) -> DiT:
    """A model of diffusers as a :class:`~dit_edu.dit.DiT`, in evaluation mode.

    The result is the published function of these weights; stock diffusers answers a little
    differently, see :func:`correct`.

    Raises:
        TypeError: ``theirs`` is another kind of model.
        ValueError: a setting of it is not one of DiT, or as :func:`state_from_diffusers`.
    """
    if not isinstance(theirs, DiTTransformer2DModel):
        raise TypeError(f"theirs must be a DiTTransformer2DModel, not {type(theirs).__name__}.")
    config = theirs.config
    channels, out = config.in_channels, theirs.out_channels
    if config.activation_fn != "gelu-approximate":
        raise ValueError(f"activation_fn={config.activation_fn!r}; allowed: 'gelu-approximate'.")
    if out not in (channels, 2 * channels):
        raise ValueError(f"out_channels={out}; allowed: {channels} or, with σ, {2 * channels}.")
    p, heads = config.patch_size, config.num_attention_heads
    state = state_from_diffusers(theirs.state_dict(), config.sample_size // p)
    with torch.device("meta"):
        model = DiT(
            input_size=config.sample_size,
            patch_size=p,
            in_channels=channels,
            hidden_size=heads * config.attention_head_dim,
            depth=config.num_layers,
            num_heads=heads,
            num_classes=config.num_embeds_ada_norm,
            learn_sigma=out != channels,
        )
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return model.eval()


def correct(theirs: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Give diffusers' DiT the two constants of the published model, in place.

    The first of them is not in diffusers' configuration: who saves a model and loads it again has
    the stock value, and must call this once more.
    """
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # ω_k = 10000^(-k / half)
        block.norm3.eps = 1e-6
    return theirs


def _stacks(depth: int) -> Iterator[tuple[str, list[str]]]:
    """Published names, and of which of diffusers' tensors each is the stack (mostly of one)."""
    for kind in ("weight", "bias"):
        for ours, theirs in _OUTSIDE.items():
            yield f"{ours}.{kind}", [f"{theirs}.{kind}"]
        for i in range(depth):
            for ours, parts in _INSIDE.items():
                names = [f"transformer_blocks.{i}.{part}.{kind}" for part in parts]
                yield f"blocks.{i}.{ours}.{kind}", names


def _depth(state: State, prefix: str, layout: str) -> int:
    found = [re.match(rf"{prefix}\.(\d+)\.", str(name)) for name in state]
    numbers = [int(match[1]) for match in found if match]
    if not numbers:
        some = ", ".join(map(repr, list(state)[:3])) or "none"
        raise ValueError(f"state is no DiT in {layout}: no {prefix}.0 among its names ({some} …).")
    return max(numbers) + 1


def _check_names(state: State, names: list[str], layout: str) -> None:
    for what, found in (
        ("lacks", [name for name in names if name not in state]),
        ("has, unknown there,", sorted(set(state) - set(names))),
    ):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ValueError(
                f"state is no DiT in {layout}: it {what} {', '.join(map(repr, found[:3]))}{more}."
            )


def _check_positions(pos_embed: Tensor) -> None:
    _, n, dim = pos_embed.shape
    side = round(n**0.5)
    if side**2 != n or not torch.allclose(
        pos_embed[0].float().cpu(), sincos_pos_embed(dim, side), atol=1e-3
    ):
        raise ValueError(
            f"pos_embed of shape {tuple(pos_embed.shape)} does not hold the sines and cosines of a "
            "square grid; diffusers' DiT has no others."
        )
