"""Searching, reading and changing documents over HTTP."""

from __future__ import annotations

import gzip
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.retrieval import field
from lclm_rag.serving import Limits
from support.corpus_files import HTML
from support.services import LONG, ODD_ID, Serve, bearer, keys, until

pytestmark = pytest.mark.slow  # All of them, half a minute.

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor


def path_of(document_id: str) -> str:
    return quote(document_id, safe="")


def found_ids(client: httpx.Client, query: str) -> set[str]:
    response = client.post("search", json={"model": "towns", "query": query})
    return {hit["document"] for hit in response.raise_for_status().json()["data"]}


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


# --- reading ---------------------------------------------------------------------------------------------


def test_a_search_finds_what_the_library_finds(
    client: httpx.Client, copied_kb: KnowledgeBase
) -> None:
    body = {"model": "towns", "query": "long report ferry", "top_k": 4}
    got = client.post("search", json=body).json()
    hits = copied_kb.retrieve("long report ferry", 4)
    assert [(h["document"], h["passage"], h["text"]) for h in got["data"]] == [
        (*hit.key, hit.text) for hit in hits
    ]
    assert got["data"][0]["span"] == [hits[0].start, hits[0].end]
    assert got["data"][0]["metadata"] == hits[0].metadata
    for filters in ({"kind": "note"}, ["kind=note"], "kind=note"):
        found = client.post("search", json={**body, "filters": filters}).json()["data"]
        assert [hit["document"] for hit in found] == [ODD_ID]


def test_a_search_says_why_it_found_nothing(client: httpx.Client, tmp_path: Path) -> None:
    got = client.post("search", json={"query": "ferry", "filters": {"knid": "note"}}).json()
    assert got["data"] == []
    assert got["reason"].startswith("No passage has the metadata key 'knid'; there are")
    assert str(tmp_path) not in got["reason"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "x" * 501}, "The query has 501 characters; at most 500 are allowed."),
        ({"query": "ferry", "top_k": 9}, "top_k is 9; at most 8 are allowed."),
        ({"query": "ferry", "top_k": 0}, "top_k: Input should be greater"),
        ({"query": " "}, "empty"),
        ({"query": "ferry", "filters": "kind"}, "kind"),
        ({}, "query: Field required."),
    ],
)
def test_a_search_that_is_refused(body: dict[str, Any], message: str, client: httpx.Client) -> None:
    status, said = error_of(client.post("search", json=body))
    assert status == 400
    assert message in said


def test_documents_are_listed_page_by_page_in_the_order_of_their_ids(
    client: httpx.Client, copied_kb: KnowledgeBase
) -> None:
    listed: list[dict[str, Any]] = []
    more, after = True, dict[str, str]()
    while more:
        page = client.get("documents", params={"limit": 4, **after}).json()
        listed += page["data"]
        more, after = page["has_more"], {"after": page["last_id"]}
        assert len(page["data"]) <= 4
    ids = [document["id"] for document in listed]
    assert ids == sorted(ids)
    assert len(ids) == len(set(ids)) == copied_kb.store.count_documents() == 14
    report = next(document for document in listed if document["id"] == "report")
    assert report["metadata"] == {"kind": "report", "year": 2026}
    assert report["passages"] == len(copied_kb.store.document_keys("report")) > 2
    assert report["characters"] == len(LONG)
    assert client.get("documents?limit=101").status_code == 400


@pytest.mark.parametrize(
    "filters", ['{"kind": ["report", "note"]}', "kind=report,note", ["kind!=place", "year>=2026"]]
)
def test_documents_of_a_filter(filters: Any, client: httpx.Client) -> None:
    found = client.get("documents", params={"filters": filters}).json()["data"]
    assert {document["id"] for document in found} - {ODD_ID} == {"report"}


def test_a_document_says_where_its_passages_are(client: httpx.Client) -> None:
    got = client.get("documents/report").json()
    spans = [place["span"] for place in got["data"]]
    assert (spans[0][0], spans[-1][1]) == (0, len(LONG))
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert [place["passage"] for place in got["data"]] == list(range(got["passages"]))
    page = client.get("documents/report?after=0&limit=1").json()
    assert page["data"] == got["data"][1:2]
    assert (page["has_more"], got["has_more"]) == (True, False)


def test_a_passage_with_its_neighbors(client: httpx.Client) -> None:
    got = client.get("passages/report/1?before=5&after=1").json()
    assert [passage["passage"] for passage in got["data"]] == [0, 1, 2]
    start, end = got["span"]
    assert "".join(passage["text"] for passage in got["data"]) == LONG[start:end]
    alone = client.get("passages/report/1").json()
    assert alone["data"] == got["data"][1:2]
    for beyond in ("before=21", "after=21", "before=-1"):
        assert client.get(f"passages/report/1?{beyond}").status_code == 400


