"""`ServerDecoder`: decoding on a vLLM server, over its OpenAI-compatible HTTP interface."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from functools import lru_cache
from typing import Any, TypeVar

import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.decoder import Completion, Sampling, end_token_ids, vllm_sampling
from lclm_rag.decoding.event_loop import EventLoopDecoder, EventLoopThread
from lclm_rag.errors import CheckpointError, DecoderError, PromptError
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.template import render_chat

__all__ = ["ServerDecoder", "embedding_table"]

T = TypeVar("T")


class ServerDecoder(EventLoopDecoder):
    """Decodes on a server, started with `vllm serve CHECKPOINT/decoder --enable-prompt-embeds`.

    The constructor connects to the server and asks which models it serves.

    A prompt with latents is sent as one chat message with a single `prompt_embeds` part. The server's chat
    template adds the tokens around the message; everything inside it is sent as embeddings. That includes
    text, as rows of the decoder's embedding table, because vLLM would join text parts with line breaks, and
    would read `<|im_end|>` in a document as the end of the turn. Neither happens to embeddings. A prompt
    without latents goes to the completions interface as token ids.

    Args:
        url: The server's URL, up to and including `/v1`.
        checkpoint: The checkpoint whose decoder the server runs.
        model: The name of the served model; needed if the server serves several.
        api_key: The key given to `vllm serve --api-key`, if any.
        timeout: Seconds to wait without a sign of life.
        retries: How often a request is repeated, with growing pauses, after connection errors and the
            statuses 429 and 5xx. An answer that breaks off halfway is requested again as often.
        concurrency: The most requests in flight at the same time.

    Raises:
        DecoderError: When no server answers, or it does not serve the model.
        ImportError: When the client is not installed: pip install 'lclm-rag[client]'.
    """

    def __init__(
        self,
        url: str,
        checkpoint: Checkpoint,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 3,
        concurrency: int = 32,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "Decoding on a server needs a client: pip install 'lclm-rag[client]'."
            ) from error
        super().__init__(EventLoopThread("vllm-server"))
        self.url = url.rstrip("/")
        self.checkpoint = checkpoint
        self._retries = retries
        self._ends = end_token_ids(checkpoint)
        self._turns = _turns(checkpoint)
        table = embedding_table(checkpoint)
        self._row = lru_cache(maxsize=65_536)(lambda token: table[token : token + 1][0])
        self._free = asyncio.Semaphore(concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self.url, api_key=api_key or "none", timeout=timeout, max_retries=retries
        )
        try:
            self.model, self.context_length = self.thread.run(lambda: self._served(model))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections. The server keeps running. See `Decoder.close`."""
        self.thread.close(self._client.close)

    async def _served(self, model: str | None) -> tuple[str, int]:
        """The name and the context length of the model to use, from the server's list of models."""
        page: Any = await self._response(self._client.models.list())
        served = {entry.id: entry for entry in page.data}
        if model is None and len(served) == 1:
            model = next(iter(served))
        if model is None or model not in served:
            raise DecoderError(
                f"{self.url} serves {', '.join(served)}; name the one that decodes with the option model."
            )
        length = getattr(served[model], "max_model_len", None)
        return model, int(length or self.checkpoint.context_length)

    async def _complete(self, prompt: SoftPrompt, sampling: Sampling) -> Completion:
        async with self._free:
            for _ in range(self._retries):
                try:
                    return await self._complete_once(prompt, sampling)
                except _BrokenOffError:
                    continue  # The client itself repeats failed requests, but not half answers.
            return await self._complete_once(prompt, sampling)

    async def _complete_once(self, prompt: SoftPrompt, sampling: Sampling) -> Completion:
        started = time.perf_counter()
        first_token = None
        ids: list[int] = []
        reason = usage = None
        async with aclosing(self._chunks(prompt, sampling)) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    new = (choice.model_extra or {}).get("token_ids") or []
                    if new and first_token is None:
                        first_token = time.perf_counter() - started
                    ids += new
                    reason = choice.finish_reason or reason
        if usage is None or reason is None or not ids:
            raise DecoderError(f"{self.url} ended its answer early.")
        if usage.prompt_tokens != prompt.positions:
            raise DecoderError(
                f"{self.url} saw {usage.prompt_tokens} positions in a prompt of {prompt.positions}: it "
                "serves another model, or another chat template, than the checkpoint's decoder."
            )
        details = usage.prompt_tokens_details
        total = time.perf_counter() - started
        return Completion(
            text=str(self.checkpoint.chat_tokenizer.decode(ids, skip_special_tokens=True)),
            token_ids=ids,
            finish_reason="stop" if reason == "stop" else "length",
            first_token=total if first_token is None else first_token,
            total=total,
            cached_positions=None if details is None else details.cached_tokens or 0,
        )

    async def _stream(self, prompt: SoftPrompt, sampling: Sampling) -> AsyncGenerator[str]:
        async with self._free, aclosing(self._chunks(prompt, sampling)) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    piece = choice.delta.content if prompt.spans else choice.text
                    if piece:
                        yield piece

    async def _chunks(self, prompt: SoftPrompt, sampling: Sampling) -> AsyncGenerator[Any]:
        """The chunks that the server sends. Raises _BrokenOffError if the connection breaks."""
        import httpx
        import openai

        how: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {**vllm_sampling(sampling, self._ends), "return_token_ids": True},
        }
        if prompt.cache_salt:
            how["extra_body"]["cache_salt"] = prompt.cache_salt
        if prompt.spans:
            message: Any = await asyncio.to_thread(self._message, prompt)
            request = self._client.chat.completions.create(messages=[message], **how)
        else:
            request = self._client.completions.create(prompt=prompt.token_ids, **how)
        chunks: Any = await self._response(request)
        try:
            async for chunk in chunks:
                yield chunk
        except (httpx.TransportError, openai.APIConnectionError) as error:
            report = f"The connection to {self.url} broke while the answer came: {error}"
            raise _BrokenOffError(report) from error
        except openai.APIError as error:
            report = f"{self.url} ended its answer with an error: {_message_of(error)}"
            raise DecoderError(report) from error
        finally:
            await chunks.close()

    async def _response(self, request: Coroutine[Any, Any, T] | Any) -> T:
        """The server's answer. Refusals become PromptError or DecoderError with the server's message."""
        import openai

        try:
            answer: T = await request
        except openai.APIStatusError as error:
            report = f"{self.url} answered {error.status_code}: {_message_of(error)}"
            if error.status_code in (400, 413, 422):
                raise PromptError(report) from error
            raise DecoderError(report) from error
        except openai.APITimeoutError as error:
            raise DecoderError(f"{self.url} did not answer in time.") from error
        except openai.APIConnectionError as error:
            raise DecoderError(
                f"No server answers at {self.url}. Start one: vllm serve "
                f"{self.checkpoint.decoder_model_folder} --enable-prompt-embeds"
            ) from error
        return answer

    def _message(self, prompt: SoftPrompt) -> dict[str, Any]:
        """The chat message whose turn makes up the whole prompt; its only part is embeddings [n, width]."""
        ids = prompt.token_ids
        fitting = [
            (role, len(opening), len(closing))
            for role, (opening, closing) in self._turns.items()
            if ids[: len(opening)] == opening and ids[-len(closing) :] == closing
        ]
        if not fitting:
            raise PromptError(
                "The prompt does not begin and end as the decoder's chat template does; a server cannot "
                "be given it."
            )
        role, start, after = fitting[0]
        end = len(ids) - after
        rows = torch.stack([self._row(token) for token in ids[start:end]])
        rows = rows.to(torch.promote_types(rows.dtype, prompt.latents[0].dtype))
        for span, latents in zip(prompt.spans, prompt.latents, strict=True):
            at = span.start - start
            rows[at : at + span.length] = latents.to("cpu", rows.dtype)
        return {"role": role, "content": [{"type": "prompt_embeds", "data": _encoded(rows)}]}


