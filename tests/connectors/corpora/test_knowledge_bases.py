"""A knowledge base is no corpus: not where it is named, not where it lies below one, not in parts of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lclm_rag.connectors.corpora import corpus_parts, count_documents, read_corpus
from lclm_rag.connectors.corpora.files import CorpusFile, Files, corpus_files
from lclm_rag.connectors.corpora.items import NotRead
from lclm_rag.errors import CorpusError
from lclm_rag.storage import locate
from lclm_rag.store.fragment import Layout
from support.corpus_files import error_of, read_one, read_skipping, write_files, write_jsonl

LAYOUT = Layout(codec="int4", space="encoder", width=8, fingerprint="f", compression_ratio=4)


def write_fragment(path: Path) -> Path:
    """With the schema of the store's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, LAYOUT.schema()) as writer:
        writer.write_table(LAYOUT.schema().empty_table())
    return path


def write_knowledge_base(folder: Path) -> Path:
    write_fragment(folder / "store/fragments/x.arrow")
    return write_files(
        folder, {"kb.json": "{}", "store/manifests/0000000001.json": "{}", "index/a/b.json": "{}"}
    )


def passed_over(*folders: Path | str) -> list[str]:
    return [f"{folder}: not read, it is a knowledge base." for folder in folders]


# --- below a corpus -------------------------------------------------------------------------------


def test_a_knowledge_base_below_a_folder_is_passed_over_in_one_line(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.md": "a", "z/b.md": "b"})
    write_knowledge_base(tmp_path / "kb")
    write_knowledge_base(tmp_path / "z/deep/kb")
    write_files(tmp_path / "kb", {"notes/c.md": "c"})
    documents, messages = read_skipping(tmp_path)
    assert [d.id for d in documents] == ["a.md", "z/b.md"]
    assert messages == passed_over(tmp_path / "kb", tmp_path / "z/deep/kb")
    assert count_documents(tmp_path) == 2
    parts = corpus_parts(tmp_path)
    assert parts is not None
    read = [item for part in parts.parts for item in part.read()]
    assert [item for item in read if isinstance(item, str)] == messages
    assert [item for item in read if not isinstance(item, str)] == documents


def test_a_folder_of_a_knowledge_base_alone_has_no_document(tmp_path: Path) -> None:
    write_knowledge_base(tmp_path / "kb")
    messages: list[str] = []
    expected = f"No document was found in '{tmp_path}' (1 files or records were left out)"
    assert error_of(tmp_path, on_ignore=messages.append).startswith(expected)
    assert messages == passed_over(tmp_path / "kb")


def test_a_knowledge_base_makes_no_data_set_of_a_folder_and_ends_none(tmp_path: Path) -> None:
    write_knowledge_base(tmp_path / "kb")
    lines = write_jsonl(tmp_path / "docs.jsonl", [{"text": "t"}])
    documents, messages = read_skipping(tmp_path, lines)
    assert [d.text for d in documents] == ["t"]
    assert messages[0].startswith(f"{lines}: not read, only texts are read from a folder")
    assert messages[1:] == passed_over(tmp_path / "kb")
    write_files(tmp_path / "kb", {"notes/c.md": "c"})
    lines.unlink()
    pq.write_table(pa.table({"text": ["p"]}), tmp_path / "t.parquet")
    assert read_one(tmp_path, on_ignore=messages.append).text == "p"


def test_a_knowledge_base_on_the_way_of_a_glob_is_passed_over(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.md": "a", "docs/b.md": "b"})
    write_knowledge_base(tmp_path / "kb")
    documents, messages = read_skipping(f"{tmp_path}/**/*.[am]*")
    assert [d.id for d in documents] == ["a.md", "docs/b.md"]
    assert messages == passed_over(tmp_path / "kb")
    assert read_skipping(f"{tmp_path}/d*/*.md")[1] == []
    glob = f"{tmp_path}/k*/store/**/*.arrow"
    assert error_of(glob) == (
        f"{glob}: no file that can be read has such a name outside of knowledge bases; check the path."
    )


def test_a_folder_called_kb_json_makes_no_knowledge_base(tmp_path: Path) -> None:
    write_files(tmp_path, {"notes/kb.json/a.md": "a"})
    assert [d.id for d in read_corpus(tmp_path)] == ["notes/kb.json/a.md"]


def test_to_find_knowledge_bases_an_object_store_is_asked_for_listings_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryFileSystem()
    for name in ("a/b/c.jsonl", "d/e.jsonl", "d/kb/kb.json", "d/kb/store/fragments/x.arrow"):
        store.pipe_file(f"/lake/{name}", b"{}")
    requests: list[tuple[str, str]] = []
    for name in ("info", "ls"):
        method = getattr(MemoryFileSystem, name)

        def noted(self: Any, path: str, name: str = name, method: Any = method, **more: Any) -> Any:
            requests.append((name, path))
            return method(self, path, **more)

        monkeypatch.setattr(MemoryFileSystem, name, noted)
    items = list(corpus_files(Files(locate("memory://lake"), ("**", "*.jsonl"))))
    names = [item.name for item in items if isinstance(item, CorpusFile)]
    assert names == ["a/b/c.jsonl", "d/e.jsonl"]
    messages = [item.message for item in items if isinstance(item, NotRead)]
    assert messages == passed_over("memory://lake/d/kb")
    folders = ["", "/a", "/a/b", "/d", "/d/kb"]
    assert requests == [("info", "/lake"), *(("ls", f"/lake{folder}") for folder in folders)]
    monkeypatch.undo()
    store.rm("/lake", recursive=True)


# --- named ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        *("kb", "kb/", "kb/.", "./kb", "kb/kb.json", "link", "file://{tmp}/kb"),
        *("kb/store", "kb/store/fragments", "kb/index", "kb/store/fragments/x.arrow"),
        *("kb/**/*.arrow", "kb/*", "kb/store/*/*.arrow", "link/store/**", "kb/notes/../store"),
        *("away/fragments", "kb2/store", "row.arrow"),
    ],
)
def test_a_knowledge_base_and_what_is_inside_it_are_refused_as_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_knowledge_base(Path("kb"))
    write_files(Path("kb"), {"notes/a.md": "a"})
    Path("link").symlink_to("kb")
    Path("away").symlink_to("kb/store")
    Path("row.arrow").symlink_to("kb/store/fragments/x.arrow")
    write_knowledge_base(Path("disk/kb"))
    write_files(Path("kb2"), {"kb.json": "{}"})
    Path("kb2/store").symlink_to(tmp_path / "disk/kb/store/fragments")
    Path("disk/kb/kb.json").unlink()
    named = named.format(tmp=tmp_path)
    calls = (read_corpus, lambda p: read_corpus(p, on_error="skip"), count_documents, corpus_parts)
    for call in calls:
        with pytest.raises(CorpusError) as caught:
            call(named)
        message = str(caught.value)
        assert message.endswith(
            " is a knowledge base, not a corpus; name the documents it was made from."
        )
        assert "\n" not in message


