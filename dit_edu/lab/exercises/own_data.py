"""Exercises of the chapter on own data: what an adapter weighs, merging, keys, mirrors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Derive: how many numbers the adapters of a DiT have.

Count = Callable[[int, int, int], int]


def _count(width: int, depth: int, rank: int) -> int:
    return depth * rank * (4 + 2 + 5 + 5) * width


COUNT_BUGS: dict[str, tuple[Count, str]] = {
    "products": (
        lambda width, depth, rank: depth * (3 + 1 + 4 + 4) * width**2,
        "These are the numbers of the linear maps themselves, W. An adapter of rank r has only "
        "A (r, D_in) and B (D_out, r).",
    ),
    "three maps": (
        lambda width, depth, rank: depth * rank * (6 + 2 + 5 + 5) * width,
        "You gave queries, keys and values an adapter each. They are one linear map, D → 3D, and "
        "it has one adapter: r (D + 3D).",
    ),
    "attention only": (
        lambda width, depth, rank: depth * rank * 6 * width,
        "You left out the MLP: its two maps, D → 4D and 4D → D, have adapters too.",
    ),
    "one side": (
        lambda width, depth, rank: depth * rank * (1 + 1 + 1 + 4) * width,
        "You counted A only, r numbers for each input. B has r for each output.",
    ),
}


def _judge_count(answer: Count) -> str | None:
    cases = [(48, 3, 4), (1152, 28, 8), (64, 4, 1)]
    if why := mistake(answer, COUNT_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if (got := float(answer(*case))) != _count(*case):
            return (
                f"adapters{case} = {got:,.0f}. Four maps in every block: D → 3D, D → D, D → 4D and "
                "4D → D, each with r (D_in + D_out)."
            )
    return None


# Build: put an adapter into the weights.

Merge = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _merge(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return weight + alpha / len(a) * b @ a


MERGE_BUGS: dict[str, tuple[Merge, str]] = {
    "no factor": (
        lambda w, a, b, alpha: w + b @ a,
        "You left out the factor alpha / r, by which every adapter is multiplied.",
    ),
    "alpha only": (
        lambda w, a, b, alpha: w + alpha * b @ a,
        "The factor is alpha over the rank, and the rank is the number of rows of A.",
    ),
    "instead": (
        lambda w, a, b, alpha: alpha / len(a) * b @ a,
        "This is the adapter alone. It is added to the weight that was there.",
    ),
    "width": (
        lambda w, a, b, alpha: w + alpha / a.shape[1] * b @ a,
        "You divide by the width of the input. The rank is the other side of A.",
    ),
}


def _judge_merge(answer: Merge) -> str | None:
    g = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (2, 4), (6, 2))
    w, a, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    if why := mistake(answer, MERGE_BUGS, lambda f: f(w, a, b, 3.0)):
        return why
    return close(answer(w, a, b, 3.0), _merge(w, a, b, 3.0), "The merged weight")


# Build: a fingerprint that notices what matters, and nothing else.

Files = dict[str, bytes]
Key = Callable[[Files, int, bool], object]


def _key(files: Files, size: int, flip: bool) -> object:
    return (tuple(sorted(files.items())), size, flip)


KEY_BUGS: dict[str, Key] = {
    "names only": lambda files, size, flip: (tuple(sorted(files)), size, flip),
    "contents only": lambda files, size, flip: (tuple(sorted(files.values())), size, flip),
    "in any order": lambda files, size, flip: (tuple(files.items()), size, flip),
    "no size": lambda files, size, flip: (tuple(sorted(files.items())), flip),
    "no flip": lambda files, size, flip: (tuple(sorted(files.items())), size),
    "run together": lambda files, size, flip: (
        b"".join(name.encode() + content for name, content in sorted(files.items())),
        size,
        flip,
    ),
}


def _judge_key(answer: Key) -> str | None:
    files = {"cats/1.png": b"one", "dogs/1.png": b"two"}
    key = answer(files, 32, False)
    if answer(dict(reversed(files.items())), 32, False) != key:
        return "The same files in another order have another key. A disk lists files as it likes."
    changed: dict[str, tuple[Files, int, bool]] = {
        "A file was edited": ({**files, "cats/1.png": b"One"}, 32, False),
        "An image went to another class": ({"cats/1.png": b"one", "cats/2.png": b"two"}, 32, False),
        "Two images were swapped": ({"cats/1.png": b"two", "dogs/1.png": b"one"}, 32, False),
        "A file was deleted": ({"cats/1.png": b"one"}, 32, False),
        "The images are cut to another size": (files, 64, False),
        "Mirrored images were asked for": (files, 32, True),
        "The end of a name became the beginning of a content": (
            {"cats/1.pn": b"gone", "dogs/1.png": b"two"},
            32,
            False,
        ),
    }
    for what, case in changed.items():
        if answer(*case) == key:
            return f"{what}, and the key is the same: the cache would be taken, and be wrong."
    return None


# Predict: is a mirrored latent the latent of the mirrored image?


def _judge_mirror(answer: object) -> str | None:
    wanted = {"pixels": True, "latents": False, "npy": False}
    if not isinstance(answer, dict) or set(answer) != set(wanted):
        return f"Give a dictionary with the keys {', '.join(wanted)}, and True or False for each."
    if answer["npy"]:
        return (
            "Of .npy latents there is no image left to be mirrored, and mirroring the latents is "
            "something else."
        )
    if answer["latents"]:
        return (
            "A convolution's kernels are not symmetric: the encoder's answer to a mirrored image "
            "is not the mirrored answer. Nothing has taught it to be so."
        )
    if not answer["pixels"]:
        return "Pixels are the image. To mirror one is to mirror the other."
    return None


EXERCISES = {
    "own-data-count": Exercise(
        judge=_judge_count,
        hints=(
            "A linear map D_in → D_out gets A (r, D_in) and B (D_out, r).",
            "That is r (D_in + D_out). Attention has D → 3D and D → D; the MLP D → 4D and 4D → D.",
            "depth · r · (4 + 2 + 5 + 5) · D.",
        ),
        solution=_count,
        wrong={name: bug for name, (bug, _) in COUNT_BUGS.items()},
    ),
    "own-data-merge": Exercise(
        judge=_judge_merge,
        hints=(
            "The adapted map is W x + (alpha / r) B A x.",
            "Both terms are linear in x, so they are one matrix times x. What is r, given A?",
            "weight + alpha / len(a) * b @ a.",
        ),
        solution=_merge,
        wrong={name: bug for name, (bug, _) in MERGE_BUGS.items()},
    ),
    "own-data-key": Exercise(
        judge=_judge_key,
        hints=(
            "List what the cached numbers depend on. Everything on the list has to be in the key.",
            "Names decide the classes, contents the pixels, and their pairing both.",
            "(tuple(sorted(files.items())), size, flip).",
        ),
        solution=_key,
        wrong=KEY_BUGS,
    ),
    "own-data-mirror": Exercise(
        judge=_judge_mirror,
        hints=(
            "Ask whether f(mirror(x)) = mirror(f(x)), where f is what stands before the cache.",
            "For pixels f does nothing. For latents f is a trained convolutional network.",
            "Only for pixels.",
        ),
        solution={"pixels": True, "latents": False, "npy": False},
        wrong={
            "always": {"pixels": True, "latents": True, "npy": True},
            "encoder": {"pixels": True, "latents": True, "npy": False},
            "never": {"pixels": False, "latents": False, "npy": False},
            "a number": 1,
        },
    ),
}
