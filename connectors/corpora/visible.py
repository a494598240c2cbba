"""What a reader of a page sees: HTML and DOCX without what is hidden, and DOCX with its headers and footers.

Only the process that converts files imports this module (`conversion`).
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["visible_docx", "visible_html"]

_NEVER_SHOWN = ("template", "noscript", "datalist", "dialog:not([open])", "[hidden]")
_HIDING = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse))\b", re.I
)
# Their texts stand apart on a page, and would run together.
_APART = ("option", "textarea", "button", "svg text", "svg tspan", "math", "label", "legend")

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_OFFICE_DOCUMENT = "/officeDocument"
_PAGE_NUMBERS = re.compile(r"\s*(PAGE|NUMPAGES|SECTIONPAGES)\b", re.I)


def visible_html(page: str) -> str:
    """A page without what browsers do not show.

    These are templates, what is meant for browsers without scripts, closed dialogs, and elements that are
    hidden by themselves (`hidden`, `display: none`, `visibility: hidden`). Style sheets are not applied.

    Args:
        page: HTML.

    Returns:
        HTML.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    hidden = soup.select(", ".join(_NEVER_SHOWN))
    hidden += [tag for tag in soup.select("[style]") if _HIDING.search(str(tag["style"]))]
    for tag in hidden:
        if not tag.decomposed:
            tag.decompose()
    for tag in soup.select(", ".join(_APART)):
        tag.insert_after(" ")
    return str(soup)


