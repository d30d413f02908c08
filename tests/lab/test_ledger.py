"""The ledger's reader: what it refuses, and what it does not find."""

from __future__ import annotations

import json

import pytest
from docutils.nodes import make_id

from dit_edu.lab.ledger import Claim, heading, missing, read_ledger, slug

GOOD = {
    "id": "T1-claim",
    "row": "T1",
    "who": "notes",
    "claim": "Water is wet.",
    "verdict": "reproduced",
    "found": "It is.",
    "evidence": ("tests/test_water.py::test_it_is_wet",),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "T14", "id": "T14-claim"}, "row of claim 'T14-claim'='T14' is unknown"),
        ({"id": "T2-claim"}, "id='T2-claim' of a claim; allowed: T1- and a name"),
        ({"verdict": "true"}, "verdict of claim 'T1-claim'='true' is unknown"),
        ({"found": " "}, "found of claim 'T1-claim' is empty"),
        ({"evidence": ()}, "evidence of claim 'T1-claim' is empty"),
        ({"verdict": "not checkable here"}, "why='' of claim 'T1-claim'"),
        ({"why": "No time."}, "why='No time.' of claim 'T1-claim'"),
    ],
)
def test_what_is_no_claim_is_refused(change, message):
    Claim(**GOOD)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Claim(**GOOD | change)


def test_a_number_in_the_text_is_evidence():
    claim = Claim(**GOOD | {"found": "By [[hidit/lab::wet-ness:.1%]].", "evidence": ()})
    assert claim.places() == ["notebooks/hidit/lab.ipynb::wet-ness"]
    assert claim.part == "The Diffusion Transformer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{claims: [%s, %s]}", "id='T1-a' of a claim repeats"),
        ("{open: {T99: page}, claims: [%s]}", "open row='T99' is unknown"),
        ("{claims: [{id: T1-a, colour: blue}]}", "claim 'T1-a' has colour; allowed: claim, evid"),
    ],
)
def test_what_is_no_ledger_is_refused(tmp_path, text, message):
    one = "{id: T1-a, who: ours, claim: A, verdict: reproduced, found: B, evidence: [book/a.md#b]}"
    file = tmp_path / "claims.yml"
    file.write_text(text.replace("%s", one), "utf8")
    with pytest.raises(ValueError, match=message):
        read_ledger(file)


def test_evidence_is_found_or_named(tmp_path):
    for folder in ("tests", "results", "notebooks", "book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_b():\n    pass\ndef helper(): ...\n")
    rows = {"rows": [{"setting": "p = 1", "seed": 0}]}
    (tmp_path / "results" / "a.json").write_text(json.dumps(rows))
    output = {"metadata": {"scrapbook": {"name": "kept"}}}
    lab = {"cells": [{"cell_type": "markdown"}, {"outputs": [output, {}]}]}
    (tmp_path / "notebooks" / "a.ipynb").write_text(json.dumps(lab))
    page = "# The Page's head\n\n## The idea\n\n### Of its own\n\n```{math}\n:label: eq-a-b\n```\n"
    page += "\n```python\n# no heading\n```\n"
    (tmp_path / "book" / "a.md").write_text(page + "\n```{dit-figure} moves\n```\n")
    there = [
        "tests/test_a.py::test_b",
        "results/a.json::p = 1",
        "notebooks/a.ipynb::kept",
        "book/a.md#the-page-s-head",
        "book/a.md#eq-a-b",
        "book/a.md#fig-moves",
    ]
    assert [missing(place, tmp_path) for place in there] == [None] * 6
    for place, why in {
        "tests/test_a.py::helper": "there is no test 'helper'",
        "tests/test_b.py::test_b": "there is no file tests/test_b.py",
        "results/a.json::p = 2": "there is no setting 'p = 2'",
        "notebooks/a.ipynb::lost": "there is no number that the lab keeps 'lost'",
        "book/a.md#no-heading": "there is no section or label 'no-heading'",
        "results/a.json": "allowed are",
        "book/a.md::the-page-s-head": "allowed are",
    }.items():
        assert why in missing(place, tmp_path)
    assert heading(tmp_path / "book" / "a.md", "of-its-own") == "Of its own"
    for anchor in ("the-page-s-head", "the-idea", "eq-a-b", "fig-moves"):
        assert heading(tmp_path / "book" / "a.md", anchor) == "The Page's head"


def test_addresses_are_those_of_docutils():
    for text in ("Whose 27 %?", "The notes' table of sizes", "Four times as long", "A — B"):
        assert slug(text) == make_id(text)
