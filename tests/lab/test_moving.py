"""Moving digits move as they say, and the judges find it out from the pixels alone."""

import pytest
import torch

from dit_edu.lab.data import digits
from dit_edu.lab.moving import (
    COPIES,
    FRAMES,
    SIDE,
    SPEED,
    consistency,
    frame_pairs,
    load_pairs,
    load_videos,
    moving_digits,
    paths,
    read_frames,
    read_videos,
    steps_of,
    windows,
)


@pytest.fixture(scope="module")
def some():
    found = moving_digits("heldout")
    return found.videos[:60], found.label[:60], found.place[:60]


def test_each_frame_holds_the_digit_at_its_place(some):
    videos, label, place = some
    images, labels = digits("heldout")
    assert torch.equal(label, labels[:60])
    for k in range(0, 60, 7):
        for f, (i, j) in enumerate(place[k].tolist()):
            frame = videos[k, 0, f].clone()
            assert torch.equal(frame[i : i + 8, j : j + 8], images[k, 0])
            frame[i : i + 8, j : j + 8] = -1
            assert (frame == -1).all()


def test_speed_is_kept_and_edges_are_met():
    assert len(paths()) == 72 and len(paths().flatten(1).unique(dim=0)) == 40
    for split in COPIES:
        moves = moving_digits(split).place.diff(dim=1)
        place = moving_digits(split).place
        speed = moves.abs()
        assert torch.equal(speed, speed[:, :1].expand_as(speed)) and speed.sum(-1).min() > 0
        assert set(speed.unique().tolist()) == {0, SPEED}
        assert place.min() == 0 and place.max() == SIDE - 8
        turned = (moves[:, 1:] != moves[:, :-1]).any(1)  # (n, 2): in rows, in columns
        assert turned[speed[:, 0] > 0].all()  # all of them bounce within eight frames


def test_halves_share_no_digit():
    train, heldout = (load_videos(split)[0] for split in COPIES)
    assert len(train) == COPIES["train"] * 898 and len(heldout) == 899
    assert len(load_videos("all")[0]) == len(train) + len(heldout)
    a, b = (windows(v[:, 0, 0]).flatten(1) for v in (train, heldout))
    assert torch.cdist(a[:898], b).min() > 0
    train.zero_()
    assert load_videos("train")[0].abs().min() >= 0 and (load_videos("train")[0] != 0).any()
    with pytest.raises(ValueError, match="split='test'"):
        moving_digits("test")


def test_pairs_tell_digit_and_direction(some):
    pairs, labels = load_pairs("heldout")
    videos, _, place = some
    assert torch.equal(pairs[:7], frame_pairs(videos[:1]))
    assert torch.equal(pairs[3], videos[0, 0, 3:5])
    assert set(labels.tolist()) == set(range(80))
    assert torch.equal(labels[: 7 * 60 : 7] // 8, moving_digits("heldout").label[:60])
    up_left = (place.diff(dim=1) < 0).all(-1).flatten()
    assert torch.equal(labels[: 7 * 60] % 8 == 0, up_left)


def test_moves_are_found_in_the_pixels(some):
    videos, _, place = some
    moves, left = steps_of(videos)
    assert torch.equal(moves, place.diff(dim=1)) and left.max() == 0
    noisy = videos + 0.2 * torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    moves, left = steps_of(noisy)
    assert (moves == place.diff(dim=1)).all(-1).double().mean() > 0.97 and left.min() > 0


def test_consistency_of_real_still_and_broken_videos(some):
    videos, label, _ = some
    real = consistency(videos, label)
    assert real["steady"] == real["kept"] == real["same"] == 1 and real["left"] == 0
    assert real["frames"] > 0.95
    swapped = videos.clone()
    swapped[:, :, 3] = videos.roll(1, 0)[:, :, 3]  # another digit in one frame
    broken = consistency(swapped, label)
    assert broken["left"] > 0.05 and broken["same"] < 0.5
    shuffled = videos[:, :, torch.randperm(FRAMES, generator=torch.Generator().manual_seed(1))]
    assert consistency(shuffled, label)["kept"] < 0.6
    still = consistency(videos[:, :, :1].expand_as(videos), label)
    assert still["kept"] == 0 and still["left"] == 0 and still["same"] == 1
    with pytest.raises(ValueError, match="reach=0"):
        steps_of(videos, 0)


def test_the_judge_reads_held_out_digits(some):
    videos, label, _ = some
    assert read_frames(videos).shape == (60, FRAMES)
    assert (read_videos(videos) == label).double().mean() > 0.95
    assert torch.equal(windows(videos[:, 0, 0]), windows(videos[:, 0, 5]))  # wherever it is
