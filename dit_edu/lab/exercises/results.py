"""Exercises of the chapter on HiDiT's results: time, resolution, fair tables, and the frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: how much of a saving on paper arrives on the clock.

Cost = tuple[int, float]  # operations of a pass, MACs for one image
Ratio = Callable[[Cost, Cost, int, float, float], float]


def _ratio(plain: Cost, own: Cost, batch: int, call: float, speed: float) -> float:
    plain_time, own_time = (
        calls * call + batch * macs / speed for calls, macs in (plain, own)
    )  # q u + B M / v
    return own_time / plain_time


RATIO_BUGS: dict[str, tuple[Ratio, str]] = {
    "MACs alone": (
        lambda plain, own, batch, call, speed: own[1] / plain[1],
        "That is the ratio of the MACs. Each operation costs a moment before it computes anything.",
    ),
    "the other way round": (
        lambda plain, own, batch, call, speed: 1 / _ratio(plain, own, batch, call, speed),
        "This is how many times as quick it is. Asked is its time over that of the plain model.",
    ),
    "a call for each image": (
        lambda plain, own, batch, call, speed: _ratio(plain, own, 1, call, speed),
        "One call serves the whole batch. Only the MACs grow with it.",
    ),
    "equal calls": (
        lambda plain, own, batch, call, speed: _ratio(
            plain, (plain[0], own[1]), batch, call, speed
        ),
        "Both models have a number of operations of their own; two branches need more of them.",
    ),
}


def _judge_ratio(answer: Ratio) -> str | None:
    cases = [
        ((100, 15e6), (170, 7e6), 1, 5e-6, 3e10),
        ((100, 15e6), (170, 7e6), 64, 5e-6, 3e10),
        ((80, 1e9), (90, 2e8), 4, 1e-5, 5e10),
    ]
    if why := mistake(answer, RATIO_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _ratio(*case), f"ratio{case}"):
            return why
    return None


# Derive: what the blocks of a HiDiT cost at any number of tokens.

Blocks = Callable[[int, int, int, float, int | None], float]


def _blocks(n: int, dim: int, head: int, coarse: float, window: int | None) -> float:
    def block(tokens: float) -> float:
        seen = tokens if window is None else window**2
        return tokens * (18 * dim**2 + 2 * seen * dim + 2 * head * dim)

    return (1 - coarse) * block(n) + coarse * block(n / 4)


def _plain_block(tokens: float, dim: int, head: int, seen: float) -> float:
    return tokens * (12 * dim**2 + 2 * seen * dim + 2 * head * dim)


BLOCKS_BUGS: dict[str, tuple[Blocks, str]] = {
    "linear": (
        lambda n, d, head, coarse, window: n * _blocks(256, d, head, coarse, window) / 256,
        "That is a price at 256 tokens, scaled with their number. Pairs grow faster, unless there "
        "are windows.",
    ),
    "one branch": (
        lambda n, d, head, coarse, window: (
            (1 - coarse) * _plain_block(n, d, head, window**2 if window else n)
            + coarse * _plain_block(n / 4, d, head, window**2 if window else n / 4)
        ),
        "12 D² a token is a plain block: attention 4, MLP 8. Here are two branches and a map that "
        "joins them.",
    ),
    "coarse tokens see fine ones": (
        lambda n, d, head, coarse, window: (
            (1 - coarse) * _blocks(n, d, head, 0.0, window)
            + coarse * _blocks(n, d, head, 0.0, window) / 4
        ),
        "A coarse block has a quarter of the tokens, and each of them sees a quarter. Only with "
        "windows does it see as many.",
    ),
    "no channels": (
        lambda n, d, head, coarse, window: _blocks(n, d, 0, coarse, window),
        "The channels look at each other too: two products with tables of head x head numbers.",
    ),
}


def _judge_blocks(answer: Blocks) -> str | None:
    cases = [
        (256, 704, 64, 0.5, None),
        (4096, 704, 64, 0.5, None),
        (4096, 448, 64, 0.75, 4),
        (1024, 64, 16, 0.25, 8),
    ]
    if why := mistake(answer, BLOCKS_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _blocks(*case), f"blocks{case}"):
            return why
    return None


# Build: rows of a table made comparable.

Row = tuple[float, int, float]  # MACs of a pass, sampling steps, guidance scale
Fair = Callable[[Sequence[Row]], list[float]]


def _image(row: Row) -> float:
    macs, steps, scale = row
    return macs * steps * (1 if scale == 1 else 2)


def _fair(rows: Sequence[Row]) -> list[float]:
    return [_image(row) / _image(rows[0]) for row in rows]


FAIR_BUGS: dict[str, tuple[Fair, str]] = {
    "a pass": (
        lambda rows: [row[0] / rows[0][0] for row in rows],
        "That is the cost of one pass. How many passes does an image take?",
    ),
    "steps alone": (
        lambda rows: [row[0] * row[1] / (rows[0][0] * rows[0][1]) for row in rows],
        "With guidance each step asks the model twice, once without the label.",
    ),
    "always guided": (
        lambda rows: [2 * row[0] * row[1] / _image(rows[0]) for row in rows],
        "A scale of 1 is no guidance: then one pass a step is enough.",
    ),
    "savings": (
        lambda rows: [1 - share for share in _fair(rows)],
        "This is what is saved. Asked is the cost over that of the first row.",
    ),
}


def _judge_fair(answer: Fair) -> str | None:
    cases: list[list[Row]] = [
        [(118.6, 250, 1.5), (72.3, 50, 1.5), (78.1, 50, 1.0)],
        [(10.0, 20, 1.0), (4.0, 50, 1.0), (4.0, 20, 4.0)],
    ]

    def ask(f: Fair) -> list[float]:
        return [float(share) for rows in cases for share in f(list(rows))]

    return mistake(answer, FAIR_BUGS, ask) or close(
        ask(answer), ask(_fair), "The cost of an image over that of the first row"
    )


# Build: the models that no other model beats.

Point = tuple[float, float]  # cost and loss, both better when small
Frontier = Callable[[Sequence[Point]], list[int]]


def _beats(a: Point, b: Point) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def _frontier(points: Sequence[Point]) -> list[int]:
    return [i for i, b in enumerate(points) if not any(_beats(a, b) for a in points)]


def _hull(points: Sequence[Point]) -> list[int]:
    """Only what lies on the lower convex hull of the frontier."""
    found = sorted(_frontier(points), key=lambda i: points[i])
    kept: list[int] = []
    for i in found:
        while len(kept) > 1:
            (x0, y0), (x1, y1), (x2, y2) = (points[j] for j in (*kept[-2:], i))
            if (y1 - y0) * (x2 - x0) < (y2 - y0) * (x1 - x0):
                break
            kept.pop()
        kept.append(i)
    return sorted(kept)


FRONTIER_BUGS: dict[str, tuple[Frontier, str]] = {
    "all better in one": (
        lambda points: [
            i for i, b in enumerate(points) if any(b[0] < a[0] or b[1] < a[1] for a in points)
        ],
        "To be better than one other in one respect is little. A model stays if no other is at "
        "least as good in both.",
    ),
    "strictly worse": (
        lambda points: [
            i for i, b in enumerate(points) if not any(a[0] < b[0] and a[1] < b[1] for a in points)
        ],
        "A model of the same cost and a higher loss is beaten too: nobody would take it.",
    ),
    "convex": (
        _hull,
        "You kept only what lies on straight lines between others. There is no model half-way "
        "between two models.",
    ),
    "the points": (
        lambda points: [tuple(points[i]) for i in _frontier(points)],
        "Return the places in the list, not the points.",
    ),
}


def _judge_frontier(answer: Frontier) -> str | None:
    cases: list[list[Point]] = [
        [(1.0, 4.3), (0.5, 4.7), (0.5, 4.8), (0.24, 7.0), (0.69, 4.25), (0.75, 4.4)],
        [(1.0, 1.0), (2.0, 0.97), (3.0, 0.5), (4.0, 0.5), (2.0, 2.0), (0.9, 1.0)],
    ]
    if why := mistake(answer, FRONTIER_BUGS, lambda f: [list(f(list(c))) for c in cases]):
        return why
    for case in cases:
        got = sorted(answer(list(case)))
        if got != _frontier(case):
            return f"frontier({case}) = {got}; some of these are beaten, or one is missing."
    return None


EXERCISES = {
    "results-time": Exercise(
        judge=_judge_ratio,
        hints=(
            "Write down the time of one pass of one model first.",
            "Calls times the time of a call, and batch times MACs over the speed.",
            "T = calls * call + batch * macs / speed; own over plain.",
        ),
        solution=_ratio,
        wrong={name: bug for name, (bug, _) in RATIO_BUGS.items()},
    ),
    "results-blocks": Exercise(
        judge=_judge_blocks,
        hints=(
            "Price one block on any number of tokens; then put in n and n/4.",
            "Linear maps 18 D² a token, places 2 S D for S tokens seen, channels 2 head D.",
            "S is the number of tokens of that block, or window² where there are windows.",
        ),
        solution=_blocks,
        wrong={name: bug for name, (bug, _) in BLOCKS_BUGS.items()},
    ),
    "results-table": Exercise(
        judge=_judge_fair,
        hints=(
            "What does it take to draw one image?",
            "Passes are steps, or twice the steps where there is guidance.",
            "macs * steps * (1 if scale == 1 else 2), over that of rows[0].",
        ),
        solution=_fair,
        wrong={name: bug for name, (bug, _) in FAIR_BUGS.items()},
    ),
    "results-frontier": Exercise(
        judge=_judge_frontier,
        hints=(
            "When would nobody take a model? When another is no worse in anything, and better in "
            "something.",
            "a beats b if a[0] <= b[0] and a[1] <= b[1] and a != b.",
            "Keep i if no point of the list beats points[i].",
        ),
        solution=_frontier,
        wrong={name: bug for name, (bug, _) in FRONTIER_BUGS.items()},
    ),
}
