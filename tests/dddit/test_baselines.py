"""Opponents of dynamic models: counted MACs, dice that keep a budget, and a cache along a path."""

from __future__ import annotations

import copy
from itertools import count as count_up

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_edu.dddit.baselines import CachedDiT, DiceDiT, at_macs
from dit_edu.dddit.model import DDDiT
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing
from dit_edu.sampling import ddim_sample

MODEL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=4, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def random_start(kind: type[torch.nn.Module], **options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(**{**MODEL, **options})
    for p in model.parameters():
        p.data = p.data + 0.2 * torch.randn_like(p)
    return model.double().eval()


def inputs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def counted(model: torch.nn.Module, n: int = 1) -> int:
    x, t, y = inputs(n)
    return count(model.double().eval(), x, t, y, repeats=0).macs


# ---------------------------------------------------------------------- static models


@pytest.mark.parametrize("change", [{}, {"depth": 3}, {"hidden_size": 24}])
@pytest.mark.parametrize("share", [0.5, 0.8, 1.2])
def test_a_static_opponent_costs_what_was_asked(change, share):
    macs = share * counted(DiT(**MODEL))
    settings = at_macs({**MODEL, **change}, macs)
    channel = 2 * 16 * settings["hidden_size"] * settings.get("depth", 4)  # of all blocks
    assert abs(counted(DiT(**settings)) - macs) <= channel / 2


def test_what_a_model_costs_gives_that_model():
    settings = at_macs(MODEL, counted(DiT(**MODEL)))
    assert DiT(**settings).blocks[0].mlp.fc1.out_features == 128


def test_too_few_macs_for_a_static_opponent():
    with pytest.raises(ValueError, match="macs=1000; allowed: at least"):
        at_macs(MODEL, 1000)


# ---------------------------------------------------------------------- dice


def dice(**options) -> DiceDiT:
    return random_start(DiceDiT, **{"share": 0.5, **options})


@given(st.floats(0, 1), st.integers(0, 5))
def test_dice_spend_the_budget_and_no_more(share, seed):
    torch.manual_seed(0)
    net = DiceDiT(**MODEL, share=share, dice=seed)
    macs = net.unit_macs().repeat(4)
    switched = torch.arange(net.units).ge(net.least_heads).repeat(4)
    spent = (net.thrown * macs * switched).sum(1) / (macs * switched).sum()  # (bands,)
    largest = float(macs.max() / (macs * switched).sum())
    assert (spent <= share + 1e-9).all() and (spent > share - largest).all()
    assert net.thrown[:, ~switched].all()


def test_dice_depend_on_band_and_seed_and_on_nothing_else():
    a, b = dice(), dice(dice=1)
    t = torch.arange(1000)
    assert len(a.planned(t).unique(dim=0)) == 20
    assert torch.equal(a.planned(t[:50]), a.planned(t[:1]).expand(50, -1))
    assert not torch.equal(a.planned(t), b.planned(t))
    assert torch.equal(a.planned(t), dice().planned(t))


def test_dice_are_a_dynamic_model_in_which_only_what_was_thrown_runs():
    net, (x, t, y) = dice(), inputs()
    with record_routing(net) as trace:
        out = net(x, t, y)
    units = torch.cat([d.chosen for d in trace.decisions], 1)  # (B, U)
    assert torch.equal(units, net.planned(t))
    assert count(net, x, t, y, repeats=0).macs == int(net.macs(net.planned(t)).sum())
    other = random_start(DDDiT)
    other.load_state_dict(net.state_dict())
    other.planned, other.table = net.planned, net.table
    torch.testing.assert_close(other(x, t, y), out, rtol=1e-12, atol=1e-12)
    net.mode = other.mode = "full"
    torch.testing.assert_close(net(x, t, y), other(x, t, y), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [{"share": 1.5}, {"share": -0.1}, {"bands": 0}])
def test_dice_refuse(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        dice(**bad)


# ---------------------------------------------------------------------- the cache


def cached(every: int) -> CachedDiT:
    return random_start(CachedDiT, every=every)


def plain(net: CachedDiT) -> DiT:
    other = DiT(**MODEL).double().eval()
    other.load_state_dict(net.state_dict())
    return other


def walk(net, steps: int = 6, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    diffusion = GaussianDiffusion.cosine(1000, prediction="v")
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.tensor([1, 4, 9])
    return ddim_sample(Guided(net, scale), diffusion, x.shape, labels, steps=steps, noise=x)


def test_a_cache_of_one_step_is_no_cache():
    net = cached(1)
    torch.testing.assert_close(walk(net), walk(plain(net)), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_between_two_full_steps_the_tokens_get_what_the_blocks_added_last(scale):
    net = cached(3)
    dense, passes = plain(net), count_up()

    class ByHand(DiT):
        """The same by hand: the passes of a trajectory are numbered, not recognised."""

        def layers(self, t, emb):
            return [self.run if next(passes) % 3 == 0 else lambda x, c: x + self.delta]

        def run(self, x, c):
            begin = x
            for block in self.blocks:
                x = block(x, c)
            self.delta = x - begin
            return x

    by_hand = ByHand(**MODEL).double().eval()
    by_hand.load_state_dict(dense.state_dict())
    want = walk(by_hand, scale=scale)
    torch.testing.assert_close(walk(net, scale=scale), want, rtol=1e-10, atol=1e-10)
    assert (walk(net, scale=scale) - walk(dense, scale=scale)).abs().max() > 1e-3


def test_every_trajectory_begins_anew():
    net = cached(4)
    alone = walk(cached(4), seed=1)
    walk(net, steps=5, seed=0)  # ends in the middle of four
    torch.testing.assert_close(walk(net, seed=1), alone, rtol=0, atol=0)


def test_what_ran_is_what_is_counted():
    net, (x, _, y) = cached(2), inputs()
    found = []
    with record_routing(net) as trace:
        for step in (900, 600, 300):
            t = torch.full((6,), step)
            found.append(count(net, x, t, y, repeats=0).macs)
    full = counted(plain(net), 6)
    ran = [bool(d.chosen.all()) for d in trace.decisions]
    assert ran == [True, False, True]
    blocks = int(trace.decisions[0].macs)
    assert found == [full if r else full - 6 * blocks for r in ran]


def test_images_of_many_steps_are_not_taken_for_a_path():
    net, (x, t, y) = cached(2), inputs()
    dense = plain(net)
    for _ in range(2):  # the same steps again: nothing is cached
        torch.testing.assert_close(net(x, t, y), dense(x, t, y), rtol=0, atol=0)
    torch.testing.assert_close(net(x[:3], t[:3] - 1, y[:3]), dense(x[:3], t[:3] - 1, y[:3]))


def test_training_caches_nothing():
    net, (x, t, y) = cached(2), inputs()
    net.y_embedder.dropout_prob = 0.0
    dense = copy.deepcopy(plain(net))
    net(x, t, y)
    torch.testing.assert_close(net.train()(x, t - 1, y), dense(x, t - 1, y))


def test_a_cache_refuses():
    with pytest.raises(ValueError, match="every=0"):
        CachedDiT(every=0, **MODEL)
