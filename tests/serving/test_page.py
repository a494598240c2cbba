"""The page, in a browser: what people see and do, with the network closed but for the service."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from lclm_rag import KnowledgeBase
from lclm_rag.retrieval import parse_filter
from lclm_rag.serving import ServedBase, create_app
from support.served import served
from support.services import LONG, ODD_ID, keys, until

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding.transformers import TransformersDecoder
    from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet

pytestmark = pytest.mark.slow

ARGUMENTS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
MARKUP = (
    '<img src="https://example.org/x" onerror="document.title=1"><script>document.title=2</script>'
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The one browser of the tests."""
    path = shutil.which("chromium")
    assert path is not None, "The page is tested in chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def kb(
    tmp_path_factory: pytest.TempPathFactory,
    built: Path,
    decoder: TransformersDecoder,
    compressor: Compressor,
) -> Iterator[KnowledgeBase]:
    path = tmp_path_factory.mktemp("page") / "kb"
    shutil.copytree(built, path)
    with KnowledgeBase.open(path, decoder=decoder) as kb:
        kb.__dict__["compressor"] = compressor
        yield kb


@pytest.fixture(scope="module")
def url(kb: KnowledgeBase) -> Iterator[str]:
    """A service that everybody may write to."""
    with served(create_app({"towns": ServedBase("towns", kb)}, writable=True)) as at:
        yield at


@dataclass
class Visit:
    """A look at the page, in a browser context of its own.

    Attributes:
        page: The page.
        urls: What it asked for.
        bodies: The questions that it sent.
        troubles: Errors of scripts, and what the policy forbade.
    """

    page: Page
    urls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def ask(self, question: str) -> None:
        self.page.get_by_label("Your question").fill(question)
        self.page.keyboard.press("Enter")

    def answered(self, question: str) -> str:
        """Ask, and return the answer."""
        turns = self.page.locator(".turn").count()
        self.ask(question)
        expect(self.page.locator(".savings")).to_have_count(turns + 1, timeout=20_000)
        return self.page.locator(".words").last.inner_text()

    def violations(self) -> list[str]:
        """What axe-core finds wrong."""
        found = Axe().run(self.page)
        return [
            f"{rule['id']}: {node['html']}"
            for rule in found.response["violations"]
            for node in rule["nodes"]
        ]

    def overflows(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


Visiting = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visiting]:
    """Opens the page. At the end, nothing but the service was asked, and no script failed."""
    visits: list[tuple[BrowserContext, Visit, str]] = []

    def open_page(at: str = url, ready: bool = True, **options: Any) -> Visit:
        context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce"} | options)
        context.set_default_timeout(20_000)
        visit = Visit(context.new_page())
        visits.append((context, visit, at))

        def request(made: Request) -> None:
            visit.urls.append(made.url)
            if made.url.endswith("/chat/completions"):
                visit.bodies.append(made.post_data_json)

        def console(message: ConsoleMessage) -> None:
            if "Failed to load resource" not in message.text:
                visit.troubles.append(message.text)

        context.on("request", request)
        visit.page.on("console", console)
        visit.page.on("pageerror", lambda error: visit.troubles.append(str(error)))
        context.route(lambda asked: not asked.startswith(at), lambda route: route.abort())
        visit.page.goto(at)
        if ready:
            expect(visit.page.get_by_role("heading", name="Ask towns")).to_be_visible()
        return visit

    yield open_page
    for context, visit, at in visits:
        context.close()
        assert [u for u in visit.urls if not u.startswith((f"{at}/", "data:"))] == []
        assert visit.troubles == []


def told(route: Route, *chunks: dict[str, Any]) -> None:
    """Answer a question with these events."""
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    route.fulfill(content_type="text/event-stream", body=f"{events}data: [DONE]\n\n")


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": None}]}


# --- questions --------------------------------------------------------------------------------------


