"""The latent cache: what it holds, that it notices every change, and that no work is lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from dit_edu.lab import own, zoo
from dit_edu.lab.cli import main
from dit_edu.lab.files import read_safetensors
from dit_edu.lab.finetune import ADAPTERS, load_adapters
from dit_edu.lab.folder import read_image, scan
from dit_edu.lab.lora import LoRADiT
from dit_edu.lab.own import own_data
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.lab.train import run
from dit_edu.latents import VAE

PIXELS = replace(
    RECIPES["pixels-dit"],
    name="tiny",
    model={**RECIPES["pixels-dit"].model, "input_size": 8, "hidden_size": 16, "depth": 1},
    steps=2,
    batch_size=4,
    warmup=0,
)
LATENT = {"input_size": 4, "in_channels": 4, "patch_size": 2}


def quiet(line):
    pass


@pytest.fixture
def photos(tmp_path):
    """Two classes of noise, five and three images."""
    rng = np.random.default_rng(0)
    for name, n in (("cats", 5), ("dogs", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(n):
            pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a small autoencoder of diffusers, f = 2, with a scale of its own."""
    torch.manual_seed(0)
    net = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    folder = tmp_path_factory.mktemp("vae")
    net.save_pretrained(folder)
    return folder, net


@pytest.fixture
def on_latents(published):
    model = {**PIXELS.model, **LATENT}
    return replace(PIXELS, latents=str(published[0]), model=model)


def cached(recipe, path, tmp_path, **options):
    return own_data(recipe, path, cache=tmp_path / "cache", **{"report": quiet, **options})


def test_without_an_autoencoder_it_holds_the_pixels(photos, tmp_path):
    recipe, (x, y) = cached(PIXELS, photos, tmp_path)
    files = scan(photos).files
    torch.testing.assert_close(x, torch.stack([read_image(f, 8) for f in files]), rtol=0, atol=0)
    assert y.tolist() == [0] * 5 + [1] * 3
    assert recipe.model["num_classes"] == 2
    assert "0 cats, 1 dogs" in recipe.about
    assert Recipe.from_dict(recipe.as_dict()) == recipe  # so it travels in a checkpoint
    file = tmp_path / "cache" / f"{recipe.data}.safetensors"
    assert set(load_file(file)) == {"x", "y"}  # any reader of safetensors can open it
    assert read_safetensors(file)[1] == {"classes": ["cats", "dogs"], "flip": False}


def test_mirrored_images_come_in_pairs(photos, tmp_path):
    _, (x, y) = cached(PIXELS, photos, tmp_path, flip=True, first_label=12)
    plain = cached(PIXELS, photos, tmp_path)[1][0]
    torch.testing.assert_close(x[::2], plain, rtol=0, atol=0)
    torch.testing.assert_close(x[1::2], plain.flip(-1), rtol=0, atol=0)
    assert y.tolist() == [12] * 10 + [13] * 6


