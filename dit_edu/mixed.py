"""Words and patches in one model: five ways for a caption to reach the tokens of an image.

A caption is a row of word numbers as :class:`~dit_edu.text.Vocabulary` writes them, filled up with
``PAD``. A word of its own, the *start*, is put in front, so that even an empty caption has one word
to look at: it is the null condition. Every kind of block has one signature,

    x, words = block(x, words, known, c)

with image tokens x (B, N, D), words (B, M, D), which of them are no padding (B, M), and the
embedding c (B, D) of the step. All begin as the identity on the image's tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.branches import CrossAttention
from dit_edu.conditioning import AdaLNZeroBlock, modulate
from dit_edu.dit import DiT
from dit_edu.patchify import unpatchify
from dit_edu.text import PAD, TextEncoder


class PooledBlock(AdaLNZeroBlock):
    """The mean over the words, added to the step: shift, scale and gate are all that it can set."""

    def forward(self, x: Tensor, words: Tensor, known: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, M, D) → the same shapes."""
        weight = known.to(words).unsqueeze(-1)  # (B, M, 1)
        mean = (words * weight).sum(1) / weight.sum(1)  # (B, M, D) -> (B, D)
        return super().forward(x, c + mean), words


class CrossBlock(AdaLNZeroBlock):
    """A branch in front, in which image tokens look at words; the words stay what they were.

    Source: PixArt-α (Chen et al. 2024), section 2.3, which has it between attention and MLP.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio)
        self.norm_cross = nn.LayerNorm(hidden_size, eps=1e-6)
        self.cross = CrossAttention(hidden_size, num_heads)

    def zero_init(self) -> None:
        """Close the gates, and let the new branch answer 0."""
        super().zero_init()
        nn.init.zeros_(self.cross.proj.weight)
        nn.init.zeros_(self.cross.proj.bias)

    def forward(self, x: Tensor, words: Tensor, known: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, M, D) → the same shapes."""
        seen = known[:, None, None]  # (B, 1, 1, M)
        x = x + self.cross(self.norm_cross(x), cond=words, mask=seen)
        return super().forward(x, c), words


class JointBlock(AdaLNZeroBlock):
    """Words are tokens like all others: one row of both, and one set of weights.

    Source: U-ViT (Bao et al. 2023), section 3.1, whose words and step are tokens too.
    """

    def forward(self, x: Tensor, words: Tensor, known: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, M, D) → the same shapes."""
        n = x.shape[1]
        both = super().forward(torch.cat([x, words], dim=1), c, mask=seen_by_all(n, known))
        return both[:, :n], both[:, n:]  # (B, N + M, D) -> (B, N, D), (B, M, D)


class StreamsBlock(nn.Module):
    """One attention over two kinds of tokens, each with weights of its own for all the rest.

    Norms, queries, keys, values, MLP, shift, scale and gate belong to a *stream*; only the softmax
    runs over both.

    Source: MM-DiT of Stable Diffusion 3 (Esser et al. 2024), section 4 and figure 2b.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.image = AdaLNZeroBlock(hidden_size, num_heads, mlp_ratio)
        self.text = AdaLNZeroBlock(hidden_size, num_heads, mlp_ratio)

    def zero_init(self) -> None:
        """Close the gates of both streams."""
        self.image.zero_init()
        self.text.zero_init()

    def forward(self, x: Tensor, words: Tensor, known: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, M, D) → the same shapes."""
        streams, n = ((self.image, x), (self.text, words)), x.shape[1]
        told = [stream.adaLN_modulation(c).chunk(6, dim=1) for stream, _ in streams]
        projected = [
            stream.attn.project(modulate(stream.norm1(h), *six[:2]))  # 3 x (B, h, N or M, d)
            for (stream, h), six in zip(streams, told, strict=True)
        ]
        q, k, v = (torch.cat(both, dim=2) for both in zip(*projected, strict=True))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_by_all(n, known))
        mixed = rearrange(mixed, "b h n d -> b n (h d)")  # (B, N + M, D)
        out = []
        for (stream, h), six, a in zip(streams, told, (mixed[:, :n], mixed[:, n:]), strict=True):
            _, _, gate_msa, shift_mlp, scale_mlp, gate_mlp = six
            h = h + gate_msa.unsqueeze(1) * stream.attn.proj(a)
            a = stream.mlp(modulate(stream.norm2(h), shift_mlp, scale_mlp))
            out.append(h + gate_mlp.unsqueeze(1) * a)
        return out[0], out[1]


def seen_by_all(n: int, known: Tensor) -> Tensor:
    """Which of n image tokens and M words may be looked at: all but padding, (B, 1, 1, n + M)."""
    return F.pad(known, (n, 0), value=True)[:, None, None]


class Bag(nn.Module):
    """Words as a table has them: nobody knows in which order they stood.

    Args:
        words: how many words the vocabulary has.
        width: D.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words + 1, width, padding_idx=PAD)

    def tokens(self, numbers: Tensor) -> Tensor:
        """(B, M) → (B, M, D)."""
        return self.table(numbers)