def test_a_question_is_answered_with_sources_and_savings(
    visit: Visiting, url: str, questions: list[FactQuestion], sheets: list[FactSheet]
) -> None:
    question = _of(sheets[0], "birth date").question
    seen = visit()
    body = {"model": "towns", "messages": [{"role": "user", "content": question}]}
    same = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert seen.answered(question) == same["choices"][0]["message"]["content"]
    cards = seen.page.locator(".card")
    assert cards.count() == len(same["citations"])
    assert same["citations"][0]["document"] in cards.first.inner_text()
    words = seen.page.locator(".savings").inner_text()
    usage = same["usage"]
    pasted = usage["prompt_tokens"] - usage["latents"] + usage["source_tokens"]
    assert f"{usage['prompt_tokens']:,} prompt positions instead of about {pasted:,}" in words
    assert f"{usage['latents']:,} latents for {usage['source_tokens']:,} tokens" in words
    assert "first token" in words
    assert "from cache" in words
    widths = [
        part.bounding_box()["width"]  # type: ignore[index]
        for part in seen.page.locator(".bar .part").all()
    ]
    assert widths[1] / sum(widths) == pytest.approx(usage["latents"] / pasted, abs=0.02)
    expect(seen.page.get_by_role("status")).to_contain_text("Answer: ")


def _of(sheet: FactSheet, attribute: str) -> FactQuestion:
    return next(q for q in sheet.questions if q.attribute.endswith(attribute))


