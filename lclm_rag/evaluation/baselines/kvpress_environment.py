"""A separate virtual environment for NVIDIA's kvpress, which needs an older transformers than lclm_rag.

```
python -m lclm_rag.evaluation.baselines.kvpress_environment DIR
```

kvpress 0.5.5 requires a transformers below 5.3, lclm_rag one from 5.10 on, so no environment can have both.
`kv_presses.PressedDecoder` runs `kvpress_worker.py` with the Python of the environment made here.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import click

from lclm_rag.errors import DecoderError, LclmRagError

__all__ = [
    "REQUIREMENTS",
    "environment_python",
    "environment_versions",
    "make_command",
    "make_environment",
]

REQUIREMENTS = ("kvpress==0.5.5", "transformers>=5.2,<5.3", "torch>=2.9,<2.14")
"""What pip installs.

transformers 5.2 is the last that kvpress accepts, and it reads the checkpoint folders that 5.19 writes. The
range of torch is lclm_rag's own, so that both decode with the same version if pip picks the same.
"""

# Prints the version of each required package as JSON. It imports kvpress, which proves more than a version.
_VERSIONS = """
import json, sys
from importlib.metadata import version
import kvpress
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def environment_python(folder: Path) -> Path:
    """The path of an environment's Python.

    Raises:
        DecoderError: When the folder is not a virtual environment; the message has the command that makes
            one.
    """
    python = folder / "bin" / "python"
    if not python.is_file():
        raise DecoderError(
            f"{folder} is not a virtual environment; make one with kvpress: {make_command(folder)}"
        )
    return python


def make_command(folder: Path) -> str:
    """The shell command that makes the environment in that folder."""
    return f"python -m lclm_rag.evaluation.baselines.kvpress_environment {shlex.quote(str(folder))}"


def make_environment(folder: Path) -> dict[str, str]:
    """Make the environment, complete one that was left half made, or check that it is complete.

    Downloads about 1 GB if pip picks a torch for the CPU, and several GB with CUDA. pip writes to stderr.

    Args:
        folder: The environment's folder: new, empty, or an environment.

    Returns:
        The version of each required package, by name.

    Raises:
        DecoderError: When the folder holds something else, pip fails, or kvpress cannot be imported.
    """
    if not (folder / "pyvenv.cfg").is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DecoderError(
                f"{folder} exists and is not a virtual environment; name a folder that is new or empty."
            )
        _create(folder)
    python = environment_python(folder)
    versions = environment_versions(python)
    if isinstance(versions, dict) and _fits(versions):
        return versions
    _install(python)
    versions = environment_versions(python)
    if not isinstance(versions, dict):
        raise DecoderError(f"kvpress was installed in {folder} but cannot be imported: {versions}")
    return versions


def _create(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DecoderError(
            f"A virtual environment cannot be made in {folder}: {error}; on Debian and Ubuntu the package "
            f"python3-venv may be missing."
        ) from error


def _install(python: Path) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *REQUIREMENTS]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise DecoderError(
            f"pip could not install {' '.join(REQUIREMENTS)} (it says above why); run the command again "
            f"to go on from there."
        )


def environment_versions(python: Path) -> dict[str, str] | str:
    """Versions of the required packages, or the last line of Python's error output if one is missing."""
    names = [requirement.split("=")[0].split(">")[0] for requirement in REQUIREMENTS]
    done = subprocess.run(
        [str(python), "-I", "-c", _VERSIONS, *names], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    versions: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: str(version) for name, version in versions.items()}


def _fits(versions: dict[str, str]) -> bool:
    """Whether the versions meet the requirements; the package `packaging` comes with transformers."""
    from packaging.requirements import Requirement

    required = [Requirement(requirement) for requirement in REQUIREMENTS]
    return all(r.specifier.contains(versions[r.name], prereleases=True) for r in required)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Make a virtual environment with kvpress in FOLDER; a complete one is left unchanged."""
    folder = folder.expanduser().absolute()
    try:
        versions = make_environment(folder)
    except LclmRagError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder} has {', '.join(f'{n} {v}' for n, v in versions.items())}.")
    click.echo(
        "Use it: lclm_rag.evaluation.baselines.kv_presses."
        f"PressedDecoder({str(folder)!r}, decoder_folder, press); "
        f"its tests: LCLM_RAG_KVPRESS_ENV={shlex.quote(str(folder))} "
        "pytest tests/evaluation/test_kv_presses.py"
    )


if __name__ == "__main__":
    main()
