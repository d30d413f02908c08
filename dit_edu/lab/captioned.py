"""A second condition beside the label: a caption of a few words, told to a DiT and to a U-Net.

The condition y is (B, 1 + M): the label, then the M words of the caption, which are indices into
one vocabulary. Label and caption are dropped together, so that guidance compares all with nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.dit import DiT
from dit_edu.patchify import unpatchify
from dit_edu.unet import UNet


class Captions(nn.Module):
    """What the captioned models share: two tables, and their null rows.

    Args:
        labels: how many labels.
        words: how many words the vocabulary has.
        width: of the vectors that stand for them.
        dropout_prob: chance that training drops label and caption.
    """

    def __init__(self, labels: int, words: int, width: int, dropout_prob: float) -> None:
        super().__init__()
        self.dropout_prob = dropout_prob
        self.label = nn.Embedding(labels + 1, width)
        self.word = nn.Embedding(words + 1, width)

    def null(self, y: Tensor) -> Tensor:
        """The null label and null words in place of ``y`` (B, 1 + M)."""
        null = torch.full_like(y, self.word.num_embeddings - 1)
        null[:, 0] = self.label.num_embeddings - 1
        return null

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``y`` (B, 1 + M) → the label's vector (B, D) and those of the words (B, M, D)."""
        if self.training:
            dropped = torch.rand(len(y), 1, device=y.device) < self.dropout_prob  # (B, 1)
            y = torch.where(dropped, self.null(y), y)
        return self.label(y[:, 0]), self.word(y[:, 1:])


class CaptionedDiT(DiT):
    """A DiT for which words are tokens more: attention sees them beside those of the image.

    Args:
        words: how many words the vocabulary has.
        arguments: of :class:`~dit_edu.dit.DiT`.
    """

    def __init__(self, words: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        labels, width = self.num_classes, arguments["hidden_size"]
        self.y_embedder = Captions(labels, words, width, self.class_dropout_prob)
        self.num_classes = max(labels, words)  # the largest value in y that is allowed

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` (B,), ``y`` (B, 1 + M) → (B, C, H, W)."""
        label, words = self.y_embedder(y)  # (B, D), (B, M, D)
        x, c = self.x_embedder(x) + self.pos_embed, self.t_embedder(t) + label
        n = x.shape[1]
        x = torch.cat([x, words], dim=1)  # (B, N + M, D)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x[:, :n], c)  # (B, N, p*p*out)
        return unpatchify(x, self.patch_size, self.x_embedder.grid)

    def null_condition(self, y: Tensor) -> Tensor:
        """Neither label nor words."""
        return self.y_embedder.null(y)


class CaptionedUNet(UNet):
    """A U-Net to whose embedding of step and label the sum of the words is added.

    Args:
        words: how many words the vocabulary has.
        arguments: of :class:`~dit_edu.unet.UNet`.
    """

    def __init__(self, words: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        labels, width = self.num_classes, 4 * arguments["widths"][0]
        self.captions = Captions(labels, words, width, self.class_dropout_prob)
        self.net.class_embedding = nn.Identity()
        self.num_classes = max(labels, words)  # the largest value in y that is allowed

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` (B,), ``y`` (B, 1 + M) → (B, C, H, W)."""
        label, words = self.captions(y)  # (B, D), (B, M, D)
        return self.net(x, t, class_labels=label + words.sum(1), return_dict=False)[0]

    def null_condition(self, y: Tensor) -> Tensor:
        """Neither label nor words."""
        return self.captions.null(y)


class CrossUNet(CaptionedUNet):
    """A U-Net whose coarsest pixels look at the words, by cross-attention after self-attention.

    Args:
        words, arguments: see :class:`CaptionedUNet`.
    """

    @staticmethod
    def build(**arguments: Any) -> nn.Module:
        """diffusers' U-Net with cross-attention, in which only the coarsest resolution attends."""
        from diffusers import UNet2DConditionModel

        widths, plain = arguments["block_out_channels"], len(arguments["block_out_channels"]) - 1
        del arguments["add_attention"]
        arguments |= {
            "down_block_types": ("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
            # What diffusers calls the width of a head is here, by an old mistake, their number.
            "attention_head_dim": widths[-1] // arguments["attention_head_dim"],
            "cross_attention_dim": 4 * widths[0],
        }
        return UNet2DConditionModel(**arguments)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` (B,), ``y`` (B, 1 + M) → (B, C, H, W)."""
        label, words = self.captions(y)  # (B, D), (B, M, D)
        return self.net(x, t, words, class_labels=label, return_dict=False)[0]
