"""Exercises of the page on claims: what cannot be true, what a part can save, whose table it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: which of five claims cannot be true.

IMPOSSIBLE = {"b", "c", "e"}
WHY = {
    "a": "(a) can be true: a quarter of the tokens, and 29.0 against 118.6 GMACs.",
    "b": "(b) cannot: if all but the pairs grows fourfold and the pairs grow 16-fold, the whole "
    "grows by more than four. It is 524.5.",
    "c": "(c) cannot: pairs are 3.6 % of a pass. Without them it is 1.04 times as fast, at most.",
    "d": "(d) can be true: experts that do not run cost parameters and no MACs.",
    "e": "(e) cannot: three quarters of the blocks' work stay, so a pass is at most 4/3 times as "
    "fast.",
}


def _judge_impossible(answer: Collection[str]) -> str | None:
    found = {str(letter).strip("() ").lower() for letter in answer}
    if unknown := found - WHY.keys():
        return f"{', '.join(sorted(unknown))} is none of them; the claims are a to e."
    wrong = sorted(found ^ IMPOSSIBLE)
    if not wrong:
        return None
    hit = f"{len(found & IMPOSSIBLE)} of {len(IMPOSSIBLE)} found. "
    return hit + WHY[wrong[0]]


# Derive: from two prices of one model, the share of the pairs.

Pairs = Callable[[float, float], float]


def _pairs(small: float, large: float) -> float:
    return (large / small - 4) / 12


PAIRS_BUGS: dict[str, tuple[Pairs, str]] = {
    "what is above linear": (
        lambda small, large: (large / small - 4) / 4,
        "Four times the tokens make 16 times the pairs, 12 more than the fourfold of the rest.",
    ),
    "share at the larger size": (
        lambda small, large: 16 * _pairs(small, large) * small / large,
        "That is the share at the larger size. Asked is the one at the smaller.",
    ),
    "over 16": (
        lambda small, large: (large / small - 4) / 16,
        "The pairs were among the fourfold already: 4 (1 - ρ) + 16 ρ = 4 + 12 ρ.",
    ),
}
PAIRS_CASES = [(118.6, 524.5), (524.5, 2909.2), (1.0, 4.0), (6.06, 28.5)]


def _judge_pairs(answer: Pairs) -> str | None:
    if why := mistake(answer, PAIRS_BUGS, lambda f: [float(f(*case)) for case in PAIRS_CASES]):
        return why
    for case in PAIRS_CASES:
        if why := close(float(answer(*case)), _pairs(*case), f"pairs{case}"):
            return why
    return None


# Derive: how much faster the whole can become.

Faster = Callable[[float, float], float]


def _faster(share: float, factor: float) -> float:
    return 1 / (1 - share + share / factor)


FASTER_BUGS: dict[str, tuple[Faster, str]] = {
    "the part alone": (
        lambda share, factor: factor,
        "That is how much faster the part became. The rest takes as long as before.",
    ),
    "a mean of the factors": (
        lambda share, factor: 1 - share + share * factor,
        "You average the speeds. Times add up: average these, and take one over it.",
    ),
    "the time that is left": (
        lambda share, factor: 1 - share + share / factor,
        "That is the time that is left, over the old one. How many times as fast is it?",
    ),
}
FASTER_CASES = [(0.036, 10.0), (0.5, 2.0), (0.9, 1000.0), (0.25, 1.0)]


def _judge_faster(answer: Faster) -> str | None:
    if why := mistake(answer, FASTER_BUGS, lambda f: [float(f(*case)) for case in FASTER_CASES]):
        return why
    for case in FASTER_CASES:
        if why := close(float(answer(*case)), _faster(*case), f"faster{case}"):
            return why
    return None


# Build: which rows of a table another row makes needless.

Row = tuple[str, float, int, float]  # name, GMACs a pass, sampling steps, FID
Beaten = Callable[[Sequence[Row]], Collection[str]]


def _beaten(rows: Sequence[Row], price: Callable[[Row], float] | None = None) -> list[str]:
    price = price or (lambda row: row[1] * row[2])
    return sorted(
        a[0]
        for a in rows
        if any(
            price(b) <= price(a) and b[3] <= a[3] and (price(b) < price(a) or b[3] < a[3])
            for b in rows
        )
    )


BEATEN_BUGS: dict[str, tuple[Beaten, str]] = {
    "by the pass": (
        lambda rows: _beaten(rows, lambda row: row[1]),
        "You compare the cost of a pass. Somebody draws an image: times the steps.",
    ),
    "all but the best": (
        lambda rows: sorted(r[0] for r in rows if r[3] > min(x[3] for x in rows)),
        "You keep the best FID only. A row that is worse and cheaper than all better ones stays.",
    ),
    "by quality alone": (
        lambda rows: sorted(a[0] for a in rows if any(b[3] < a[3] for b in rows if b[2] == a[2])),
        "A better FID at as many steps may cost more. Both have to be no worse.",
    ),
    "strictly in both": (
        lambda rows: sorted(
            a[0] for a in rows if any(b[1] * b[2] < a[1] * a[2] and b[3] < a[3] for b in rows)
        ),
        "As good and cheaper beats, too, and so does as dear and better.",
    ),
}
BEATEN_CASES: list[list[Row]] = [
    [("DiT", 118.6, 250, 1.55), ("adaptive", 72.3, 50, 1.52), ("constant", 78.1, 50, 1.48)],
    [("large", 100, 50, 2.0), ("small", 20, 250, 2.4), ("middle", 50, 50, 2.4), ("poor", 1, 10, 9)],
    [("a", 10, 10, 3.0), ("b", 10, 10, 2.0), ("c", 5, 20, 2.0), ("d", 5, 10, 3.0)],
    [("slow", 10, 100, 2.0), ("quick", 30, 20, 2.0)],
]


def _judge_beaten(answer: Beaten) -> str | None:
    if why := mistake(
        answer,
        BEATEN_BUGS,
        lambda f: [
            float(row[0] in set(f(rows))) for rows in map(list, BEATEN_CASES) for row in rows
        ],
    ):
        return why
    for rows in BEATEN_CASES:
        found, want = sorted(answer(list(rows))), _beaten(rows)
        if found != want:
            return f"Of {rows} you find {found}; beaten are {want}."
    return None


EXERCISES = {
    "claims-impossible": Exercise(
        judge=_judge_impossible,
        hints=(
            "Ask of each: what would have to be true of the parts, if this is true of the whole?",
            "Parts that grow at least fourfold cannot make a whole that grows fourfold, if one of "
            "them grows more. And a part that is small cannot save much.",
            "Three of them cannot be true. Experts, and tokens that are fewer, are no miracles.",
        ),
        solution=IMPOSSIBLE,
        wrong={
            "the experts too": {"b", "c", "d", "e"},
            "attention is what costs": {"b", "e"},
            "twice the side, four times the cost": {"c", "e"},
        },
    ),
    "claims-pairs": Exercise(
        judge=_judge_pairs,
        hints=(
            "Let ρ be the share of the pairs at the smaller size. What does each part grow by?",
            "The rest grows fourfold, the pairs 16-fold: large / small = 4 (1 - ρ) + 16 ρ.",
            "(large / small - 4) / 12.",
        ),
        solution=_pairs,
        wrong={name: bug for name, (bug, _) in PAIRS_BUGS.items()},
    ),
    "claims-faster": Exercise(
        judge=_judge_faster,
        hints=(
            "Let the whole take 1. How long does the part take now, and how long the rest?",
            "share / factor, and 1 - share.",
            "1 / (1 - share + share / factor).",
        ),
        solution=_faster,
        wrong={name: bug for name, (bug, _) in FASTER_BUGS.items()},
    ),
    "claims-beaten": Exercise(
        judge=_judge_beaten,
        hints=(
            "What does an image cost in each row? It is not the number that the table prints.",
            "Row b beats row a if b costs no more, has no higher FID, and one of the two is less.",
            "price = gmacs * steps; any(p(b) <= p(a) and fid(b) <= fid(a) and (p(b) < p(a) or "
            "fid(b) < fid(a)) for b in rows).",
        ),
        solution=_beaten,
        wrong={name: bug for name, (bug, _) in BEATEN_BUGS.items()},
    ),
}
