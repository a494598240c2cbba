"""Answers questions from a KV cache that a press of NVIDIA's kvpress has compressed.

This is a plain script that imports nothing of lclm_rag; the Python of the environment that
`kvpress_environment` makes runs it, and `kv_presses.PressedDecoder` is its client. One process has one
decoder and one press:

```
DIR/bin/python -I kvpress_worker.py DECODER_FOLDER --press snapkv --device cpu --dtype float32
```

It speaks lines of JSON. First it writes {"ready": {versions, device, dtype}}, or {"error"} and ends. Then it
answers each line on stdin with one line on stdout, until stdin ends. stderr is for logs.

```
→ {"context_ids": [...], "question_ids": [...], "keep": 250, "max_tokens": 32, "stop_ids": [2] or null}
← {"token_ids": [...], "finish": "stop" or "length", "kept": 250.0, "masked": false, ...}
← {"error": "...", "kind": "request" or "failure"}
```

The context is compressed before the question is seen, as in kvpress's own pipeline, so that the kept
positions can serve any question; passages are compressed to latents on the same terms. (SnapKV and TOVA look
at the context's last tokens; with the question among them they would do better, but for that question alone.)
The question's positions continue where the whole context ended, also as in the pipeline. kvpress is imported
only for a press other than "none".
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

__all__ = ["PRESSES"]

# (kvpress module, positions to keep, positions in all) → press. `_MAKE` maps names to these. It leaves out
# presses that fetch something (DuoAttention, QFilter, KVzap, FastKVzip, RestoreKV, DMS), see the question
# (Finch), have no ratio (SimLayerKV), or leave layers of unequal length, which transformers' mask does not
# fit (PyramidKV).
_Make = Callable[[Any, int, int], Any]


def _scorer(name: str, **options: Any) -> _Make:
    """A press that keeps int(length · (1 − ratio)) positions in each head.

    The ratio is half a position off the edges of int, so that rounding cannot make it one position fewer.
    """
    return lambda kvpress, keep, length: getattr(kvpress, name)(
        compression_ratio=1 - (keep + 0.5) / length, **options
    )


def _over(wrapper: str, press: _Make) -> _Make:
    return lambda kvpress, keep, length: getattr(kvpress, wrapper)(press(kvpress, keep, length))


def _kvzip(name: str, **options: Any) -> _Make:
    """A press that drops int(pairs · ratio) of the pairs of all layers and heads together."""
    return lambda kvpress, keep, length: getattr(kvpress, name)(
        compression_ratio=1 - (keep - 1e-6) / length, **options
    )


_MAKE: dict[str, _Make] = {
    "random": _scorer("RandomPress", seed=0),
    "streaming_llm": _scorer("StreamingLLMPress"),
    "knorm": _scorer("KnormPress"),
    "keydiff": _scorer("KeyDiffPress"),
    "lagkv": _scorer("LagKVPress"),
    "cur": _scorer("CURPress"),
    "leverage": _scorer("LeverageScorePress"),
    "compactor": _scorer("CompactorPress"),
    "tova": _scorer("TOVAPress"),
    "snapkv": _scorer("SnapKVPress"),
    "expected_attention": _scorer("ExpectedAttentionPress"),
    "chunkkv_snapkv": _over("ChunkKVPress", _scorer("SnapKVPress")),
    "adakv_snapkv": _over("AdaKVPress", _scorer("SnapKVPress")),
    # epsilon as in kvpress's own leaderboard: without it AdaKV compares scores of different scale.
    "adakv_expected_attention": _over(
        "AdaKVPress", _scorer("ExpectedAttentionPress", epsilon=1e-2)
    ),
    "kvzip": _kvzip("KVzipPress"),
    "kvzip_plus": _kvzip("KVzipPress", kvzip_plus_normalization=True),
}

PRESSES: tuple[str, ...] = ("none", *_MAKE)
"""The presses that the worker knows; "none" keeps everything."""


class PressWorker:
    """One decoder under one press.

    Args:
        folder: A decoder in transformers' format, with its tokenizer.
        press: One of `PRESSES`.
        device: A torch device.
        dtype: The name of a torch dtype.
    """

    def __init__(self, folder: str, press: str, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.make = _MAKE.get(press)
        self.kvpress = None if self.make is None else _import_kvpress()
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        self.model = model.to(device).eval()

    def ready(self) -> dict[str, Any]:
        """The message sent once the decoder is loaded: versions, device and dtype."""
        from importlib.metadata import version

        names = ["torch", "transformers"] + (["kvpress"] if self.kvpress else [])
        return {
            "versions": {name: version(name) for name in names},
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Prefill the context under the press, then decode greedily.

        Args:
            request: A request as the module's docstring shows it.

        Returns:
            The reply. Times are in seconds from when the token ids are at hand: "first_token" until the first
            token's id is known (prefill, compression and the question's forward pass), "total" until the
            last.

        Raises:
            ValueError: When the request cannot be met.
            AssertionError: When one of kvpress's own checks fails.
        """
        import torch

        context, question = list(request["context_ids"]), list(request["question_ids"])
        keep, max_tokens = int(request["keep"]), int(request["max_tokens"])
        self._check(context, question, keep, max_tokens)
        stops = self._stop_ids(request.get("stop_ids"))
        cuda = self.model.device.type == "cuda"
        torch.manual_seed(0)  # Leverage scores project keys at random.
        if cuda:
            torch.cuda.synchronize(self.model.device)
            torch.cuda.reset_peak_memory_stats(self.model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            cache, full_bytes = self._prefill(context, keep)
            kept, masked = self._kept(cache)
            held = sum(_layer_bytes(layer) for layer in cache.layers)
            tokens, first = self._decode(cache, question, len(context), max_tokens, stops, started)
        return {
            "token_ids": tokens,
            "finish": "stop" if tokens[-1] in stops else "length",
            "kept": kept,
            "masked": masked,
            "first_token": first,
            "total": time.perf_counter() - started,
            "peak_memory": torch.cuda.max_memory_allocated(self.model.device) if cuda else None,
            "full_cache_bytes": full_bytes,
            "cache_bytes": held,
        }

    def _check(
        self, context: Sequence[int], question: Sequence[int], keep: int, max_tokens: int
    ) -> None:
        if not context or not question:
            raise ValueError("The context and the question need at least one token each.")
        if keep < 1 or max_tokens < 1:
            raise ValueError(
                f"keep and max_tokens must be at least 1, not {keep} and {max_tokens}."
            )
        size, holds = self.model.config.vocab_size, self.model.config.max_position_embeddings
        outside = [token for token in (*context, *question) if not 0 <= token < size]
        if outside:
            raise ValueError(
                f"Token id {outside[0]} is outside the decoder's vocabulary of {size}."
            )
        needed = len(context) + len(question) + max_tokens
        if needed > holds:
            raise ValueError(
                f"Context, question and answer take {needed} positions; the decoder holds {holds}."
            )

    def _stop_ids(self, requested: list[int] | None) -> set[int]:
        """The tokens that end an answer: the requested ones, else those of the generation config."""
        ends = self.model.generation_config.eos_token_id if requested is None else requested
        return set(ends) if isinstance(ends, list) else {ends}

    def _prefill(self, context: list[int], keep: int) -> tuple[Any, int]:
        """The context's cache after compression, and the bytes that the whole cache would take."""
        import torch
        from transformers import DynamicCache

        press: AbstractContextManager[Any] = nullcontext()
        if self.make is not None and keep < len(context):
            press = self.make(self.kvpress, keep, len(context))(self.model)
        cache: Any = DynamicCache()
        ids = torch.tensor([context], device=self.model.device)
        with press:
            # KVzip reads these arguments by name. The head is not run, as in kvpress's pipeline.
            self.model.model(input_ids=ids, past_key_values=cache)
        one = sum(_layer_bytes(layer) / layer.keys.shape[2] for layer in cache.layers)
        return cache, round(one * len(context))

    def _kept(self, cache: Any) -> tuple[float, bool]:
        """The positions that can still be attended to, and whether the others are masked instead of removed.

        The number of positions is the mean over layers and heads. Presses that keep a different number in
        each head mask, because a tensor has one length for all heads.
        """
        pairs = masked = heads = 0
        for layer, block in zip(cache.layers, self.model.model.layers, strict=True):
            heads += layer.keys.shape[1]
            pairs += layer.keys.shape[1] * layer.keys.shape[2]
            # kvpress's attention resets this attribute at the next prefill.
            hidden = getattr(block.self_attn, "masked_key_indices", None)
            masked += 0 if hidden is None else len(hidden[2])
        return (pairs - masked) / heads, masked > 0

    def _decode(
        self,
        cache: Any,
        question: list[int],
        position: int,
        max_tokens: int,
        stops: set[int],
        started: float,
    ) -> tuple[list[int], float]:
        """The token ids, including a stop token if one came, and the seconds from `started` to the first."""
        import torch

        device, first = self.model.device, 0.0
        ids, tokens = question, list[int]()
        while len(tokens) < max_tokens and not (tokens and tokens[-1] in stops):
            positions = torch.arange(position, position + len(ids), device=device)
            logits = self.model(
                input_ids=torch.tensor([ids], device=device),
                past_key_values=cache,
                position_ids=positions.unsqueeze(0),
                logits_to_keep=1,
            ).logits
            position += len(ids)
            ids = [int(logits[0, -1].argmax())]
            tokens += ids
            first = first or time.perf_counter() - started
        return tokens, first


def _layer_bytes(layer: Any) -> int:
    return int(layer.keys.nbytes + layer.values.nbytes)


def _import_kvpress() -> Any:
    kvpress = importlib.import_module("kvpress")
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    # KVzip loads the tokenizer again at each prefill, which is no cost of the method: cache it.
    tokenizers = importlib.import_module("kvpress.presses.kvzip_press").AutoTokenizer
    tokenizers.from_pretrained = functools.cache(
        functools.partial(tokenizers.from_pretrained, trust_remote_code=False)
    )
    return kvpress


def _serve(worker: PressWorker, requests: TextIO, answers: TextIO) -> None:
    for line in requests:
        try:
            reply = worker.answer(json.loads(line))
        except (ValueError, AssertionError, LookupError, TypeError) as error:
            traceback.print_exc()
            reply = {"error": str(error) or repr(error), "kind": "request"}
        except Exception as error:  # For example out of memory: the next request may be smaller.
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}", "kind": "failure"}
        print(json.dumps(reply), file=answers, flush=True)


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="a decoder in transformers' format, with its tokenizer")
    parser.add_argument("--press", choices=PRESSES, default="none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    options = parser.parse_args()
    # Libraries print to stdout, which must not mix with the answers: for them it becomes stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        worker = PressWorker(options.folder, options.press, options.device, options.dtype)
    except Exception as error:
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        print(json.dumps({"error": reason, "kind": type(error).__name__}), file=answers, flush=True)
        return 1
    print(json.dumps({"ready": worker.ready()}), file=answers, flush=True)
    _serve(worker, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
