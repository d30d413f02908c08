"""The Diffusion Transformer: tokens in, a stack of conditioned blocks, tokens out.

Names, keyword arguments and state-dict keys are those of the published code, so that its
checkpoints load as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.conditioning import BLOCKS, Block, TableModulation, modulate
from dit_edu.embedders import LabelEmbedder, TimestepEmbedder
from dit_edu.patchify import PatchEmbed, token_grid, unpatchify
from dit_edu.positions import POSITIONS, Rotary, resize_pos_embed, sincos_pos_embed

_SIZES = {
    "S": dict(hidden_size=384, depth=12, num_heads=6),
    "B": dict(hidden_size=768, depth=12, num_heads=12),
    "L": dict(hidden_size=1024, depth=24, num_heads=16),
    "XL": dict(hidden_size=1152, depth=28, num_heads=16),
}

#: The twelve published models by name, ``DiT-S/8`` to ``DiT-XL/2`` (Peebles & Xie 2023, table 1).
PRESETS: dict[str, dict[str, int]] = {
    f"DiT-{size}/{p}": {**settings, "patch_size": p}
    for size, settings in _SIZES.items()
    for p in (8, 4, 2)
}


class FinalLayer(nn.Module):
    """From tokens of width D back to patches; its output starts at zero.

    Where the blocks are modulated by the condition, this layer is too.

    Args:
        hidden_size: D.
        patch_size: p.
        out_channels: channels of the output image.
        kind: of the blocks.
    """

    def __init__(
        self, hidden_size: int, patch_size: int, out_channels: int, kind: type[Block]
    ) -> None:
        super().__init__()
        plain = kind.modulation is None
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=plain, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = None if plain else kind.modulation(2, hidden_size)

    def zero_init(self) -> None:
        """Answer 0, whatever the tokens and the condition."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if isinstance(self.adaLN_modulation, nn.Sequential):
            nn.init.zeros_(self.adaLN_modulation[-1].weight)
            nn.init.zeros_(self.adaLN_modulation[-1].bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens ``x`` (B, N, D) under ``c`` (B, D) → (B, N, p·p·out_channels)."""
        x = self.norm_final(x)  # (B, N, D)
        if self.adaLN_modulation is not None:
            shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # (B, 2D) -> 2 x (B, D)
            x = modulate(x, shift, scale)
        return self.linear(x)  # (B, N, p*p*out)


class DiT(nn.Module):
    """A denoiser made of Transformer blocks.

    Args:
        input_size: the side of the image (or latent) in pixels, or (H, W).
        patch_size: p; divides H and W.
        in_channels: C.
        hidden_size: D, a multiple of 4 and of ``num_heads``.
        depth: L, how many blocks.
        num_heads: h.
        mlp_ratio: width of the MLP over D.
        class_dropout_prob: chance that training drops a label; above 0 there is a null class.
        num_classes: how many labels; the null class is the label ``num_classes``.
        learn_sigma: return 2C channels, the second half for the variance.
        conditioning: how step and label reach the blocks, a key of
            :data:`~dit_edu.conditioning.BLOCKS`.
        embed_std: standard deviation of the fresh label table. 0.02 is the published one; a tiny
            model that trains for a thousand steps learns its labels sooner with a larger one.
        dropout: of the MLPs in training, in [0, 1); the published models have none.
        positions: how tokens are told where they stand: ``"sincos"`` as published, ``"learned"``,
            ``"rope"`` (rotations inside attention) or ``"none"``.
        span: the grid of tokens, (h, w), in whose coordinates the positions are; the model's own
            unless given. A model that will be carried on to more tokens takes theirs.

    Attributes:
        input_size: (H, W).
        span: as above.
        in_channels, out_channels, patch_size, num_classes, class_dropout_prob: as above.

    Raises:
        TypeError, ValueError: a size does not fit another; the message names both.

    Source: Peebles & Xie 2023.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        conditioning: str = "adaln-zero",
        embed_std: float = 0.02,
        dropout: float = 0.0,
        positions: str = "sincos",
        span: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("depth", depth)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1).")
        self.kind = BLOCKS[check_choice("conditioning", conditioning, BLOCKS)]
        self.input_size = _sides(input_size)
        self.patch_size = patch_size
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.num_classes = num_classes
        self.class_dropout_prob = class_dropout_prob
        self.embed_std = embed_std
        self.positions = check_choice("positions", positions, POSITIONS)
        if positions == "rope" and conditioning == "in-context":
            raise ValueError(
                "positions='rope' with conditioning='in-context', whose tokens have no place; "
                "allowed: 'none', 'learned', 'sincos'."
            )

        self.x_embedder = PatchEmbed(self.input_size, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        self.share = self.kind.share(hidden_size)
        self.blocks = nn.ModuleList(
            self.kind(hidden_size, num_heads, mlp_ratio, dropout) for _ in range(depth)
        )
        self.span = self.x_embedder.grid if span is None else _sides(span)
        for side in self.span:
            check_positive_int("span", side)
        self.pos_embed: nn.Parameter | None = None
        self._place(self.x_embedder.grid, self.span)
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels, self.kind)
        self.initialize_weights()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> DiT:
        """Build a published model by name; keyword arguments override its settings.

        Raises:
            ValueError: ``name`` is unknown; the message names the nearest.

        Example:
            >>> DiT.from_preset("DiT-S/2", num_classes=10).patch_size
            2
        """
        return cls(**{**PRESETS[check_choice("name", name, PRESETS)], **overrides})

    def initialize_weights(self) -> None:
        """Every start value, in one place; the zeros come last, so that nothing undoes them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The patch embedding is a linear map too: initialise it as one.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))  # (D, C, p, p) -> (D, Cpp)
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=self.embed_std)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for module in self.modules():
            if isinstance(module, TableModulation):
                nn.init.normal_(module.table, std=module.table.shape[1] ** -0.5)
        for part in (*self.blocks, self.final_layer):
            part.zero_init()
        if self.positions == "learned":
            nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Denoise.

        Args:
            x: noisy images, (B, C, H, W).
            t: steps, (B,), integers or floats.
            y: labels, (B,) integers; ``num_classes`` is the null class.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where the variance is learnt too.

        Raises:
            ValueError: a shape does not fit the model.
        """
        self._check_shapes(x, t, y)
        x = self.x_embedder(x)  # (B, C, H, W) -> (B, N, D)
        if self.pos_embed is not None:
            x = x + self.pos_embed  # (1, N, D) to every image
        emb, y, n = self.t_embedder(t), self.y_embedder(y), x.shape[1]  # 2 x (B, D), N
        x, told = self.kind.enter(x, emb, y)  # (B, N or more, D), and the condition in its form
        told = self.share(told)
        for layer in self.layers(t, emb):
            x = layer(x, told)  # (B, N or more, D)
        x = self.final_layer(x[:, :n], emb + y)  # (B, N, p*p*out)
        return unpatchify(x, self.patch_size, self.x_embedder.grid)  # (B, out, H, W)

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """What maps tokens and condition to tokens, in order: here the blocks, at every step.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        return list(self.blocks)

    def null_condition(self, y: Tensor) -> Tensor:
        """The condition "no label" for each of ``y`` (B,).

        Raises:
            ValueError: the model was built without a null class.
        """
        if not self.class_dropout_prob > 0:
            raise ValueError("class_dropout_prob=0, so there is no null class; allowed: above 0.")
        return torch.full_like(y, self.num_classes)

    def at_size(self, input_size: int | tuple[int, int], how: str = "stretch") -> DiT:
        """The same weights for images of another size: only the positions are made anew.

        Args:
            input_size: the side of the image in pixels, or (H, W).
            how: ``"stretch"`` packs the new tokens into the area that training knew (fixed
                positions are computed for it, learned ones interpolated); ``"extend"`` keeps their
                distance of 1 and lets the coordinates go on.

        Returns:
            A copy; this model stays as it is.

        Raises:
            TypeError, ValueError: p does not divide the size; ``how`` is unknown; or it is
                ``"extend"`` and the positions were learnt, which know nothing outside.
        """
        stretch = check_choice("how", how, ("stretch", "extend")) == "stretch"
        other = copy.deepcopy(self)
        other.input_size = _sides(input_size)
        grid = other.x_embedder.grid = token_grid(other.input_size, self.patch_size)
        if self.positions != "learned":
            other._place(grid, self.span if stretch else grid)
        elif stretch:
            table = resize_pos_embed(self.pos_embed.detach()[0], self.x_embedder.grid, grid)
            other.pos_embed = nn.Parameter(table.unsqueeze(0))  # (1, N', D)
        else:
            raise ValueError("how='extend' with positions='learned'; allowed: 'stretch'.")
        return other

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """Guidance as the published code has it, on a batch that the caller has doubled.

        Only the first half of ``x`` is read; ``y`` holds labels in its first half and the null
        class in its second. Only the first three channels are guided, also where there are four:
        the published samples were drawn that way. :class:`dit_edu.guidance.Guided` guides all.

        Args:
            x: (2B, C, H, W); t: (2B,); y: (2B,).
            cfg_scale: s; 1 means no guidance.

        Returns:
            (2B, out, H, W), the guided channels the same in both halves.

        Source: the code published with Peebles & Xie 2023.
        """
        half = x[: len(x) // 2]  # (B, C, H, W)
        out = self.forward(torch.cat([half, half]), t, y)  # (2B, out, H, W)
        eps, rest = out[:, :3], out[:, 3:]
        cond, uncond = eps.chunk(2)  # (B, 3, H, W) each
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)  # (2B, out, H, W)

    def _place(self, grid: tuple[int, int], span: tuple[int, int]) -> None:
        """Make the positions of ``grid``, with coordinates that cover ``span``."""
        like = self.x_embedder.proj.weight  # (D, C, p, p)
        if self.positions == "sincos":
            table = sincos_pos_embed(len(like), grid, span).unsqueeze(0)  # (1, N, D)
            self.pos_embed = nn.Parameter(table.to(like), requires_grad=False)
        elif self.positions == "learned":
            self.pos_embed = nn.Parameter(like.new_zeros(1, grid[0] * grid[1], len(like)))
        elif self.positions == "rope":
            for block in self.blocks:
                block.attn.rotary = Rotary(len(like) // block.attn.num_heads, grid, span).to(like)

    def _check_shapes(self, x: Tensor, t: Tensor, y: Tensor) -> None:
        want = (self.in_channels, *self.input_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != want:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; allowed: (B, {want[0]}, {want[1]}, {want[2]})."
            )
        if t.shape != x.shape[:1] or y.shape != x.shape[:1]:
            raise ValueError(
                f"t {tuple(t.shape)} and y {tuple(y.shape)} must both have shape ({len(x)},)."
            )


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
