#!/usr/bin/env python3
"""Take the pictures of the page of `lclm-rag serve`: python scripts/screenshots.py [FOLDER].

Without a folder, it makes those of the documentation again. With one, it also shows every state of the page
there, at two widths, light and dark. It needs chromium, and the test dependencies.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

from lclm_rag import Document, KnowledgeBase
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets

DOCS = Path(__file__).parent.parent / "docs" / "guides"
WIDTHS = {1280: 800, 390: 844}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main(folder: Path | None) -> None:
    """Build a knowledge base, serve it and take the pictures."""
    sheets = list(itertools.islice(fact_sheets(seed=2026, held_out=True), 60))
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        path = Path(made) / "records"
        with KnowledgeBase.create(path, passage_tokens=128) as kb:
            kb.add(_long_documents(sheets))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        with _service(path) as url:
            if folder is None:
                _for_docs(
                    _page(browser, url, 1280, "light"), _page(browser, url, 390, "dark"), sheets
                )
            else:
                folder.mkdir(parents=True, exist_ok=True)
                for width, scheme in itertools.product(WIDTHS, SCHEMES):
                    page = _page(browser, url, width, scheme)
                    _every_state(page, sheets, folder, f"{width}-{scheme}")
        browser.close()


def _long_documents(sheets: list[FactSheet]) -> Iterator[Document]:
    """Each sheet a document; and one of several passages."""
    yield from (sheet.document for sheet in sheets)
    lines = (sheet.document.text for sheet in sheets[40:60])
    yield Document(
        "handbook.md", "\n\n".join(lines), {"title": "Handbook of records", "year": 2026}
    )


@contextmanager
def _service(path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "lclm_rag.cli", "serve", "--kb", str(path), "--port", "0"]
    with subprocess.Popen([*command, "--writable"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"Serving .* at (http://\S+)/v1", line):
                    yield found[1]
                    break
        finally:
            process.terminate()
            process.stderr.read()


def _page(browser: Browser, url: str, width: int, scheme: Scheme) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: print(error, file=sys.stderr))
    page.on("console", lambda message: print(message.text, file=sys.stderr))
    page.goto(url)
    page.get_by_role("heading", name="Ask records").wait_for()
    return page


def _ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def _answered(page: Page, sheet: FactSheet) -> None:
    wanted = [q.question for q in sheet.questions if "code" in q.attribute]
    _ask(page, (wanted or [sheet.questions[0].question])[0])
    page.locator(".savings").last.wait_for()


def _open_source(page: Page) -> None:
    page.locator("button.found, .card .open").first.click()
    page.locator(".passage-text mark.span").wait_for()


def _read_verbatim(page: Page) -> None:
    page.locator(".card button.small").first.click()
    page.locator(".comparison").wait_for()


def _for_docs(wide: Page, narrow: Page, sheets: list[FactSheet]) -> None:
    wide.locator("#expand").evaluate("node => { node.value = 'never' }")
    for _ in range(2):  # The first question takes longer.
        wide.evaluate("document.getElementById('fresh').click()")
        _answered(wide, sheets[0])
    _read_verbatim(wide)
    wide.screenshot(path=DOCS / "page.png")
    _answered(narrow, next(sheet for sheet in sheets[43:] if sheet.kind == "person"))
    narrow.evaluate("document.querySelectorAll('details.more-sources').forEach(d => d.open = true)")
    # Not the first passage, so that there is text before it.
    later = re.compile(r"Handbook of records\s*Passage ([2-9]|\d\d)")
    narrow.locator(".card", has_text=later).first.locator("button.open").click()
    narrow.locator(".passage-text mark.span").wait_for()
    narrow.screenshot(path=DOCS / "page_source.png")


def _every_state(page: Page, sheets: list[FactSheet], folder: Path, name: str) -> None:
    def take(state: str) -> None:
        page.screenshot(path=folder / f"{state}-{name}.png")

    take("1-empty")
    page.get_by_text("Settings").click()
    take("2-settings")
    page.get_by_text("Settings").click()
    _ask(page, f"Who is {sheets[0].name}? " + "Ω" * 30)
    page.locator(".streaming").wait_for()
    page.wait_for_timeout(300)
    take("3-streaming")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Settings").click()
    page.locator("#expand").select_option("never")
    page.get_by_text("Settings").click()
    _answered(page, sheets[0])
    take("4-answered")
    _open_source(page)
    take("5-source")
    page.keyboard.press("Escape")
    _read_verbatim(page)
    take("6-verbatim")
    page.locator(".comparison").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    take("7-comparison")
    page.route("**/chat/completions", lambda route: route.abort())
    _ask(page, "And when was the person born?")
    page.locator(".problem").wait_for()
    page.wait_for_timeout(300)
    take("8-error")
    page.get_by_role("link", name="Documents").click()
    page.locator(".document").first.wait_for()
    take("9-documents")
    page.get_by_label("Search passages").fill("Handbook of records")
    page.keyboard.press("Enter")
    page.locator("#found .card").first.wait_for()
    page.locator("input[type=file]").set_input_files(
        [
            {
                "name": "letters.txt",
                "mimeType": "",
                "buffer": f"A letter, {name}. ".encode() * 6000,
            },
            {"name": "image.png", "mimeType": "", "buffer": b"no text"},
            {"name": "notes.md", "mimeType": "", "buffer": f"Notes, {name}.".encode()},
        ]
    )
    page.get_by_text("compressing").first.wait_for()
    take("10-upload")
    page.locator("#uploads li", has_text="notes.md").locator("progress").wait_for(
        state="detached", timeout=120_000
    )
    page.get_by_text("Versions").click()
    page.locator("#version-rows tr").first.wait_for()
    take("11-uploaded")
    page.locator(".document").first.get_by_role("button", name="Delete").click()
    take("12-delete")
    page.get_by_role("button", name="Keep it").click()
    page.context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
