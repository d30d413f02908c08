"""Guidance against separate calls, sample by sample, and its equivalence over ε, x_0 and v."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.flow import FlowMatching
from dit_edu.guidance import Guided
from dit_edu.lab.denoisers import PerClass, gaussian
from dit_edu.sampling import ddim_sample


def model(**changes) -> DiT:
    torch.manual_seed(0)
    settings = dict(
        input_size=8, in_channels=4, hidden_size=32, depth=2, num_heads=4, num_classes=10,
        learn_sigma=False,
    )  # fmt: skip
    net = DiT(**{**settings, **changes}).double().eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return net


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0, 500, 999]), torch.tensor([1, 2, 3])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_equals_two_calls(scale):
    net, (x, t, y) = model(), inputs()
    cond, uncond = net(x, t, y), net(x, t, torch.full_like(y, 10))
    want = uncond + scale * (cond - uncond)
    torch.testing.assert_close(Guided(net, scale)(x, t, y), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_three_channels_equal_the_published_rule(learn_sigma):
    net, (x, t, y) = model(learn_sigma=learn_sigma), inputs()
    doubled = net.forward_with_cfg(
        torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, net.null_condition(y)]), 4.0
    )
    ours = Guided(net, 4.0, channels=3)(x, t, y)
    torch.testing.assert_close(ours, doubled[:3], rtol=1e-10, atol=1e-10)
    # Channel 3 is not guided there, and is here.
    assert not torch.allclose(Guided(net, 4.0)(x, t, y)[:, 3], doubled[:3, 3])


def test_published_rule_reads_the_first_half_only():
    net, (x, t, y) = model(), inputs()
    both = torch.cat([y, net.null_condition(y)])
    a = net.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), both, 2.0)
    b = net.forward_with_cfg(torch.cat([x, 0 * x]), torch.cat([t, t]), both, 2.0)
    assert torch.equal(a, b)
    assert torch.equal(a[:3, :3], a[3:, :3])


def test_variance_is_never_guided():
    net, (x, t, y) = model(learn_sigma=True), inputs()
    torch.testing.assert_close(Guided(net, 3.0)(x, t, y)[:, 4:], net(x, t, y)[:, 4:])


@pytest.mark.parametrize("other", ["x0", "v"])
def test_guiding_noise_guides_image_and_velocity(other):
    """uncond + s (cond - uncond) commutes with the conversions, because they are affine."""
    x, t, _ = inputs()
    eps_c, eps_u = torch.randn(2, *x.shape, dtype=torch.float64)
    diffusion = GaussianDiffusion.linear(1000)
    convert = getattr(diffusion, f"to_{other}")
    guided_after = convert(eps_u + 3 * (eps_c - eps_u), x, t)
    c, u = convert(eps_c, x, t), convert(eps_u, x, t)
    torch.testing.assert_close(u + 3 * (c - u), guided_after, rtol=1e-9, atol=1e-9)


class Stub(nn.Module):
    """One answer for each label and step, and another for the null class."""

    in_channels, input_size, num_classes, class_dropout_prob = 2, (3, 3), 5, 0.1

    def null_condition(self, y: torch.Tensor) -> torch.Tensor:
        return torch.full_like(y, self.num_classes)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * (1 + y).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)


class Counting(Stub):
    """A stub that writes down how many rows it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return super().forward(x, t, y)


@given(
    scale=st.floats(-3, 9),
    interval=st.none() | st.tuples(st.integers(0, 999), st.integers(0, 999)).map(sorted),
    t=st.lists(st.integers(0, 999), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_every_sample_is_guided_by_its_own_step(scale, interval, t, seed):
    net, b = Counting(), len(t)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, 2, 3, 3, generator=g, dtype=torch.float64)
    y = torch.randint(5, (b,), generator=g)
    got = Guided(net, scale, interval=interval)(x, torch.tensor(t), y)
    inside = [interval is None or interval[0] <= step <= interval[1] for step in t]
    for i in range(b):
        cond, uncond = (
            net(x[i : i + 1], torch.tensor([t[i]]), torch.tensor([c])) for c in (y[i], 5)
        )
        want = uncond + scale * (cond - uncond) if inside[i] else cond
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-10, atol=1e-10)
    assert net.rows[0] == (2 * b if any(inside) and scale != 1 else b)  # no answer is wasted


def test_an_interval_saves_passes_in_a_sampler():
    diffusion = GaussianDiffusion.cosine(1000, "x0")
    net = Counting()
    guided = Guided(net, 2.0, interval=(300, 600))
    way = dict(shape=(4, 2, 3, 3), y=torch.zeros(4, dtype=torch.long), steps=10, clip=True)
    ddim_sample(guided, diffusion, generator=torch.Generator().manual_seed(0), **way)
    assert sorted(net.rows) == [4] * 7 + [8] * 3  # t = 333, 444 and 555 of 0, 111, …, 999


