"""Words for a model: a vocabulary, a small encoder of captions, and a trained one from disk.

A caption is a row of word numbers, filled up with ``PAD`` to the length of the longest. What an
encoder says of it depends on its words alone: not on how much was filled up, nor on other captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.attention import Attention
from dit_edu.branches import Mlp
from dit_edu.positions import sincos_pos_embed

PAD = 0  # the number that is no word


class Vocabulary:
    """Words and their numbers, from 1; 0 fills up.

    Args:
        words: all that may occur, each once.

    Raises:
        ValueError: a word is given twice.

    Example:
        >>> Vocabulary(["a", "circle", "red"]).encode(["a red circle", "red"]).tolist()
        [[1, 3, 2], [3, 0, 0]]
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._number = {word: number for number, word in enumerate(self.words, 1)}
        if len(self._number) < len(self.words):
            raise ValueError(f"words={list(words)}; allowed: each word once.")

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        """All words of some captions, in the order of the alphabet."""
        return cls(sorted({word for caption in captions for word in caption.split()}))

    def __len__(self) -> int:
        """How many words there are."""
        return len(self.words)

    def encode(self, captions: Sequence[str], length: int | None = None) -> Tensor:
        """Captions as numbers.

        Args:
            captions: words with spaces between.
            length: M, at least 1; that of the longest caption unless given.

        Returns:
            (B, M) int64, words from the left and ``PAD`` behind them.

        Raises:
            ValueError: a word is unknown, or a caption is longer than ``length``.
        """
        rows = [caption.split() for caption in captions]
        if unknown := {word for row in rows for word in row} - set(self.words):
            raise ValueError(
                f"unknown word(s) {', '.join(sorted(unknown))}; allowed: {', '.join(self.words)}."
            )
        longest = max([1, *(len(row) for row in rows)])
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"length={length}, but a caption has {longest} words.")
        numbers = torch.full((len(rows), length), PAD)  # (B, M)
        for i, row in enumerate(rows):
            numbers[i, : len(row)] = torch.tensor([self._number[word] for word in row])
        return numbers


class TextEncoder(nn.Module):
    """A caption as one vector: words that look at each other once, and their mean.

    Args:
        words: how many words the vocabulary has.
        width: D, a multiple of 4 and of ``num_heads``.
        num_heads: h.

    Raises:
        TypeError, ValueError: a size is not allowed.
    """

    def __init__(self, words: int, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Embedding(check_positive_int("words", words) + 1, width, padding_idx=PAD)
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)

    def tokens(self, numbers: Tensor) -> Tensor:
        """Each word as its neighbours make it: (B, M) → (B, M, D); what stands at PAD is void."""
        known = numbers != PAD  # (B, M)
        place = sincos_pos_embed(self.width, (1, numbers.shape[1])).to(self.table.weight)  # (M, D)
        x = self.table(numbers) + place  # (B, M, D)
        # A caption without words looks at its padding, so that no softmax is over nothing.
        seen = known | ~known.any(1, keepdim=True)  # (B, M)
        x = x + self.attn(self.norm1(x), mask=seen[:, None, None])  # the same for all who look
        return x + self.mlp(self.norm2(x))

    def forward(self, numbers: Tensor) -> Tensor:
        """The mean over the words: (B, M) → (B, D); 0 for a caption without words.

        Raises:
            ValueError: ``numbers`` is not (B, M).
        """
        if numbers.ndim != 2:
            raise ValueError(f"numbers has shape {tuple(numbers.shape)}; allowed: (B, M).")
        known = (numbers != PAD).unsqueeze(-1)  # (B, M, 1)
        total = (self.tokens(numbers) * known).sum(1)  # (B, M, D) -> (B, D)
        return total / known.sum(1).clamp(min=1)


class ClipEncoder(nn.Module):
    """The text half of a trained CLIP, from a folder on disk; nothing is downloaded.

    It stays as it is: no gradient reaches its weights.

    Args:
        folder: what transformers' ``save_pretrained`` wrote, of model and tokenizer.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: transformers is not installed.

    Source: Radford et al. 2021.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"folder={os.fspath(folder)!r} is not there; allowed: a folder "
                "that holds a CLIP text model and its tokenizer."
            )
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
        except ImportError as error:
            raise ImportError("ClipEncoder needs transformers: pip install transformers") from error
        self.model = CLIPTextModel.from_pretrained(folder, local_files_only=True)
        self.model.requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.width = self.model.config.hidden_size

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions as its own numbers, (B, M), filled up behind the sign that ends a caption."""
        return self.tokenizer(list(captions), padding=True, return_tensors="pt").input_ids

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, M) → (B, D), read where a caption ends; CLIP looks back only, so not at padding."""
        return self.model(input_ids=numbers).pooler_output
