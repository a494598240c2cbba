"""`ServerDecoder`: decoding on a vLLM server, over its OpenAI-compatible HTTP interface."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.decoder import (
    Completion,
    Finished,
    Sampling,
    end_token_ids,
    vllm_sampling,
)
from lclm_rag.decoding.event_loop import EventLoopDecoder, EventLoopThread
from lclm_rag.errors import CheckpointError, DecoderError, PromptError
from lclm_rag.offline import require_online
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.template import render_chat

__all__ = ["ServerDecoder", "embedding_table"]

T = TypeVar("T")

_NOT_TAKEN = (429, 502, 503)
"""Statuses that say that a request was not begun. Others, such as 504, come while it runs: sent again, it
would wait behind itself."""


class ServerDecoder(EventLoopDecoder):
    """Decodes on a server, started with `vllm serve CHECKPOINT/decoder --enable-prompt-embeds`.

    The constructor connects to the server and asks which models it serves.

    A prompt with latents is sent as one chat message with a single `prompt_embeds` part, in the dtype of the
    decoder's weights. The server's chat
    template adds the tokens around the message; everything inside it is sent as embeddings. That includes
    text, as rows of the decoder's embedding table, because vLLM would join text parts with line breaks, and
    would read `<|im_end|>` in a document as the end of the turn. Neither happens to embeddings. A prompt
    without latents goes to the completions interface as token ids.

    Args:
        url: The server's URL, up to and including `/v1`.
        checkpoint: The checkpoint whose decoder the server runs.
        model: The name of the served model; needed if the server serves several.
        api_key: The key given to `vllm serve --api-key`, if any.
        timeout: Seconds that a question may take from when it is sent, repeats included.
        retries: How often a request is repeated, with growing pauses, after connection errors and the
            statuses 429, 502 and 503. Nothing is repeated because the server is slow. An answer that breaks
            off is requested again as often, but not once a part of it was streamed.
        concurrency: The most requests in flight at the same time.

    Raises:
        DecoderError: When no server answers, or it does not serve the model.
        OfflineError: When nobody may be contacted.
        ImportError: When the client is not installed: pip install 'lclm-rag[client]'.
    """

    def __init__(
        self,
        url: str,
        checkpoint: Checkpoint,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        concurrency: int = 32,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "Decoding on a server needs a client: pip install 'lclm-rag[client]'."
            ) from error
        require_online(f"the decoder's server {url}")
        super().__init__(EventLoopThread("vllm-server"))
        self.url = url.rstrip("/")
        self.checkpoint = checkpoint
        self._retries = retries
        self._timeout = timeout
        self._ends = end_token_ids(checkpoint)
        self._turns = _turns(checkpoint)
        table = embedding_table(checkpoint)
        self._row = lru_cache(maxsize=65_536)(lambda token: table[token : token + 1][0])
        self.latent_dtype = self._row(0).dtype
        self._free = asyncio.Semaphore(concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self.url, api_key=api_key or "none", timeout=timeout, max_retries=0
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
        try:
            page: Any = await self._repeated(lambda: self._response(self._client.models.list()))
            served = {str(entry.id): entry for entry in page.data}
        except (AttributeError, TypeError, ValueError) as error:  # As the client reads it.
            raise DecoderError(
                f"What answers at {self.url}/models is no list of models; is this the URL of a vLLM server?"
            ) from error
        if model is None and len(served) == 1:
            model = next(iter(served))
        if model is None or model not in served:
            raise DecoderError(
                f"{self.url} serves {', '.join(served)}; name the one that decodes with the option model."
            )
        length = getattr(served[model], "max_model_len", None)
        if not isinstance(length, int) or length < 1:
            length = self.checkpoint.context_length
        return model, length

    async def _repeated(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which is done again where that does no harm."""
        for pause in self._pauses():
            try:
                return await work()
            except _UnreachableError as error:
                if pause is None:
                    raise
                await asyncio.sleep(max(pause, error.after))
        raise AssertionError  # The last pause is None.

    async def _complete(self, prompt: SoftPrompt, sampling: Sampling) -> Completion:
        async with self._turn():
            return await self._repeated(lambda: self._complete_once(prompt, sampling))

    async def _complete_once(self, prompt: SoftPrompt, sampling: Sampling) -> Completion:
        ids: list[int] = []
        end = _End()
        async with aclosing(self._tokens(prompt, sampling, end)) as tokens:
            async for new in tokens:
                ids += new
        return self._completion(ids, end)

    async def _stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished
    ) -> AsyncGenerator[str]:
        async with self._turn():
            for pause in self._pauses():
                detokenizer, ids, end = self._detokenizer(), list[int](), _End()
                try:
                    async with aclosing(self._tokens(prompt, sampling, end)) as tokens:
                        async for new in tokens:
                            ids += new
                            if piece := detokenizer(new):
                                yield piece
                except _UnreachableError as error:
                    if ids or pause is None:
                        raise
                    await asyncio.sleep(max(pause, error.after))
                else:
                    if piece := detokenizer.end():
                        yield piece
                    finished(self._completion(ids, end))
                    return

    def _completion(self, ids: list[int], end: _End) -> Completion:
        total = time.perf_counter() - end.started
        return Completion(
            text=self._detokenizer().all(ids),
            token_ids=ids,
            finish_reason="stop" if end.reason == "stop" else "length",
            first_token=total if end.first_token is None else end.first_token,
            total=total,
            cached_positions=end.cached_positions,
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """One of the requests in flight, and the time that it has, repeats included."""
        async with self._free:
            try:
                async with asyncio.timeout(self._timeout):
                    yield
            except TimeoutError as error:
                raise DecoderError(
                    f"{self.url} did not answer in time ({self._timeout:g} s); raise the option timeout, "
                    "or give the server less to do."
                ) from error

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each failed try, growing and not the same for all; None after the last."""
        for number in range(self._retries):
            yield 0.5 * 2**number * random.uniform(0.5, 1.5)
        yield None

    async def _tokens(
        self, prompt: SoftPrompt, sampling: Sampling, end: _End
    ) -> AsyncGenerator[list[int]]:
        """The token ids of an answer as they come; sets `end`.

        Raises:
            DecoderError: When what comes is not a whole answer of the checkpoint's decoder to this prompt.
        """
        count = 0
        async with aclosing(self._chunks(prompt, sampling)) as chunks:
            async for chunk in chunks:
                new = self._read(chunk, prompt, end)
                count += len(new)
                if count > sampling.max_tokens:
                    raise DecoderError(
                        f"{self.url} does not stop: more than {sampling.max_tokens} tokens came."
                    )
                if new:
                    if end.first_token is None:
                        end.first_token = time.perf_counter() - end.started
                    yield new
        if not (end.counted and end.reason and count):
            raise DecoderError(f"{self.url} ended its answer early.")

    def _read(self, chunk: Any, prompt: SoftPrompt, end: _End) -> list[int]:
        """The new token ids in a chunk, whose other contents go into `end`."""
        try:
            if chunk.usage is not None:
                seen, details = int(chunk.usage.prompt_tokens), chunk.usage.prompt_tokens_details
                end.cached_positions = None if details is None else int(details.cached_tokens or 0)
                end.counted = True
            ids: list[int] = []
            for choice in chunk.choices or ():
                ids += [int(id) for id in (choice.model_extra or {}).get("token_ids") or ()]
                end.reason = choice.finish_reason or end.reason
        except (AttributeError, TypeError, ValueError) as error:
            raise DecoderError(
                f"{self.url} sent what is no part of an answer: {chunk!r:.200}"
            ) from error
        if chunk.usage is not None and seen != prompt.positions:
            raise DecoderError(
                f"{self.url} saw {seen} positions in a prompt of {prompt.positions}: it serves another "
                "model, or another chat template, than the checkpoint's decoder."
            )
        if ids and not 0 <= min(ids) <= max(ids) < self.checkpoint.vocabulary:
            raise DecoderError(
                f"{self.url} sent tokens that the checkpoint's decoder does not have."
            )
        return ids

    async def _chunks(self, prompt: SoftPrompt, sampling: Sampling) -> AsyncGenerator[Any]:
        """The chunks that the server sends. Raises _UnreachableError if the connection breaks."""
        import httpx
        import openai

        how: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            # Usage with each chunk: another model is found out before anything of its answer is shown.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
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
            raise _UnreachableError(report) from error
        except openai.APIError as error:
            report = f"{self.url} ended its answer with an error: {_message_of(error)}"
            raise DecoderError(report) from error
        except (AttributeError, TypeError, ValueError) as error:  # As the client reads it.
            report = f"{self.url} sent what is no part of an answer: {error}"
            raise DecoderError(report) from error
        finally:
            # In a task of its own: cancelled half-way, the connection would stay open.
            await asyncio.shield(chunks.close())

    async def _response(self, request: Coroutine[Any, Any, T] | Any) -> T:
        """The server's answer. Refusals become PromptError or DecoderError with the server's message."""
        import openai

        try:
            answer: T = await request
        except openai.APIStatusError as error:
            report = f"{self.url} answered {error.status_code}: {_message_of(error)}"
            if error.status_code in (400, 413, 422):
                raise PromptError(report) from error
            if error.status_code in _NOT_TAKEN:
                raise _UnreachableError(report, _seconds(error.response)) from error
            raise DecoderError(report) from error
        except openai.APITimeoutError as error:
            raise DecoderError(f"{self.url} did not answer in time.") from error
        except openai.APIConnectionError as error:
            raise _UnreachableError(
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
        for span, latents in zip(prompt.spans, prompt.latents, strict=True):
            at = span.start - start
            rows[at : at + span.length] = latents.to("cpu", rows.dtype)
        return {"role": role, "content": [{"type": "prompt_embeds", "data": _encoded(rows)}]}


@dataclass
class _End:
    """What a server says besides the tokens of an answer, and when."""

    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    reason: str | None = None
    counted: bool = False
    cached_positions: int | None = None


class _UnreachableError(DecoderError):
    """The connection broke, or the server did not take the request: asking again does no harm.

    Args:
        report: What happened.
        after: Seconds after which the server wants to be asked again.
    """

    def __init__(self, report: str, after: float = 0.0) -> None:
        super().__init__(report)
        self.after = after


def _seconds(response: Any) -> float:
    """The seconds that a response asks to wait; 0 if it names none, or a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


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