def test_an_id_may_hold_anything(client: httpx.Client) -> None:
    assert client.get(f"documents/{path_of(ODD_ID)}").json()["id"] == ODD_ID
    got = client.get(f"passages/{path_of(ODD_ID)}/0").json()
    assert (got["document"], got["data"][0]["text"]) == (
        ODD_ID,
        "The ferry to Isola leaves at noon.",
    )
    assert client.delete(f"documents/{path_of(ODD_ID)}").json()["report"]["deleted"] == 1
    assert client.get(f"documents/{path_of(ODD_ID)}").status_code == 404


@pytest.mark.parametrize("ordinal", ["77", str(2**40), "9" * 300])
def test_a_passage_that_does_not_exist(ordinal: str, client: httpx.Client) -> None:
    assert error_of(client.get(f"passages/report/{ordinal}")) == (
        404,
        f"There is no passage report#{ordinal} in 'towns'.",
    )


def test_a_key_sees_only_what_its_filter_matches(serve: Serve) -> None:
    client = serve(keys=keys(anna={"filters": field("kind") == "note"}), key="anna")
    assert found_ids(client, "long report ferry Isola") == {ODD_ID}
    assert [d["id"] for d in client.get("documents").json()["data"]] == [ODD_ID]
    assert client.get("documents?filters=kind=report").json()["data"] == []
    assert client.get(f"passages/{path_of(ODD_ID)}/0").status_code == 200
    for route in ("documents/{}", "passages/{}/0", "passages/{}/1?before=1"):
        hidden = client.get(route.format("report"))
        missing = client.get(route.format("nothing"))
        assert hidden.status_code == missing.status_code == 404
        assert hidden.text.replace("report", "nothing") == missing.text
    nothing = client.post("search", json={"query": "report", "filters": {"kind": "report"}}).json()
    assert (nothing["data"], nothing["reason"]) == ([], "No passage was found.")


def test_versions_are_listed(client: httpx.Client) -> None:
    client.delete("documents/report").raise_for_status()
    got = client.get("models/towns/versions").json()
    assert [(v["version"], v["operation"], v["documents"]) for v in got["data"]] == [
        (0, "create", 0),
        (1, "add", 14),
        (2, "delete", 13),
    ]
    assert got["data"][2]["created"] > got["data"][1]["created"]
    newest = client.get("models/towns/versions?limit=1").json()
    assert (newest["data"], newest["has_more"]) == (got["data"][2:], True)


# --- adding ----------------------------------------------------------------------------------------------


def test_documents_are_added_and_replaced(client: httpx.Client) -> None:
    one = {"id": "mill", "text": "The mill grinds rye.", "metadata": {"tags": ["a"], "o": {"x": 1}}}
    added = client.put("documents?wait=true", json=one)
    assert added.status_code == 200
    assert added.json()["report"]["added"] == 1
    assert found_ids(client, "grinds rye") == {"mill"}
    assert client.get("documents/mill").json()["metadata"] == one["metadata"]
    two = [{**one, "text": "The mill grinds spelt."}, {"id": "dam", "text": "The dam holds."}]
    report = client.put("documents?wait=true", json=two).json()["report"]
    assert (report["added"], report["updated"], report["version"]) == (1, 1, 3)
    assert found_ids(client, "rye") == set()
    assert found_ids(client, "spelt dam") == {"mill", "dam"}
    again = client.put("documents?wait=true", json=two).json()["report"]
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"id": "a"', "The body is not valid JSON"),
        ("[" * 100_000, "The body is not valid JSON"),
        ("[]", "There are no documents"),
        ('"text"', "Document 1: a document is"),
        ('{"id": "a", "text": "b", "lang": "en"}', "Document 1: a document is"),
        ('[{"id": "a", "text": "b"}, {"text": "b"}]', "Document 2: a document is"),
        ('{"id": "", "text": "b"}', "Document 1: A document id must be a non-empty string"),
        ('{"id": 7, "text": "b"}', "Document 1: A document id must be a non-empty string"),
        ('{"id": "a", "text": " "}', "Document 1: Document 'a' is empty"),
        ('{"id": "a", "text": "b", "metadata": [1]}', "metadata is an object"),
        ('{"id": "a", "text": "b", "metadata": {"x": NaN}}', "it holds NaN"),
        ('{"id": "a", "text": "b", "metadata": {"x": 1e999}}', "it holds NaN"),
        ('{"id": "a", "text": "\\ud800"}', "half a character"),
        ('[{"id": "a", "text": "b"}, {"id": "a", "text": "c"}]', "the id 'a' occurs twice"),
    ],
)
def test_json_that_is_no_documents(
    body: str, message: str, client: httpx.Client, uploads: Path
) -> None:
    json_type = {"Content-Type": "application/json"}
    status, said = error_of(client.put("documents", content=body, headers=json_type))
    assert status == 400
    assert message in said
    assert client.get("jobs").json()["data"] == []
    assert not list(uploads.iterdir())


