"""A loss with a teacher in it: by hand, against closed forms and autograd, and resumed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.hidit.distill import after, distilled_losses, heard, unexplained, unexplained_macs
from dit_edu.lab.profile import _flop_counter
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import run, train

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=4,
    learn_sigma=False,
)  # fmt: skip
TOKENS = dict(features=(1, 3), feature_weight=0.3)


def model(seed: int = 0, **settings) -> DiT:
    torch.manual_seed(seed)
    net = DiT(**{**SIZES, **settings}).double().eval()
    for weight in net.parameters():
        if weight.requires_grad:
            weight.data = weight.data + 0.1 * torch.randn_like(weight)
    return net


TEACHER = dict(seed=1, depth=4, hidden_size=24)


def batch() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 5, 1, 8, 8, generator=g, dtype=torch.float64)
    return x0, torch.tensor([0, 200, 500, 800, 999]), torch.tensor([0, 1, 2, 3, 4]), noise


def process(**options) -> GaussianDiffusion:
    return GaussianDiffusion.cosine(1000, "v", **options)


def test_the_loss_is_what_it_says():
    student, teacher, diffusion = model(), model(**TEACHER), process()
    x0, t, y, noise = batch()
    got = distilled_losses(teacher, 0.25, **TOKENS)(student, diffusion, x0, t, y, noise)
    x_t = diffusion.q_sample(x0, t, noise)
    with heard(after(student, 1), after(teacher, 3)) as said:
        s, v_t = student(x_t, t, y), teacher(x_t, t, y)
    v = diffusion.target(x0, noise, t)
    by_image = 0.75 * (s - v).square().mean((1, 2, 3)) + 0.25 * (s - v_t).square().mean((1, 2, 3))
    want = by_image + 0.3 * unexplained(said[0].out, said[1].out)
    torch.testing.assert_close(got["loss"], want)
    torch.testing.assert_close(got["mse"], (s - v).square().mean((1, 2, 3)))


def test_without_weight_it_is_the_plain_loss():
    student, args = model(), batch()
    got = distilled_losses(model(**TEACHER), 0.0)(student, process(), *args)
    want = process().losses(student, *args[:3], noise=args[3])
    assert torch.equal(got["loss"], want["loss"])


def test_of_a_learnt_variance_the_mean_alone_is_compared():
    student = model(learn_sigma=True)
    x0, t, y, noise = batch()
    diffusion = process(variance="learned-range")
    got = distilled_losses(model(**TEACHER), 1.0)(student, diffusion, x0, t, y, noise)["loss"]
    x_t = diffusion.q_sample(x0, t, noise)
    want = (student(x_t, t, y)[:, :1] - model(**TEACHER)(x_t, t, y)).square().mean((1, 2, 3))
    torch.testing.assert_close(got, want)


def test_the_teacher_learns_nothing():
    student, teacher = model(), model(**TEACHER).train()
    before = copy.deepcopy(teacher.state_dict())
    loss = distilled_losses(teacher, 0.5, **TOKENS)(student, process(), *batch())["loss"].mean()
    loss.backward()
    assert all(w.grad is None for w in teacher.parameters())
    assert all(w.grad is not None for w in student.parameters() if w.requires_grad)
    assert all(torch.equal(w, before[name]) for name, w in teacher.state_dict().items())
    assert not teacher.training  # it would drop labels
    assert not teacher._forward_hooks and not student.blocks[0]._forward_hooks


def test_unexplained_is_one_minus_r_squared():
    g = torch.Generator().manual_seed(0)
    mine = torch.randn(20, 16, 6, generator=g, dtype=torch.float64)
    theirs = mine[..., :4] @ torch.randn(4, 5, generator=g, dtype=torch.float64)
    theirs = theirs + 0.5 * torch.randn(20, 16, 5, generator=g, dtype=torch.float64) + 3.0
    s, f = mine.flatten(0, 1).numpy(), theirs.flatten(0, 1).numpy()
    left = f - LinearRegression().fit(s, f).predict(s)
    want = np.square(left).sum() / np.square(f - f.mean(0)).sum()
    assert unexplained(mine, theirs).item() == pytest.approx(want, rel=1e-4)
    exact = mine @ torch.randn(6, 6, generator=g, dtype=torch.float64) + 1.0
    assert unexplained(mine, exact) < 1e-6


def test_its_gradient_is_that_of_the_minimum():
    """Autograd through least squares itself agrees with the map held fixed."""
    g = torch.Generator().manual_seed(0)
    mine, theirs = torch.randn(2, 4, 16, 5, generator=g, dtype=torch.float64)
    mine.requires_grad_()
    (got,) = torch.autograd.grad(unexplained(mine, theirs), mine)
    s, f = (z.flatten(0, 1) - z.mean((0, 1)) for z in (mine, theirs))
    best = torch.linalg.lstsq(s, f).solution
    (want,) = torch.autograd.grad((s @ best - f).square().sum() / f.square().sum(), mine)
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-5)


def test_macs_of_the_comparison_are_counted():
    mine, theirs = torch.randn(2, 32, 12, requires_grad=True), torch.randn(2, 32, 20)
    with _flop_counter() as counter:
        unexplained(mine, theirs).backward()
    assert counter.get_total_flops() // 2 == unexplained_macs(64, 12, 20)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (dict(weight=1.5), "weight"),
        (dict(weight=float("nan")), "weight"),
        (dict(weight=0.5, feature_weight=1.0), "features"),
        (dict(weight=0.5, features=(1, 1)), "feature_weight"),
        (dict(weight=0.5, features=(1, 1), feature_weight=-1.0), "feature_weight"),
    ],
)
def test_bad_weights_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        distilled_losses(model(), **arguments)


def test_there_are_only_so_many_blocks():
    loss_fn = distilled_losses(model(**TEACHER), 0.5, features=(3, 1), feature_weight=1.0)
    with pytest.raises(ValueError, match="blocks=3; allowed: 1 to 2"):
        loss_fn(model(), process(), *batch())


def test_tokens_must_be_as_many():
    with pytest.raises(ValueError, match=r"\(2, 4, 3\)"):
        unexplained(torch.zeros(2, 4, 3), torch.zeros(2, 16, 3))


def test_an_interrupted_training_ends_the_same(tmp_path):
    sizes = {**SIZES, "num_classes": 10}
    recipe = Recipe(name="student", model=sizes, steps=4, batch_size=4, warmup=1)
    teacher = model(depth=3, num_classes=10).float()
    arguments = dict(
        device="cpu", loss_fn=distilled_losses(teacher, 0.5, features=(1, 2), feature_weight=0.1)
    )
    whole = run(recipe, progress=False, **arguments).model
    for step in train(recipe, out=tmp_path, **arguments):
        if step.step == 2:
            break
    again = run(recipe, progress=False, out=tmp_path, resume=True, **arguments).model
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
