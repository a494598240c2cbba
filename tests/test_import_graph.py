"""How modules may know each other: no circles, and one direction through the folders."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lclm_rag

ROOT = Path(__file__).parents[1]
TOPS = {"lclm_rag": "lclm_rag", "connectors": "lclm_rag.connectors", "cli": "lclm_rag.cli"}


def modules() -> dict[str, Path]:
    """Every module of the repository's package, by its name when it is installed."""
    found = {}
    for top, name in TOPS.items():
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            found[".".join([name, *(p for p in parts if p != "__init__")])] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that one imports, anywhere in it: for types and inside functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {t if t in known else node.module for t in targets}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # A package's own door names its rooms, and the first door names them all.
    is_door = path.name == "__init__.py"
    return {
        t
        for t in found & known.keys()
        if t not in (name, "lclm_rag") and not (is_door and t.startswith(f"{name}."))
    }


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


# Folder → what it may know of besides itself; "" are the modules at the top of the package.
BASE = {
    "types",
    "errors",
    "checks",
    "problem",
    "hub",
    "cache",
    "checkpoint",
    "checkpoint_files",
    "adapter_tensors",
    "lora",
    "english",
    "model_source",
    "offline",
    "own_code",
    "printable",
    "retries",
    "typed_json",
    "checksummed_json",
    "forking",
    "torch_setup",
}
MAY_IMPORT = {
    "storage": BASE,
    "chunking": BASE,
    "compression": BASE,
    "store": BASE | {"storage"},
    "retrieval": BASE,
    "prompting": BASE,
    "decoding": BASE | {"prompting", "compression"},
    "indexing": BASE | {"config", "storage", "store", "retrieval"},
    "ingestion": BASE | {"storage", "store", "chunking", "compression", "indexing"},
    # No knowledge base: a model is made before there is one.
    "training": BASE
    | {"compression", "prompting", "decoding", "querying", "estimate", "evaluation"},
    "querying": BASE
    | {"config", "storage", "store", "retrieval", "prompting", "decoding", "indexing"},
}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder: str, graph: dict[str, set[str]]) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    for name, imported in graph.items():
        if name.startswith(f"lclm_rag.{folder}"):
            rooms = {module.split(".")[1] for module in imported}
            assert rooms <= allowed, f"{name} imports {sorted(rooms - allowed)}"


def test_what_users_type_can_be_imported_from_the_package() -> None:
    for name in lclm_rag.__all__:
        assert getattr(lclm_rag, name) is not None
    for name in ("Compressor", "Decoder", "Embedder", "Filter", "Expand", "KnowledgeBase", "field"):
        assert name in lclm_rag.__all__


def test_every_error_lives_in_one_file() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                assert name == "lclm_rag.errors" or node.name.startswith("_"), f"{name}.{node.name}"