#: The ways by name, each with who reads the caption and the kind of block.
WAYS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "bag": (Bag, PooledBlock),
    "pooled": (TextEncoder, PooledBlock),
    "cross": (TextEncoder, CrossBlock),
    "joint": (TextEncoder, JointBlock),
    "streams": (TextEncoder, StreamsBlock),
}


class TextDiT(DiT):
    """A DiT that is told a caption: ``model(x, t, y)`` with y (B, M), words and padding.

    Args:
        words: how many words the vocabulary has.
        way: how they reach the image, a key of :data:`WAYS`.
        hidden_size, depth, num_heads, mlp_ratio: see :class:`~dit_edu.dit.DiT`.
        **arguments: the others of it.

    Attributes:
        num_classes: the largest number that may stand in y, that of the last word.

    Raises:
        TypeError, ValueError: a size does not fit another, or there is no such way.
    """

    def __init__(
        self,
        words: int,
        way: str = "joint",
        hidden_size: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        **arguments: Any,
    ) -> None:
        reader, block = WAYS[check_choice("way", way, WAYS)]
        sizes = hidden_size, num_heads, mlp_ratio
        super().__init__(
            num_classes=check_positive_int("words", words),
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            **arguments,
        )
        self.y_embedder = reader(words + 1, hidden_size)  # the start is one word more
        self.blocks = nn.ModuleList(block(*sizes) for _ in range(depth))
        for module in (*self.y_embedder.modules(), *self.blocks.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.table.weight, std=self.embed_std)
        for block in self.blocks:
            block.zero_init()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Denoise: ``x`` (B, C, H, W), ``t`` (B,), ``y`` (B, M) → (B, C, H, W).

        Raises:
            ValueError: a shape does not fit the model.
        """
        if y.ndim != 2:
            raise ValueError(f"y has shape {tuple(y.shape)}; allowed: (B, M), words of captions.")
        self._check_shapes(x, t, y[:, 0])
        numbers = self.started(y)  # (B, M) -> (B, 1 + M)
        words, known = self.y_embedder.tokens(numbers), numbers != PAD  # (B, 1 + M, D), (B, 1 + M)
        x, c = self.x_embedder(x) + self.pos_embed, self.t_embedder(t)  # (B, N, D), (B, D)
        for block in self.blocks:
            x, words = block(x, words, known, c)
        x = self.final_layer(x, c)  # (B, N, D) -> (B, N, p*p*out)
        return unpatchify(x, self.patch_size, self.x_embedder.grid)

    def started(self, y: Tensor) -> Tensor:
        """The start in front of every caption; in training, nothing behind it now and then."""
        if self.training and self.class_dropout_prob > 0:
            kept = torch.rand(len(y), 1, device=y.device) >= self.class_dropout_prob  # (B, 1)
            y = torch.where(kept, y, PAD)
        return F.pad(y, (1, 0), value=self.num_classes + 1)  # (B, M) -> (B, 1 + M)

    def null_condition(self, y: Tensor) -> Tensor:
        """The empty caption for each of ``y`` (B, M)."""
        return torch.full_like(y, PAD)