def test_words_are_shown_as_they_come_and_can_be_stopped(
    visit: Visiting, sheets: list[FactSheet], endless_question: str
) -> None:
    seen = visit()
    seen.ask(f"Who is {sheets[0].name}? {endless_question}")
    words = seen.page.locator(".words.streaming")
    words.wait_for()
    assert seen.page.locator(".card").count() > 0  # The sources are there before the answer is.
    expect(seen.page.locator(".answer")).to_have_attribute("aria-busy", "true")
    first = len(words.inner_text())
    until(lambda: len(words.inner_text()) > first)
    assert seen.page.evaluate("document.getAnimations().length") == 0  # Reduced motion.
    seen.page.get_by_role("button", name="Stop").click()
    expect(seen.page.get_by_text("Stopped.", exact=False).first).to_be_visible()
    expect(seen.page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_a_citation_opens_its_passage_with_neighbors(visit: Visiting) -> None:
    seen = visit()
    page = seen.page
    seen.answered("What says line 60 of the long report?")
    card = page.locator(".card").first.locator("button.open")
    text = page.locator(".card .excerpt").first.text_content()
    card.click()
    sheet = page.get_by_role("dialog", name="report")
    expect(sheet.locator("mark.span")).to_have_text(str(text), use_inner_text=False)
    around = sheet.locator(".passage-text")
    expect(sheet.locator(".around").first).to_be_visible()
    before = len(around.inner_text())
    sheet.get_by_role("button", name="Show more around it").click()
    until(lambda: len(around.inner_text()) > before)
    assert " ".join(around.inner_text().split()) in LONG
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    expect(card).to_be_focused()


def test_strings_of_the_answer_lead_to_their_source_or_are_marked_as_missing(
    visit: Visiting, sheets: list[FactSheet]
) -> None:
    seen = visit()
    question = _of(sheets[0], "badge code")
    assert seen.answered(question.question).strip(".") == question.answer
    seen.page.locator("button.found").click()
    expect(seen.page.locator("mark.span mark.hit")).to_have_text(question.answer)
    seen.page.keyboard.press("Escape")

    def lie(route: Route) -> None:
        response = route.fetch()
        events = [json.loads(line[6:]) for line in response.text().split("\n\n")[:-2]]
        events = [e for e in events if not e["choices"][0]["delta"].get("content")]
        events[-1]["grounding"] = {"found": [question.answer], "missing": ["ZZ-9"]}
        told(route, events[0], piece(f"{question.answer} or ZZ-9, not XZZ-9."), events[-1])

    seen.page.route("**/chat/completions", lie)
    seen.answered(question.question)
    expect(seen.page.locator("mark.missing")).to_have_count(1)
    expect(seen.page.locator("mark.missing")).to_contain_text("ZZ-9 (not in the sources)")
    expect(seen.page.locator("button.found").last).to_have_text(question.answer)
    expect(seen.page.locator(".missing-note")).to_contain_text("Not in the sources: ZZ-9")


def test_a_passage_is_read_verbatim_and_the_cost_is_shown(
    visit: Visiting, sheets: list[FactSheet]
) -> None:
    seen = visit()
    page = seen.page
    page.get_by_text("Settings").click()
    page.locator("#expand").select_option("never")
    seen.answered(_of(sheets[0], "badge code").question)
    second = page.locator(".card").nth(1)
    name = second.locator("button.open").inner_text()
    second.get_by_role("button", name=f"Read passage 1 of {name} verbatim").click()
    comparison = page.locator(".comparison")
    expect(comparison.get_by_role("heading")).to_contain_text("more positions")
    cells = comparison.get_by_role("row", name="Positions").get_by_role("cell").all_inner_texts()
    assert int(cells[0].replace(",", "")) < int(cells[1].replace(",", ""))
    assert [body["expand"] for body in seen.bodies] == ["never", [f"{name}#0"]]
    badges = page.locator(".card", has=page.locator(".badge"))
    assert badges.locator("button.open").all_inner_texts() == [name]


def test_a_conversation_goes_on_and_can_be_begun_anew(
    visit: Visiting, sheets: list[FactSheet]
) -> None:
    seen = visit()
    first, second = sheets[0].questions[0].question, sheets[1].questions[0].question
    answer = seen.answered(first)
    seen.answered(second)
    assert seen.bodies[1]["messages"] == [
        {"role": "user", "content": first},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": second},
    ]
    seen.page.get_by_role("button", name="New conversation").click()
    expect(seen.page.locator(".turn")).to_have_count(0)
    seen.answered(first)
    assert len(seen.bodies[2]["messages"]) == 1


def test_filters_hold_for_questions_and_documents(visit: Visiting, sheets: list[FactSheet]) -> None:
    seen = visit()
    page = seen.page
    seen.answered(sheets[0].questions[0].question)
    page.locator(".card").first.get_by_role("button", name="kind: person").click()
    page.get_by_text("Settings").click()
    page.get_by_label("Passages to retrieve").fill("3")
    page.get_by_label("Only documents with").fill("year>2000")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove the filter year>2000").click()
    seen.answered(sheets[0].questions[0].question)
    assert (seen.bodies[1]["filters"], seen.bodies[1]["top_k"]) == (['kind="person"'], 3)
    page.get_by_role("link", name="Documents").click()
    expect(page.locator(".document .tags").first).to_contain_text("kind: person")
    people = sum(sheet.kind == "person" for sheet in sheets[:12])
    expect(page.locator(".document")).to_have_count(people)
    page.get_by_role("button", name='Remove the filter kind="person"').click()
    until(lambda: page.locator(".document").count() > people)


@pytest.mark.parametrize("kind", ["refused", "midway", "cut off", "unreachable"])
def test_errors_say_what_to_do(visit: Visiting, sheets: list[FactSheet], kind: str) -> None:
    seen = visit()
    error = {"error": {"message": "Sorry: <b>ask</b> again in a second."}}

    def fail(route: Route) -> None:
        if kind == "refused":
            route.fulfill(status=429, json=error)
        elif kind == "midway":
            told(route, piece("It is "), error)
        elif kind == "cut off":
            route.fulfill(
                content_type="text/event-stream", body=f"data: {json.dumps(piece('It'))}\n\n"
            )
        else:
            route.abort()

    seen.page.route("**/chat/completions", fail, times=1)
    question = sheets[0].questions[0].question
    seen.ask(question)
    problem = seen.page.get_by_role("alert").filter(has_text="gain")
    sentence = {"cut off": "broke off", "unreachable": "lclm-rag serve is running"}
    if kind == "unreachable":
        problem = seen.page.locator(".problem")
    expect(problem).to_contain_text(sentence.get(kind, "Sorry: <b>ask</b> again in a second."))
    problem.get_by_role("button", name="Ask again").click()
    expect(seen.page.locator(".savings")).to_have_count(1)
    expect(seen.page.locator(".problem")).to_have_count(0)
    assert len(seen.bodies[1]["messages"]) == 1


# --- documents --------------------------------------------------------------------------------------


def test_documents_are_listed_searched_and_deleted(
    visit: Visiting, url: str, kb: KnowledgeBase
) -> None:
    doomed = {"id": "a/doomed é", "text": f"A note. {MARKUP}", "metadata": {"title": MARKUP}}
    httpx.put(f"{url}/v1/documents?wait=true", json=doomed, timeout=60).raise_for_status()
    seen = visit()
    page = seen.page
    page.get_by_role("link", name="Documents").click()
    rows = page.locator(".document")
    expect(rows).to_have_count(15)
    page.get_by_role("button", name=ODD_ID.replace("\n", " "), exact=True).click()
    expect(page.locator("mark.span")).to_have_text("The ferry to Isola leaves at noon.")
    page.keyboard.press("Escape")
    page.get_by_label("Search passages").fill("A note")
    page.keyboard.press("Enter")
    card = page.locator("#found .card").filter(has_text="A note")
    expect(card).to_contain_text(MARKUP)  # As text, wherever it is shown.
    card.locator("button.open").click()
    expect(page.locator("mark.span")).to_have_text(doomed["text"])
    page.keyboard.press("Escape")
    row = rows.filter(has_text="doomed")
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    expect(rows).to_have_count(15)
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(rows).to_have_count(14)
    page.locator("summary", has_text="Versions").click()
    expect(page.locator("#version-rows tr").first).to_contain_text("delete")


def test_files_are_uploaded_by_choice_and_by_dropping(visit: Visiting, kb: KnowledgeBase) -> None:
    seen = visit()
    page = seen.page
    page.get_by_role("link", name="Documents").click()
    expect(page.locator(".document").first).to_be_visible()
    page.locator("#files").set_input_files(
        [
            {"name": "harbor.txt", "mimeType": "text/plain", "buffer": b"The harbor opens. " * 900},
            {"name": "image.png", "mimeType": "image/png", "buffer": b"no text"},
        ]
    )
    uploads = page.locator("#uploads li")
    expect(uploads.first).to_contain_text("compressing")
    expect(uploads.first).to_contain_text("1 added", timeout=60_000)
    expect(uploads.nth(1)).to_contain_text("is of no kind that can be read")
    expect(page.locator(".document", has_text="harbor.txt")).to_be_visible()
    dropped = page.evaluate_handle(
        """() => { const data = new DataTransfer();
                   data.items.add(new File(["The pier is closed."], "pier.md")); return data; }"""
    )
    page.dispatch_event("#documents", "dragover", {"dataTransfer": dropped})
    expect(page.locator("#upload")).to_have_class("drop over")
    page.dispatch_event("#documents", "drop", {"dataTransfer": dropped})
    expect(uploads.nth(2)).to_contain_text("1 added", timeout=60_000)
    expect(page.locator("#documents-summary")).to_contain_text("16 documents")
    kb_ids = {hit.key.document_id for hit in kb.retrieve("pier closed")}
    assert "pier.md" in kb_ids
    for name in ("harbor.txt", "pier.md"):
        page.get_by_role("button", name=f"Delete {name}").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.locator(".document", has_text=name)).to_have_count(0)