class _BrokenOffError(DecoderError):
    """The connection broke before the whole answer had come."""


def _turns(checkpoint: Checkpoint) -> dict[str, tuple[list[int], list[int]]]:
    """For each role that may speak first, the token ids before and after its words, up to the answer."""
    turns = {}
    for role in ("user", "system"):
        try:
            around = render_chat(checkpoint, [role])
        except CheckpointError:
            continue  # A template without system turns.
        opening, closing = (
            list(checkpoint.decoder_tokenizer.encode(text, add_special_tokens=False).ids)
            for text in around
        )
        turns[role] = (opening, closing)
    return turns


def embedding_table(checkpoint: Checkpoint) -> Any:
    """The decoder's embedding table [vocabulary, width] on disk; only the rows that are sliced are read.

    Args:
        checkpoint: The checkpoint.

    Returns:
        A safetensors slice: `table[start:end]` is a tensor [end - start, width].

    Raises:
        CheckpointError: When the decoder's weights have no embedding table.
    """
    from safetensors import safe_open

    folder = checkpoint.decoder_model_folder
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118
            if name.endswith("embed_tokens.weight"):
                return file.get_slice(name)
    raise CheckpointError(f"{folder} has no tensor embed_tokens.weight.")


def _encoded(rows: torch.Tensor) -> str:
    """The tensor as vLLM reads it: base64 of torch.save."""
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


def _message_of(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message).strip()
