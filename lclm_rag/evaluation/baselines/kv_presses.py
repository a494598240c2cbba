"""The decoder under one of kvpress's presses, in a separate process: a baseline for latents.

```python
with PressedDecoder(Path("kvpress-env"), checkpoint.path / "decoder", "kvzip") as decoder:
    answer = decoder.answer(context_ids, question_ids, keep=256, max_tokens=32)
```

`kvpress_environment` makes the environment; `kvpress_worker` documents what is measured and how.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from lclm_rag.errors import DecoderError, PromptError
from lclm_rag.evaluation.baselines import kvpress_worker
from lclm_rag.evaluation.baselines.kvpress_environment import environment_python, make_command
from lclm_rag.evaluation.baselines.kvpress_worker import PRESSES
from lclm_rag.forking import this_process

__all__ = ["PRESSES", "PressedAnswer", "PressedDecoder"]

_SHOWN_LINES = 5


@dataclass(frozen=True)
class PressedAnswer:
    """A greedy answer from a compressed KV cache, and its cost.

    Attributes:
        token_ids: The answer, with the stop token if the decoder wrote one.
        finish_reason: "stop" at a stop token, "length" at the longest answer.
        kept: Positions of the context that could still be attended to, the mean over layers and heads.
        masked: Whether the other positions were masked instead of removed. kvpress masks for presses that
            keep a different number in each head (AdaKV, KVzip); time and memory are then not those of the
            method.
        first_token: Seconds from the request to the first token: prefill, compression and question. The first
            answer of a process is slower; leave it out of timings.
        total: Seconds from the request to the last token.
        peak_memory: torch's max_memory_allocated on CUDA, in bytes, including the weights; None on a CPU.
        full_cache_bytes: Bytes of the context's KV cache before compression.
        cache_bytes: Bytes of the cache's tensors after compression; unchanged if `masked`.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    kept: float
    masked: bool
    first_token: float
    total: float
    peak_memory: int | None
    full_cache_bytes: int
    cache_bytes: int


class PressedDecoder:
    """A decoder under one press, in a worker process that runs until `close`; one request at a time.

    Args:
        environment: The folder of a virtual environment that has kvpress; for the press "none", torch and
            transformers are enough.
        decoder_folder: A decoder in transformers' format with its tokenizer, such as a checkpoint's
            `decoder/`.
        press: One of `PRESSES`; "none" compresses nothing.
        device: The device, by its torch name. "cuda" needs a torch with CUDA in the environment.
        dtype: The weights' dtype, by its torch name.

    Raises:
        ValueError: When the press is unknown.
        DecoderError: When there is no such environment, it lacks kvpress, or the decoder cannot be loaded.

    Attributes:
        press: The press.
        versions: The versions of torch, transformers and kvpress in the environment, by name.
        device: The device that the decoder is on.
        dtype: The decoder's dtype.
    """

    versions: dict[str, str]
    device: str
    dtype: str

    def __init__(
        self,
        environment: str | Path,
        decoder_folder: str | Path,
        press: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """Start the worker and wait until the decoder is loaded."""
        if press not in PRESSES:
            raise ValueError(f"Unknown press {press!r}; known: {', '.join(PRESSES)}.")
        self.press = press
        self._environment = Path(environment).absolute()
        python = environment_python(self._environment)
        folder = Path(decoder_folder).absolute()
        if not (folder / "config.json").is_file():
            raise DecoderError(f"{folder} is not a decoder's folder: it has no config.json.")
        # -I keeps this environment's packages, and the modules beside the script, out of the worker.
        command = [str(python), "-I", str(Path(kvpress_worker.__file__)), str(folder)]
        command += ["--press", press, "--device", device, "--dtype", dtype]
        self._process = this_process()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  Closed with the worker.
        self._worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        try:
            self._started(self._read())
        except BaseException:
            self.close()
            raise

    def answer(
        self,
        context_ids: Sequence[int],
        question_ids: Sequence[int],
        keep: int,
        max_tokens: int,
        stop_ids: Sequence[int] | None = None,
    ) -> PressedAnswer:
        """Compress the context's cache to `keep` positions, then answer the question from it, greedily.

        Args:
            context_ids: Token ids of everything before the question, including the prompt's header; all of
                them count towards `keep`.
            question_ids: Token ids of the question and everything after it.
            keep: How many positions to keep, at least 1. Nothing is compressed at the context's length or
                above, or with the press "none".
            max_tokens: Longest answer, in tokens.
            stop_ids: Tokens that end the answer; None for those of the decoder's generation config.

        Raises:
            PromptError: When the request cannot be met: it is too long, or shorter than the window that
                SnapKV looks at.
            DecoderError: When the worker fails or has died.
        """
        request = {
            "context_ids": list(context_ids),
            "question_ids": list(question_ids),
            "keep": keep,
            "max_tokens": max_tokens,
            "stop_ids": None if stop_ids is None else list(stop_ids),
        }
        reply = self._ask(json.dumps(request))
        if "error" in reply:
            refused = PromptError if reply["kind"] == "request" else DecoderError
            raise refused(f"The press {self.press} did not answer: {reply['error']}")
        return PressedAnswer(finish_reason=reply.pop("finish"), **reply)

    def close(self) -> None:
        """End the worker.

        Does nothing if it has ended already, or in a forked process: the worker belongs to the parent.
        """
        if self._process != this_process():
            return
        self._worker.kill()
        self._worker.wait()
        for pipe in (self._worker.stdin, self._worker.stdout):
            if pipe is not None:
                with suppress(OSError):  # Closing flushes, which fails if the worker is gone.
                    pipe.close()
        self._log.close()

    def __enter__(self) -> PressedDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _started(self, reply: dict[str, Any]) -> None:
        if reply.get("kind") == "ModuleNotFoundError":
            raise DecoderError(
                f"{self._environment} lacks what the press {self.press} needs ({reply['error']}); run: "
                f"{make_command(self._environment)}"
            )
        if "error" in reply:
            raise DecoderError(
                f"The decoder cannot be loaded for the press {self.press}: {reply['error']}"
            )
        ready = reply["ready"]
        self.versions, self.device, self.dtype = ready["versions"], ready["device"], ready["dtype"]

    def _ask(self, line: str) -> dict[str, Any]:
        if self._log.closed:
            raise DecoderError("This decoder is closed.")
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(f"{line}\n")
            self._worker.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line.endswith("\n"):
            raise self._died()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _died(self) -> DecoderError:
        status = self._worker.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = "\n".join(lines[-_SHOWN_LINES:]) or "nothing"
        return DecoderError(
            f"The worker of the press {self.press} died with exit status {status}; it last said:\n{last}"
        )
