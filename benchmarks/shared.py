"""What every benchmark says of the machine and of itself, writes down and draws."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

__all__ = [
    "changed_since",
    "code_digest",
    "label_sizes",
    "machine",
    "numbers",
    "provenance",
    "write_results",
]

ROOT = Path(__file__).parents[1]
CHECKPOINT = Path("lclm_rag") / "checkpoints" / "tiny-lclm-4x"
EVALUATION = Path("lclm_rag") / "evaluation"

PACKAGES = (
    *("lclm-rag", "numpy", "pyarrow", "qdrant-edge-py", "tokenizers", "torch", "transformers"),
    *("vllm", "ray", "sentence-transformers", "pylance", "deltalake"),
)
OF_THE_CHECKPOINT = (
    *("codecs.py", "conversation.py", "evaluation.py", "expansion_rules.py"),
    *("latent_reranking.py", "passage_order.py", "serving.py", "vllm_inputs.py"),
)
"""Benchmarks of the bundled checkpoint: its weights and its tokenizer are part of what they measure."""

BY_COMMAND = ("evaluation.py", "passage_order.py")
ASKED_AND_SCORED = [
    EVALUATION / name for name in ("datasets/sets.py", "measures.py", "runners.py", "report.py")
]
"""What the former run by `lclm-rag eval` and so do not import: questions, how they are asked, and scores."""


def numbers(context: click.Context, option: click.Parameter, value: str) -> list[int]:
    """A click callback: "1,8,32" as a list."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter("numbers, with commas between them") from error


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    found = _versions(("torch", "vllm", "transformers"))
    return {"cores": os.cpu_count(), "gpu": gpu, "python": platform.python_version(), **found}


def provenance() -> dict[str, Any]:
    """Where a result comes from: commit, time, command, versions, and the content of what made it."""
    script = Path(sys.argv[0]).resolve()
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", str(script.relative_to(ROOT)), *sys.argv[1:]]),
        "versions": _versions(PACKAGES),
        "benchmark": script.name,
        "code": code_digest(script.name),
        "checkpoint": checkpoint_digest() if script.name in OF_THE_CHECKPOINT else None,
    }


def changed_since(found: dict[str, Any]) -> list[str]:
    """What is other than when a result was made, by content: "its benchmark", "the checkpoint"."""
    made = found["provenance"]
    changed = []
    if made["code"] != code_digest(made["benchmark"]):
        changed.append("its benchmark")
    if made["benchmark"] in OF_THE_CHECKPOINT and made["checkpoint"] != checkpoint_digest():
        changed.append("the checkpoint")
    return changed


def code_digest(benchmark: str, root: Path = ROOT) -> str | None:
    """A digest of a benchmark's file, and of what it imports of benchmarks/ and lclm_rag/evaluation.

    None where there is no such benchmark.
    """
    waiting = [root / "benchmarks" / benchmark]
    if benchmark in BY_COMMAND:
        waiting += [root / path for path in ASKED_AND_SCORED]
    files: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file.is_file() and file not in files:
            files.add(file)
            waiting += _imported(file, root)
    if any(root / EVALUATION in file.parents for file in files):
        files.update((root / EVALUATION).rglob("*.toml"))
    return _digest(files, root) if root / "benchmarks" / benchmark in files else None


def checkpoint_digest(root: Path = ROOT) -> str:
    files = (path for path in (root / CHECKPOINT).rglob("*") if path.is_file())
    return _digest(files, root)


def _imported(file: Path, root: Path) -> Iterator[Path]:
    """Files beside a benchmark and modules of lclm_rag.evaluation that a file imports; not this one."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        else:
            continue
        for module in modules:
            if module.startswith("lclm_rag.evaluation"):
                yield root / f"{module.replace('.', '/')}.py"
            elif module != "shared":
                yield root / "benchmarks" / f"{module}.py"


def _digest(files: Any, root: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(root)} {content}\n".encode())
    return digest.hexdigest()[:16]


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit() -> str | None:
    """The commit, "+" behind it if a file of the repository is other than there; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_results(out: Path, about: dict[str, Any], results: Sequence[Any]) -> None:
    """`out`.json: what was measured on, where it comes from, and one object for each result (a dataclass)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = {**about, "provenance": provenance(), "results": [asdict(result) for result in results]}
    out.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")


def label_sizes(axis: Any, sizes: Sequence[int]) -> None:
    """Logarithmic axes, with the sizes of the contexts below."""
    axis.set(xlabel="source tokens in the context", xscale="log", yscale="log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
