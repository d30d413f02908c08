"""Moving digits: real digits that move in straight lines and bounce, and how to tell that they do.

A digit of 8 × 8 pixels moves over a field of 16 × 16, four pixels from frame to frame in one of
eight directions, and turns where it meets the edge. So its speed never changes, nor does the digit:
whoever finds in a video by how much each frame is moved against the last, and what is left over,
can say how far the video is from being real, without a net.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu._checks import check_choice, check_positive_int

FRAMES, SIDE = 8, 16
SPEED = 4  # pixels of a step, in rows or columns or both
COPIES = {"train": 4, "heldout": 1}  # videos of each digit
DIRECTIONS = ("up left", "up", "up right", "left", "right", "down left", "down", "down right")


@dataclass(frozen=True)
class Moving:
    """Videos, and what is known of them.

    Attributes:
        videos: (n, 1, F, H, W) float32 in [-1, 1].
        label: the digit, (n,).
        place: row and column of its upper left corner, (n, F, 2) integers.
    """

    videos: Tensor
    label: Tensor
    place: Tensor


def paths(frames: int = FRAMES) -> Tensor:
    """All paths of a digit, (72, F, 2): 9 places to start at, 8 directions to start in.

    At an edge two directions are one path, so 40 are different.
    """
    room = SIDE - 8
    corner = torch.arange(0, room + 1, SPEED)
    starts = torch.cartesian_prod(corner, corner)
    axis = torch.tensor([-SPEED, 0, SPEED])
    moves = torch.cartesian_prod(axis, axis)
    moves = moves[moves.any(1)]  # none stands still
    steps = moves[:, None] * torch.arange(frames)[:, None]  # (8, F, 2)
    way = (starts[:, None, None] + steps).flatten(0, 1)  # (72, F, 2)
    return room - (way % (2 * room) - room).abs()  # folded at both edges


def move(images: Tensor, labels: Tensor, seed: int) -> Moving:
    """Let digits (n, 1, 8, 8) move, each along a path of its own."""
    generator, n = torch.Generator().manual_seed(seed), len(images)
    known = paths()
    place = known[torch.randint(len(known), (n,), generator=generator)]  # (n, F, 2)
    videos = torch.full((n, FRAMES, SIDE, SIDE), -1.0)
    rows = place[..., 0, None, None] + torch.arange(8)[:, None]  # (n, F, 8, 1)
    columns = place[..., 1, None, None] + torch.arange(8)  # (n, F, 1, 8)
    which = torch.arange(n)[:, None, None, None], torch.arange(FRAMES)[:, None, None]
    videos[which[0], which[1], rows, columns] = images  # (n, 1, 8, 8) to every frame
    return Moving(videos.unsqueeze(1), labels, place)


@cache
def moving_digits(split: str = "train") -> Moving:
    """The videos of a half: each digit of its half of the digits, four times or once.

    Raises:
        ValueError: ``split`` is unknown.
    """
    from dit_edu.lab.data import digits  # it imports this module

    images, labels = digits(check_choice("split", split, COPIES))
    copies = COPIES[split]
    return move(
        images.repeat(copies, 1, 1, 1), labels.repeat(copies), seed=list(COPIES).index(split)
    )


def load_videos(split: str = "train") -> tuple[Tensor, Tensor]:
    """Videos (n, 1, 8, 16, 16) and the digits in them (n,); ``"all"`` is both halves."""
    if split == "all":
        parts = [load_videos(part) for part in COPIES]
        return torch.cat([v for v, _ in parts]), torch.cat([y for _, y in parts])
    found = moving_digits(split)
    return found.videos.clone(), found.label.clone()


def frame_pairs(videos: Tensor) -> Tensor:
    """Each frame with the next: (n, C, F, H, W) → (n·(F-1), 2C, H, W)."""
    pairs = torch.cat([videos[:, :, :-1], videos[:, :, 1:]], dim=1)  # (n, 2C, F-1, H, W)
    return pairs.movedim(2, 1).flatten(0, 1)


def load_pairs(split: str = "train") -> tuple[Tensor, Tensor]:
    """Pairs of frames, (m, 2, 16, 16), and of each the digit and the direction of its move (m,)."""
    if split == "all":
        parts = [load_pairs(part) for part in COPIES]
        return torch.cat([v for v, _ in parts]), torch.cat([y for _, y in parts])
    found = moving_digits(split)
    signs = found.place.diff(dim=1).sign().flatten(0, 1) + 1  # (m, 2): 0, 1, 2
    direction = 3 * signs[:, 0] + signs[:, 1]  # 0 … 8; 4 would be none
    direction -= (direction > 4).long()
    label = found.label.repeat_interleave(FRAMES - 1) * len(DIRECTIONS) + direction
    return frame_pairs(found.videos), label


# ---------------------------------------------------------------------- what is measured


def steps_of(videos: Tensor, reach: int = 4) -> tuple[Tensor, Tensor]:
    """How each frame is moved against the one before, and what the move leaves unexplained.

    All moves of up to ``reach`` pixels are tried; that with the least squared difference counts.

    Args:
        videos: (n, 1, F, H, W) in [-1, 1].
        reach: the largest move in each direction.

    Returns:
        Moves (n, F-1, 2) in rows and columns, and the squared difference that is left (n, F-1), as
        a share of the ink of the two frames: 0 if the frame is the last one moved, about 1 if the
        two have nothing in common.
    """
    check_positive_int("reach", reach)
    ink = videos[:, 0] + 1  # (n, F, H, W), 0 where there is nothing
    now, then = ink[:, :-1], ink[:, 1:]
    padded = F.pad(now, [reach] * 4)
    h, w = ink.shape[-2:]
    moves = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
    moves.sort(key=lambda m: m[0] ** 2 + m[1] ** 2)  # of equals, the shortest
    left = torch.stack(
        [
            (then - padded[..., reach - i : reach - i + h, reach - j : reach - j + w])
            .square()
            .sum((-1, -2))
            for i, j in moves
        ],
        dim=-1,
    )  # (n, F-1, moves)
    least, best = left.min(-1)
    whole = (now.square() + then.square()).sum((-1, -2)).clamp(min=1e-6)
    return torch.tensor(moves)[best], least / whole


def windows(frames: Tensor) -> Tensor:
    """The 8 × 8 pixels around the centre of mass of each frame (n, H, W): (n, 8, 8)."""
    ink = (frames + 1).clamp(min=0)
    total = ink.sum((1, 2)).clamp(min=1e-6)
    place = torch.arange(frames.shape[-1], dtype=frames.dtype)
    centre = torch.stack([(ink.sum(k) * place).sum(1) / total for k in (2, 1)], dim=1)  # (n, 2)
    corner = (centre - 3.5).round().long() + 4  # in the padded frame
    padded = F.pad(frames, [4] * 4, value=-1.0)
    corner = corner.clamp(0, padded.shape[-1] - 8)
    rows = corner[:, 0, None, None] + torch.arange(8)[:, None]
    columns = corner[:, 1, None, None] + torch.arange(8)
    return padded[torch.arange(len(frames))[:, None, None], rows, columns]


@cache
def _judge():
    """A support vector machine that has learnt the digits to learn from, put in the centre."""
    from sklearn.svm import SVC

    from dit_edu.lab.data import digits

    images, labels = digits("train")
    framed = F.pad(images[:, 0], [4] * 4, value=-1.0)
    return SVC(C=10).fit(windows(framed).flatten(1).numpy(), labels.numpy())


def read_frames(videos: Tensor) -> Tensor:
    """Which digit each frame shows, (n, F), by a judge that has learnt from the training half."""
    flat = windows(videos[:, 0].flatten(0, 1)).flatten(1)
    return torch.from_numpy(_judge().predict(flat.numpy())).view(len(videos), -1)


def read_videos(videos: Tensor) -> Tensor:
    """Which digit most frames of a video show, (n,)."""
    return read_frames(videos).mode(dim=1).values


def consistency(videos: Tensor, labels: Tensor) -> dict[str, float]:
    """How far videos move as real ones do.

    Args:
        videos: (n, 1, F, H, W) in [-1, 1].
        labels: the digits asked for, (n,).

    Returns:
        Five shares. ``steady`` of the videos move, and with the same speed, in rows and in columns,
        in all steps; ``kept`` of the steps do. ``left`` is the mean of what moves leave
        unexplained. ``frames`` of the frames show the digit asked for; ``same`` of the videos show
        one digit in all frames.
    """
    moves, left = steps_of(videos)
    speed, seen = moves.abs(), read_frames(videos)  # (n, F-1, 2), (n, F)
    kept = (speed[:, 1:] == speed[:, :-1]).all(-1) & speed[:, 1:].any(-1)  # (n, F-2)
    return {
        "steady": float(kept.all(1).double().mean()),
        "kept": float(kept.double().mean()),
        "left": float(left.double().mean()),
        "frames": float((seen == labels[:, None]).double().mean()),
        "same": float((seen == seen[:, :1]).all(1).double().mean()),
    }
