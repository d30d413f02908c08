"""Live controls: stored frames without a kernel, the model's own with one, and honest captions."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import re
import threading
import time
from dataclasses import replace
from typing import ClassVar

import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from ipywidgets.embed import embed_data
from nbclient import NotebookClient
from PIL import Image
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.guidance import Guided
from dit_edu.lab import live as module
from dit_edu.lab import zoo
from dit_edu.lab.charts import Bars
from dit_edu.lab.figures import live_trajectory
from dit_edu.lab.live import STORED, Live, Newest
from dit_edu.lab.panels import Axis
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.stills import draw_still
from dit_edu.lab.widgets import Figure
from dit_edu.sampling import ddim_sample, noise_streams


def bars(ts, modes, gain=1, start=0) -> Figure:
    values = [[[1 + gain * t + 5 * (mode == "hard")] for mode in modes] for t in ts]
    return Figure(
        name="bar",
        title="A bar",
        caption="It grows.",
        alt="One bar.",
        axes=[Axis("t", "t", ts, start=start), Axis("mode", "mode", modes, choice=True)],
        panels=[Bars(title="v", alt="One bar.", axes=("t", "mode"), labels=["v"], values=values)],
        play="t",
    )


def finer(settings, tick) -> Figure:
    """What a model might answer: more values of t, the chosen mode and gain, after five steps."""
    for k in range(5):
        tick(k + 1, 5)
    return bars(range(0, 31, 3), [settings["mode"]], settings["gain"])


def control(make=finer, **settings) -> Live:
    extras = {"gain": ipywidgets.FloatSlider(1, description="gain")}
    stored = bars([0, 10, 20, 30], ["soft", "hard"], start=1)
    return Live(stored, make, extras, source="tiny on cpu", **settings)


def pixels(frame: ipywidgets.HTML) -> np.ndarray:
    """The picture in a frame."""
    content = re.search(r'src="data:image/png;base64,([^"]+)"', frame.value)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def still(figure: Figure, **position: int) -> np.ndarray:
    picture = draw_still(figure, position, dpi=80).quantize(64, Image.Quantize.MAXCOVERAGE)
    return np.asarray(picture.convert("RGB"))


def caption(frame: ipywidgets.HTML) -> str:
    return re.search(r"<small>(.*)</small>", frame.value)[1]


@pytest.fixture
def go_off(monkeypatch):
    """Timers go off when the test calls this, in its own thread; it returns how many there were."""
    pending = []

    class Hand:
        def __init__(self, pause, do, arguments):
            self.do = lambda: do(*arguments)

        def start(self):
            pending.append(self)

        def cancel(self):
            if self in pending:
                pending.remove(self)

    def go_off() -> int:
        hands, pending[:] = pending[:], []
        for hand in hands:
            hand.do()
        return len(hands)

    monkeypatch.setattr(module, "Timer", Hand)
    return go_off


# -------------------------------------------------------------------------- without a kernel


def follow(state: dict, view: str, indices: dict[str, int]) -> str:
    """What a browser shows, from the saved state alone: every stack obeys the link that ends at it.

    ``indices`` are those of the sliders, by their description.
    """
    chosen = {}
    for link in state.values():
        if link["model_name"] == "LinkModel":
            (source, trait), (target, ours) = link["state"]["source"], link["state"]["target"]
            slider = state[source.removeprefix("IPY_MODEL_")]["state"]
            if (trait, ours) == ("index", "selected_index"):
                chosen[target.removeprefix("IPY_MODEL_")] = indices[slider["description"]]
    node = state[view]["state"]["children"][-1].removeprefix("IPY_MODEL_")
    while state[node]["model_name"] == "StackModel":
        node = state[node]["state"]["children"][chosen[node]].removeprefix("IPY_MODEL_")
    return state[node]["state"]["value"]


def test_without_a_kernel_the_links_reach_all_stored_frames_and_nothing_else_is_shown():
    asked = []
    live = control(lambda *request: asked.append(request))
    state = embed_data(views=[live.box])["manager_state"]["state"]
    stored = bars([0, 10, 20, 30], ["soft", "hard"])
    for i, j in itertools.product(range(4), range(2)):
        seen = ipywidgets.HTML(follow(state, live.box.model_id, {"t": i, "mode": j}))
        assert caption(seen) == STORED
        np.testing.assert_array_equal(pixels(seen), still(stored, t=i, mode=j))
    desk = state[live.desk.model_id]["state"]["layout"].removeprefix("IPY_MODEL_")
    assert state[desk]["state"]["display"] == "none"
    assert asked == []


def test_the_stored_frames_are_those_of_the_figures_own_control():
    stored = bars([0, 10, 20, 30], ["soft", "hard"], start=1)
    for one, other in zip(control().frames.values(), stored.control().frames.values(), strict=True):
        assert one.value == f"{other.value}<br><small>{STORED}</small>"


def test_a_browser_with_a_kernel_unfolds_what_needs_the_kernel(monkeypatch):
    links = []
    monkeypatch.setattr(ipywidgets, "jsdlink", lambda *ends: links.append(ends))
    live = control()
    [((told, trait), (heard, ours))] = links
    assert getattr(told, trait) != getattr(heard, ours)  # so that the browser has news to tell
    heard.set_state({ours: getattr(told, trait)})  # as its message does
    assert live.desk.layout.display == "flex"
    assert {live.bar, live.status, *live.extras.values()} <= {
        part for row in live.desk.children for part in row.children
    }


# -------------------------------------------------------------------------- with a kernel


@pytest.mark.parametrize(("index", "nearest"), [(0, 0), (1, 9), (2, 21), (3, 30)])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_move_shows_what_the_model_makes_of_these_settings(go_off, index, nearest, mode):
    live = control()
    live.extras["gain"].value = 2.5
    live.sliders["mode"].index = mode
    live.sliders["t"].index = index
    go_off()
    frame = live.frames[index, mode]
    exact = bars(range(0, 31, 3), [["soft", "hard"][mode]], 2.5)
    np.testing.assert_array_equal(pixels(frame), still(exact, t=nearest // 3, mode=0))
    assert caption(frame) == "live: tiny on cpu, gain 2.5"


def test_an_answer_refines_the_frames_that_lie_on_it_and_no_others(go_off):
    live, order = control(), []
    for place, frame in live.frames.items():
        frame.observe(lambda _, place=place: order.append(place), "value")
    live.sliders["t"].index = 2
    go_off()
    assert order[0] == (2, 0)  # what the reader looks at comes first
    found = {place: caption(frame) for place, frame in live.frames.items()}
    assert found == {(i, j): (STORED if j else "live: tiny on cpu, gain 1.0") for i, j in found}
    exact = bars(range(0, 31, 3), ["soft"])
    np.testing.assert_array_equal(pixels(live.frames[3, 0]), still(exact, t=10, mode=0))


def test_a_burst_of_moves_asks_once_for_the_last_position(go_off):
    asked = []
    live = control(lambda settings, tick: asked.append(settings) or finer(settings, tick))
    for i in (0, 1, 2, 3, 2, 0):
        live.sliders["t"].index = i
    live.extras["gain"].value = 4.0
    assert asked == []  # a move returns at once
    assert go_off() == 1
    assert asked == [{"t": 0, "mode": "soft", "gain": 4.0}]


def test_what_is_refined_already_is_not_drawn_again(go_off):
    asked = []
    live = control(lambda settings, tick: asked.append(settings) or finer(settings, tick))
    for i in (3, 1, 0):
        live.sliders["t"].index = i
        go_off()
    assert len(asked) == 1
    live.sliders["mode"].index = 1
    go_off()
    assert [settings["mode"] for settings in asked] == ["soft", "hard"]


def test_a_newer_request_stops_the_drawing_at_its_next_step(go_off):
    done = []

    def make(settings, tick):
        for k in range(5):
            if settings["t"] == 30 and k == 2:
                live.sliders["t"].index = 2  # the reader moves on meanwhile
            tick(k + 1, 5)
            done.append((settings["t"], k))
        return bars([settings["t"]], [settings["mode"]])

    live = control(make)
    live.sliders["t"].index = 3
    assert go_off() == 1
    assert done == [(30, 0), (30, 1)]
    assert {caption(frame) for frame in live.frames.values()} == {STORED}
    assert go_off() == 1
    assert done[2:] == [(20, k) for k in range(5)]
    assert [p for p, frame in live.frames.items() if caption(frame) != STORED] == [(2, 0)]


def test_progress_counts_the_steps_to_the_end(go_off):
    live, seen = control(), []
    live.bar.observe(lambda change: seen.append((change.new, live.bar.max)), "value")
    live.status.observe(lambda change: seen.append(change.new), "value")
    live.sliders["t"].index = 0
    go_off()
    assert seen == ["drawing…", (1, 5), (2, 5), (3, 5), (4, 5), (5, 5), ""]
    assert live.bar.bar_style == "success"


def test_an_error_of_the_model_is_read_and_the_stored_frame_stays(go_off):
    def make(settings, tick):
        if settings["gain"] == 13:
            raise ValueError("gain <13> is bad luck")
        return finer(settings, tick)

    live = control(make)
    stored = {place: frame.value for place, frame in live.frames.items()}
    live.sliders["t"].index = 0
    go_off()
    live.extras["gain"].value = 13
    go_off()
    assert live.status.value == "tiny on cpu: ValueError: gain &lt;13&gt; is bad luck"
    assert live.bar.bar_style == "danger"
    assert {place: frame.value for place, frame in live.frames.items()} == stored
    live.extras["gain"].value = 12
    go_off()
    assert live.status.value == "" and caption(live.frames[0, 0]) == "live: tiny on cpu, gain 12.0"


def test_a_picture_of_other_extras_stays_until_the_new_one_comes_and_no_longer(go_off):
    live = control()
    live.sliders["t"].index = 0
    go_off()
    live.sliders["mode"].index = 1
    live.extras["gain"].value = 3
    assert caption(live.frames[0, 0]) == "live: tiny on cpu, gain 1.0"
    go_off()
    assert caption(live.frames[0, 0]) == STORED
    assert caption(live.frames[0, 1]) == "live: tiny on cpu, gain 3.0"


def until(happened, seconds=20) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)
    return happened()


def test_in_threads_a_burst_is_one_request_and_none_runs_beside_another():
    done, running, most = [], [], []

    def work(request, check):
        running.append(request)
        most.append(len(running))
        try:
            for _ in range(3):
                time.sleep(0.1)  # a step, longer than the pause
                check()
            done.append(request)
        finally:
            running.remove(request)

    newest = Newest(work, pause=0.02)
    newest.ask("first")
    assert until(lambda: running == ["first"])
    for k in range(20):
        newest.ask(k)
    assert until(lambda: done)
    assert done == [19] and max(most) == 1


def test_a_busy_kernel_leaves_the_stored_frame_and_paints_on_its_own_thread(monkeypatch):
    painted, paint = [], Figure.frame

    def frame(self, position):
        painted.append(threading.get_ident())
        return paint(self, position)

    async def kernel():
        answered = threading.Event()

        def make(settings, tick):
            answered.set()
            return finer(settings, tick)

        live = control(make, pause=0.01)
        painted.clear()
        live.sliders["t"].index = 0
        assert answered.wait(20)  # a cell that keeps the kernel: its loop stands still
        time.sleep(0.2)
        assert painted == [] and caption(live.frames[0, 0]) == STORED
        end = time.monotonic() + 20
        while len(painted) < 4 and time.monotonic() < end:
            await asyncio.sleep(0.01)  # the cell is over
        await asyncio.sleep(0.1)
        assert {caption(live.frames[i, 0]) for i in range(4)} == {"live: tiny on cpu, gain 1.0"}
        assert set(painted) == {threading.get_ident()}

    monkeypatch.setattr(Figure, "frame", frame)
    asyncio.run(kernel())


CELLS = [
    """\
