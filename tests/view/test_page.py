"""The page in a real browser, over real HTTP."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from flagscale_vla.view.job import listen, open_library
from flagscale_vla.view.server import make_app
from tests.samples import interleaved_sample
from tests.view.folder import FRAMES, write_episodes
from tests.view.test_server import settings

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: make install-browser")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = settings(write_episodes(tmp_path_factory.mktemp("shards"), [interleaved_sample(1)]))
    with listen(run) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(open_library(run), run), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(20_000)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
        assert not complaints


def test_from_the_shard_to_an_episode_that_plays(page: playwright.Page, address: str) -> None:
    page.goto(address)
    page.click("text=train-000000.tar")
    page.click("text=door #1")
    page.wait_for_selector(".cameras img")
    pictures = page.locator(".cameras img")
    assert pictures.count() == 2
    assert page.locator(".plots svg").count() == 8
    first = pictures.first.get_attribute("src")
    page.click("text=Play")
    expect(page.locator("input[type=range]")).to_have_value(str(FRAMES - 1))
    assert pictures.first.get_attribute("src") != first
    expect(pictures.first).to_have_js_property("naturalWidth", 112)
    expect(page.locator("button")).to_have_text("Play")
    page.fill("input[type=range]", "2")
    assert "frame 2, reach" in page.inner_text("#frame")


def test_a_sample_shows_tokens_pictures_and_chunks(page: playwright.Page, address: str) -> None:
    page.goto(f"{address}/#/sample/shards/{2 * FRAMES}")
    page.wait_for_selector(".tokens .token")
    assert "interleaved-00001" in page.inner_text("h1")
    learnt = page.locator(".token.learnt").all_inner_texts()
    assert any("<|im_end|>" in text for text in learnt)
    assert page.locator(".token.image").count() == page.locator(".cameras img").count()
    assert "positions (0, 0, 0)" in (page.locator(".token").first.get_attribute("title") or "")
    for picture in page.locator(".cameras img").all():
        expect(picture).to_have_js_property("naturalWidth", 112)


def test_a_pack_is_walked_to_its_samples(page: playwright.Page, address: str) -> None:
    page.goto(f"{address}/#/pack/0")
    page.wait_for_selector(".bar a")
    widths = page.eval_on_selector_all(".bar a", "links => links.map((link) => link.getBoundingClientRect().width)")
    assert len(widths) == page.locator("tbody tr").count()
    assert min(widths) > 1
    page.click("tbody tr a")
    page.wait_for_selector(".tokens .token")


def test_the_mixture_is_counted_for_as_many_packs_as_are_asked_for(page: playwright.Page, address: str) -> None:
    page.goto(address)
    counted = page.locator("#mixture tbody td:nth-child(2)")
    before = int(counted.inner_text().replace(",", ""))
    page.fill("input[name=packs]", "1000")
    page.press("input[name=packs]", "Enter")
    expect(counted).not_to_have_text(f"{before:,}")
    assert int(counted.inner_text().replace(",", "")) > before


def test_what_is_not_there_is_said_on_the_page(page: playwright.Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("main h1")
    # Chromium logs every answer of 404 as an error of its own; this one is meant.
    page.evaluate('window.fetch = async () => new Response(\'{"error": "there is no sample 999"}\', {status: 404})')
    page.evaluate("location.hash = '#/sample/shards/999'")
    page.wait_for_selector("#error:visible")
    assert "there is no sample 999" in page.inner_text("#error")
