"""doctor: show what is installed, and check a checkpoint."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata, util

import click

from lclm_rag.cli.options import as_json

__all__ = ["doctor"]


_OPTIONAL = {
    "qdrant_client": ("qdrant-client", "server", "a passage index on a Qdrant server"),
    "sentence_transformers": ("sentence-transformers", "dense", "hybrid retrieval"),
    "vllm": ("vllm", "vllm", "decoding with vLLM"),
    "openai": ("openai", "client", "decoding on a vLLM server"),
    "markitdown": ("markitdown", "documents", "corpora of HTML, PDF and DOCX"),
    "s3fs": ("s3fs", "object-stores", "knowledge bases and corpora in s3:// and gs://"),
    "datasets": ("datasets", "datasets", "Hugging Face data sets"),
    "llama_index": ("llama-index-core", "llama-index", "the LlamaIndex connector"),
    "langchain_core": ("langchain-core", "langchain", "the LangChain connector"),
    "haystack": ("haystack-ai", "haystack", "the Haystack connector"),
    "mcp": ("mcp", "mcp", "lclm-rag mcp, a server for agents"),
    "ray": ("ray", "ray", "builds on many machines"),
    "matplotlib": ("matplotlib", "eval", "plots of lclm-rag eval"),
    "llmlingua": ("llmlingua", "llmlingua", "LLMLingua-2 in lclm-rag eval"),
    "lm_eval": ("lm-eval", "lm-eval", "tasks of the lm-evaluation-harness"),
}


@click.command()
@click.option(
    "--checkpoint", default=None, help="Folder or hub id to check.  [default: the bundled one]"
)
@as_json
def doctor(checkpoint: str | None, as_json: bool) -> int:
    """Show what is installed and what is missing, the device, and whether a checkpoint is complete.

    \b
    Example:
      lclm-rag doctor --checkpoint latent-context/0.6b-4b-LCLM-16x
    """
    findings = [*_installed(), *_companions(), _device(), _checkpoint(checkpoint)]
    if as_json:
        click.echo(json.dumps(findings))
    else:
        for finding in findings:
            mark = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN "}[finding["state"]]
            click.echo(f"{mark}  {finding['what']:24}{finding['detail']}")
    return 1 if any(finding["state"] == "broken" for finding in findings) else 0


def _finding(what: str, state: str, detail: str) -> dict[str, str]:
    return {"what": what, "state": state, "detail": detail}


def _installed() -> list[dict[str, str]]:
    found = [_finding("python", "ok", platform.python_version())]
    for package in ("lclm-rag", "torch", "transformers", "pyarrow", "qdrant-edge-py"):
        found.append(_finding(package, "ok", metadata.version(package)))
    for module, (package, extra, purpose) in _OPTIONAL.items():
        if util.find_spec(module) is None:
            detail = f"for {purpose}: pip install 'lclm-rag[{extra}]'"
            found.append(_finding(package, "missing", detail))
        elif module == "vllm" and (trouble := _import_trouble("vllm.platforms")):
            found.append(_finding(package, "broken", f"importing it fails: {trouble}"))
        else:
            found.append(_finding(package, "ok", _version(package)))
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "installed under another name"


def _companions() -> list[dict[str, str]]:
    """The packages that accompany torch, which vLLM installs.

    transformers imports them if they are installed, so one built for another torch breaks transformers, and
    with it vLLM.
    """
    found = []
    for module in ("torchvision", "torchaudio", "torchcodec"):
        if util.find_spec(module) is None:
            continue  # Nothing here needs them.
        trouble = _import_trouble(module)
        if trouble is None:
            found.append(_finding(module, "ok", _version(module)))
        else:
            detail = (
                f"{_version(module)} does not fit torch {metadata.version('torch')} ({trouble}), and "
                f"breaks transformers and vLLM: pip uninstall {module}"
            )
            found.append(_finding(module, "broken", detail))
    return found


def _import_trouble(module: str) -> str | None:
    """The last line of the error from importing a module in a new process; None if the import succeeds."""
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    output = done.stderr.strip().splitlines()
    return output[-1] if output else f"exit code {done.returncode}"


def _device() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        detail = "CUDA: " + "; ".join(
            f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in devices
        )
    else:
        detail = f"CPU, {torch.get_num_threads()} threads; torch sees no CUDA device"
    return _finding("device", "ok", detail)


def _checkpoint(name: str | None) -> dict[str, str]:
    from lclm_rag.checkpoint import BUNDLED, Checkpoint
    from lclm_rag.errors import CheckpointError

    try:
        checkpoint = Checkpoint.open(name or BUNDLED)
    except CheckpointError as error:
        return _finding("checkpoint", "broken", str(error))
    detail = (
        f"{checkpoint.name}: ratio {checkpoint.config.compression_ratio}, width "
        f"{checkpoint.encoder_width} → {checkpoint.decoder_width}, fingerprint "
        f"{checkpoint.fingerprint('decoder')}, in {checkpoint.path}"
    )
    return _finding("checkpoint", "ok", detail)
