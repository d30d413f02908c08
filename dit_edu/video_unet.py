"""A U-Net for images, patched for videos: attention of each place through all frames.

The other way to make a video model: take one for images, run it on every frame, and put layers
between its own that know of time. The opponent of the DiT on the film strip.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from dit_edu.attention import Attention
from dit_edu.dit import DiT
from dit_edu.positions import sincos_time_embed
from dit_edu.unet import UNet
from dit_edu.video import check_video


class _Patched(nn.Module):
    """Attention of a U-Net, and behind it that of each place through all frames."""

    def __init__(self, spatial: nn.Module, width: int, frames: int, head_dim: int) -> None:
        super().__init__()
        self.spatial, self.frames = spatial, frames
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width, width // head_dim)
        self.register_buffer("times", sincos_time_embed(width, frames), persistent=False)
        nn.init.zeros_(self.attn.proj.weight), nn.init.zeros_(self.attn.proj.bias)

    def forward(self, x: Tensor, **told: Tensor) -> Tensor:
        """Frames ``x`` (B·F, C, H, W) → (B·F, C, H, W)."""
        x = self.spatial(x, **told)  # (B·F, C, H, W)
        h, w = x.shape[2:]
        tokens = rearrange(x, "(b f) c h w -> (b h w) f c", f=self.frames)  # a sequence per place
        tokens = self.attn(self.norm(tokens) + self.times)  # (B·H·W, F, C)
        return x + rearrange(tokens, "(b h w) f c -> (b f) c h w", h=h, w=w)


class VideoUNet(nn.Module):
    """A U-Net for images that denoises videos: each frame by itself, and patches for time.

    Behind all attention within a frame, each place attends to itself in the other frames. The
    patches start at zero, so at first frames know nothing of each other.

    Args:
        input_size: (F, H, W).
        in_channels: C.
        head_dim: d, of all attention.
        **settings: the others of :class:`~dit_edu.unet.UNet`.

    Attributes:
        net: the U-Net.
        input_size, in_channels, num_classes, class_dropout_prob: as in
            :class:`~dit_edu.video.VideoDiT`.

    Raises:
        TypeError, ValueError: a size does not fit another.

    Source: Ho et al. 2022 (video diffusion models), section 3, on the U-Net of this book.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int] = (8, 16, 16),
        in_channels: int = 1,
        head_dim: int = 8,
        **settings: Any,
    ) -> None:
        super().__init__()
        frames, *sides = self.input_size = tuple(input_size)
        self.in_channels = in_channels
        self.net = UNet(tuple(sides), in_channels, head_dim=head_dim, **settings)
        self.num_classes, self.class_dropout_prob = (
            self.net.num_classes,
            self.net.class_dropout_prob,
        )
        parts, width = self.net.net, self.net.net.config.block_out_channels[-1]
        for part in (parts.down_blocks[-1], parts.mid_block, parts.up_blocks[0]):
            patched = (_Patched(a, width, frames, head_dim) for a in part.attentions)
            part.attentions = nn.ModuleList(patched)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As :meth:`dit_edu.video.VideoDiT.forward`."""
        check_video(x, (self.in_channels, *self.input_size))
        f = self.input_size[0]
        each = rearrange(x, "b c f h w -> (b f) c h w")  # (B·F, C, H, W)
        out = self.net(each, t.repeat_interleave(f), y.repeat_interleave(f))
        return rearrange(out, "(b f) c h w -> b c f h w", f=f)

    null_condition = DiT.null_condition