def test_it_is_said_which_knowledge_base_a_path_belongs_to(tmp_path: Path) -> None:
    kb = write_knowledge_base(tmp_path / "kb")
    assert error_of(kb).startswith(f"{kb}: it is a knowledge base,")
    for below in ("store/fragments", "kb.json", "*/*/x.arrow"):
        assert error_of(f"{kb}/{below}").startswith(f"{kb}/{below}: {kb} is a knowledge base,")


def test_a_folder_of_the_users_own_beside_the_store_is_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kb = write_knowledge_base(tmp_path / "kb")
    write_files(kb, {"notes/store/a.md": "a", "b.md": "b"})
    assert read_one(kb / "notes").id == "store/a.md"
    assert read_one(kb / "notes/store").id == "a.md"
    assert read_one(kb / "store/../notes").id == "store/a.md"
    assert read_one(kb / "b.md").id == "b.md"
    assert read_one(f"{kb}/notes/**/*.md").id == "store/a.md"
    monkeypatch.chdir(kb / "notes")
    assert read_one(".").id == "store/a.md"
    monkeypatch.chdir(kb / "store")
    assert f"{kb} is a knowledge base" in error_of("fragments")


# --- parts without the whole ----------------------------------------------------------------------


def test_a_fragment_that_was_copied_is_refused_wherever_it_lies(tmp_path: Path) -> None:
    path = write_fragment(tmp_path / "rows/x.arrow")
    expected = (
        f"{path}: it is a fragment of a latent store, not a corpus; name the documents that the store "
        "was made from."
    )
    for named in (path, tmp_path / "rows", f"{tmp_path}/**/*.arrow"):
        assert error_of(named) == expected
    feather.write_feather(pa.table({"text": ["t"], "codec": ["c"]}), tmp_path / "rows/y.arrow")
    documents, messages = read_skipping(tmp_path / "rows")
    assert ([d.text for d in documents], messages) == (["t"], [expected])


def test_a_knowledge_base_that_was_only_begun_has_no_document(tmp_path: Path) -> None:
    """kb.json is written last, and no fragment before it."""
    write_knowledge_base(tmp_path / "kb")
    (tmp_path / "kb/kb.json").unlink()
    (tmp_path / "kb/store/fragments/x.arrow").unlink()
    write_files(tmp_path, {"a.md": "a"})
    documents, messages = read_skipping(tmp_path)
    assert [d.id for d in documents] == ["a.md"]
    assert all(message.endswith("it is of no kind that can be read.") for message in messages)