def test_a_graph_is_right_for_every_step():
    """Traced at one batch, run at others: the graph has not remembered where the first one lay."""
    guided = Guided(Stub(), 3.0, interval=(200, 700))
    x, y = torch.ones(3, 2, 3, 3), torch.tensor([1, 2, 3])
    torch.compiler.reset()  # what other tests have compiled counts against a limit
    compiled = torch.compile(guided, fullgraph=True, backend="eager")
    exported = torch.export.export(guided, (x, torch.tensor([0, 1, 2]), y)).module()
    for steps in ([0, 1, 2], [300, 400, 500], [0, 500, 999]):
        t = torch.tensor(steps)
        torch.testing.assert_close(compiled(x, t, y), guided(x, t, y))
        torch.testing.assert_close(exported(x, t, y), guided(x, t, y))


def test_it_runs_where_steps_have_no_values():
    net = Counting()
    x, t, y = (torch.zeros(s, device="meta") for s in ((3, 2, 3, 3), (3,), (3,)))
    assert Guided(net, 2.0, interval=(0, 9))(x, t, y).shape == (3, 2, 3, 3)
    assert net.rows == [6]


@pytest.mark.parametrize("process", [GaussianDiffusion.cosine(1000, "v"), FlowMatching()])
def test_the_three_predictions_walk_the_same_way(process):
    """Perfect denoisers that say v: guiding before or after the conversion is the same."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 2, 2, generator=g, dtype=torch.float64)
    images, labels = images + torch.arange(60).view(-1, 1, 1, 1) % 2, torch.arange(60) % 2
    known, unknown = PerClass(process, images, labels), gaussian(process, images)
    x, t = (
        torch.randn(4, 1, 2, 2, generator=g, dtype=torch.float64),
        torch.tensor([1, 300, 600, 990]),
    )
    t, y = (t.double() if isinstance(process, FlowMatching) else t), torch.tensor([0, 1, 0, 1])
    v = [net(x, t, y) for net in (known, unknown)]
    for convert in (process.to_x0, process.to_eps, process.to_v):
        cond, uncond = (convert(answer, x, t) for answer in v)
        guided_before = convert(v[1] + 2.5 * (v[0] - v[1]), x, t)
        guided_after = uncond + 2.5 * (cond - uncond)
        torch.testing.assert_close(guided_before, guided_after, rtol=1e-9, atol=1e-9)


@given(num_classes=st.integers(1, 60))
def test_the_null_class_follows_the_number_of_classes(num_classes):
    net = model(num_classes=num_classes, hidden_size=8, depth=1, num_heads=2)
    guided = Guided(net, 2.0)
    y = torch.tensor([0, num_classes - 1])
    assert guided.null_condition(y).tolist() == [num_classes] * 2
    assert len(net.y_embedder.embedding_table.weight) == num_classes + 1
    x, t = inputs()[0][:2], torch.tensor([3, 900])
    assert guided(x, t, y).shape == x.shape


def test_in_float32_a_doubled_batch_equals_two_calls():
    net, (x, t, y) = model().float(), inputs()
    x = x.float()
    cond, uncond = net(x, t, y), net(x, t, torch.full_like(y, 10))
    want = uncond + 4 * (cond - uncond)
    torch.testing.assert_close(Guided(net, 4.0)(x, t, y), want, rtol=1e-5, atol=1e-5)


def test_guided_is_a_denoiser():
    net = model()
    guided = Guided(net, 2.0)
    assert guided.num_classes == 10
    assert guided.null_condition(torch.tensor([4])).tolist() == [10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(scale=float("nan")), "scale=nan"),
        (dict(scale=float("inf")), "scale=inf"),
        (dict(scale=2.0, channels=0), "channels=0"),
        (dict(scale=2.0, channels=5), "channels=5"),
        (dict(scale=2.0, channels="some"), "channels='some'"),
        (dict(scale=2.0, interval=(700, 200)), r"interval=\(700, 200\).*0 <= low <= high"),
        (dict(scale=2.0, interval=(-1, 200)), r"interval=\(-1, 200\)"),
        (dict(scale=2.0, interval=(0, float("inf"))), r"interval=\(0, inf\)"),
        (dict(scale=2.0, interval=(0, float("nan"))), r"interval=\(0, nan\)"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Guided(model(), **arguments)


@pytest.mark.parametrize("interval", [300, (1, 2, 3), ("a", "b"), "ab"])
def test_an_interval_is_a_pair_of_numbers(interval):
    with pytest.raises(TypeError, match="must be None or a pair of numbers"):
        Guided(model(), 2.0, interval=interval)


def test_model_without_null_class_says_so():
    x, t, y = inputs()
    with pytest.raises(ValueError, match="class_dropout_prob=0"):
        Guided(model(class_dropout_prob=0.0), 2.0)(x, t, y)