def docx() -> bytes:
    from docx import Document as Docx

    made, data = Docx(), io.BytesIO()
    made.add_paragraph("The quarry closed.")
    made.save(data)
    return data.getvalue()


def pdf() -> bytes:
    from fpdf import FPDF

    made = FPDF()
    made.add_page()
    made.set_font("helvetica")
    made.cell(text="The quarry closed.")
    return bytes(made.output())


def parquet() -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table({"text": ["The quarry closed."], "year": [1931]}), data)
    return data.getvalue()


JSONL = b'{"text": "The quarry closed.", "year": 1931}\n'
FILES: dict[str, tuple[Callable[[], bytes], str, dict[str, Any]]] = {
    "q.txt": (lambda: b"The quarry closed.", "q.txt", {"source": "q.txt"}),
    "Q.MD": (lambda: b"# Quarry\nThe quarry closed.", "Q.MD", {"source": "Q.MD"}),
    "q.html": (
        lambda: HTML.replace("It opens", "The quarry closed").encode(),
        "q.html",
        {"source": "q.html", "title": "A page"},
    ),
    "q.docx": (docx, "q.docx", {"source": "q.docx"}),
    "q.pdf": (pdf, "q.pdf", {"source": "q.pdf"}),
    "q.jsonl": (lambda: JSONL, "q.jsonl:1", {"year": 1931}),
    "q.jsonl.gz": (lambda: gzip.compress(JSONL), "q.jsonl.gz:1", {"year": 1931}),
    "q.csv": (lambda: b"text,year\nThe quarry closed.,1931\n", "q.csv:2", {"year": "1931"}),
    "q.parquet": (parquet, "q.parquet:1", {"year": 1931}),
    "a/Grüße 雪.txt": (
        lambda: b"The quarry closed.",
        "a/Grüße 雪.txt",
        {"source": "a/Grüße 雪.txt"},
    ),
}


def test_files_of_all_kinds_as_they_are_and_from_a_form(
    client: httpx.Client, uploads: Path
) -> None:
    for name, (make, document_id, metadata) in FILES.items():
        data = make()
        params = {"filename": name, "wait": "true"}
        report = client.put("documents", params=params, content=data).raise_for_status().json()
        assert report["report"]["added"] == 1, name
        assert client.get(f"documents/{path_of(document_id)}").json()["metadata"] == metadata
        assert document_id in found_ids(client, "quarry closed")
        form = client.put("documents?wait=true", files={"file": (name, data)})
        assert form.raise_for_status().json()["report"]["unchanged"] == 1, name
        client.delete(f"documents/{path_of(document_id)}").raise_for_status()
    assert not list(uploads.iterdir())


def test_columns_are_named_and_bad_records_may_be_left_out(client: httpx.Client) -> None:
    rows = b"name,body,year\nq,The quarry closed.,1931\nr,,1932\n"
    named = "filename=q.csv&wait=true&text_column=body&id_column=name&number_columns=year"
    status, said = error_of(client.put(f"documents?{named}", content=rows))
    assert (status, said) == (
        400,
        "q.csv, line 3: field 'body' is empty; leave the record out or give it text.",
    )
    report = client.put(f"documents?{named}&on_error=skip", content=rows).json()["report"]
    assert (report["added"], len(report["skipped"])) == (1, 1)
    assert report["skipped"][0].startswith("q.csv, line 3: ")
    assert client.get("documents/q").json()["metadata"] == {"year": 1931}
    _, said = error_of(client.put("documents?filename=q.csv&wait=true", content=rows))
    assert "say which to take (text_column, " in said


NAMES = {
    "../../escaped.txt": "escaped.txt",
    "/etc/escaped.txt": "etc/escaped.txt",
    "a/./b//../escaped.txt": "a/b/escaped.txt",
    "s3://bucket/escaped.txt": "s3:/bucket/escaped.txt",
    "*.txt": "*.txt",
    "-.txt": "-.txt",
}


