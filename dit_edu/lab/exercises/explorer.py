"""Exercises of the routing explorer: what a budget saves, what time it saves, and the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dit_edu.lab.exercises import Exercise, close, mistake

Table = Mapping[str, np.ndarray]

# Predict: a budget is one of what can be switched off, not of everything.

Saving = Callable[[float, float, float], float]


def _saving(floor: float, switched: float, budget: float) -> float:
    return (1 - budget) * switched / (floor + switched)


SAVING_BUGS: dict[str, tuple[Saving, str]] = {
    "of everything": (
        lambda floor, switched, budget: 1 - budget,
        "That would be so if everything could be switched off. The floor runs in any case.",
    ),
    "what is paid": (
        lambda floor, switched, budget: (floor + budget * switched) / (floor + switched),
        "That is what is still paid. What is saved?",
    ),
    "floor saved too": (
        lambda floor, switched, budget: 1 - budget * switched / (floor + switched),
        "You leave out the floor on the way: it is paid at every budget.",
    ),
}


def _judge_saving(answer: Saving) -> str | None:
    cases = [(40.0, 60.0, 0.5), (10.0, 300.0, 0.0), (5.0, 5.0, 1.0), (0.0, 7.0, 0.3)]
    if why := mistake(answer, SAVING_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _saving(*case), f"The saving of {case}"):
            return why
    return None


# Derive: time has a part that no budget touches.

TimeSaved = Callable[[float, float, float], float]


def _time_saved(overhead: float, full: float, macs_saved: float) -> float:
    return macs_saved * (full - overhead) / full


TIME_BUGS: dict[str, tuple[TimeSaved, str]] = {
    "no overhead": (
        lambda overhead, full, macs_saved: macs_saved,
        "So it would be if all time were spent on MACs. The overhead stays.",
    ),
    "overhead on top": (
        lambda overhead, full, macs_saved: macs_saved * full / (full + overhead),
        "The time of the full model holds the overhead already; do not add it again.",
    ),
    "overhead taken off": (
        lambda overhead, full, macs_saved: macs_saved - overhead / full,
        "Only the part of the time that is MACs shrinks, and it shrinks by the share of MACs.",
    ),
    "of the rest": (
        lambda overhead, full, macs_saved: (
            macs_saved * (full - overhead) / (full - macs_saved * (full - overhead))
        ),
        "You divide by the time that is left. The saving is a share of the full model's time.",
    ),
}


def _judge_time(answer: TimeSaved) -> str | None:
    cases = [(1.0, 4.0, 0.5), (0.25, 10.0, 0.8), (3.0, 4.0, 0.4)]
    if why := mistake(answer, TIME_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _time_saved(*case), f"The saving of {case}"):
            return why
    return None


# Build: two questions to the recorder's table.

SoFar = Callable[[Table, int], np.ndarray]


def _so_far(table: Table, sample: int) -> np.ndarray:
    mine = table["sample"] == sample
    return np.bincount(table["call"][mine], weights=table["macs"][mine]).cumsum()


def _over_units(table: Table, sample: int) -> np.ndarray:
    return table["macs"][table["sample"] == sample].cumsum()


def _all_samples(table: Table, sample: int) -> np.ndarray:
    return np.bincount(table["call"], weights=table["macs"]).cumsum()


def _each_call(table: Table, sample: int) -> np.ndarray:
    mine = table["sample"] == sample
    return np.bincount(table["call"][mine], weights=table["macs"][mine])


SO_FAR_BUGS: dict[str, tuple[SoFar, str]] = {
    "row by row": (
        _over_units,
        "The table has a row for every unit of every module. Add up the rows of a call first.",
    ),
    "the whole batch": (_all_samples, "You add up all samples. Only one is asked for."),
    "not so far": (_each_call, "That is what each step cost. What has been paid up to each?"),
}


def _record(shared: bool = False) -> dict[str, np.ndarray]:
    """A table of three passes: two samples, two modules, of two and of three units."""
    rng = np.random.default_rng(0)
    names = ("call", "module", "t", "sample", "unit", "choice", "macs")
    rows: dict[str, list] = {name: [] for name in names}
    for call, t in enumerate((900, 500, 100)):
        for module, units, each in (("a", 2, 10), ("b", 3, 7)):
            choice = rng.integers(0, 2, (1 if shared else 2, units)).repeat(1 + shared, axis=0)
            for sample in range(2):
                for unit in range(units):
                    on = float(choice[sample, unit])
                    entry = (call, module, t, sample, unit, on, each * on)
                    for name, value in zip(names, entry, strict=True):
                        rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


def _judge_so_far(answer: SoFar) -> str | None:
    cases = [(_record(), 0), (_record(), 1), (_record(shared=True), 1)]
    if why := mistake(answer, SO_FAR_BUGS, lambda f: [np.asarray(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(np.asarray(answer(*case)), _so_far(*case), f"Sample {case[1]}"):
            return why
    return None


Shared = Callable[[Table], bool]


def _shared(table: Table) -> bool:
    paths: dict[tuple, set[float]] = {}
    for call, module, unit, choice in zip(
        *(table[name] for name in ("call", "module", "unit", "choice")), strict=True
    ):
        paths.setdefault((call, module, unit), set()).add(choice)
    return all(len(choices) == 1 for choices in paths.values())


def _same_macs(table: Table) -> bool:
    totals = np.stack([_each_call(table, s) for s in np.unique(table["sample"])])
    return bool((totals == totals[0]).all())


def _constant(table: Table) -> bool:
    rows = zip(*(table[name] for name in ("module", "unit", "choice")), strict=True)
    paths: dict[tuple, set[float]] = {}
    for module, unit, choice in rows:
        paths.setdefault((module, unit), set()).add(choice)
    return all(len(choices) == 1 for choices in paths.values())


SHARED_BUGS: dict[str, tuple[Shared, str]] = {
    "equal cost": (
        _same_macs,
        "Two samples can pay the same and take other ways: head 1 costs what head 2 costs.",
    ),
    "the same at all steps": (
        _constant,
        "You also ask that nothing changes from step to step. A path may be shared at each step, "
        "and be another at the next.",
    ),
    "always": (lambda table: True, "Look at the record: in one of the cases samples differ."),
}


def _judge_shared(answer: Shared) -> str | None:
    swapped = _record(shared=True)  # the same cost, another unit
    first = (swapped["sample"] == 1) & (swapped["call"] == 0) & (swapped["module"] == "a")
    swapped["choice"][first] = [1.0, 0.0]
    swapped["macs"][first] = [10.0, 0.0]
    other = (swapped["sample"] == 0) & (swapped["call"] == 0) & (swapped["module"] == "a")
    swapped["choice"][other] = [0.0, 1.0]
    swapped["macs"][other] = [0.0, 10.0]
    cases = [_record(), _record(shared=True), swapped]
    if why := mistake(answer, SHARED_BUGS, lambda f: [float(f(case)) for case in cases]):
        return why
    if [bool(answer(case)) for case in cases] != [_shared(case) for case in cases]:
        return "Compare the choices of all samples, unit by unit, within each call."
    return None


EXERCISES = {
    "explorer-saving": Exercise(
        judge=_judge_saving,
        hints=(
            "The floor is paid at every budget.",
            "Saved are (1 - budget) of what can be switched.",
            "(1 - budget) · switched / (floor + switched).",
        ),
        solution=_saving,
        wrong={name: bug for name, (bug, _) in SAVING_BUGS.items()},
    ),
    "explorer-time": Exercise(
        judge=_judge_time,
        hints=(
            "Write the full model's time as overhead + the time of its MACs.",
            "The saving touches the second part alone: full - overhead.",
            "macs_saved · (full - overhead) / full.",
        ),
        solution=_time_saved,
        wrong={name: bug for name, (bug, _) in TIME_BUGS.items()},
    ),
    "explorer-so-far": Exercise(
        judge=_judge_so_far,
        hints=(
            "Keep the rows of the sample; then add up what belongs to one call.",
            "np.bincount(calls, weights=macs) adds up by call.",
            "np.bincount(table['call'][mine], weights=table['macs'][mine]).cumsum().",
        ),
        solution=_so_far,
        wrong={name: bug for name, (bug, _) in SO_FAR_BUGS.items()},
    ),
    "explorer-shared": Exercise(
        judge=_judge_shared,
        hints=(
            "Cost is not the path: compare choices.",
            "For one call, module and unit, all samples must have chosen alike.",
            "Collect the choices by (call, module, unit); each collection must hold one value.",
        ),
        solution=_shared,
        wrong={name: bug for name, (bug, _) in SHARED_BUGS.items()},
    ),
}
