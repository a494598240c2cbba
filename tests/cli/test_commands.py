"""The command line, as a person at a shell and a script see it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path

import huggingface_hub
import pytest

from lclm_rag.cli.doctor import _OPTIONAL
from lclm_rag.cli.main import cli
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.store import writing
from support.checkpoints import MakeCheckpoint, as_lora
from support.commands import Run
from support.hub import LocalHub


@pytest.fixture
def corpus(tmp_path: Path, sheets: list[FactSheet]) -> Path:
    """Six fact sheets in a folder, and a picture."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for sheet in sheets[:6]:
        (folder / f"{sheet.document.id}.txt").write_text(sheet.document.text)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def built(run: Run, corpus: Path, tmp_path: Path) -> Path:
    code, out, err = run("build", corpus, "--kb", tmp_path / "kb")
    assert code == 0, err
    assert "6 added" in out
    assert "using the bundled tiny-lclm-4x" in err
    assert "ignored" in err
    assert "picture.png" in err
    return tmp_path / "kb"


def test_build_add_query_delete_info(
    run: Run, built: Path, corpus: Path, sheets: list[FactSheet]
) -> None:
    question = sheets[2].questions[0].question
    code, out, _ = run("query", "--kb", built, question, "--top-k", "2", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["sources"][0]["document_id"] == f"{sheets[2].document.id}.txt"
    assert answer["usage"]["latents"] > 0

    code, out, _ = run("query", "--kb", built, question, "--top-k", "2")
    assert code == 0
    assert out.startswith(answer["answer"])
    assert "source tokens as" in out

    code, out, _ = run("add", corpus, "--kb", built, "--json")
    assert (code, json.loads(out)["unchanged"]) == (0, 6)

    name = f"{sheets[0].document.id}.txt"
    assert run("delete", name, "--kb", built)[0] == 0
    code, out, _ = run("info", "--kb", built, "--json")
    facts = json.loads(out)
    assert (code, facts["documents"], facts["codec"], facts["space"]) == (0, 5, "int4", "encoder")
    assert "documents" in run("info", "--kb", built)[1]


def test_the_environment_names_the_knowledge_base(
    run: Run, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLM_RAG_KB", str(built))
    assert run("info")[0] == 0


def test_filters_from_the_command_line(run: Run, built: Path, sheets: list[FactSheet]) -> None:
    name = f"{sheets[1].document.id}.txt"
    arguments = ("--filter", f"source={name}", "--json")
    code, out, _ = run("query", "--kb", built, sheets[1].document.text[:80], *arguments)
    assert code == 0
    assert {s["document_id"] for s in json.loads(out)["sources"]} <= {name}
    code, _, err = run("query", "--kb", built, "Who?", "--filter", "nonsense")
    assert code == 2
    assert "--filter" in err


def test_chat_answers_line_after_line(
    run: Run, built: Path, sheets: list[FactSheet], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    asked = f"{sheets[0].questions[0].question}\n{sheets[1].questions[0].question}\n\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
    code, out, _ = run("chat", "--kb", built, "--max-tokens", "20")
    assert code == 0
    assert len(out.splitlines()) >= 2


def test_generate_adds_a_response_to_every_record(run: Run, tmp_path: Path) -> None:
    prompts, out_file = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    text = "<|memory_start|>Town guide: Velun. The mayor of Velun is Ada Bel.<|memory_end|> Who?"
    records = [
        {"id": 7, "prompt": text, "note": "a\u2028b"},
        {"id": 8, "prompt": [{"role": "user", "content": text}]},
    ]
    prompts.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n")
    arguments = ("--prompts-jsonl", prompts, "--max-tokens", "8")
    assert run("generate", *arguments, "--out", out_file)[0] == 0
    written = [json.loads(line) for line in out_file.read_text("utf-8").strip().split("\n")]
    assert [{k: v for k, v in w.items() if k != "response"} for w in written] == records
    assert written[0]["response"] == written[1]["response"]
    code, out, _ = run("generate", "--prompt", text, "--max-tokens", "8")
    assert (code, out.rstrip("\n")) == (0, written[0]["response"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"text": "x"}', 'line 2: "prompt" must be'),
        ('{"prompt": [{"role": "user"}]}', 'line 2: "prompt" must be'),
    ],
)
def test_a_bad_prompt_line_is_named(run: Run, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    code, _, err = run("generate", "--prompts-jsonl", path)
    assert code == 1
    assert message in err
    assert err.count("\n") <= 2


@pytest.mark.slow
def test_doctor_tells_what_is_there_and_what_brings_the_rest(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 0
    assert findings["checkpoint"]["state"] == "ok"
    assert findings["torch"]["state"] == "ok"
    missing = [f for f in findings.values() if f["state"] == "missing"]
    assert all("pip install 'lclm-rag[" in finding["detail"] for finding in missing)
    extras = set(metadata.metadata("lclm-rag").get_all("Provides-Extra") or ())
    # "rerank" brings the package that "dense" brings.
    assert {extra for _, extra, _ in _OPTIONAL.values()} == extras - {"all", "rerank"}
    (tmp_path / "model_config.json").write_text("{}")
    code, out, _ = run("doctor", "--checkpoint", tmp_path)
    assert code == 1
    assert "BROKEN" in out


def test_doctor_says_how_much_of_a_checkpoint_is_to_be_fetched(
    run: Run, tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lclm_rag.cli.doctor._installed", list)
    monkeypatch.setattr("lclm_rag.cli.doctor._companions", list)

    def findings(code: int = 0) -> dict[str, str]:
        found, out, _ = run("doctor", "--checkpoint", "me/lclm", "--json")
        assert found == code
        return {f["what"]: f["detail"] for f in json.loads(out) if f["what"] != "device"}

    folder = make_checkpoint()
    hub = LocalHub(monkeypatch, tmp_path / "hub", {"me/lclm": folder})
    decoder = (folder / "decoder" / "model.safetensors").stat().st_size
    rest = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) - decoder
    first = findings()
    assert first["to build"] == f"encoder and adapter: {rest / 1e6:.1f} MB to fetch"
    assert first["to answer"] == f"the decoder's weights: {decoder / 1e6:.1f} MB to fetch"
    assert list(first) == ["to build", "to answer", "checkpoint"]  # Before anything is fetched.
    assert "me/lclm: decoder/model.safetensors" not in hub.fetched
    again = findings()
    assert again["to build"] == f"encoder and adapter: {rest / 1e6:.1f} MB, all in the cache"
    assert again["to answer"] == first["to answer"]

    # Without the hub, what is in the cache is checked; a checkpoint that is not there is said once.
    hub.models.clear()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: hub.snapshot("me/lclm")
    )
    assert list(findings()) == ["checkpoint"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    lost = findings(code=1)
    assert list(lost) == ["checkpoint"]
    assert (
        "neither a folder nor could it be fetched from the hub: 401 Client Error."
        in lost["checkpoint"]
    )


def test_doctor_says_whose_lora_weights_a_checkpoint_has(
    run: Run, tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lclm_rag.cli.doctor._installed", list)
    monkeypatch.setattr("lclm_rag.cli.doctor._companions", list)
    folder = make_checkpoint()
    as_lora(folder, "decoder")
    code, out, _ = run("doctor", "--checkpoint", folder)
    assert code == 0
    assert out.endswith("LoRA weights for ../base\n")
    settings = folder / "decoder" / "adapter_config.json"
    named = json.loads(settings.read_text()) | {"base_model_name_or_path": "me/base"}
    settings.write_text(json.dumps(named))
    LocalHub(monkeypatch, tmp_path / "hub", {"me/base": folder / "base"})
    size = (folder / "base" / "model.safetensors").stat().st_size
    code, out, _ = run("doctor", "--checkpoint", folder)
    assert code == 0
    assert out.endswith(f"LoRA weights for me/base: {size / 1e6:.1f} MB to fetch\n")


@pytest.mark.slow
def test_doctor_tells_a_broken_torchvision_from_a_missing_vllm(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms is not there')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, _ = run("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 1
    assert findings["vllm"]["state"] == "ok"
    assert findings["torchvision"]["state"] == "broken"
    assert "nms is not there" in findings["torchvision"]["detail"]
    assert "pip uninstall torchvision" in findings["torchvision"]["detail"]

    found = util.find_spec
    hidden = ("vllm", "torchvision")
    monkeypatch.setattr(util, "find_spec", lambda m: None if m in hidden else found(m))
    code, out, _ = run("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 0
    assert findings["vllm"]["state"] == "missing"
    assert "pip install 'lclm-rag[vllm]'" in findings["vllm"]["detail"]
    assert "torchvision" not in findings


@pytest.mark.slow
def test_demo_scores_three_ways_and_can_be_run_again(run: Run, tmp_path: Path) -> None:
    arguments = ("demo", "--kb", tmp_path / "demo", "--questions", "12")
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert set(result["exact_match"]) == {"latents", "text", "closed_book"}
    assert result["exact_match"]["latents"] > result["exact_match"]["closed_book"]
    assert result["positions"]["latents"] < result["positions"]["text"]
    assert (result["store"]["latents"] > 0, result["recall"]) == (True, 1.0)
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "400 documents were there already" in " ".join(err.split())
    assert f'lclm-rag query --kb {tmp_path / "demo"} "' in out
    assert "lclm-rag info --kb" in out
    assert "lclm-rag build path/to/notes/ --kb my-kb/ --checkpoint english" in out
    assert "exact match" in out


def test_records_are_read_by_the_columns_that_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    lines = [{"url": f"u{i}", "body": f"Zebra {i}.", "tags": ["x"], "n": i} for i in range(4)]
    lines[2]["body"] = " "
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    columns = ("--text-column", "body", "--id-column", "url", "--metadata-columns", "tags, n")
    arguments = ("build", "-", "--kb", tmp_path / "kb", *columns, "--on-error", "skip", "--json")
    code, out, err = run(*arguments)
    result = json.loads(out)
    assert code == 3
    counts = ("added", "updated", "unchanged", "passages", "version")
    assert [result[name] for name in counts] == [3, 0, 0, 3, 1]
    assert result["tokens"] >= result["latents"] > 0
    assert result["skipped"] == [
        "stdin, line 3: field 'body' is empty; leave the record out or give it text."
    ]
    assert "skipped stdin, line 3: field 'body' is empty" in err
    filters = ("--filter", "tags=x", "--filter", "n>=3")
    code, out, _ = run("query", "--kb", tmp_path / "kb", "Zebra?", *filters, "--json")
    assert [s["document_id"] for s in json.loads(out)["sources"]] == ["u3"]
    (tmp_path / "one.csv").write_text("url,body,tags\nu3,Zebra three.,y\n")
    arguments = ("add", tmp_path / "*.csv", "--kb", tmp_path / "kb", *columns[:4], "--json")
    code, out, _ = run(*arguments)
    assert (code, json.loads(out)["updated"], json.loads(out)["skipped"]) == (0, 1, [])


def test_numbers_of_csv_are_compared_by_filters_where_they_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "Town guide: {0}. The mayor of {0} is Ada."
    rows = [f"{name},{text.format(name)},{year}\n" for name, year in (("V", 2020), ("S", 1999))]
    Path("t.csv").write_text("id,text,year\n" + "".join(rows))
    line = "t.csv: the values of 'year' are numbers, kept as text; --numbers year lets filters compare them."

    def found(condition: str) -> list[str]:
        options = ("--filter", condition, "--max-tokens", "2", "--json")
        code, out, err = run("query", "--kb", "kb", "Who is the mayor?", *options)
        assert code == 0, err
        return [source["document_id"] for source in json.loads(out)["sources"]]

    code, _, err = run("build", "t.csv", "--kb", "kb")
    assert (code, err.splitlines().count(line)) == (0, 1)
    code, out, err = run("sync", "t.csv", "--kb", "kb", "--numbers", "year", "--json")
    assert (code, json.loads(out)["updated"], json.loads(out)["tokens"]) == (0, 2, 0)
    assert line not in err
    assert found("year>=2020") == found("year=2020") == ["V"]
    assert found("year<2020") == ["S"]
    shutil.rmtree("kb")
    code, _, err = run("build", "t.csv", "--kb", "kb", "--numbers", "year")
    assert (code, "kept as text" in err) == (0, False)
    assert found("year>=2020") == ["V"]
    Path("t.csv").write_text("id,text,year\nV,Text.,n/a\n")
    for command in (("add", "t.csv", "--kb", "kb"), ("estimate", "t.csv")):
        code, _, err = run(*command, "--numbers", "year")
        assert (code, "t.csv, line 2: field 'year' is to be a number and is 'n/a'" in err) == (
            1,
            True,
        )


def test_a_build_with_contextual_headers_finds_by_the_title(run: Run, tmp_path: Path) -> None:
    folder, kb = tmp_path / "pages", tmp_path / "kb"
    folder.mkdir()
    page = "<html><head><title>Zebra handbook</title></head><body><p>It has {}.</p></body></html>"
    (folder / "a.html").write_text(page.format("stripes"))
    (folder / "b.html").write_text(page.replace("Zebra", "Lion").format("a mane"))
    assert run("build", f"{folder}/*.html", "--kb", kb, "--contextual-headers")[0] == 0
    assert json.loads(run("info", "--kb", kb, "--json")[1])["contextual_headers"] is True
    code, out, _ = run("query", "--kb", kb, "zebra", "--json")
    assert code == 0
    (source,) = json.loads(out)["sources"]
    assert (source["document_id"], source["text"], source["span"]) == (
        "a.html",
        "It has stripes.",
        [0, 15],
    )


# --- errors --------------------------------------------------------------------------------------


ASK = ("query", "--kb", "{kb}", "Who?")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("query", "--kb", "{kb}", "Who?", "--top-k", "0"), 2, "--top-k"),
        (("query", "--kb", "{tmp}", "Who?"), 1, "is not a knowledge base"),
        (("query", "--kb", "{kb}", " "), 1, "question is empty"),
        (("query", "--kb", "{kb}", "why " * 20000), 1, "Shorten it"),
        (("info", "--kb", "{tmp}/nothing"), 1, "is not a knowledge base"),
        (("build", "{corpus}", "--kb", "{kb}"), 1, "is finished already"),
        (("build", "{tmp}/nothing", "--kb", "{tmp}/new"), 1, "no such file or folder"),
        (("build", "{corpus}", "--kb", "{tmp}/new", "--checkpoint", "./none"), 1, "no checkpoint"),
        (
            ("build", "{tmp}/*.rtf", "--kb", "{tmp}/new"),
            1,
            "no file that can be read has such a name",
        ),
        (
            ("build", "nope://x", "--kb", "{tmp}/new"),
            1,
            "nope://x: there is no such kind of store; use s3://",
        ),
        (("build", "{corpus}", "--kb", "{tmp}/new", "--text-field", "x"), 2, "--text-field"),
        (("delete", "nobody", "--kb", "{kb}"), 1, "no document 'nobody'"),
        (("generate",), 2, "either --prompt or --prompts-jsonl"),
        ((*ASK, "--decoder", "llama"), 2, "neither transformers, nor vllm, nor a server's URL"),
        ((*ASK, "--decoder-option", "x"), 2, "not NAME=VALUE"),
        ((*ASK, "--decoder-option", "dtype=bfloat16"), 2, "--dtype bfloat16"),
        ((*ASK, "--decoder-option", "x=1"), 1, "transformers decoder has no option 'x'"),
        (
            (*ASK, "--decoder", "http://127.0.0.1:9/v1", "--decoder-option", "retries=0"),
            1,
            "vllm serve",
        ),
    ],
)
def test_an_error_is_one_line_and_the_knowledge_base_still_answers(
    run: Run,
    built: Path,
    corpus: Path,
    tmp_path: Path,
    sheets: list[FactSheet],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    filled = [a.format(kb=built, corpus=corpus, tmp=tmp_path) for a in arguments]
    found, out, err = run(*filled)
    assert (found, out) == (code, "")
    assert message in err
    assert [line for line in err.splitlines() if line.startswith("Error: ")] == err.splitlines()[
        -1:
    ]
    assert not (tmp_path / "new").exists()
    assert run("query", "--kb", built, sheets[1].questions[0].question, "--top-k", "1")[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("blank.txt", b" \n", "empty"),
    ],
)
def test_a_bad_file_fails_the_run_or_is_skipped_and_listed(
    run: Run, built: Path, corpus: Path, name: str, content: bytes, message: str
) -> None:
    (corpus / name).write_bytes(content)
    (corpus / "new.txt").write_text("A new text.")
    code, _, err = run("add", corpus, "--kb", built)
    assert code == 1
    assert name in err
    assert message in err
    assert json.loads(run("info", "--kb", built, "--json")[1])["documents"] == 6
    code, out, err = run("add", corpus, "--kb", built, "--on-error", "skip")
    assert code == 3
    assert f"{name}" in err
    assert "1 added" in out


def test_an_empty_corpus_leaves_no_knowledge_base_behind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("build", tmp_path / "empty", "--kb", tmp_path / "kb")
    assert code == 1
    assert "No document was found" in err
    assert not (tmp_path / "kb").exists()


def test_a_duplicate_id_names_both_places(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": "x", "text": "one"}\n{"id": "x", "text": "two"}\n')
    code, _, err = run("build", path, "--kb", tmp_path / "kb")
    assert code == 1
    assert "line 2" in err
    assert "line 1" in err


def test_sync_mirrors_a_folder(run: Run, built: Path, corpus: Path) -> None:
    notes = sorted(corpus.glob("*.txt"))
    notes[0].unlink()
    notes[1].write_text("Now it tells of zebras.")
    (corpus / "new.txt").write_text("A new note.")
    code, out, _ = run("sync", corpus, "--kb", built, "--json")
    report = json.loads(out)
    assert (code, report["added"], report["updated"], report["deleted"]) == (0, 1, 1, 1)
    assert report["unchanged"] == len(notes) - 2
    assert report["version"] == 2


def test_a_knowledge_base_never_reads_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"id": name, "text": f"The mayor of {name} is Ada."} for name in ("Velun", "Sorak")]
    Path("docs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("build", "docs.jsonl", "--kb", "kb")[0] == 0
    for command in ("sync", "add", "sync", "sync"):
        code, _, err = run(command, ".", "--kb", "kb")
        assert code == 1
        told = [line for line in err.splitlines() if "kb" in line]
        assert told == ["ignored kb: not read, it is a knowledge base."]
        assert "No document was found in '.'" in err
    for inside in ("kb", "kb/store/fragments", "kb/**/*.arrow"):
        code, _, err = run("add", inside, "--kb", "kb")
        assert (code, err.count("\n")) == (1, 1)
        assert err.endswith(
            "a knowledge base, not a corpus; name the documents it was made from.\n"
        )
    Path("copy").mkdir()
    shutil.copytree("kb/store", "copy/store")
    code, _, err = run("add", "copy", "--kb", "kb")
    assert (code, "it is a fragment of a latent store, not a corpus" in err) == (1, True)
    facts = json.loads(run("info", "--kb", "kb", "--json")[1])
    assert (facts["documents"], facts["version"]) == (2, 1)
    Path("note.txt").write_text("A note on the northern line.")
    code, out, err = run("add", ".", "--kb", "kb")
    assert (code, "1 added" in out, err.count("ignored kb")) == (0, True, 1)


def test_upkeep_from_versions_to_vacuum(run: Run, built: Path, sheets: list[FactSheet]) -> None:
    assert run("delete", f"{sheets[0].document.id}.txt", "--kb", built)[0] == 0
    code, out, _ = run("convert", "--kb", built, "--codec", "int8")
    assert code == 0
    assert "int4 became int8" in out
    listed = json.loads(run("versions", "--kb", built, "--json")[1])
    assert [v["operation"] for v in listed] == ["create", "add", "delete", "convert"]
    assert [v["codec"] for v in listed][-1] == "int8"
    assert "convert" in run("versions", "--kb", built)[1]
    code, out, _ = run("compact", "--kb", built, "--json")
    assert code == 0
    assert json.loads(out)["fragments"] == 1
    assert [v["version"] for v in json.loads(run("versions", "--kb", built, "--json")[1])] == [3]
    code, out, _ = run("vacuum", "--kb", built, "--json")
    assert json.loads(out)["kept"] == [3]
    code, out, _ = run("verify", "--kb", built)
    assert (code, out.strip().splitlines()[-1][-25:]) == (0, "all is as it was written.")


def test_delete_takes_ids_or_a_filter(run: Run, tmp_path: Path) -> None:
    records = [{"id": f"d{i}", "text": f"Text {i}.", "year": 2000 + i} for i in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    kb = tmp_path / "kb"
    assert run("build", tmp_path / "a.jsonl", "--kb", kb)[0] == 0
    code, out, _ = run("delete", "--filter", "year<2003", "--yes", "--kb", kb, "--json")
    assert (code, json.loads(out)["documents"]) == (0, 3)
    assert run("delete", "--kb", kb)[0] == 2
    assert run("delete", "d5", "--filter", "year=2004", "--kb", kb)[0] == 2
    code, _, err = run("delete", "--filter", "year<2003", "--kb", kb)
    assert (code, "matches the filter" in err) == (1, True)


@pytest.mark.slow
def test_a_build_with_a_bad_record_keeps_what_it_compressed(run: Run, tmp_path: Path) -> None:
    path, kb = tmp_path / "a.jsonl", tmp_path / "kb"
    good = [json.dumps({"id": f"d{i}", "text": f"Text number {i}. " * 40}) for i in range(600)]
    path.write_text("\n".join([*good, '{"id": "bad"}']))
    code, _, err = run("build", path, "--kb", kb)
    assert code == 1
    assert "What was compressed stays" in err
    path.write_text("\n".join(good))
    code, out, _ = run("build", path, "--kb", kb, "--json")
    report = json.loads(out)
    assert (code, report["added"]) == (0, 600)
    assert report["reused"] > 0


def test_a_locked_knowledge_base_is_exit_code_4(run: Run, built: Path, corpus: Path) -> None:
    with writing(built / "store", "add"):
        done = subprocess.run(
            [sys.executable, "-m", "lclm_rag.cli", "add", str(corpus), "--kb", str(built)],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 4, done.stderr
    assert f"(pid {os.getpid()})" in done.stderr.splitlines()[-1]


def test_an_interrupted_build_leaves_nothing_and_says_130(
    tmp_path: Path, sheets: list[FactSheet]
) -> None:
    pipe = tmp_path / "slow.jsonl"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "lclm_rag.cli", "build", str(pipe), "--kb", str(tmp_path / "kb")],
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs, these tests among them, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with pipe.open("w") as feed:
        feed.write(json.dumps({"id": "a", "text": "Some text."}) + "\n")
        feed.flush()
        while not (tmp_path / "kb" / "kb.json").exists():
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "Interrupted."
    assert not (tmp_path / "kb").exists()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_helps_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"lclm-rag {command}" in out