def test_a_clients_name_is_no_path(client: httpx.Client, uploads: Path, tmp_path: Path) -> None:
    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if "kb" not in path.parts}

    before = files()
    for name, document_id in NAMES.items():
        data, params = f"The mole {name} holds.".encode(), {"filename": name, "wait": "true"}
        as_it_is = client.put("documents", params=params, content=data)
        assert as_it_is.raise_for_status().json()["report"]["added"] == 1, name
        form = client.put("documents?wait=true", files={"f": (name, data)})
        assert form.raise_for_status().json()["report"]["unchanged"] == 1, name
        assert client.get(f"documents/{path_of(document_id)}").json()["id"] == document_id
    assert files() == before


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("setup.exe", 415, "'setup.exe' is of no kind that can be read; its name must end in .txt"),
        ("notes.txt.gz", 415, "is of no kind"),
        ("", 400, "A file's name has 1 to 512 characters"),
        ("../..", 400, "A file's name"),
        ("a\0.txt", 400, "no control characters"),
        ("a\n.txt", 400, "no control characters"),
        ("x" * 600 + ".txt", 400, "A file's name"),
    ],
)
def test_names_that_are_refused(name: str, status: int, message: str, client: httpx.Client) -> None:
    refused = error_of(client.put("documents", params={"filename": name}, content=b"text"))
    assert refused[0] == status
    assert message in refused[1]


def test_a_file_without_a_name_is_refused(client: httpx.Client) -> None:
    pdf_type = {"Content-Type": "application/pdf"}
    status, said = error_of(client.put("documents", content=b"%PDF", headers=pdf_type))
    assert (status, "?filename=report.pdf" in said) == (415, True)
    assert error_of(client.put("documents", files={"file": (None, b"text")}))[0] == 400
    form_type = {"Content-Type": "multipart/form-data; boundary=x"}
    assert error_of(client.put("documents", content=b"nonsense", headers=form_type))[0] == 400


@pytest.mark.parametrize("name", ["broken.pdf", "broken.docx", "broken.parquet", "b.jsonl.gz"])
def test_a_broken_file_changes_nothing_and_is_named(
    name: str, client: httpx.Client, uploads: Path
) -> None:
    params = {"filename": name, "wait": "true"}
    status, said = error_of(client.put("documents", params=params, content=b"no such thing"))
    assert status == 400
    assert said.startswith(name)
    assert str(uploads) not in said
    assert not list(uploads.iterdir())
    assert client.get("models/towns").json()["version"] == 1


# --- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "json", "form"])
@pytest.mark.parametrize("declared", [False, True], ids=["chunked", "declared"])
def test_a_large_upload_is_refused_while_it_is_read(
    kind: str, declared: bool, client: httpx.Client, uploads: Path
) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        if kind == "form":
            yield b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\n'
        for _ in range(1000):
            sent += 1
            yield b"x" * 50_000

    types = {"json": "application/json", "form": "multipart/form-data; boundary=x", "file": "a/b"}
    headers = {"Content-Type": types[kind]}
    headers |= {"Content-Length": str(50_000_000 + 73 * (kind == "form"))} if declared else {}
    route = "documents?filename=a.txt" if kind == "file" else "documents"
    status, said = error_of(client.put(route, content=pieces(), headers=headers))
    assert (status, said) == (413, "The upload has more than 500,000 bytes; send it in parts.")
    assert sent < 1000
    assert client.get("jobs").json()["data"] == []
    assert not list(uploads.iterdir())


def test_what_unpacks_to_too_much_is_refused(client: httpx.Client, uploads: Path) -> None:
    lines = b'{"id": "a", "text": "x"}\n' * 100_000
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", bytes(2**26 + 1))
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["The same text. " * 1000] * 1000}), table, compression="zstd")
    bombs = {"b.jsonl.gz": gzip.compress(lines), "b.docx": archive.getvalue()}
    bombs["b.parquet"] = table.getvalue()
    for name, data in bombs.items():
        assert len(data) < 100_000
        params = {"filename": name, "wait": "true"}
        status, said = error_of(client.put("documents", params=params, content=data))
        assert (status, said.startswith(f"{name} ")) == (413, True), said
        assert f"more than {67108864 if name == 'b.docx' else 500_000:,} " in said
    assert not list(uploads.iterdir())
    assert client.get("models/towns").json()["version"] == 1


def test_an_upload_that_takes_too_much_to_convert_harms_nothing(
    serve: Serve, uploads: Path
) -> None:
    client = serve(writable=True, limits=Limits(convert_seconds=0.05))
    page = b"<html><body>" + b"<p>x</p>" * 100_000 + b"</body></html>"
    params = {"filename": "large.html", "wait": "true"}
    status, said = error_of(client.put("documents", params=params, content=page))
    assert (status, said.partition(";")[0]) == (
        400,
        "large.html: converting it takes longer than 0.05 seconds",
    )
    assert client.get("models/towns").json()["version"] == 1
    assert not list(uploads.iterdir())


