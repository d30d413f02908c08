"""A U-Net as a denoiser: convolutions at several resolutions, as diffusion models had them first.

The network is diffusers' ``UNet2DModel``. Around it stands what makes it a denoiser like all others
of this book: labels with a null class, the names of the DiT's arguments, and errors that say what
is wrong. Losses, samplers, guidance and metrics cannot tell it from a DiT.

:func:`receptive_field` measures where any denoiser looks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.dit import DiT
from dit_edu.embedders import LabelEmbedder


class UNet(nn.Module):
    """A denoiser made of convolutions.

    On the way down each resolution has ``layers`` residual blocks and its halves follow; on the way
    up, one block more, and each block also reads what the way down had at its size. Step and label
    are one vector, which is added to the channels of every residual block.

    Args:
        input_size: the side of the image (or latent) in pixels, or (H, W).
        in_channels: C.
        widths: channels of each resolution, finest first; each but the first halves the image.
        layers: residual blocks of a resolution on the way down.
        attention: let the pixels of the coarsest resolution attend to each other.
        head_dim: d, the width of an attention head; divides the last width.
        num_groups: of the group norms; divides all widths.
        class_dropout_prob: chance that training drops a label; above 0 there is a null class.
        num_classes: how many labels; the null class is the label ``num_classes``.
        learn_sigma: return 2C channels, the second half for the variance.

    Attributes:
        input_size: (H, W).
        factor: how many times shorter the side of the coarsest resolution is.
        in_channels, out_channels, num_classes, class_dropout_prob: as above.

    Raises:
        TypeError, ValueError: a size does not fit another; the message names both.

    Source: Ronneberger et al. 2015, Ho et al. 2020; the code is diffusers'.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 32,
        in_channels: int = 4,
        widths: Sequence[int] = (128, 256, 512),
        layers: int = 2,
        attention: bool = True,
        head_dim: int = 8,
        num_groups: int = 8,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        _check_widths(widths, num_groups, head_dim if attention else 1)
        self.factor = 2 ** (len(widths) - 1)
        self.input_size = self._sides(input_size)
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.num_classes = num_classes
        self.class_dropout_prob = class_dropout_prob
        plain = len(widths) - attention  # resolutions that only convolve
        self.net = self.build(
            in_channels=in_channels,
            out_channels=self.out_channels,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention,
            up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * plain,
            add_attention=attention,
            block_out_channels=tuple(widths),
            layers_per_block=check_positive_int("layers", layers),
            attention_head_dim=head_dim,
            norm_num_groups=num_groups,
        )
        # E_y is added to the embedding of t, which is four times as wide as the first resolution.
        embedder = LabelEmbedder(num_classes, 4 * widths[0], class_dropout_prob)
        self.net.class_embedding = embedder

    @staticmethod
    def build(**arguments: Any) -> nn.Module:
        """The network itself, of diffusers."""
        from diffusers import UNet2DModel  # seconds of import, only where it is needed

        return UNet2DModel(**arguments)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """What the network says of a noisy batch.

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
        return self.net(x, t, class_labels=y, return_dict=False)[0]  # (B, out, H, W)

    null_condition = DiT.null_condition
    _check_shapes = DiT._check_shapes

    def at_size(self, input_size: int | tuple[int, int]) -> UNet:
        """The same weights for images of another size: nothing has to be made anew.

        Args:
            input_size: the side of the image in pixels, or (H, W).

        Returns:
            A copy; this model stays as it is.

        Raises:
            TypeError, ValueError: the size is no multiple of ``factor``.
        """
        sides = self._sides(input_size)
        other = copy.deepcopy(self)
        other.input_size = sides
        return other

    def _sides(self, size: int | tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a size that may be one number for both."""
        sides = (size, size) if isinstance(size, int) else (size[0], size[1])
        for side in sides:
            if check_positive_int("input_size", side) % self.factor:
                raise ValueError(
                    f"input_size={size}; allowed: multiples of {self.factor}, since each of the "
                    "widths but the first halves the image."
                )
        return sides


def receptive_field(
    model: nn.Module, x: Tensor, t: Tensor, y: Tensor, pixel: tuple[int, int]
) -> Tensor:
    """Where a denoiser looks for one pixel of its answer: the effective receptive field.

    The answer at o changes with the input at i by the gradient g_i = ∂ out_o / ∂ x_i. Its square,
    summed over channels, averaged over the batch and divided by the sum over i, is the share of i.

    Args:
        model: a denoiser.
        x, t, y: a noisy batch, (B, C, H, W), (B,) and (B, …).
        pixel: o, as (row, column).

    Returns:
        (H, W) shares, which add up to 1.

    Raises:
        ValueError: ``pixel`` lies outside, or the answer there does not depend on ``x`` at all, as
            that of a fresh DiT.

    Source: Luo et al. 2016.
    """
    row, column = pixel
    if not (0 <= row < x.shape[2] and 0 <= column < x.shape[3]):
        raise ValueError(f"pixel={pixel}; allowed: below {tuple(x.shape[2:])}, from 0.")
    x = x.detach().requires_grad_()
    out = model(x, t, y)[:, : x.shape[1], row, column]  # (B, C), without a learnt variance
    g = torch.stack([torch.autograd.grad(o.sum(), x, retain_graph=True)[0] for o in out.unbind(1)])
    energy = g.square().sum((0, 2)).mean(0)  # (C, B, C, H, W) -> (B, H, W) -> (H, W)
    if not energy.sum() > 0:
        raise ValueError(f"the answer at pixel={pixel} depends on no input; allowed: on some.")
    return energy / energy.sum()


def _check_widths(widths: Sequence[int], num_groups: int, head_dim: int) -> None:
    """Check that norms and heads divide the channels.

    Raises:
        TypeError, ValueError: they do not.
    """
    if not widths:
        raise ValueError("widths=() is empty; allowed: at least one width.")
    check_positive_int("num_groups", num_groups)
    for width in widths:
        if check_positive_int("widths", width) % num_groups:
            raise ValueError(f"widths={tuple(widths)}; allowed: multiples of {num_groups=}.")
    if widths[-1] % check_positive_int("head_dim", head_dim):
        raise ValueError(f"widths={tuple(widths)}; allowed: a last width divisible by {head_dim=}.")
