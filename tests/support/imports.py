"""Which modules a program has loaded."""

from __future__ import annotations

import json
import subprocess
import sys

__all__ = ["HEAVY", "loaded_after"]

HEAVY = {
    *("torch", "transformers", "vllm", "ray", "llama_index", "qdrant_client"),
    *("datasets", "markitdown"),
}


def loaded_after(code: str, heavy: set[str] = HEAVY) -> set[str]:
    program = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return heavy & set(json.loads(done.stdout.splitlines()[-1]))