def visible_docx(data: bytes) -> bytes:
    """A document without hidden text, and with its page headers at the start and its footers at the end.

    Each header and footer that some page shows occurs once, as plain paragraphs and without page numbers.

    Args:
        data: DOCX.

    Returns:
        DOCX.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        names = set(parts.namelist())
        main = _targets(parts, "", _OFFICE_DOCUMENT).get("", "word/document.xml")
        if main not in names:
            return data  # The converter says what is wrong.
        document = _parsed(parts.read(main))
        body = document.find(f"{_W}body")
        if body is None:
            return data
        folder = posixpath.dirname(main)
        hiding = (
            _hiding_styles(parts, f"{folder}/styles.xml")
            if f"{folder}/styles.xml" in names
            else set()
        )
        changed = _remove_hidden(document, hiding)
        headers, footers = _headers_and_footers(parts, names, main, document, hiding)
        for place, texts in ((0, headers), (None, footers)):
            changed |= bool(texts)
            _insert(body, place, texts)
        if not changed:
            return data
        return _with_part(parts, main, _written(document))


def _parsed(xml: bytes) -> Any:
    from lxml import etree

    # Prefixes stay as they are, which the converter of equations relies on.
    return etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True))


def _written(document: Any) -> bytes:
    from lxml import etree

    return bytes(etree.tostring(document, xml_declaration=True, encoding="UTF-8", standalone=True))


def _with_part(parts: zipfile.ZipFile, name: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as copy:
        for part in parts.infolist():
            copy.writestr(part.filename, data if part.filename == name else parts.read(part))
    return made.getvalue()


def _targets(parts: zipfile.ZipFile, part: str, kind: str | None = None) -> dict[str, str]:
    """The parts that a part refers to, by the ids of the references; by "" the one of a kind."""
    folder, name = posixpath.split(part)
    rels = posixpath.join(folder, "_rels", f"{name}.rels")
    if rels not in parts.namelist():
        return {}
    found = {}
    for reference in _parsed(parts.read(rels)):
        if reference.get("TargetMode") == "External":
            continue
        target = reference.get("Target", "")
        path = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
        if kind is None:
            found[reference.get("Id", "")] = path
        elif reference.get("Type", "").endswith(kind):
            found[""] = path
    return found


def _is_on(tag: Any) -> bool:
    return tag is not None and tag.get(f"{_W}val", "true") not in ("0", "false", "off")


def _vanish(properties: Any) -> bool | None:
    """What run properties say themselves: hidden, not hidden, or nothing."""
    tag = None if properties is None else properties.find(f"{_W}vanish")
    return None if tag is None else _is_on(tag)


def _hiding_styles(parts: zipfile.ZipFile, name: str) -> set[str]:
    """The styles that hide text; what a style does not say itself, it has from the one it is based on."""
    own: dict[str, tuple[bool | None, str | None]] = {}
    for style in _parsed(parts.read(name)).findall(f"{_W}style"):
        based = style.find(f"{_W}basedOn")
        parent = None if based is None else based.get(f"{_W}val")
        own[style.get(f"{_W}styleId", "")] = (_vanish(style.find(f"{_W}rPr")), parent)

    def hides(style: str | None, seen: frozenset[str] = frozenset()) -> bool:
        if style is None or style not in own or style in seen:
            return False
        says, parent = own[style]
        return hides(parent, seen | {style}) if says is None else says

    return {style for style in own if hides(style)}


def _remove_hidden(part: Any, hiding: set[str]) -> bool:
    """Remove runs whose text is hidden; returns whether there was one."""
    hidden = [run for run in part.iter(f"{_W}r") if _is_hidden(run, hiding)]
    for run in hidden:
        run.getparent().remove(run)
    return bool(hidden)


def _is_hidden(run: Any, hiding: set[str]) -> bool:
    properties = run.find(f"{_W}rPr")
    if (says := _vanish(properties)) is not None:
        return says
    if not hiding:
        return False
    style = None if properties is None else properties.find(f"{_W}rStyle")
    paragraph = next(run.iterancestors(f"{_W}p"), None)
    below = None if paragraph is None else paragraph.find(f"{_W}pPr/{_W}pStyle")
    return any(tag is not None and tag.get(f"{_W}val") in hiding for tag in (style, below))


def _headers_and_footers(
    parts: zipfile.ZipFile, names: set[str], main: str, document: Any, hiding: set[str]
) -> tuple[list[str], list[str]]:
    """The paragraphs of the headers and footers that pages show, each text once."""
    targets = _targets(parts, main)
    settings = posixpath.join(posixpath.dirname(main), "settings.xml")
    even = settings in names and _is_on(
        _parsed(parts.read(settings)).find(f"{_W}evenAndOddHeaders")
    )
    found: dict[str, dict[tuple[str, ...], None]] = {"headerReference": {}, "footerReference": {}}
    for section in document.iter(f"{_W}sectPr"):
        shown = {"default", *(["even"] if even else [])}
        shown |= {"first"} if _is_on(section.find(f"{_W}titlePg")) else set()
        for kind, texts in found.items():
            for reference in section.findall(f"{_W}{kind}"):
                part = targets.get(reference.get(f"{_R}id", ""))
                if reference.get(f"{_W}type", "default") not in shown or part not in names:
                    continue
                content = _parsed(parts.read(part))
                _remove_hidden(content, hiding)
                texts.setdefault(tuple(_paragraphs(content)))
    headers, footers = ([line for lines in texts for line in lines] for texts in found.values())
    return headers, footers


def _paragraphs(part: Any) -> Iterator[str]:
    for paragraph in part.iter(f"{_W}p"):
        if text := " ".join("".join(_pieces(paragraph)).split()):
            yield text


def _pieces(paragraph: Any) -> Iterator[str]:
    """The texts of a paragraph, without the results of fields that count pages."""
    code, in_code, counting = "", False, False
    for tag in paragraph.iter(f"{_W}fldChar", f"{_W}instrText", f"{_W}t", f"{_W}tab", f"{_W}br"):
        if next(tag.iterancestors(f"{_W}p"), None) is not paragraph:
            continue  # In a text box, which is a paragraph of its own.
        kind = tag.tag.removeprefix(_W)
        if kind == "fldChar":
            step = tag.get(f"{_W}fldCharType")
            in_code = step == "begin"
            code = "" if in_code else code
            counting = step == "separate" and bool(_PAGE_NUMBERS.match(code))
        elif kind == "instrText":
            code += (tag.text or "") if in_code else ""
        elif counting or _counts_pages(tag):
            continue
        else:
            yield (tag.text or "") if kind == "t" else " "


def _counts_pages(tag: Any) -> bool:
    fields: Iterable[Any] = tag.iterancestors(f"{_W}fldSimple")
    return any(_PAGE_NUMBERS.match(field.get(f"{_W}instr", "")) for field in fields)


def _insert(body: Any, place: int | None, texts: list[str]) -> None:
    """Put paragraphs at the start of a document, or at its end (None), before the last section's settings."""
    from lxml import etree

    last = len(body) - (len(body) > 0 and body[-1].tag == f"{_W}sectPr")
    for offset, text in enumerate(texts):
        paragraph = etree.Element(f"{_W}p")
        run = etree.SubElement(paragraph, f"{_W}r")
        etree.SubElement(run, f"{_W}t").text = text
        body.insert((last if place is None else place) + offset, paragraph)