# --- who may -----------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_a_reader_sees_no_way_to_write(
    visit: Visiting, kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    holders = keys(alice={}, bob={"write": True})
    app = create_app({"towns": ServedBase("towns", kb)}, keys=holders, writable=True)
    with served(app) as at:
        seen = visit(at, ready=False)
        page = seen.page
        page.locator("#key-input").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("This key is not valid.")).to_be_visible()
        page.locator("#key-input").fill("alice")
        page.keyboard.press("Enter")
        seen.answered(sheets[0].questions[0].question)
        kept = "[localStorage.length, document.cookie, Object.values(sessionStorage)]"
        assert page.evaluate(kept) == [0, "", ["alice"]]
        page.get_by_role("link", name="Documents").click()
        expect(page.locator(".document").first).to_be_visible()
        expect(page.locator("#upload")).to_be_hidden()
        expect(page.get_by_role("button", name="Delete")).to_have_count(0)
        page.get_by_role("button", name="Forget the key").click()
        page.locator("#key-input").fill("bob")
        page.keyboard.press("Enter")
        expect(page.locator("#upload")).to_be_visible()
        seen.page.close()


def test_who_is_bound_by_a_filter_asks_and_sees_no_counts(
    visit: Visiting, kb: KnowledgeBase
) -> None:
    holders = keys(eve={"filters": parse_filter("kind=report")})
    with served(create_app({"towns": ServedBase("towns", kb)}, keys=holders)) as at:
        seen = visit(at, ready=False)
        page = seen.page
        page.locator("#key-input").fill("eve")
        page.keyboard.press("Enter")
        expect(page.locator("#empty")).to_contain_text("Documents, read as latents")
        page.get_by_role("link", name="Documents").click()
        expect(page.locator(".document")).to_have_count(1)
        expect(page.locator("#documents-summary")).not_to_contain_text("documents")
        page.get_by_text("Versions").click()
        expect(page.locator("#version-rows tr").first).to_contain_text("–")
        seen.page.close()


