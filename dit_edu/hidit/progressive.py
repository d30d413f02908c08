"""Large patches first: what a model with large patches has learnt starts one with small patches.

A token of a p × p patch becomes r² tokens. Blocks, step and label know nothing of patches and go
over as they are. Only the two ends have the patch in their shapes; here both are derived from one
picture: each small patch, enlarged r times, is a large patch.
"""

from __future__ import annotations

import copy

import torch
from einops import reduce
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.dit import DiT


def carry(model: DiT, patch_size: int) -> DiT:
    """The start of a model with smaller patches, for the same images.

    It computes what ``model`` says of the image enlarged r times (each pixel r × r times), read off
    by means over r × r pixels. Its tokens stand inside the area that ``model`` knows.

    Args:
        model: a trained model; it stays as it is.
        patch_size: the new p; divides that of ``model``.

    Returns:
        A model of the same kind, with r² times as many tokens, r = old p / new p.

    Raises:
        TypeError, ValueError: ``patch_size`` is no positive integer, or does not divide the old.

    Source: Beyer et al. 2023 (FlexiViT), section 3.4, for the kernel.
    """
    old = model.patch_size
    if old % check_positive_int("patch_size", patch_size):
        raise ValueError(f"patch_size={patch_size}; allowed: a divisor of the model's {old}.")
    other, r = copy.deepcopy(model), old // patch_size
    like, last = model.x_embedder.proj, model.final_layer.linear
    embed = nn.Conv2d(model.in_channels, like.out_channels, patch_size, patch_size).to(like.weight)
    head = nn.Linear(last.in_features, patch_size**2 * model.out_channels).to(last.weight)
    with torch.no_grad():
        embed.weight.copy_(shrink_kernel(like.weight, r))  # (D, C, p, p) -> (D, C, p/r, p/r)
        embed.bias.copy_(like.bias)
        head.weight.copy_(shrink_head(last.weight, r, old))  # (p*p*C, D) -> (p*p*C/r², D)
        head.bias.copy_(shrink_head(last.bias, r, old))
    other.patch_size = patch_size
    other.x_embedder.proj, other.final_layer.linear = embed, head
    return other.at_size(model.input_size)  # the grid of the small patches, and their positions


def shrink_kernel(kernel: Tensor, r: int) -> Tensor:
    """Sums over r × r pixels: what K says of an enlarged patch, k = Bᵀ K says of the patch itself.

    Args:
        kernel: K, (D, C, p, p).
        r: how many times larger its patches are; divides p.

    Returns:
        (D, C, p/r, p/r).
    """
    return reduce(kernel, "d c (p r) (q s) -> d c p q", "sum", r=r, s=r)


def shrink_head(rows: Tensor, r: int, p: int) -> Tensor:
    """Means over r × r pixels, of the weights or the biases of a final layer.

    Args:
        rows: (p·p·C, …), in the order of :func:`~dit_edu.patchify.patchify`.
        r: how many times larger its patches are; divides ``p``.
        p: the side of its patches.

    Returns:
        (p·p·C / r², …).
    """
    return reduce(rows, "(p r q s c) ... -> (p q c) ...", "mean", p=p // r, q=p // r, r=r, s=r)
