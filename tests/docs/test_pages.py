"""What the documentation names is there: functions, files, and the lines of Python that it shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def defined(path: Path) -> set[str]:
    """Names of the functions, classes, methods and constants of a module, as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.ClassDef():
                names |= {node.name, *(f"{node.name}.{f.name}" for f in _functions(node))}
            case ast.Assign():
                names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name()):
                names.add(node.target.id)
    return names


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [f for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_function_and_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    missing = [
        f"{path}:{name}"
        for path, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
        if not (ROOT / path).is_file() or name not in defined(ROOT / path)
    ]
    named = re.findall(r"`((?:lclm_rag|connectors|cli|tests|benchmarks|examples)/[\w/.]*)`", text)
    missing += [path for path in named if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_on_a_page_is_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        ast.parse(block)


def test_the_readme_is_short_and_says_first_what_a_newcomer_needs() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 200
    assert lines.index("## Install") < 35
    for command in ("make demo", "make test"):
        assert command in lines
    assert sum(line.startswith("|---") for line in lines) == 3


def test_contributing_names_every_reason_to_skip_a_test() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    reasons = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func)
            texts = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "reason"]
            if name in ("pytest.skip", "pytest.importorskip"):
                texts += [ast.literal_eval(argument) for argument in call.args[:1]]
            if name.startswith("pytest.") and "skip" in name:
                # A module below another that is named needs no line of its own.
                reasons.update(text.split(".export")[0] for text in texts)
    assert len(reasons) > 10
    assert [reason for reason in sorted(reasons) if reason not in table] == []
