"""lclm-rag.toml: found upwards, after options and the environment, and refused if it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.cli.config_file import FILE, from_file
from lclm_rag.cli.demo import demo
from lclm_rag.cli.serve import _locations
from support.commands import Run


@pytest.fixture
def project(small_kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file that names the knowledge base `kb` beside it; below it, the current folder."""
    small_kb.close()
    below = tmp_path / "notes" / "2026"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.delenv("LCLM_RAG_KB", raising=False)
    write(tmp_path, 'kb = "kb"\ntop_k = 2\n')
    return tmp_path


def write(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text, "utf-8")


def test_a_file_above_the_current_folder_names_knowledge_base_and_passages(
    run: Run, project: Path
) -> None:
    code, out, err = run("search", "Who is the mayor of the town?", "--json")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err.splitlines() == [f"Settings from {project / FILE}."]
    code, out, _ = run("search", "Who is the mayor of the town?", "--json", "--top-k", "1")
    assert (code, len(out.splitlines())) == (0, 1)
    # The nearest file counts, and alone.
    write(Path.cwd(), f'kb = "{project / "kb"}"')
    code, out, err = run("search", "Who is the mayor of the town?", "--json")
    assert len(out.splitlines()) > 2
    assert f"Settings from {Path.cwd() / FILE}." in err


def test_a_service_is_started_for_the_knowledge_base_of_the_file(project: Path) -> None:
    assert _locations([]) == {"kb": str(project / "kb")}


def test_an_option_comes_before_the_environment_and_that_before_the_file(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*option: str) -> str:
        code, _, err = run("info", *option)
        assert code == 1
        return err

    write(project, 'kb = "of-file"')
    monkeypatch.setenv("LCLM_RAG_KB", "of-environment")
    assert "of-option is not a knowledge base" in asked("--kb", "of-option")
    assert "of-environment is not a knowledge base" in asked()
    monkeypatch.delenv("LCLM_RAG_KB")
    assert f"{project / 'of-file'} is not a knowledge base" in asked()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk = 3", "has the unknown key 'topk'; known are kb, decoder, checkpoint, top_k."),
        ("[kb]", "kb must be a string, not {}."),
        ('kb = ""', "kb must be a string, not ''."),
        ("top_k = true", "top_k must be a whole number of at least 1, not True."),
        ("top_k = 0", "top_k must be a whole number of at least 1, not 0."),
        ("top_k =", "cannot be read: Invalid value"),
        ('kb = "x"\ndecoder = "llama"', "'llama' is neither transformers, nor vllm"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_helps_no_further(
    run: Run, project: Path, text: str, message: str
) -> None:
    write(project, text)
    code, out, err = run("query", "Who?")
    assert (code, out) == (2, "")
    assert message in err
    # What needs no setting, works.
    assert run("query", "--help")[0] == 0


def test_a_current_folder_that_is_gone_has_no_file(run: Run, project: Path) -> None:
    Path.cwd().rmdir()
    assert run("info", "--kb", project / "kb")[0] == 0
    assert from_file("top_k", 8)() == 8


def test_paths_are_relative_to_the_file_and_urls_and_ids_stay(project: Path) -> None:
    (project / "models" / "lclm").mkdir(parents=True)
    for key, value, found in (
        ("kb", "kb", str(project / "kb")),
        ("kb", "../kb", str(project / "../kb")),
        ("kb", "/srv/kb", "/srv/kb"),
        ("kb", "s3://bucket/kb", "s3://bucket/kb"),
        ("checkpoint", "models/lclm", str(project / "models/lclm")),
        ("checkpoint", "./lost", str(project / "lost")),
        ("checkpoint", "latent-context/0.6b-4b-LCLM-16x", "latent-context/0.6b-4b-LCLM-16x"),
        ("checkpoint", "bundled", "bundled"),
        ("decoder", "http://localhost:8000/v1", "http://localhost:8000/v1"),
    ):
        write(project, f'{key} = "{value}"')
        assert from_file(key)() == found


def test_the_checkpoint_of_the_file_builds_and_the_demo_keeps_its_own_decoder(
    run: Run, project: Path
) -> None:
    write(project, 'checkpoint = "./none"\ndecoder = "http://127.0.0.1:9/v1"')
    Path("a.txt").write_text("Town guide: Velun.")
    code, _, err = run("build", "a.txt", "--kb", "new")
    assert code == 1
    assert str(project / "none") in err
    (decoder,) = (option for option in demo.params if option.name == "decoder")
    assert decoder.default == "transformers"
