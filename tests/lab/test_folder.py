"""Reading a folder of one's own: what is found, in which order, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_edu.lab.folder import read_image, read_latents, scan

ORIENTATION = 0x0112  # the EXIF tag


def write(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(str(path))).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_classes_and_files_come_in_alphabetical_order(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a/z.jpg", "a/below/c.webp", "a/.hidden.png", ".git/x.png"):
        write(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no image")
    found = scan(tmp_path)
    inside = [file.relative_to(tmp_path).as_posix() for file in found.files]
    assert inside == ["a/below/c.webp", "a/z.jpg", "b/10.PNG", "b/2.png"]
    assert (found.labels, found.class_names, found.latents) == ((0, 0, 1, 1), ("a", "b"), False)


def test_it_agrees_with_sklearn(tmp_path):
    """Classes and labels of ``load_files``, which reads the same layout."""
    from sklearn.datasets import load_files

    for name in ("dog/1.png", "cat/2.png", "eel/0.png", "cat/1.png"):
        write(tmp_path / name)
    theirs, ours = load_files(tmp_path, load_content=False, shuffle=False), scan(tmp_path)
    assert tuple(theirs.target_names) == ours.class_names
    assert dict(zip(map(str, theirs.filenames), theirs.target, strict=True)) == dict(
        zip(map(str, ours.files), ours.labels, strict=True)
    )


def test_a_flat_folder_is_one_class(tmp_path):
    write(tmp_path / "pets" / "a.png")
    found = scan(tmp_path / "pets")
    assert (len(found), found.labels, found.class_names) == (1, (0,), ("pets",))


def test_what_is_no_folder_of_examples_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        scan(tmp_path / "nowhere")
    file = write(tmp_path / "one" / "a.png")
    with pytest.raises(NotADirectoryError):
        scan(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no examples; allowed: \.bmp, "):
        scan(tmp_path / "empty")
    (tmp_path / "classes" / "cats").mkdir(parents=True)
    write(tmp_path / "classes" / "dogs" / "a.png")
    with pytest.raises(ValueError, match=r"classes.cats holds no examples"):
        scan(tmp_path / "classes")
    write(tmp_path / "mixed" / "a.png")
    write(tmp_path / "mixed" / "dogs" / "a.png")
    with pytest.raises(ValueError, match=r"mixed.a\.png lies beside the folder dogs"):
        scan(tmp_path / "mixed")
    write(tmp_path / "kinds" / "a.png")
    np.save(tmp_path / "kinds" / "b.npy", np.zeros((4, 8, 8)))
    with pytest.raises(ValueError, match=r"images and latents: .*a\.png and .*b\.npy"):
        scan(tmp_path / "kinds")


def test_an_image_of_the_right_size_is_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    x = read_image(write(tmp_path / "a.png", pixels), 5)
    assert (x.shape, x.dtype) == ((3, 5, 5), torch.float32)
    np.testing.assert_allclose((x.permute(1, 2, 0).numpy() + 1) * 127.5, pixels, atol=1e-4)
    grey = read_image(tmp_path / "a.png", 5, channels=1)
    luma = pixels @ [0.299, 0.587, 0.114]  # ITU-R 601
    np.testing.assert_allclose((grey[0].numpy() + 1) * 127.5, luma, atol=1)


def test_the_middle_is_cut_out_and_shrunk_without_aliasing(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = np.arange(8, dtype=np.uint8)[:, None, None] * 30  # the middle square
    pixels[:, :6], pixels[:, 14:] = 255, 255
    whole = read_image(write(tmp_path / "wide.png", pixels), 8)
    np.testing.assert_array_equal(np.round((whole[0, :, 0].numpy() + 1) * 127.5), np.arange(8) * 30)
    stripes = np.tile(np.array([0, 255], np.uint8)[None, :, None], (32, 16, 3))  # each pixel
    small = read_image(write(tmp_path / "stripes.png", stripes), 8)
    assert small[:, :, 1:-1].abs().max() < 0.02  # grey, not black or white
    tall = read_image(write(tmp_path / "tall.png", pixels.swapaxes(0, 1).copy()), 8)
    torch.testing.assert_close(tall, whole.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("orientation", "undone"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_exif_orientation_is_heeded(tmp_path, orientation, undone):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = write(tmp_path / "a.png", pixels, exif=exif)
    x = (read_image(path, 6).permute(1, 2, 0).numpy() + 1) * 127.5
    np.testing.assert_allclose(x, undone(pixels), atol=1e-4)


def test_other_modes_are_converted(tmp_path):
    rgb = Image.fromarray(np.full((4, 4, 3), (200, 100, 0), np.uint8))
    for mode, ending in (("P", "png"), ("L", "png"), ("RGBA", "png"), ("CMYK", "tif")):
        rgb.convert(mode).save(tmp_path / f"{mode}.{ending}")
        x = read_image(tmp_path / f"{mode}.{ending}", 4)
        assert x.shape == (3, 4, 4)
        want = (200, 100, 0) if mode != "L" else (118,) * 3
        np.testing.assert_allclose((x[:, 0, 0].numpy() + 1) * 127.5, want, atol=5)


def test_a_broken_image_is_named(tmp_path):
    whole = write(tmp_path / "whole.png", np.zeros((64, 64, 3), np.uint8)).read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg = write(tmp_path / "whole.jpg", noise).read_bytes()
    files = {"text.png": b"no image", "none.png": b"", "cut.jpg": jpeg[: len(jpeg) // 2]}
    files |= {"cut.png": whole[:60], "bits.png": whole[:40] + b"\0" * 20 + whole[60:]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is no image that can be read: "):
            read_image(tmp_path / name, 8)
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png .* mode 'I;16'; allowed: 8 bits"):
        read_image(tmp_path / "deep.png", 4)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nowhere.png", 4)
    with pytest.raises(ValueError, match="size=0"):
        read_image(tmp_path / "whole.png", 0)
    with pytest.raises(ValueError, match="channels=4; allowed: 1"):
        read_image(tmp_path / "whole.png", 4, channels=4)


def test_latents_are_read_or_refused_by_name(tmp_path):
    good = np.random.default_rng(0).normal(size=(4, 8, 8))
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "a.npy", good.astype(dtype))
        found = read_latents(tmp_path / "a.npy", (4, 8, 8))
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), good.astype(dtype).astype(np.float32))
    bad = {
        "int": (good.astype(int), "holds int64; allowed: floating point"),
        "shape": (good[:3], r"has shape \(3, 8, 8\); allowed: \(4, 8, 8\)"),
        "nan": (np.full((4, 8, 8), np.nan), "holds NaN or infinity"),
        "object": (np.array([{}], dtype=object), "is no array of numbers"),
    }
    for name, (array, match) in bad.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        with pytest.raises(ValueError, match=rf"{name}\.npy {match}"):
            read_latents(tmp_path / f"{name}.npy", (4, 8, 8))
    for name, content in (("text", b"nothing"), ("none", b"")):
        (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npy is no array"):
            read_latents(tmp_path / f"{name}.npy", (4, 8, 8))
