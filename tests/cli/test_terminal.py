"""What comes from outside reaches a terminal as text that can be read, and nothing else."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.cli.eval_tables import print_report
from lclm_rag.cli.formatting import one_line, visible
from lclm_rag.cli.main import _say_traceback
from lclm_rag.cli.progress import progress_bar, stderr, stdout
from lclm_rag.decoding.transformers import TransformersDecoder
from support.commands import Run

EVIL = "zqaw\x1b]0;PWNED\x07\x1b]52;c;cHduZWQ=\x07\x1b[2J\x9b31m\u202egnp\u2066.\r\x08\x7f\u2028"
HIDDEN = [chr(n) for n in (*range(9), *range(11, 32), *range(0x7F, 0xA0))]
HIDDEN += list("\u200e\u200f\u202a\u202e\u2066\u2069\u2028\u2029\ufeff\u200b\u061c\udc80\U000e0041")


def is_clean(text: str) -> bool:
    return not any(character in text for character in HIDDEN)


@pytest.fixture(scope="module")
def evil_kb(tmp_path_factory: pytest.TempPathFactory, decoder: TransformersDecoder) -> Path:
    path = tmp_path_factory.mktemp("evil") / "kb"
    text = f"{EVIL} is a town.\r\nIts mayor is Gedul.\tIt lies by a lake."
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add([Document(f"id{EVIL}\nError: all is lost", text, {"lang": "en"})])
    return path


@pytest.fixture
def run_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run`, with a terminal for stdout and stderr."""

    def run_there(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        return run(*arguments)

    return run_there


def test_control_and_invisible_characters_are_shown_as_escapes() -> None:
    assert all(is_clean(visible(character)) for character in HIDDEN)
    assert visible("\x1b]52;\x07 \u202e \U000e0041") == "\\x1b]52;\\x07 \\u202e \\U000e0041"
    assert one_line("a\nb\tc\r\nd") == "a\\nb\\tc\\nd"


def test_text_of_any_script_is_shown_as_it_is() -> None:
    text = "a\tb\nStraße, हिन्दी क्‍ष, می‌خواهم, 日本語, 👩‍👩‍👧, soft\u00adhyphen"
    assert visible(text) == text
    assert visible("dos\r\nlines\r\n") == "dos\nlines\n"


@pytest.mark.parametrize(
    "command",
    [
        ("query", "zqaw town", "--max-tokens", "2"),
        ("query", "zqaw town", "--max-tokens", "2", "--json"),
        ("show", f"id{EVIL}\nError: all is lost", "0"),
        ("show", f"id{EVIL}\nError: all is lost", "0", "--json"),
        ("show", f"missing{EVIL}", "0"),
        ("query", "zqaw", "--filter", EVIL),
        ("query", "zqaw", f"--{EVIL}"),
        ("info",),
    ],
    ids=lambda command: " ".join(map(one_line, command))[:40],
)
def test_nothing_of_a_document_or_an_argument_commands_a_terminal(
    evil_kb: Path, run_there: Run, command: tuple[str, ...]
) -> None:
    _, out, err = run_there(*command, "--kb", evil_kb)
    assert is_clean(out)
    assert is_clean(err)
    assert out + err
    if "--json" in command:
        found = json.loads(out)
        (passage,) = found["sources"] if isinstance(found, dict) else found
        assert EVIL in passage["text"]


def test_an_id_with_a_line_feed_makes_no_line_of_its_own(evil_kb: Path, run_there: Run) -> None:
    _, out, _ = run_there("query", "zqaw town", "--max-tokens", "2", "--kb", evil_kb)
    assert not any(line.startswith("Error") for line in out.splitlines())


def test_an_answer_is_clean_while_it_streams(
    evil_kb: Path, run_there: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("zqaw?\n\n"))
    monkeypatch.setattr(
        KnowledgeBase, "stream", lambda *_, **__: iter(["a\x1b", "]52;c;eA==\x07", "\u202e!"])
    )
    _, out, _ = run_there("chat", "--kb", evil_kb)
    assert out == "a\\x1b]52;c;eA==\\x07\\u202e!\n"


def test_what_is_piped_is_exact(evil_kb: Path, run: Run) -> None:
    document = f"id{EVIL}\nError: all is lost"
    _, text, _ = run("show", "--kb", evil_kb, document, "0")
    _, found, _ = run("show", "--kb", evil_kb, document, "0", "--json")
    (passage,) = json.loads(found)
    assert passage["document_id"] == document
    assert text == passage["text"] + "\n"
    assert EVIL in text
    assert is_clean(found)


@pytest.mark.parametrize("name", ["[red]", "[/]", "[/foo]", "law [1]", "[bold]x", ":smile:", EVIL])
def test_names_in_tables_and_bars_are_only_text(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"score": {"mean": 1.0, "low": 1.0, "high": 1.0}, "errors": 0, "left_out": 0}
    report: dict[str, Any] = {
        "settings": {"set": name, "checkpoint": name, "top_k": None},
        "questions": 3,
        "modes": {name: _Figures(figures)},
        "differences": {},
        "reference": None,
        "store": {"source_tokens": 0},
        "unfinished": [name],
        "categories": {
            category: {
                "questions": 3,
                "modes": {name: {"mean": 0.5, "low": 0.1, "high": 0.9}},
                "differences": {},
            }
            for category in (name, "other")
        },
    }
    print_report(report)
    stdout.print(name)
    stderr.print(name)
    with progress_bar() as progress:
        progress.add_task(name, total=1, note=name)
    out, err = capsys.readouterr()
    assert visible(name)[:6] in out
    assert visible(name)[:6] in err
    assert is_clean(out.replace("\x1b", ""))
    assert "\x1b]" not in out + err
    assert "\x1b[2J" not in out + err


class _Figures(dict[str, Any]):
    """Figures of a report; those that are not set are empty."""

    def __missing__(self, key: str) -> None:
        return None


def test_a_traceback_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError(EVIL)
    _say_traceback(RuntimeError, error, None)
    assert is_clean(capsys.readouterr().err)


def test_all_commands_print_through_one_file() -> None:
    folder = Path(__file__).parents[2] / "cli"
    for path in folder.glob("*.py"):
        if path.name == "formatting.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                direct = ("print", "click.echo", "click.secho", "sys.stdout.write", "Console")
                assert called not in direct, f"{path.name}:{node.lineno} prints with {called}"