@torch.no_grad()
def test_latents_are_diffusers_own_means_at_unit_scale(photos, tmp_path, published, on_latents):
    _, (z, _) = cached(on_latents, photos, tmp_path, flip=True)
    x = torch.stack([read_image(f, 8) for f in scan(photos).files])
    net = published[1]
    for rows, pixels in ((z[::2], x), (z[1::2], x.flip(-1))):
        mean = net.encode(pixels).latent_dist.mean
        torch.testing.assert_close(rows, (mean - 0.25) * 0.5, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(z[1::2], z[::2].flip(-1), atol=1e-3)  # why flips are encoded too
    vae = zoo.load_vae(on_latents)
    torch.testing.assert_close(
        vae.decode(z[::2]), net.decode(z[::2] / 0.5 + 0.25).sample.clamp(-1, 1)
    )


def test_the_name_changes_with_everything_that_went_in(photos, tmp_path, published, on_latents):
    vae = zoo.load_vae(on_latents)
    with torch.no_grad():
        other = VAE(8, widths=(8, 8))
    names = []

    def add(recipe=PIXELS, flip=False, vae=None):
        names.append(own.fingerprint(scan(photos), recipe, vae, flip))

    add()
    add(flip=True)
    add(replace(PIXELS, model={**PIXELS.model, "input_size": 16}))
    add(on_latents, vae=vae)
    add(on_latents, vae=other)
    content = (photos / "cats" / "0.png").read_bytes()
    (photos / "cats" / "0.png").write_bytes((photos / "cats" / "1.png").read_bytes())
    add()
    (photos / "cats" / "0.png").write_bytes(content)
    (photos / "cats" / "0.png").rename(photos / "cats" / "00.png")
    add()
    (photos / "cats" / "00.png").rename(photos / "cats" / "0.png")
    (photos / "cats").rename(photos / "eels")
    add()
    (photos / "eels").rename(photos / "cats")
    (photos / "dogs" / "2.png").unlink()
    add()
    assert len(set(names)) == len(names)
    assert all(len(name) == 12 for name in names)


def test_an_unchanged_folder_is_not_encoded_again(photos, tmp_path, monkeypatch):
    _, (x, _) = cached(PIXELS, photos, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    photos.rename(tmp_path / "elsewhere" / "moved")  # neither place nor date counts
    monkeypatch.setattr(own, "read_image", lambda *a: pytest.fail("read again"))
    _, (again, _) = cached(PIXELS, tmp_path / "elsewhere" / "moved", tmp_path)
    torch.testing.assert_close(again, x, rtol=0, atol=0)


def test_an_interrupted_cache_goes_on_and_ends_with_the_same_bytes(
    photos, tmp_path, monkeypatch, on_latents
):
    monkeypatch.setattr(own, "PIXELS", 2 * 2 * 8 * 8)  # two files, mirrored, at once
    recipe, _ = cached(on_latents, photos, tmp_path / "straight", flip=True)
    straight = tmp_path / "straight" / "cache" / f"{recipe.data}.safetensors"
    read, taken = own.read_image, []

    def interrupted(path, *rest):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(path)
        return read(path, *rest)

    monkeypatch.setattr(own, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(on_latents, photos, tmp_path, flip=True)
    file = tmp_path / "cache" / straight.name
    assert not file.exists()
    partial = file.with_suffix(".partial")
    with open(partial, "ab") as torn:  # half a row more, as after a full disk
        torn.write(b"\0" * 100)
    again = []
    monkeypatch.setattr(own, "read_image", lambda p, *rest: again.append(p) or read(p, *rest))
    cached(on_latents, photos, tmp_path, flip=True)
    assert [p.name for p in again] == ["4.png", "0.png", "1.png", "2.png"]  # four were done
    assert file.read_bytes() == straight.read_bytes()
    assert not partial.exists()


def test_a_broken_image_leaves_no_cache_and_is_named(photos, tmp_path):
    (photos / "dogs" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dogs.1\.png is no image"):
        cached(PIXELS, photos, tmp_path)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_a_cache_larger_than_what_is_read_stays_on_the_disk(tmp_path):
    """A batch of a mapped file of 64 MB makes the process grow by much less."""
    n, shape = 4096, (4, 32, 32)
    path = tmp_path / "big.safetensors"
    with open(path, "wb") as file:
        file.write(own._header(torch.zeros(n, dtype=torch.long), shape, {}))
        file.truncate(file.tell() + 4 * n * math.prod(shape))
    before = psutil.Process().memory_info()
    x = read_safetensors(path)[0]["x"]
    rows = x[torch.arange(0, n, 512)]
    after = psutil.Process().memory_info()
    private = [info.rss - info.shared for info in (before, after)]
    assert rows.shape == (8, *shape)
    assert x.shape == (n, *shape)
    assert private[1] - private[0] < 16e6 < path.stat().st_size


def test_npy_latents_are_taken_as_they_are(tmp_path, on_latents):
    folder = tmp_path / "latents"
    folder.mkdir()
    z = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float32)
    z /= z.std()
    for k in range(3):
        np.save(folder / f"{k}.npy", 5 * z[k])
    lines = []
    recipe, (x, y) = cached(on_latents, folder, tmp_path, report=lines.append)
    np.testing.assert_array_equal(x.numpy(), 5 * z)
    assert (y.tolist(), recipe.model["num_classes"]) == ([0, 0, 0], 1)
    assert any("spread is 5" in line for line in lines)  # a wrong scale is said, not mended
    model = run(recipe, data=(x, y), device="cpu", progress=False).model  # not encoded twice
    assert model.in_channels == 4
    np.save(folder / "3.npy", z[0, :2])
    with pytest.raises(ValueError, match=r"3\.npy has shape \(2, 4, 4\); allowed: \(4, 4, 4\)"):
        cached(on_latents, folder, tmp_path)


def test_what_does_not_fit_is_refused(photos, tmp_path, on_latents):
    folder = tmp_path / "latents"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros((4, 4, 4), np.float32))
    with pytest.raises(ValueError, match="flip=True with latents"):
        cached(on_latents, folder, tmp_path, flip=True)
    with pytest.raises(ValueError, match="a recipe that names the autoencoder"):
        cached(PIXELS, folder, tmp_path)
    wrong = replace(PIXELS, model={**PIXELS.model, "in_channels": 4})
    with pytest.raises(ValueError, match="in_channels=4 without latents"):
        cached(wrong, photos, tmp_path)
    wrong = replace(on_latents, model={**on_latents.model, "in_channels": 3})
    with pytest.raises(ValueError, match=r"in_channels=3 of the model; allowed .* 4 and 4"):
        cached(wrong, photos, tmp_path)
    with pytest.raises(ValueError, match=r"own-1.* lies in a folder of one's own"):
        run(replace(PIXELS, data="own-1"), device="cpu", progress=False)


# ---------------------------------------------------------------------- the command line


def command(line):
    return main(line.split())


@pytest.fixture
def work(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", PIXELS)
    return tmp_path


def test_the_whole_way_from_a_folder_to_pictures(work, capsys):
    assert command("train tiny --data photos --flip --out base --device cpu") == 0
    said = capsys.readouterr().out
    assert "photos: 8 images and their mirror images; classes: 0 cats, 1 dogs" in said
    _, card = zoo.load("base")
    assert card["recipe"]["data"].startswith("own-")
    assert command("sample base --out a.npz --n 4 --steps 2") == 0
    with np.load("a.npz") as content:
        assert content["images"].shape == (4, 3, 8, 8)
        assert content["labels"].tolist() == [0, 1, 0, 1]
    # adapters on top, for two classes more
    capsys.readouterr()
    options = "train tiny --data photos --start base --lora 2 --lr 0.01 --out more --device cpu"
    assert command(options) == 0
    said = capsys.readouterr().out
    assert "classes: 2 cats, 3 dogs" in said
    assert "--class 2" in said
    base, (model, card) = zoo.load("base")[0], zoo.load("more")
    assert isinstance(model, LoRADiT)
    assert (card["config"]["num_classes"], card["config"]["rank"]) == (4, 2)
    assert card["recipe"]["lr"] == 0.01
    again = load_adapters(work / "more" / ADAPTERS, base)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0)
    assert command("sample more --out b.npz --n 2 --steps 2 --class 3") == 0
    assert command("export more --out more.js") == 0  # merged: the page knows no adapters
    assert "lora_" not in (work / "more.js").read_text("utf8")
    assert command("evaluate more") == 2
    assert "hand it in as data=" in capsys.readouterr().err


def test_a_folder_that_has_changed_is_noticed(work, capsys):
    again = "train tiny --data photos --out run --device cpu --resume"
    assert command(again.removesuffix(" --resume")) == 0
    assert command(again) == 0
    (work / "photos" / "cats" / "0.png").unlink()
    capsys.readouterr()
    assert command(again) == 2
    assert "belongs to another recipe: data: own-" in capsys.readouterr().err


def test_an_autoencoder_of_diffusers_from_the_disk(work, published, monkeypatch):
    model = {**PIXELS.model, "in_channels": 4, "patch_size": 2}
    monkeypatch.setitem(RECIPES, "tiny", replace(PIXELS, model=model))
    options = f"train tiny --data photos --vae {published[0]} --size 4 --out run --device cpu"
    assert command(options) == 0
    assert command("sample run --out a.npz --n 2 --steps 2") == 0
    with np.load("a.npz") as content:
        assert content["images"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--flip", "--flip needs --data"),
        ("--size 8", "--size needs --data"),
        ("--vae x", "--vae needs --data"),
        ("--lora 2", "--lora needs --start"),
        ("--data nowhere", "no folder: nowhere"),
        ("--data photos/cats/0.png", "no folder: photos/cats/0.png"),
        ("--data photos --lr 0", "lr=0"),
        ("--data photos --size 7", "7"),
        ("--data photos --start nothing", "name='nothing' is unknown"),
        ("--data photos --start digits-dit", "start does not fit the model"),
        ("--data photos --start digits-features", "draws no images"),
        ("--data photos --vae nowhere", "nowhere"),
        ("--data photos --start digits-dit --lora 0", "rank=0"),
    ],
)
def test_bad_options_are_one_line(work, options, part, capsys):
    assert command(f"train tiny --out run --device cpu {options}") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert not (work / "run").exists()


def test_the_classes_are_in_the_file(work):
    """What the numbers mean can be read off a checkpoint."""
    assert command("train tiny --data photos --out run --device cpu") == 0
    assert "0 cats, 1 dogs" in json.dumps(zoo.load("run")[1])
