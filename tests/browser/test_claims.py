"""The filter of the ledger in Chromium: by keys, from disk, on a phone, and without JavaScript."""

from __future__ import annotations

import pytest
from elements import PHONE, ROOT
from playwright.sync_api import Browser

from dit_edu.lab.ledger import read_ledger

pytestmark = [pytest.mark.built, pytest.mark.browser]

PAGE = (ROOT / "_build" / "html" / "book" / "claims.html").as_uri()


def test_keys_filter_the_claims_and_a_link_to_a_hidden_one_shows_it(browser: Browser) -> None:
    claims, _ = read_ledger()
    page = browser.new_page(viewport=PHONE)
    page.goto(PAGE, wait_until="domcontentloaded", timeout=60_000)
    shown = page.locator(".claim:visible")
    assert shown.count() == len(claims)
    page.locator("select[name=verdict]").focus()
    page.keyboard.type("? not")
    few = [claim for claim in claims if claim.verdict == "not checkable here"]
    assert shown.count() == len(few)
    said = page.locator(".claims-filter output")
    assert said.inner_text() == f"{len(few)} of {len(claims)} claims"
    page.locator("select[name=who]").select_option("this book")
    assert shown.count() == sum(claim.who == "ours" for claim in few)
    page.evaluate("location.hash = 'claim-t1-4096-tokens'")
    page.wait_for_function("document.querySelectorAll('.claim[hidden]').length === 0")
    assert page.locator("#claim-t1-4096-tokens").is_visible()
    page.close()


def test_without_javascript_all_claims_are_there(browser: Browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(PAGE, wait_until="domcontentloaded", timeout=60_000)
    assert page.locator(".claim:visible").count() == len(read_ledger()[0])
    assert page.locator(".claims-filter").count() == 0
    page.context.close()
