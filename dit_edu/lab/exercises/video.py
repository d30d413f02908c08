"""Exercises of the chapter on video: cut it, count its pairs, and look along time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.video import attention_pairs, crossover_frames, patchify_video

# Predict: twice as many frames.

Growth = Callable[[int, int], tuple[float, float]]


def _growth(frames: int, places: int) -> tuple[float, float]:
    pairs = [
        [attention_pairs(name, 2, f, places) for f in (frames, 2 * frames)]
        for name in ("joint", "factorized")
    ]
    (joint, joint_2), (turns, turns_2) = pairs
    return joint_2 / joint, turns_2 / turns


GROWTH_BUGS: dict[str, tuple[Growth, str]] = {
    "both double": (
        lambda frames, places: (2.0, 2.0),
        "That is how the linear layers grow, which see each token once. Pairs grow faster.",
    ),
    "both fourfold": (
        lambda frames, places: (4.0, 4.0),
        "Joint: right. But along space a frame still has as many tokens as before; there are only "
        "more frames.",
    ),
    "turns double": (
        lambda frames, places: (4.0, 2.0),
        "Nearly. Along space there are twice as many sequences. Along time they are also longer.",
    ),
    "eightfold": (
        lambda frames, places: (8.0, 4.0),
        "Twice the frames are twice the tokens, and pairs go with the square of the tokens.",
    ),
}


def _judge_growth(answer: Growth) -> str | None:
    cases = [(8, 16), (16, 256), (4, 4)]
    if why := mistake(answer, GROWTH_BUGS, lambda f: [list(map(float, f(*c))) for c in cases]):
        return why
    for case in cases:
        if why := close(list(answer(*case)), list(_growth(*case)), f"growth{case}"):
            return why + " Write down the pairs of two blocks for F frames, then for 2 F."
    return None


# Derive: from how many frames on two short looks are cheaper than a long one.

Frames = Callable[[int, int], float]

CROSSOVER_BUGS: dict[str, tuple[Frames, str]] = {
    "the second block forgotten": (
        lambda dim, places: places / (places - 1),
        "You compare pairs alone. The second block also has linear layers: 12 D² for each token.",
    ),
    "time forgotten": (
        lambda dim, places: (6 * dim + places) / places,
        "Of the pairs along time none are counted: each place has F² of them.",
    ),
    "twelve": (
        lambda dim, places: (12 * dim + places) / (places - 1),
        "A pair costs D for its score and D for its share of the values: 2 D.",
    ),
    "of one image": (
        lambda dim, places: 6 * dim,
        "That is the crossover of joint attention with the linear layers, in tokens. Asked is when "
        "one joint block costs as much as two others, in frames.",
    ),
}


def _judge_crossover(answer: Frames) -> str | None:
    cases = [(48, 16), (1152, 256), (384, 64)]
    if why := mistake(answer, CROSSOVER_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), crossover_frames(*case), f"frames{case}"):
            return why + " Set 12 D² N + 2 D N² equal to 24 D² N + 2 D N (S + F), with N = F S."
    return None


# Build: attention along time.

Attend = Callable[[Tensor], Tensor]
Along = Callable[[Tensor, int, Attend], Tensor]


def along_time(x: Tensor, frames: int, attend: Attend) -> Tensor:
    """The solution."""
    b = len(x)
    x = attend(rearrange(x, "b (f s) d -> (b s) f d", f=frames))
    return rearrange(x, "(b s) f d -> b (f s) d", b=b)


def _only_reshaped(x: Tensor, frames: int, attend: Attend) -> Tensor:
    b, n, d = x.shape
    return attend(x.reshape(b * n // frames, frames, d)).reshape(b, n, d)


def _along_space(x: Tensor, frames: int, attend: Attend) -> Tensor:
    b = len(x)
    x = attend(rearrange(x, "b (f s) d -> (b f) s d", f=frames))
    return rearrange(x, "(b f) s d -> b (f s) d", b=b)


def _not_back(x: Tensor, frames: int, attend: Attend) -> Tensor:
    b, n, d = x.shape
    return attend(rearrange(x, "b (f s) d -> (b s) f d", f=frames)).reshape(b, n, d)


ALONG_BUGS: dict[str, tuple[Along, str]] = {
    "only reshaped": (
        _only_reshaped,
        "A reshape alone puts neighbours of one frame into a sequence: tokens stand frame after "
        "frame. Split N into (f, s) first, then bring s in front of f.",
    ),
    "along space": (
        _along_space,
        "These are the tokens of one frame. Asked are those of one place, in all frames.",
    ),
    "not put back": (
        _not_back,
        "Attention is right, but its tokens come back in the order place, frame. Undo the swap.",
    ),
    "joint": (lambda x, frames, attend: attend(x), "This lets all tokens look at all."),
}


def _judge_along(answer: Along) -> str | None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 5, generator=g, dtype=torch.float64)

    def attend(z: Tensor) -> Tensor:
        return (z @ z.transpose(1, 2)).softmax(-1) @ z

    if why := mistake(answer, ALONG_BUGS, lambda f: [f(x, frames, attend) for frames in (3, 4)]):
        return why
    return close(answer(x, 3, attend), along_time(x, 3, attend), "The result for 3 frames")


# Build: tubelets.

Cut = Callable[[Tensor, int, int], Tensor]


def _reshaped(x: Tensor, f: int, p: int) -> Tensor:
    return x.reshape(len(x), -1, f * p * p * x.shape[1])


CUT_BUGS: dict[str, tuple[Cut, str]] = {
    "only reshaped": (
        _reshaped,
        "A reshape alone cuts rows of pixels, not tubelets. Split F, H and W first, then move f, p "
        "and p behind the three counts.",
    ),
    "channels first": (
        lambda x, f, p: rearrange(x, "b c (g f) (h p) (w q) -> b (g h w) (c f p q)", f=f, p=p, q=p),
        "The tubelets are right. Within a token the channel comes last, as in `patchify`.",
    ),
    "time last": (
        lambda x, f, p: rearrange(x, "b c (g f) (h p) (w q) -> b (h w g) (f p q c)", f=f, p=p, q=p),
        "Within a token all is right. The tokens come place after place; they should come frame "
        "after frame.",
    ),
}


def _judge_cut(answer: Cut) -> str | None:
    x = torch.arange(2 * 3 * 4 * 6 * 4, dtype=torch.float64).view(2, 3, 4, 6, 4)
    if why := mistake(answer, CUT_BUGS, lambda cut: cut(x, 2, 2)):
        return why
    return close(answer(x, 2, 2), patchify_video(x, 2, 2), "The result for f = 2, p = 2", rel=0)


EXERCISES = {
    "video-growth": Exercise(
        judge=_judge_growth,
        hints=(
            "How many pairs has a sequence of n tokens, and how many sequences are there?",
            "Joint: (F S)². In turns: F S² along space, and S F² along time.",
            "In turns the ratio is (2 S + 4 F) / (S + F): between two and four.",
        ),
        solution=_growth,
        wrong={name: bug for name, (bug, _) in GROWTH_BUGS.items()},
    ),
    "video-crossover": Exercise(
        judge=_judge_crossover,
        hints=(
            "Write down the MACs of one joint block, and of two blocks, one along each axis.",
            "Divide both sides by 2 D N: what is left is linear in the frames.",
            "F S = 6 D + S + F. Solve for F.",
        ),
        solution=crossover_frames,
        wrong={name: bug for name, (bug, _) in CROSSOVER_BUGS.items()},
    ),
    "video-along": Exercise(
        judge=_judge_along,
        hints=(
            "`attend` takes (batch, tokens, D). Which axis must be among the batch?",
            "rearrange can split and swap in one: 'b (f s) d -> (b s) f d'.",
            "After `attend`, the same pattern the other way round, with b given.",
        ),
        solution=along_time,
        wrong={name: bug for name, (bug, _) in ALONG_BUGS.items()},
    ),
    "video-cut": Exercise(
        judge=_judge_cut,
        hints=(
            "It is `patchify` with one axis more.",
            "Split each of the three axes into a count and a size.",
            "rearrange(x, 'b c (g f) (h p) (w q) -> b (g h w) (f p q c)', f=f, p=p, q=p)",
        ),
        solution=patchify_video,
        wrong={name: bug for name, (bug, _) in CUT_BUGS.items()},
    ),
}
