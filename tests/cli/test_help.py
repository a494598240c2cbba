"""The ways in: help, completion, the version, and a knowledge base in the wrong place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lclm_rag import KnowledgeBase, __version__
from support.commands import Run


def test_help_shows_what_the_option_shows(run: Run) -> None:
    assert run("help", "query") == run("query", "--help")
    assert run("help", "train", "run") == run("train", "run", "--help")
    assert run("help") == run("--help")
    code, _, err = run("help", "keys", "nonsense")
    assert code == 2
    assert "There is no command 'keys nonsense'; lclm-rag keys --help lists what there is." in err


def test_the_version_has_a_short_option(run: Run) -> None:
    assert run("-V") == run("--version")
    assert __version__ in run("-V")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_says_how_it_is_installed(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_LCLM_RAG_COMPLETE" in out
    assert out.splitlines()[-1].startswith(
        f"# To install this completion for lclm-rag: lclm-rag completion {shell} >"
    )
    assert f"lclm-rag completion {shell} >" in run("completion", "--help")[1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="There is no bash.")
def test_bash_completes_commands_and_options(run: Run, tmp_path: Path) -> None:
    command = tmp_path / "lclm-rag"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lclm_rag.cli "$@"\n')
    command.chmod(0o755)
    # A file that cannot be read must not disturb whoever types.
    (tmp_path / "lclm-rag.toml").write_text("nonsense")
    script = tmp_path / "script"
    script.write_text(run("completion", "bash")[1])

    def completed(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        lines = [
            f"source {script}",
            f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}",
            "_lclm_rag_completion lclm-rag",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            ["bash", "--norc", "-c", "\n".join(lines)],
            env={**os.environ, "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return ended.stdout.split()

    assert completed("lclm-rag", "comp") == ["compact", "completion"]
    assert "--top-k" in completed("lclm-rag", "query", "--to")


def test_without_a_knowledge_base_all_places_to_name_it_are_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCLM_RAG_KB", raising=False)
    code, _, err = run("query", "Who?")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("Error")]
    for place in ("--kb", "LCLM_RAG_KB", "lclm-rag.toml"):
        assert place in line


def test_a_knowledge_base_in_the_place_of_something_else_is_explained(
    run: Run, small_kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_kb.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCLM_RAG_KB", raising=False)

    def said(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        return err.splitlines()[-1]

    explained = "Error: {0} is a knowledge base, which --kb names: lclm-rag "
    asked = said("query", "kb", "Who's it?", "--top-k", "2")
    assert asked == explained.format("kb") + """query --kb kb 'Who'"'"'s it?' --top-k 2"""
    assert said("info", "./kb/") == explained.format("./kb/") + "info --kb ./kb/"
    assert (
        said("ls", "s3://bucket/kb")
        == explained.format("s3://bucket/kb") + "ls --kb s3://bucket/kb"
    )
    assert said("--offline", "show", "kb", "a", "0").endswith("lclm-rag show --kb kb --offline a 0")
    # A folder may be named as a command is.
    Path("info").symlink_to("kb")
    assert "Missing option '--kb'" in said("info")
    assert said("info", "info").endswith("lclm-rag info --kb info")
    monkeypatch.setenv("LCLM_RAG_KB", "kb")
    assert "query --kb kb Who" in said("query", "kb", "Who")
    assert said("query", "Who", "is", "it") == "Error: Got unexpected extra arguments (is it)"
