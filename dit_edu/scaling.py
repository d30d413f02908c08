"""What a Diffusion Transformer costs, in closed form: parameters, multiply-adds, memory.

Nothing here builds a network. :class:`Architecture` holds the sizes of one, under the names of
:class:`dit_edu.dit.DiT`, and adds up what its matrices hold and multiply. One multiply-add (MAC) is
two floating-point operations; what works element by element is not counted, as papers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.dit import PRESETS
from dit_edu.patchify import token_grid
from dit_edu.positions import POSITIONS

WAVES = 256  # numbers that the step is first turned into


class Extra(NamedTuple):
    """What a way of conditioning adds to attention and MLP.

    Attributes:
        params, macs: of one block, for one image.
        once_params, once_macs: of the whole model: what blocks share, and the final layer's norm.
    """

    params: int
    macs: int
    once_params: int
    once_macs: int


def _vectors(a: Architecture, n: int) -> Extra:
    """adaLN: a linear map from c to ``n`` vectors in each block, and to two in the final layer."""
    d = a.hidden_size
    return Extra(n * d * (d + 1), n * d * d, 2 * d * (d + 1), 2 * d * d)


def _single(a: Architecture) -> Extra:
    """adaLN-single: one map to six vectors for all blocks; each adds six numbers a channel."""
    d = a.hidden_size
    return Extra(6 * d, 0, 6 * d * (d + 1) + 2 * d, 6 * d * d)


def _norms(a: Architecture, n: int) -> Extra:
    """``n`` norms in each block and one at the end that learn a scale and a shift of their own."""
    return Extra(n * 2 * a.hidden_size, 0, 2 * a.hidden_size, 0)


def _in_context(a: Architecture) -> Extra:
    """t and y join as two tokens: ``2 each_token`` more, and (N + 2)² pairs in place of N²."""
    pairs = 2 * ((a.tokens + 2) ** 2 - a.tokens**2) * a.hidden_size
    return _norms(a, 2)._replace(macs=2 * a.each_token + pairs)


def _cross_attention(a: Architecture) -> Extra:
    """Queries and output for N tokens, keys and values for two, and N · 2 pairs."""
    d, n, plain = a.hidden_size, a.tokens, _norms(a, 3)
    macs = 2 * d * d * n + 2 * d * d * 2 + 2 * n * 2 * d
    return plain._replace(params=plain.params + 4 * d * (d + 1), macs=macs)


#: The cost of a way of conditioning by its name in ``dit_edu.conditioning.BLOCKS``.
CONDITIONING: dict[str, Callable[[Architecture], Extra]] = {
    "additive": lambda a: _norms(a, 2),
    "in-context": _in_context,
    "cross-attention": _cross_attention,
    "adaln": lambda a: _vectors(a, 4),
    "adaln-zero": lambda a: _vectors(a, 6),
    "adaln-single": _single,
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a DiT; fields, names and defaults as in :class:`dit_edu.dit.DiT`.

    Raises:
        TypeError, ValueError: a size is not positive, does not fit another, or ``conditioning`` has
            no closed form here; the message names it and what is allowed.
    """

    input_size: int | tuple[int, int] = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    conditioning: str = "adaln-zero"
    positions: str = "sincos"

    def __post_init__(self) -> None:
        for name in ("in_channels", "hidden_size", "depth", "num_heads", "num_classes"):
            check_positive_int(name, getattr(self, name))
        for side in self.size:
            check_positive_int("input_size", side)
        token_grid(self.size, self.patch_size)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}."
            )
        if self.mlp_hidden < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves the MLP no width.")
        check_choice("conditioning", self.conditioning, CONDITIONING)
        check_choice("positions", self.positions, POSITIONS)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The sizes among a model's settings; the others do not change its cost."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Architecture:
        """The sizes of a published model; keyword arguments override them.

        Raises:
            ValueError: ``name`` is unknown; the message names the nearest.
        """
        return cls(**{**PRESETS[check_choice("name", name, PRESETS)], **overrides})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what is cut into patches."""
        size = self.input_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def tokens(self) -> int:
        """N = (H/p)(W/p)."""
        return math.prod(token_grid(self.size, self.patch_size))

    @property
    def mlp_hidden(self) -> int:
        """Width of the MLP, r D."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def patch_in(self) -> int:
        """Numbers of a patch that comes in, p² C."""
        return self.patch_size**2 * self.in_channels

    @property
    def patch_out(self) -> int:
        """Numbers of a patch that goes out, twice as many where the variance is learnt."""
        return self.patch_in * (2 if self.learn_sigma else 1)

    @property
    def each_token(self) -> int:
        """MACs of a block for each token, of attention's four maps and the MLP; 12 D² for r = 4."""
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.mlp_hidden

    @property
    def each_block(self) -> int:
        """What one block more would cost, in MACs for one image."""
        deeper = replace(self, depth=self.depth + 1)
        return sum(deeper.macs().values()) - sum(self.macs().values())

    @property
    def crossover(self) -> float:
        """At this many tokens all pairs cost as much as all tokens; 6 D for r = 4."""
        return self.each_token / (2 * self.hidden_size)  # each_token N = 2 N² D

    def params(self) -> dict[str, int]:
        """Trained parameters by part; positions are among them only where they are learnt."""
        d, extra = self.hidden_size, CONDITIONING[self.conditioning](self)
        biases = 3 * d + d + self.mlp_hidden + d  # of qkv, projection, and the MLP's two maps
        return {
            "blocks": self.depth * (self.each_token + biases + extra.params),
            "patches": (self.patch_in + 1) * d,
            "step": (WAVES + 1) * d + (d + 1) * d,
            "positions": self.tokens * d * (self.positions == "learned"),
            "labels": (self.num_classes + (self.class_dropout_prob > 0)) * d,
            "final": (d + 1) * self.patch_out,
            "shared": extra.once_params,
        }

    def macs(self) -> dict[str, int]:
        """MACs of one forward pass for one image, by part.

        Returns:
            ``tokens`` (linear in N) and ``pairs`` (in N²) of all blocks, all that serves the
            ``condition``, and ``ends``: the embedding of the patches, and their way back.
        """
        d, n, depth = self.hidden_size, self.tokens, self.depth
        extra = CONDITIONING[self.conditioning](self)
        step = WAVES * d + d * d  # the embedder of t; a row of a table costs nothing
        return {
            "tokens": depth * self.each_token * n,  # L 12 D² N
            "pairs": depth * 2 * n * n * d,  # L 2 N² D
            "condition": depth * extra.macs + extra.once_macs + step,  # (6L + 3) D² + 256 D, mostly
            "ends": (self.patch_in + self.patch_out) * d * n,  # p² (C + C') D N
        }


