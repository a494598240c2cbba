"""HTML and DOCX become what a reader of the page sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from docx import Document as Docx
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import OxmlElement
from docx.oxml.ns import qn

from support.corpus_files import error_of, read_one, write_files

HIDDEN = [
    "<template>NOT <b>SHOWN</b></template>",
    "<noscript>NOT SHOWN</noscript>",
    '<p style="display:none">NOT SHOWN</p>',
    '<p style="color: red; DISPLAY : none !important">NOT SHOWN</p>',
    '<div style="visibility:hidden"><p style="display:none">NOT SHOWN</p></div>',
    "<p hidden>NOT SHOWN</p>",
    '<p hidden="until-found">NOT SHOWN</p>',
    "<dialog>NOT SHOWN</dialog>",
    "<datalist><option>NOT SHOWN</option></datalist>",
    "<script>NOT SHOWN</script><style>NOT SHOWN</style><!-- NOT SHOWN -->",
]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_a_browser_does_not_show_is_left_out(tmp_path: Path, hidden: str) -> None:
    page = f"<html><head><title>A page</title></head><body>{hidden}<p>Shown.</p></body></html>"
    document = read_one(write_files(tmp_path, {"a.html": page}) / "a.html")
    assert (document.text, document.metadata["title"]) == ("Shown.", "A page")


@pytest.mark.parametrize(
    "shown",
    [
        "<dialog open>Shown.</dialog>",
        '<p style="display:block">Shown.</p>',
        '<p style="--display: nonesuch">Shown.</p>',
        "<details><summary>Shown.</summary></details>",
        '<p aria-hidden="true">Shown.</p>',
    ],
)
def test_what_a_browser_shows_stays(tmp_path: Path, shown: str) -> None:
    assert read_one(write_files(tmp_path, {"a.html": shown}) / "a.html").text == "Shown."


def test_texts_of_fields_and_drawings_do_not_run_together(tmp_path: Path) -> None:
    page = (
        "<textarea>one</textarea><select><option>two</option><option>three</option></select>"
        "<svg><text>four</text><text>five</text></svg>six"
    )
    text = read_one(write_files(tmp_path, {"a.html": page}) / "a.html").text
    assert text.split() == ["one", "two", "three", "four", "five", "six"]


def test_a_page_with_nothing_to_see_is_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"a.html": "<body><p hidden>NOT SHOWN</p></body>"}) / "a.html"
    assert "there is no text in it" in error_of(path)


def field(paragraph: Any, code: str, result: str) -> None:
    """A field as Word writes it, with the result that it had last."""
    for kind, text in (("begin", ""), ("", code), ("separate", ""), ("t", result), ("end", "")):
        run = paragraph.add_run()
        if kind == "t":
            run.text = text
            continue
        tag = OxmlElement("w:instrText" if not kind else "w:fldChar")
        if kind:
            tag.set(qn("w:fldCharType"), kind)
        tag.text = text or None
        run._r.append(tag)


def test_hidden_text_of_a_docx_is_left_out(tmp_path: Path) -> None:
    made = Docx()
    paragraph = made.add_paragraph("Shown, ")
    paragraph.add_run("NOT SHOWN").font.hidden = True
    hiding = made.styles.add_style("Secret", WD_STYLE_TYPE.CHARACTER)
    hiding.font.hidden = True
    below = made.styles.add_style("Also secret", WD_STYLE_TYPE.CHARACTER)
    below.base_style = hiding
    whole = made.styles.add_style("Secret paragraph", WD_STYLE_TYPE.PARAGRAPH)
    whole.font.hidden = True
    paragraph.add_run("NOT SHOWN", style=hiding)
    paragraph.add_run("NOT SHOWN", style=below)
    paragraph.add_run("too", style=hiding).font.hidden = False
    made.add_paragraph("NOT SHOWN", style=whole)
    made.save(str(tmp_path / "a.docx"))
    assert read_one(tmp_path / "a.docx").text.strip() == "Shown, too"


def test_headers_come_first_and_footers_last_once_each_and_without_page_numbers(
    tmp_path: Path,
) -> None:
    made = Docx()
    made.add_heading("Lease")
    made.add_paragraph("Body.")
    first = made.sections[0]
    first.header.paragraphs[0].text = "Case\t4711"
    first.header.paragraphs[0].add_run("NOT SHOWN").font.hidden = True
    first.first_page_header.paragraphs[0].text = "NOT SHOWN"
    first.different_first_page_header_footer = False
    first.even_page_header.paragraphs[0].text = "NOT SHOWN"
    footer = first.footer.paragraphs[0]
    footer.add_run("Draft of ")
    field(footer, " DATE ", "1 May")
    footer.add_run(", page ")
    field(footer, " PAGE \\* MERGEFORMAT ", "1")
    second = made.add_section()
    second.header.is_linked_to_previous = False
    second.header.paragraphs[0].text = "Case 4711"
    second.footer.is_linked_to_previous = False
    second.footer.paragraphs[0].text = "Annex"
    made.add_paragraph("Annexed.")
    made.save(str(tmp_path / "a.docx"))
    assert read_one(tmp_path / "a.docx").text == (
        "Case 4711\n\n# Lease\n\nBody.\n\nAnnexed.\n\nDraft of 1 May, page\n\nAnnex"
    )


def test_headers_of_first_and_even_pages_count_where_they_are_shown(tmp_path: Path) -> None:
    made = Docx()
    made.add_paragraph("Body.")
    made.settings.odd_and_even_pages_header_footer = True
    section = made.sections[0]
    section.different_first_page_header_footer = True
    section.first_page_header.paragraphs[0].text = "First"
    section.even_page_footer.paragraphs[0].text = "Even"
    made.save(str(tmp_path / "a.docx"))
    assert read_one(tmp_path / "a.docx").text == "First\n\nBody.\n\nEven"
