"""What is imported when: a shell must not wait for a model library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lclm_rag import KnowledgeBase
from support.imports import loaded_after


@pytest.mark.parametrize(
    "code",
    [
        "import lclm_rag",
        "import lclm_rag.retrieval, lclm_rag.store, lclm_rag.types",
        "import lclm_rag.connectors.corpora",
        "from lclm_rag.cli.main import _run; assert _run(['--help']) == 0",
    ],
)
def test_no_model_library_is_loaded_by(code: str) -> None:
    assert loaded_after(code) == set()


def test_tests_that_need_no_torch_do_not_wait_for_it() -> None:
    assert (
        loaded_after(
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import conftest"
        )
        == set()
    )


@pytest.mark.parametrize("module", ["lclm_rag.storage", "lclm_rag.connectors.corpora"])
def test_neither_arrow_nor_an_object_store_is_loaded_by(module: str) -> None:
    assert loaded_after(f"import {module}", {"pyarrow", "fsspec", "s3fs", "numpy"}) == set()


@pytest.mark.parametrize(
    ("connector", "framework", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("haystack", "haystack", "haystack"),
        ("mcp", "mcp", "mcp"),
        ("llama_index", "llama_index", "llama-index"),
        ("lm_eval", "lm_eval", "lm-eval"),
    ],
)
def test_a_connector_without_its_framework_names_the_extra(
    connector: str, framework: str, extra: str
) -> None:
    code = f"import sys; sys.modules[{framework!r}] = None; import lclm_rag.connectors.{connector}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert f"pip install 'lclm-rag[{extra}]'" in message


def test_lclm_rag_mcp_without_its_extra_says_so_in_one_line(small_kb: KnowledgeBase) -> None:
    small_kb.close()
    arguments = ["mcp", "--kb", str(small_kb.path)]
    code = (
        f"import sys; sys.modules['mcp'] = None; from lclm_rag.cli import main; main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.splitlines()
    assert message.startswith("Error: ")
    assert "pip install 'lclm-rag[mcp]'" in message


def test_info_loads_no_model_library(small_kb: KnowledgeBase) -> None:
    code = f"from lclm_rag.cli.main import _run; assert _run(['info', '--kb', {str(small_kb.path)!r}]) == 0"
    assert loaded_after(code) == set()


def test_every_public_name_is_there() -> None:
    import lclm_rag

    for name in lclm_rag.__all__:
        assert getattr(lclm_rag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lclm_rag.nonsense  # noqa: B018


def test_nothing_but_lclm_rag_is_installed_at_the_top(tmp_path: Path) -> None:
    """`cli` and `connectors` of other projects must not be shadowed."""
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('cli', 'connectors')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.strip() == "[None, None]"