@dataclass(frozen=True)
class Bill:
    """What drawing a batch of images asks for; :func:`sampling_cost` makes it.

    Attributes:
        params: trained parameters.
        passes: forward passes for each image.
        macs: multiply-adds for each image.
        weights: bytes that hold the model.
        activations: bytes at the peak of a forward pass, beside the model (an estimate).
    """

    params: int
    passes: int
    macs: int
    weights: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes at the peak."""
        return self.weights + self.activations


def sampling_cost(
    model: Architecture,
    *,
    steps: int = 250,
    scale: float = 1.0,
    batch: int = 1,
    bytes_per_number: int = 4,
) -> Bill:
    """The cost of drawing images, without a decoder.

    The estimate of the activations: no gradients, and an attention kernel that does not store its
    N × N table. Then the widest moment is that when the MLP's inside stands there twice, before and
    after its GELU. With it wait four sets of tokens: the block's input, the stream after attention,
    attention's own answer, and what the MLP reads. (Where the MLP is narrow, the moment when seven
    sets of tokens serve attention.) Each image adds nine vectors: of t, y, c, and c's six.

    Args:
        model: its sizes.
        steps: sampling steps, each with one call of the network (Heun's method makes two).
        scale: of guidance; any but 1 doubles the batch.
        batch: images drawn at once.
        bytes_per_number: 4 for float32, 2 for bfloat16.

    Raises:
        TypeError, ValueError: a number is not a positive integer, or ``scale`` not finite.
    """
    for name, value in (("steps", steps), ("batch", batch), ("bytes_per_number", bytes_per_number)):
        check_positive_int(name, value)
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite.")
    twice = 1 if scale == 1 else 2
    params = sum(model.params().values())
    d, wide = model.hidden_size, model.mlp_hidden
    numbers = model.tokens * max(4 * d + 2 * wide, 7 * d) + 9 * d  # N (4D + 2rD) + 9D
    return Bill(
        params=params,
        passes=steps * twice,
        macs=steps * twice * sum(model.macs().values()),
        weights=bytes_per_number * (params + model.tokens * d * (model.positions == "sincos")),
        activations=bytes_per_number * twice * batch * numbers,
    )


def training_macs(model: Architecture, *, steps: int, batch: int) -> int:
    """MACs of a whole training: forward, and about twice that backward, for every image seen.

    Backward, each product y = x W is followed by two of its size: one for the gradient of x, one
    for that of W.

    Raises:
        TypeError, ValueError: a number is not a positive integer.
    """
    check_positive_int("steps", steps)
    check_positive_int("batch", batch)
    return 3 * steps * batch * sum(model.macs().values())