import asyncio, threading
import ipywidgets
from dit_edu.lab.charts import Bars
from dit_edu.lab.live import Live
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

def bars(ts):
    panel = Bars(title="v", alt="v", axes=("t",), labels=["v"], values=[[1 + t] for t in ts])
    return Figure("bar", "A bar", "It grows.", "One bar.", [panel], [Axis("t", "t", ts)])

before = threading.active_count()
live = Live(bars([0, 9]), lambda settings, tick: bars(range(10)), {}, source="tiny")
print(threading.active_count() - before)
live""",
    "live.sliders['t'].index = 1; print(live.frames[(1,)].value[-30:])",
    """\
for _ in range(1000):
    if "live" in live.frames[(0,)].value: break
    await asyncio.sleep(0.02)
print(live.frames[(1,)].value[-30:])""",
]


def test_in_a_kernel_nothing_runs_before_a_move_and_the_picture_comes_between_cells():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = [cell.outputs[0].text for cell in notebook.cells]
    view = notebook.cells[0].outputs[1].data["application/vnd.jupyter.widget-view+json"]
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    assert widgets[view["model_id"]].model_name == "VBoxModel"
    assert printed[0] == "0\n"  # no thread
    assert printed[1].endswith("<small>stored frame</small>\n")
    assert printed[2].endswith("<small>live: tiny</small>\n")


# -------------------------------------------------------------------------- the trajectory


class StandIn(nn.Module):
    """A denoiser with three classes that answers in no time."""

    in_channels, input_size, num_classes, class_dropout_prob = 1, (4, 4), 3, 0.1
    moved: ClassVar[list[str]] = []  # of all: a control works with a copy

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def null_condition(self, y):
        return torch.full_like(y, 3)

    def forward(self, x, t, y):
        return torch.tanh(self.weight * x + (y - 1.0).view(-1, 1, 1, 1) * (1 - t[0] / 1000))

    def to(self, device):
        self.moved.append(device.type)
        return self


DIFFUSION = GaussianDiffusion.cosine(1000, prediction="x0")


@pytest.mark.parametrize(
    ("place", "steps", "scale", "seed"),
    [((0, 2), 20, 1.5, 0), ((1, 0), 7, 3.0, 4), ((2, 1), 2, 0.0, 1)],
)
def test_a_trajectory_is_what_the_sampler_does_with_these_settings(
    go_off, place, steps, scale, seed
):
    model = StandIn()
    live = live_trajectory(model, DIFFUSION, "stand-in", max_frames=9)
    live.sliders["step"].index, live.sliders["class"].index = place
    for name, value in (("steps", steps), ("scale", scale), ("seed", seed)):
        live.extras[name].value = value
    go_off()
    found = {}
    ddim_sample(
        Guided(model, scale),
        DIFFUSION,
        (3, 1, 4, 4),
        torch.full((3,), place[1]),
        steps=steps,
        generator=noise_streams(seed, 3),
        clip=True,
        callback=lambda k, t, x_t, x0: found.update({t: torch.stack([x_t, x0])}),
    )
    t = min(found, key=lambda t: abs(t - [999, 473, 0][place[0]]))
    frames = found[t].numpy()[None, None, None]  # (scale, class, step, 2, samples, C, H, W)
    axes = [
        Axis("step", "t", [t]),
        Axis("class", "class", [place[1]]),
        Axis("scale", "guidance", [scale], [f"{scale:g}"]),
    ]
    exact = replace(live.figure, axes=axes, panels=[replace(live.figure.panels[0], frames=frames)])
    shown = live.frames[live.places["step"][place[0]], place[1]]
    np.testing.assert_array_equal(pixels(shown), still(exact, **{a.name: 0 for a in axes}))
    assert caption(shown).endswith(f"guidance {scale}, steps {steps}, seed {seed}")
    assert (live.bar.value, live.bar.max) == (steps, steps)


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_model_draws_on_cuda_if_it_is_there(go_off, monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(StandIn, "moved", [])
    live = live_trajectory(StandIn(), DIFFUSION, "stand-in", max_frames=9)
    assert StandIn.moved == []  # nothing is asked of the device before a move
    live.sliders["class"].index = 1
    go_off()
    assert StandIn.moved == [device]
    shown = live.frames[live.figure.start["step"], 1]
    assert caption(shown).startswith(f"live: stand-in on {device}, ")


def test_the_control_works_with_a_copy_of_the_model(go_off):
    model = StandIn().train()
    live = live_trajectory(model, DIFFUSION, "stand-in", max_frames=9)
    with torch.no_grad():
        model.weight.fill_(float("nan"))  # as a cell that goes on training might
    live.sliders["class"].index = 1
    go_off()
    assert model.training and live.bar.bar_style == "success"
    place = live.figure.start["step"], 1
    np.testing.assert_array_equal(
        pixels(live.frames[place]),
        still(live.figure, step=place[0], **{"class": 1, "scale": 0}),
    )


@pytest.mark.skipif("digits-dit" not in zoo.names(), reason="the model is not in the zoo")
def test_the_shipped_model_draws_live_what_is_stored(go_off):
    model, card = zoo.load("digits-dit")
    diffusion = Recipe.from_dict(card["recipe"]).process.build()
    live = live_trajectory(model, diffusion, "digits-dit", max_frames=20)
    assert list(live.sliders["class"].options) == [str(k) for k in range(10)]
    place = (live.places["step"][live.sliders["step"].index], 8)
    before = pixels(live.frames[place]).astype(float)
    live.sliders["class"].index = 8
    go_off()
    assert caption(live.frames[place]).startswith("live: digits-dit on ")
    # a shade that lies between two of the 64 colours may fall to either side
    assert abs(pixels(live.frames[place]) - before).mean() < 0.5
    live.extras["seed"].value = 1
    go_off()
    assert abs(pixels(live.frames[place]) - before).mean() > 5
