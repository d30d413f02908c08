"""The glossary: each word in two languages, once, with a link to the page that explains it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGE = (BOOK / "glossary.md").read_text("utf8")
LISTED = re.search(r"^```\{glossary\}\n(.*?)^```", PAGE, re.M | re.S)[1]
ENTRIES = [entry.splitlines() for entry in LISTED.strip().split("\n\n")]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def stem(word: str) -> str:
    """Enough of a word to find it in a sentence, whatever its ending."""
    return word.lower()[: max(3, min(6, len(word) - 2))]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[0])
def test_an_entry_is_a_word_in_two_languages_and_a_sentence_with_a_page(entry):
    english, chinese, *sentence = entry
    assert not CHINESE.search(english) and CHINESE.search(chinese)
    assert all(line.startswith("  ") for line in sentence)
    text = " ".join(sentence)
    assert len(text) > 30 and not CHINESE.search(text)
    pages = re.findall(r"See \{doc\}`([\w/-]+)`\.$", text)
    assert len(pages) == 1
    content = (BOOK / f"{pages[0]}.md").read_text("utf8").lower()
    words = re.findall(r"[A-Za-zé]{3,}", english)
    assert any(stem(word) in content for word in words), f"{pages[0]} does not speak of {english}"


def test_words_stand_once_and_in_order():
    english = [entry[0].lower() for entry in ENTRIES]
    chinese = [entry[1] for entry in ENTRIES]
    assert english == sorted(english)
    assert len(set(english)) == len(english) and len(set(chinese)) == len(chinese)
    assert len(english) >= 80