# --- who may -----------------------------------------------------------------------------------------------


def test_who_may_not_write(serve: Serve) -> None:
    document = {"id": "mill", "text": "The mill grinds rye."}
    holders = keys(
        writer={"write": True},
        reader={},
        bound={"write": True, "filters": field("kind") == "note"},
        elsewhere={"write": True, "bases": frozenset({"other"})},
    )
    open_to_read, client = serve(), serve(keys=holders, writable=True)
    assert error_of(open_to_read.put("documents", json=document)) == (
        403,
        "This service only reads; it was started without --writable.",
    )
    refused = {None: 401, "nobody": 401, "reader": 403, "bound": 403, "elsewhere": 404}
    for key, status in refused.items():
        for answer in (
            client.put("documents", json=document, headers=bearer(key)),
            client.delete("documents/report", headers=bearer(key)),
            client.delete("documents?filters=kind=report", headers=bearer(key)),
        ):
            assert error_of(answer)[0] == status, key
    assert client.get("documents/report", headers=bearer("reader")).status_code == 200
    assert client.put("documents", json=document, headers=bearer("writer")).status_code == 202


# --- deleting and following -----------------------------------------------------------------------------


def test_documents_are_deleted(client: httpx.Client, tmp_path: Path) -> None:
    gone = client.delete("documents/report").json()
    assert (gone["operation"], gone["state"]) == ("delete", "done")
    assert gone["report"]["passages"] > 2
    assert client.get("documents/report").status_code == 404
    assert "report" not in found_ids(client, "long report")
    assert error_of(client.delete("documents/report")) == (
        404,
        "There is no document 'report' in towns.",
    )
    assert client.delete("documents?filters=kind=note").json()["report"]["deleted"] == 1
    assert ODD_ID not in {d["id"] for d in client.get("documents").json()["data"]}
    assert error_of(client.delete("documents?filters=kind=note"))[0] == 404
    for everything in ("documents", "documents?filters={}"):
        assert error_of(client.delete(everything)) == (
            400,
            "Say what to delete: ?filters=lang=en, or a document's id.",
        )
    status, said = error_of(client.delete("documents?filters=knid!=x"))
    assert (status, str(tmp_path) in said) == (404, False)
    assert client.get("models/towns").json()["documents"] == 12


def test_what_others_commit_is_served_and_no_request_fails(
    serve: Serve, copied_kb: KnowledgeBase, compressor: Compressor
) -> None:
    client = serve()
    failures: list[str] = []
    asked = [0]
    stop = threading.Event()
    question = {"messages": [{"role": "user", "content": "When does the ferry leave?"}]}

    def finds(query: str, documents: set[str]) -> bool:
        return found_ids(client, query) == documents

    chat = {"model": "towns", "max_tokens": 4, **question}

    def ask(number: int) -> None:
        try:
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                while not stop.is_set():
                    for answer in (
                        own.post("search", json={"query": "ferry report quay", "top_k": 8}),
                        own.get("documents?limit=5"),
                        own.get("documents", params={"filters": "kind=note"}),
                        own.get(f"passages/{path_of(ODD_ID)}/0"),
                        *([own.post("chat/completions", json=chat)] if number == 0 else []),
                    ):
                        asked[0] += 1
                        if answer.status_code != 200:
                            failures.append(f"{answer.request.url}: {answer.text}")
        except httpx.HTTPError as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        with KnowledgeBase.open(copied_kb.path) as other:
            other.__dict__["compressor"] = compressor
            for number in range(3):
                other.add([Document(f"quay-{number}", f"Quay {number} is called Orta{number}.")])
                until(partial(finds, f"Orta{number}", {f"quay-{number}"}))
                other.compact()
                other.vacuum(keep=1)
            other.delete(["quay-0"])
            until(partial(finds, "Orta0", set()))
            until(lambda: client.get("models/towns").json()["version"] == other.store.version)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert asked[0] > 20


def test_nothing_of_documents_or_questions_is_logged(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "lclm_rag")
    client.put("documents?wait=1", json={"id": "a", "text": "Xylotheque holdings."})
    client.put("documents?wait=1&filename=a.jsonl", content=json.dumps({"txt": "Xylotheque"}))
    found_ids(client, "Xylotheque")
    assert "xylotheque" not in caplog.text.lower()
