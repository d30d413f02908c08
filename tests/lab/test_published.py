"""Published checkpoints: tiny files of the same make load and draw as diffusers, or are named."""

from __future__ import annotations

import argparse
import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.lab import plots, published
from dit_edu.lab.convert import to_diffusers
from dit_edu.lab.published import draw_published, load_published, load_vae
from dit_edu.sampling import noise_streams

ROOT = Path(__file__).resolve().parents[2]
# The published settings but for the size: a preset, 1000 classes, learnt variance.
TINY = dict(hidden_size=32, depth=2, num_heads=2)


def tiny(**changes) -> DiT:
    model = DiT(**{"input_size": 8, "patch_size": 2, "num_classes": 1000, **TINY, **changes})
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=g) * 0.1
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a reader would have it, only smaller."""
    root = tmp_path_factory.mktemp("pretrained_models")
    torch.save(tiny().state_dict(), root / published.CHECKPOINT)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),  # three halvings, as the published one
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.save_pretrained(root / published.VAE)
    return root


def both(folder):
    return load_published(folder / published.CHECKPOINT, **TINY), load_vae(folder / published.VAE)


def ask(model: DiT) -> torch.Tensor:
    x = torch.randn(2, 4, *model.input_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(x, torch.tensor([3, 700]), torch.tensor([207, 1000]))


def test_a_checkpoint_loads_as_it_is(folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model = load_published(folder / published.CHECKPOINT, **TINY)
    assert torch.equal(torch.rand(1), expected)  # nothing was drawn
    assert not model.training and model.out_channels == 8 and model.num_classes == 1000
    assert torch.equal(ask(model), ask(tiny()))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["pos_embed"]


def test_size_classes_and_variance_are_read_off_the_weights(tmp_path):
    other = tiny(input_size=16, patch_size=4, num_classes=7, in_channels=3, learn_sigma=False)
    torch.save(other.state_dict(), tmp_path / "run.pt")
    model = load_published(tmp_path / "run.pt", "DiT-S/4", **TINY)
    assert (model.input_size, model.in_channels, model.out_channels) == ((16, 16), 3, 3)
    assert model.num_classes == 7


def test_the_full_model_fits_the_shapes_of_a_published_file(tmp_path, monkeypatch):
    """DiT-XL/2 for 512 pixels, from shapes alone: the meta device stores nothing."""
    with torch.device("meta"):
        state = DiT.from_preset("DiT-XL/2", input_size=64).state_dict()
    (tmp_path / "DiT-XL-2-512x512.pt").touch()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: state)
    model = load_published(tmp_path / "DiT-XL-2-512x512.pt")
    assert model.input_size == (64, 64) and model.num_classes == 1000
    assert sum(p.numel() for p in model.parameters()) == 675_129_632 + (1024 - 256) * 1152


@pytest.mark.parametrize("keys", [("ema", "model"), ("ema",), ("model",)])
def test_a_run_of_the_published_code_gives_its_average(tmp_path, keys):
    state = tiny().state_dict()
    states = {"ema": state, "model": {name: tensor + 1 for name, tensor in state.items()}}
    run = {key: states[key] for key in keys}
    run |= {"opt": {"state": {}, "param_groups": []}, "args": argparse.Namespace(image_size=256)}
    torch.save(run, tmp_path / "0400000.pt")
    model = load_published(tmp_path / "0400000.pt", **TINY)
    assert torch.equal(model.x_embedder.proj.bias, states[keys[0]]["x_embedder.proj.bias"])


def test_half_precision_becomes_float32(tmp_path):
    torch.save({n: t.half() for n, t in tiny().state_dict().items()}, tmp_path / "half.pt")
    model = load_published(tmp_path / "half.pt", **TINY)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(ask(model), ask(tiny()), rtol=0, atol=0.02)


class Harmful:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_that_holds_code_is_not_opened(tmp_path):
    target = tmp_path / "written"
    torch.save({"ema": tiny().state_dict(), "x": Harmful(target)}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt .* holds more than tensors"):
        load_published(tmp_path / "bad.pt", **TINY)
    with open(tmp_path / "bare.pt", "wb") as file:
        pickle.dump(Harmful(target), file, protocol=2)
    with pytest.raises(ValueError, match=r"bare\.pt .* holds more than tensors"):
        load_published(tmp_path / "bare.pt", **TINY)
    assert not target.exists()


def damaged(folder, tmp_path, how):
    """A file that is not what it should be, and what the message must say of it."""
    whole = (folder / published.CHECKPOINT).read_bytes()
    path, state = tmp_path / "damaged.pt", tiny().state_dict()
    if how in ("truncated", "cut to the first bytes", "empty", "text"):
        content = {"truncated": whole[: len(whole) // 2], "cut to the first bytes": whole[:3],
                   "empty": b"", "text": b"<!DOCTYPE html>"}[how]  # fmt: skip
        path.write_bytes(content)
        return path, rf"damaged\.pt \({len(content)} bytes\) is truncated"
    changed, words = {
        "a list": ([torch.zeros(1)], "holds a list"),
        "numbers": ({"epoch": 3}, "holds a dict, but not of named tensors"),
        "no names": ({0: torch.zeros(1)}, "not of named tensors"),
        "nothing": ({}, "lacks 'pos_embed'"),
        "another model": (torch.nn.Linear(2, 2).state_dict(), "lacks 'pos_embed'"),
        "a name missing": ({n: t for n, t in state.items() if n != "blocks.1.attn.proj.bias"},
                           "lacks 'blocks.1.attn.proj.bias'"),
        "a name too many": ({**state, "blocks.2.mlp.fc1.bias": torch.zeros(4)},
                            "has 'blocks.2.mlp.fc1.bias', unknown here"),
        "a shape": ({**state, "blocks.0.mlp.fc1.bias": torch.zeros(5)},
                    r"'blocks.0.mlp.fc1.bias' has shape \(5,\); allowed: \(128,\)"),
    }[how]  # fmt: skip
    torch.save(changed, path)
    return path, words


@pytest.mark.parametrize(
    "how",
    ["truncated", "cut to the first bytes", "empty", "text", "a list", "numbers", "no names",
     "nothing", "another model", "a name missing", "a name too many", "a shape"],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_named(folder, tmp_path, how):
    path, words = damaged(folder, tmp_path, how)
    with pytest.raises(ValueError, match=words):
        load_published(path, **TINY)


def test_the_wrong_preset_is_named(folder):
    with pytest.raises(ValueError, match="'DiT-XL/2'"):
        load_published(folder / published.CHECKPOINT, "DiT-XL-2")
    with pytest.raises(ValueError, match=r"'pos_embed' has shape \(1, 16, 32\); .*1152"):
        load_published(folder / published.CHECKPOINT)
    with pytest.raises(ValueError, match=r"x_embedder.proj.weight' has shape .*4, 4\)"):
        load_published(folder / published.CHECKPOINT, "DiT-S/4", **TINY)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.pt"):
        load_published(folder / "nowhere.pt")


def test_what_is_missing_says_what_to_put_where(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = published.missing()
    assert len(lines) == 3
    assert lines[0].startswith("~/pretrained_models/DiT-XL-2-256x256.pt: ")
    assert "facebookresearch/DiT" in lines[0] and "stabilityai" in lines[1]
    assert not any(str(tmp_path) in line for line in lines)  # the same on every machine
    assert published.missing(folder) == []
    (tmp_path / "pretrained_models").symlink_to(folder)
    assert published.missing() == []
    with pytest.raises(FileNotFoundError, match=r"~/elsewhere/config\.json"):
        load_vae("~/elsewhere")


def test_a_damaged_vae_is_named(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / published.VAE / "config.json").read_bytes())
    with pytest.raises(ValueError, match="not a whole VAE"):
        load_vae(tmp_path)
    weights = folder / published.VAE / "diffusion_pytorch_model.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole VAE"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a whole VAE"):
        load_vae(tmp_path)


def test_drawing_is_that_of_diffusers(folder):
    """The whole way from noise to pixels against DiTPipeline, which guides all four channels."""
    model, vae = both(folder)
    ours = draw_published(
        model, vae, [207, 88], scale=1.5, channels="all", steps="ddim10", sampler="ddim", seed=5
    )
    pipeline = DiTPipeline(
        to_diffusers(model), vae,
        DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    streams = noise_streams(5, 2)  # a generator for each picture, as diffusers has it too
    theirs = pipeline(
        [207, 88], guidance_scale=1.5, num_inference_steps=10, generator=streams, output_type="np"
    ).images
    assert ours.shape == (2, 3, 64, 64) and ours.std() > 0.05
    got = (ours / 2 + 0.5).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, torch.as_tensor(theirs), rtol=0, atol=1e-4)


def test_the_published_settings_are_the_default(folder):
    """Guidance 4 on three channels, 250 of 1000 steps with learnt variance, step for step."""
    model, vae = both(folder)
    default = inspect.signature(draw_published).parameters
    assert {name: default[name].default for name in ("scale", "channels", "steps", "sampler")} == {
        "scale": 4.0, "channels": 3, "steps": "250", "sampler": "ddpm"
    }  # fmt: skip
    drawn = draw_published(model, vae, [360, 417], steps="4", seed=1)
    assert torch.equal(drawn, draw_published(model, vae, [360, 417], steps="4", seed=1))
    assert not torch.equal(drawn, draw_published(model, vae, [360, 417], steps="4", seed=2))
    assert drawn.abs().max() <= 1 and not drawn.requires_grad
    # one guided answer, by forward_with_cfg as it was published
    g = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([9, 900]), torch.tensor([360, 417])
    with torch.no_grad():
        labels = torch.cat([y, torch.full_like(y, 1000)])
        want = model.forward_with_cfg(torch.cat([x, x]), t.repeat(2), labels, 4.0)[:2]
        torch.testing.assert_close(Guided(model, 4.0, 3)(x, t, y), want, rtol=0, atol=1e-5)


def lab_cell() -> str:
    """The cell of the lab that draws with the published files, as it is committed."""
    notebook = nbformat.read(ROOT / "notebooks" / "dit.ipynb", as_version=4)
    return next(cell.source for cell in notebook.cells if cell.id == "published")


def test_the_lab_says_what_is_missing_and_draws_where_it_is_there(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = []
    names = {
        "torch": torch,
        "published": published,
        "plots": SimpleNamespace(
            image_grid=plots.image_grid, show=lambda fig, alt: shown.append((fig, alt))
        ),
    }
    exec(lab_cell(), dict(names))
    printed = capsys.readouterr().out
    assert shown == [] and printed.count("~/pretrained_models/") == 3
    (tmp_path / "pretrained_models").symlink_to(folder)
    load = published.load_published
    monkeypatch.setattr(published, "load_published", lambda path: load(path, **TINY))
    exec(lab_cell(), dict(names))
    assert capsys.readouterr().out == ""
    ((fig, alt),) = shown
    assert "golden retriever" in alt and fig.axes[0].images
    plt.close(fig)


@pytest.mark.parametrize(
    ("classes", "options", "words"),
    [
        ([1001], {}, "1001; allowed: 0 to 1000"),
        ([-1], {}, "labels from -1"),
        ([1], {"sampler": "euler"}, "sampler='euler'"),
        ([1], {"steps": "x"}, "steps='x'"),
        ([1], {"channels": 5}, "channels=5"),
        ([1], {"scale": float("nan")}, "scale=nan"),
    ],
)  # fmt: skip
def test_bad_requests_are_named(folder, classes, options, words):
    model, vae = both(folder)
    with pytest.raises(ValueError, match=words):
        draw_published(model, vae, classes, **options)
