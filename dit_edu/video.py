"""Video: an image with one axis more, and what a Transformer makes of it.

A video is (B, C, F, H, W). Lay its frames below each other, like the pictures of a film strip, and
it is an image again: (B, C, F·H, W). No patch crosses the border between two frames, so the tokens
of the strip are those of the video, frame after frame, and the DiT of this book denoises it as it
is. Two things have to be told anew: where a token stands, and who may look at whom.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.dit import DiT
from dit_edu.positions import sincos_pos_embed, sincos_time_embed

#: Who may look at whom. Jointly all tokens at all; factorized, in turns those of a frame and those
#: of a place through all frames; or those of a frame alone, so that frames know nothing of others.
ATTENTION = ("joint", "factorized", "frames")


def patchify_video(x: Tensor, f: int, p: int) -> Tensor:
    """Cut videos into tubelets of f frames and p × p pixels, first all of the first f frames.

    Args:
        x: videos, (B, C, F, H, W).
        f: the frames of a tubelet; divides F.
        p: its side in pixels; divides H and W.

    Returns:
        (B, N, f·p·p·C) with N = (F/f)(H/p)(W/p); a token lists (frame, row, column, channel).

    Raises:
        TypeError, ValueError: ``x`` is no batch of videos, or a size does not fit.

    Source: Arnab et al. 2021, section 3.2, tubelet embedding.
    """
    if x.ndim != 5:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (B, C, F, H, W).")
    tubelets(tuple(x.shape[2:]), f, p)
    return rearrange(x, "b c (g f) (h p) (w q) -> b (g h w) (f p q c)", f=f, p=p, q=p)


def unpatchify_video(tokens: Tensor, f: int, p: int, grid: tuple[int, int, int]) -> Tensor:
    """Put tubelets together again; the inverse of :func:`patchify_video`.

    Args:
        tokens: (B, N, f·p·p·C).
        f, p: frames and side of a tubelet.
        grid: how many there are in time, per column and per row, (F/f, H/p, W/p).

    Returns:
        videos, (B, C, F, H, W).

    Raises:
        TypeError, ValueError: number or length of the tokens does not fit.
    """
    size = check_positive_int("f", f) * check_positive_int("p", p) ** 2
    g, h, w = grid
    if tokens.ndim != 3 or tokens.shape[1] != g * h * w or tokens.shape[2] % size:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; allowed for grid={g}x{h}x{w}, f={f} and "
            f"p={p}: (B, {g * h * w}, {size}*C)."
        )
    pattern = "b (g h w) (f p q c) -> b c (g f) (h p) (w q)"
    return rearrange(tokens, pattern, g=g, h=h, w=w, f=f, p=p, q=p)  # (B, C, F, H, W)


def tubelets(size: tuple[int, int, int], f: int, p: int) -> tuple[int, int, int]:
    """How many tubelets a video of ``size`` = (F, H, W) gives in each direction.

    Raises:
        TypeError, ValueError: ``f`` does not divide F, or ``p`` not H and W.
    """
    check_positive_int("f", f), check_positive_int("p", p)
    frames, h, w = size
    if frames % f or h % p or w % p:
        raise ValueError(
            f"f={f}, p={p} do not divide the video of {frames} frames of {h}x{w} pixels; "
            "allowed: f that divides the frames, p that divides both sides."
        )
    return frames // f, h // p, w // p


class Along(nn.Module):
    """Attention along one axis: many short sequences in place of a long one.

    Args:
        attention: what looks, with the signature of all attention of this book.
        frames: F, how many frames the tokens are of.
        axis: ``"space"``, the tokens of a frame look at each other; ``"time"``, those of a place.

    Source: Bertasius et al. 2021, divided attention; Ma et al. 2024 (Latte) for a DiT.
    """

    def __init__(self, attention: nn.Module, frames: int, axis: str) -> None:
        super().__init__()
        self.attention = attention
        self.frames = check_positive_int("frames", frames)
        self.short = {"space": "(b f) s d", "time": "(b s) f d"}[
            check_choice("axis", axis, ("space", "time"))
        ]

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens ``x`` (B, F·S, D), frame after frame → (B, F·S, D).

        ``cond`` (B, D) is told to each of a sample's sequences; ``mask`` is that of one sequence.
        """
        b = len(x)
        x = rearrange(x, f"b (f s) d -> {self.short}", f=self.frames)  # (B·F, S, D) or (B·S, F, D)
        if cond is not None:
            cond = cond.repeat_interleave(len(x) // b, dim=0)  # (B·F or B·S, D)
        x = self.attention(x, cond=cond, mask=mask)
        return rearrange(x, f"{self.short} -> b (f s) d", b=b, f=self.frames)  # (B, F·S, D)


class VideoDiT(nn.Module):
    """A denoiser of videos: a DiT on the film strip.

    Args:
        input_size: (F, H, W), frames and pixels.
        patch_size: p, the side of a tubelet.
        tubelet: f, its frames.
        in_channels: C.
        attention: a name of :data:`ATTENTION`. Where it is ``"factorized"``, blocks look along
            space and along time in turns, space first.
        **settings: the others of :class:`~dit_edu.dit.DiT`; its positions are those in space and
            time, so none may be chosen.

    Attributes:
        net: the DiT; its image is the strip.
        input_size, in_channels, num_classes, class_dropout_prob: as above.

    Raises:
        TypeError, ValueError: a size does not fit another, or ``attention`` is unknown.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int] = (8, 16, 16),
        patch_size: int = 4,
        tubelet: int = 1,
        in_channels: int = 1,
        attention: str = "joint",
        **settings: Any,
    ) -> None:
        super().__init__()
        _, height, width = self.input_size = tuple(input_size)
        g, h, w = tubelets(self.input_size, tubelet, patch_size)
        self.in_channels, self.tubelet = in_channels, tubelet
        self.attention = check_choice("attention", attention, ATTENTION)
        self.net = DiT(
            input_size=(g * height, width),
            patch_size=patch_size,
            in_channels=in_channels * tubelet,
            positions="none",
            **settings,
        )
        self.num_classes, self.class_dropout_prob = (
            self.net.num_classes,
            self.net.class_dropout_prob,
        )
        dim = self.net.x_embedder.proj.out_channels
        space, time = sincos_pos_embed(dim, (h, w)), sincos_time_embed(dim, g)  # (S, D), (F', D)
        places = rearrange(time, "g d -> g 1 d") + space  # (F', S, D)
        self.net.pos_embed = nn.Parameter(places.flatten(0, 1).unsqueeze(0), requires_grad=False)
        for k, block in enumerate(self.net.blocks if attention != "joint" else ()):
            turn = "time" if attention == "factorized" and k % 2 else "space"
            block.attn = Along(block.attn, g, turn)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Denoise; all frames of a video are at the same step.

        Args:
            x: noisy videos, (B, C, F, H, W).
            t: steps, (B,).
            y: labels, (B,).

        Returns:
            (B, C, F, H, W), or (B, 2C, F, H, W) where the variance is learnt too.

        Raises:
            ValueError: a shape does not fit the model.
        """
        check_video(x, (self.in_channels, *self.input_size))
        f, g = self.tubelet, self.input_size[0] // self.tubelet
        strip = rearrange(x, "b c (g f) h w -> b (f c) (g h) w", f=f)  # (B, f·C, F/f·H, W)
        out = self.net(strip, t, y)  # (B, f·C or 2f·C, F/f·H, W)
        c = self.in_channels
        return rearrange(out, "b (k f c) (g h) w -> b (k c) (g f) h w", f=f, c=c, g=g)

    null_condition = DiT.null_condition


def attention_pairs(attention: str, depth: int, frames: int, places: int) -> int:
    """How many pairs of tokens the blocks of a model look at: each costs 2 D MACs.

    Args:
        attention: a name of :data:`ATTENTION`.
        depth: L.
        frames, places: F' and S, so that there are N = F' S tokens.

    Returns:
        L (F'S)² if joint; L F' S² if frames are alone; L/2 of each, F' S² and S F'², if in turns.
    """
    check_choice("attention", attention, ATTENTION)
    space, time = frames * places**2, places * frames**2
    if attention == "joint":
        return depth * (frames * places) ** 2
    turns = depth // 2 if attention == "factorized" else 0
    return (depth - turns) * space + turns * time


def crossover_frames(dim: int, places: int) -> float:
    """From so many frames on, a joint block costs more than two, one along space, one along time.

    12 D² N + 2 D N² = 24 D² N + 2 D N (S + F') with N = F' S gives F' = (6 D + S) / (S - 1).

    Raises:
        TypeError, ValueError: an argument is no positive integer, or there is but one place.
    """
    if check_positive_int("places", places) == 1:
        raise ValueError("places=1 leaves nothing to factorize; allowed: at least 2.")
    return (6 * check_positive_int("dim", dim) + places) / (places - 1)


def check_video(x: Tensor, want: tuple[int, ...]) -> None:
    """Check that ``x`` is a batch of videos of ``want`` = (C, F, H, W).

    Raises:
        ValueError: it is not.
    """
    if tuple(x.shape[1:]) != want:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; allowed: (B, {', '.join(map(str, want))})."
        )
