"""Drawing in batches, labels in turn, and the contact sheet."""

import numpy as np
import pytest
import torch
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.lab import draw as draw_module
from dit_edu.lab.draw import DIFFUSION_SAMPLERS, Sampling, contact_sheet, cycle_labels, draw
from dit_edu.lab.recipes import Process


class Clean(nn.Module):
    """A denoiser that knows the clean image: every pixel is label / 10, or -1 without a label."""

    in_channels, input_size, num_classes, class_dropout_prob = 1, (2, 3), 10, 0.1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def null_condition(self, y):
        return torch.full_like(y, 10)

    def forward(self, x, t, y):
        self.seen.append(len(x))
        value = torch.where(y == 10, -1.0, y / 10)
        return value.view(-1, 1, 1, 1).expand_as(x)


PROCESS = GaussianDiffusion.cosine(100, prediction="x0")


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
@pytest.mark.parametrize("batch", [4, 512])
def test_every_label_gets_its_image(sampler, batch, monkeypatch):
    monkeypatch.setattr(draw_module, "BATCH", batch)
    model, labels = Clean(), cycle_labels(11, 10)
    images = draw(model, PROCESS, labels, Sampling(5, 1.0, sampler))
    assert images.shape == (11, 1, 2, 3)
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 10)
    assert model.seen == [n for n in ([4, 4, 3] if batch == 4 else [11]) for _ in range(5)]


@pytest.mark.parametrize(("sampler", "asked"), [("euler", 5), ("heun", 9)])
def test_every_label_gets_its_image_by_a_flow(sampler, asked):
    class Toward(Clean):
        """The velocity of one who knows the image: v = (x - x_0) / τ."""

        def forward(self, x, t, y):
            return (x - super().forward(x, t, y)) / (t / 999).view(-1, 1, 1, 1)

    model, labels = Toward(), cycle_labels(11, 10)
    images = draw(model, FlowMatching(), labels, Sampling(5, 1.0, sampler))
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 10)
    assert model.seen == [11] * asked


@pytest.mark.parametrize(
    ("process", "sampler", "words"),
    [
        (PROCESS, "euler", "sampler='euler' is unknown; allowed: ddim, ddpm, dpm"),
        (FlowMatching(), "ddim", "sampler='ddim' is unknown; allowed: euler, heun"),
    ],
)
def test_a_sampler_of_the_other_process_is_refused(process, sampler, words):
    with pytest.raises(ValueError, match=words):
        draw(Clean(), process, torch.tensor([1]), Sampling(5, 1.0, sampler))


def test_each_process_has_its_usual_sampler():
    assert Sampling.usual(Process(), 20, 1.5) == Sampling(20, 1.5, "ddim")
    assert Sampling.usual(Process(schedule="flow")) == Sampling(50, 1.0, "euler")


def test_guidance_and_the_clamp():
    # uncond + s (cond - uncond) = -1 + 1.5 (0.2 + 1) = 0.8, and 2.3 is clamped to 1
    images = draw(Clean(), PROCESS, torch.tensor([2, 9]), Sampling(3, 1.5))
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.8, 1.0]))


def test_the_seed_decides_and_the_callers_randomness_does_not():
    class Noisy(Clean):
        def forward(self, x, t, y):
            return x / 2

    def sample(seed):
        torch.rand(1)
        return draw(Noisy(), PROCESS, torch.tensor([1, 2]), Sampling(4, 1.0, "ddpm"), seed=seed)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("batch", [2, 512])
def test_the_kth_image_of_a_seed_is_the_same_however_many_are_drawn(batch, monkeypatch):
    class Noisy(Clean):
        def forward(self, x, t, y):
            return x / 2

    all_five = draw(Noisy(), PROCESS, cycle_labels(5, 10), Sampling(4, 1.0, "ddpm"))
    monkeypatch.setattr(draw_module, "BATCH", batch)
    three = draw(Noisy(), PROCESS, cycle_labels(3, 10), Sampling(4, 1.0, "ddpm"))
    torch.testing.assert_close(three, all_five[:3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=0), "steps=0"),
        (dict(scale=float("nan")), "scale=nan must be finite"),
        (dict(scale=float("inf")), "scale=inf must be finite"),
        (dict(sampler="dddim"), "sampler='dddim' is unknown.*Did you mean 'ddim'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_more_steps_than_the_process_has_are_refused():
    with pytest.raises(ValueError, match="steps=101 exceeds the process; allowed: 1 to 100"):
        draw(Clean(), PROCESS, torch.tensor([1]), Sampling(101))


def test_labels_in_turn():
    assert cycle_labels(5, 3).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="n=0"):
        cycle_labels(0, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_holds_every_image_where_it_belongs(channels):
    images = torch.rand(5, channels, 8, 8)
    sheet = contact_sheet(images)  # 2 rows of 3 tiles of 4 * 8 + 2 pixels
    assert sheet.shape == ((2 * 34, 3 * 34, 3) if channels == 3 else (2 * 34, 3 * 34))
    assert sheet.dtype == np.uint8
    for k, image in enumerate(images):
        row, column = divmod(k, 3)
        tile = sheet[34 * row + 1 : 34 * row + 33, 34 * column + 1 : 34 * column + 33]
        pixels = (image * 255).round().to(torch.uint8).movedim(0, -1).numpy()
        np.testing.assert_array_equal(tile[::4, ::4], pixels if channels == 3 else pixels[..., 0])
        np.testing.assert_array_equal(tile[3::4, 3::4], tile[::4, ::4])
    assert (sheet[35:67, 69:101] == 255).all()  # the sixth tile is empty


def test_a_film_is_a_row_of_the_sheet():
    films = torch.rand(2, 1, 3, 8, 8)
    frames = [film[:, f] for film in films for f in range(3)]  # three in a row, as five images are
    np.testing.assert_array_equal(contact_sheet(films), contact_sheet(torch.stack(frames)))
    assert contact_sheet(torch.rand(1, 3, 7, 16, 16)).shape == (34, 7 * 34, 3)


def test_four_channels_are_no_picture():
    with pytest.raises(ValueError, match="4 channels"):
        contact_sheet(torch.rand(2, 4, 8, 8))