def test_an_empty_knowledge_base_says_how_to_fill_it(
    visit: Visiting, tmp_path: Path, decoder: TransformersDecoder
) -> None:
    with KnowledgeBase.create(tmp_path / "kb", decoder=decoder) as empty:
        bases = {"new": ServedBase("new", empty), "other": ServedBase("other", empty)}
        with served(create_app(bases)) as at:
            seen = visit(at, ready=False)
            expect(seen.page.get_by_role("heading", name="new is empty")).to_be_visible()
            expect(seen.page.locator("#empty")).to_contain_text("lclm-rag add")
            expect(seen.page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
            seen.page.get_by_label("Knowledge base").select_option("other")
            expect(seen.page.get_by_role("heading", name="other is empty")).to_be_visible()
            seen.page.close()


# --- how it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_view_is_accessible_and_fits(
    visit: Visiting, sheets: list[FactSheet], scheme: str, size: dict[str, int]
) -> None:
    seen = visit(color_scheme=scheme, viewport=size)
    page = seen.page
    page.get_by_text("Settings").click()
    assert seen.violations() == []
    page.get_by_text("Settings").click()
    seen.answered(_of(sheets[0], "badge code").question)
    page.locator(".more-sources summary").click()
    page.locator(".card button.small").first.click()
    page.locator(".comparison").wait_for()
    assert (seen.violations(), seen.overflows()) == ([], False)
    page.locator("button.found").first.click()
    page.locator("mark.hit").wait_for()
    assert seen.violations() == []
    page.keyboard.press("Escape")
    page.route("**/chat/completions", lambda route: route.abort())
    seen.ask("Why?")
    page.locator(".problem").wait_for()
    assert seen.violations() == []
    page.get_by_role("link", name="Documents").click()
    page.locator(".document").first.wait_for()
    page.locator("summary", has_text="Versions").click()
    page.locator("#version-rows tr").first.wait_for()
    assert (seen.violations(), seen.overflows()) == ([], False)
    page.get_by_role("button", name="Delete").first.click()
    assert seen.violations() == []


def test_it_works_without_a_mouse(visit: Visiting, sheets: list[FactSheet]) -> None:
    seen = visit()
    page = seen.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type(sheets[0].questions[0].question)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Enter")
    page.locator(".savings").wait_for()
    assert page.locator(".question").inner_text() == sheets[0].questions[0].question
    expect(page.get_by_label("Your question")).to_be_focused()
    first = page.locator(".card button.open").first
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if first.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(first).to_be_focused()


def test_the_page_is_small_and_asked_for_anew_only_when_it_changed(
    visit: Visiting, url: str
) -> None:
    seen = visit()
    own = sorted({u for u in seen.urls if not u.startswith("data:") and "/v1/" not in u})
    assert len(own) == 11
    with httpx.Client(base_url=url) as client:
        packed = sum(int(client.get(u).headers["content-length"]) for u in own)
        plain = sum(
            int(client.get(u, headers={"Accept-Encoding": "identity"}).headers["content-length"])
            for u in own
        )
        assert packed < 30_000
        assert plain < 80_000
        first = client.get("/")
        again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_nothing_of_the_page_comes_from_elsewhere(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'"):
            assert f"{rule};" in policy
        assert "unsafe" not in policy
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")
        for elsewhere in ("/docs", "/redoc", "/page/none.js", "/page/..%2fapp.py"):
            assert client.get(elsewhere).status_code == 404
        assert client.get("/openapi.json").status_code == 200
