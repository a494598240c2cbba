"""Decoding with transformers, through `inputs_embeds`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression.batching import batches_by_size
from lclm_rag.decoding.decoder import (
    Completion,
    Decoder,
    Outcome,
    Sampling,
    end_token_ids,
)
from lclm_rag.decoding.detokenizer import Detokenizer, hidden_tokens
from lclm_rag.decoding.lifecycle import Lifecycle, closed_meanwhile
from lclm_rag.decoding.streams import Generation, Put, apieces, in_thread, pieces
from lclm_rag.errors import DecoderError, PromptError
from lclm_rag.forking import watch
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.torch_setup import load_transformers_model, resolve_device, resolve_dtype

__all__ = ["TransformersDecoder", "embed"]

_BATCH_POSITIONS = {"cpu": 8_192, "cuda": 65_536}
"""The most prompt positions, padding included, in one batch, by type of device."""

_LOOK_AGAIN = 0.1
"""Seconds after which a call that waits for its turn looks whether it is still wanted.

It polls because its end may come from the garbage collector, which must not wait for a lock."""


class _PieceStreamer(BaseStreamer):
    """Puts text as soon as the tokens make up whole characters; joined, it is the completion's text.

    The text streamers of transformers would hold each word back until a space follows.
    """

    def __init__(self, detokenizer: Detokenizer, put: Put) -> None:
        self._detokenizer = detokenizer
        self._put = put

    def put(self, value: torch.Tensor) -> None:
        if piece := self._detokenizer(value.flatten().tolist()):
            self._put(piece)

    def end(self) -> None:
        if piece := self._detokenizer.end():
            self._put(piece)


class _Draw(LogitsProcessor):
    """Draws each prompt's next token with a random state of its own: the highest score is the one drawn.

    Scores plus Gumbel noise have their maximum at a token with the probability that softmax gives it. So a
    seed means the same in a batch as alone, and no state of the whole process is touched.
    """

    def __init__(self, prompts: int, seed: int, device: torch.device) -> None:
        self._states = [torch.Generator(device).manual_seed(seed) for _ in range(prompts)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, state in zip(noise, self._states, strict=True):
            row.exponential_(generator=state)
        return scores.float() - noise.log()


class _Watch(StoppingCriteria):
    """Notes when the first token comes, and ends the generation after a token once `ended()` is true."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self.stopped = False
        self._ended = ended

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started
        self.stopped = self._ended()
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)


class TransformersDecoder(Decoder):
    """A checkpoint's decoder on transformers; encoder and adapter are not loaded.

    Usually made by `from_pretrained`.

    Args:
        checkpoint: The checkpoint.
        model: The decoder, loaded as a causal language model of transformers.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.context_length = checkpoint.context_length
        self.latent_dtype = model.dtype
        self._stop_ids = end_token_ids(checkpoint)
        self._hidden = hidden_tokens(checkpoint, self._stop_ids)
        self._lifecycle = Lifecycle()
        self._generating = threading.Lock()
        self._generating_in: int | None = None
        # transformers would fill gaps in our settings from the checkpoint's config; ours alone must decide.
        model.generation_config = GenerationConfig()
        watch(self)

    def after_fork(self) -> None:
        """Renew the locks in a forked child: another thread of the parent may have held them."""
        self._lifecycle.after_fork()
        self._generating = threading.Lock()
        self._generating_in = None

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path | Checkpoint, device: str = "auto", dtype: str = "auto"
    ) -> TransformersDecoder:
        """Load a checkpoint's decoder.

        Args:
            checkpoint: A folder, a hub id or an open checkpoint.
            device: See `Compressor.from_pretrained`.
            dtype: See `Compressor.from_pretrained`.

        Returns:
            The decoder.

        Raises:
            CheckpointError: When the checkpoint cannot be found or is incomplete.
            ValueError: When the device or the dtype is unknown or not available.
        """
        checkpoint = Checkpoint.open(checkpoint)
        on, kind = resolve_device(device), resolve_dtype(dtype, device)
        folder = checkpoint.decoder_model_folder
        return cls(checkpoint, load_transformers_model(AutoModelForCausalLM, folder, on, kind))

    def close(self) -> None:
        """See `Decoder.close`. The model's memory is freed with the last reference to it."""
        self._lifecycle.close(self._wait_for_the_last_token)

    def _wait_for_the_last_token(self) -> None:
        # A signal handler may close the decoder in the thread that generates.
        if self._generating_in != threading.get_ident():
            with self._generating:
                pass

    def complete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        """See `Decoder.complete`. Prompts of similar length are decoded together."""
        return self._outcomes(prompts, sampling, threading.Event())

    async def acomplete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        """See `Decoder.acomplete`; runs in a thread, where cancelling it ends the generation."""
        ended = threading.Event()
        try:
            return await asyncio.to_thread(self._outcomes, prompts, sampling, ended)
        finally:
            ended.set()

    def stream(self, prompt: SoftPrompt, sampling: Sampling) -> Iterator[str]:
        """See `Decoder.stream`. The generation runs in another thread."""
        yield from pieces(partial(self._start, prompt, sampling))

    async def astream(self, prompt: SoftPrompt, sampling: Sampling) -> AsyncGenerator[str]:
        """See `Decoder.astream`. The generation runs in another thread."""
        async with aclosing(apieces(partial(self._start, prompt, sampling))) as came:
            async for piece in came:
                yield piece

    def _start(self, prompt: SoftPrompt, sampling: Sampling, put: Put) -> Generation:
        self._lifecycle.require_open()
        ended = threading.Event()

        def work() -> None:
            self.check(prompt, sampling)
            streamer = _PieceStreamer(self._detokenizer(), put)
            self._generate([prompt], sampling, ended, streamer)

        return in_thread(work, ended.set)

    def _outcomes(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling, ended: threading.Event
    ) -> list[Outcome]:
        self._lifecycle.require_open()
        results: dict[int, Outcome] = {}
        for number, prompt in enumerate(prompts):
            try:
                self.check(prompt, sampling)
            except PromptError as error:
                results[number] = error
        good = [number for number in range(len(prompts)) if number not in results]
        budget = _BATCH_POSITIONS.get(self.model.device.type, 8_192)
        for batch in batches_by_size([prompts[i].positions for i in good], budget):
            numbers = [good[i] for i in batch]
            try:
                done = self._complete_batch([prompts[i] for i in numbers], sampling, ended)
            except DecoderError as error:
                results.update(dict.fromkeys(numbers, error))
            else:
                results.update(zip(numbers, done, strict=True))
        return [results[number] for number in range(len(prompts))]

    def _complete_batch(
        self, prompts: list[SoftPrompt], sampling: Sampling, ended: threading.Event
    ) -> list[Completion]:
        generated, watch = self._generate(prompts, sampling, ended)
        total = time.perf_counter() - watch.started
        return [
            self._completion(ids, watch.first_token or total, total) for ids in generated.tolist()
        ]

    def _completion(self, ids: list[int], first_token: float, total: float) -> Completion:
        ended = next((i for i, token in enumerate(ids) if token in self._stop_ids), None)
        ids = ids if ended is None else ids[: ended + 1]
        return Completion(
            text=self._detokenizer().all(ids),
            token_ids=ids,
            finish_reason="length" if ended is None else "stop",
            first_token=first_token,
            total=total,
        )

    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self.checkpoint.decoder_tokenizer, self._hidden)

    @torch.inference_mode()
    def _generate(
        self,
        prompts: list[SoftPrompt],
        sampling: Sampling,
        ended: threading.Event,
        streamer: _PieceStreamer | None = None,
    ) -> tuple[torch.Tensor, _Watch]:
        """New token ids [prompts, new tokens], padded with the first stop token.

        Raises:
            DecoderError: When the decoder is closed or `ended` is set before the generation is complete, or
                it fails.
        """
        watch = _Watch(lambda: ended.is_set() or not self._lifecycle.is_open)
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,  # `_drawing` chooses.
            eos_token_id=self._stop_ids,
            pad_token_id=self._stop_ids[0],
        )
        with self._turn(ended):
            try:
                embeds, mask = embed(self.model, prompts)
                ids: torch.Tensor = self.model.generate(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=_drawing(sampling, len(prompts), self.model.device),
                    stopping_criteria=StoppingCriteriaList([watch]),
                    streamer=streamer,
                )
            except (RuntimeError, MemoryError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DecoderError(f"transformers failed to decode: {reason}") from error
        if watch.stopped:
            self._require_wanted(ended)
        return ids, watch

    @contextmanager
    def _turn(self, ended: threading.Event) -> Iterator[None]:
        """One generation at a time: several would share the processor and fill the memory."""
        while not self._generating.acquire(timeout=_LOOK_AGAIN):
            self._require_wanted(ended)
        try:
            self._generating_in = threading.get_ident()
            self._require_wanted(ended)
            yield
        finally:
            self._generating_in = None
            self._generating.release()

    def _require_wanted(self, ended: threading.Event) -> None:
        if not self._lifecycle.is_open:
            raise closed_meanwhile()
        if ended.is_set():
            raise DecoderError("The caller did not wait for the answer.")


def embed(model: Any, prompts: Sequence[SoftPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the inputs that a causal language model of transformers takes.

    Args:
        model: The language model; its embedding table decides dtype and device.
        prompts: The prompts; their latents must be in decoder space.

    Returns:
        The embeddings [prompts, longest, width], and the attention mask [prompts, longest], int64, with 1 for
        positions in use; both padded on the left to the longest prompt.
    """
    table = model.get_input_embeddings()
    longest = max(prompt.positions for prompt in prompts)
    embeds = table.weight.new_zeros(len(prompts), longest, table.weight.shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        first = longest - prompt.positions
        ids = torch.tensor(prompt.token_ids, device=embeds.device)
        embeds[row, first:] = table(ids)
        mask[row, first:] = 1
        for span, latents in zip(prompt.spans, prompt.latents, strict=True):
            at = first + span.start
            embeds[row, at : at + span.length] = latents.to(embeds.device, embeds.dtype)
    return embeds, mask


def _drawing(sampling: Sampling, prompts: int, device: torch.device) -> LogitsProcessorList:
    """What to do with the scores of tokens, of which the highest is then taken."""
    if not sampling.temperature:
        return LogitsProcessorList()
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    # Without a seed, torch's own state decides, so that torch.manual_seed still repeats a run.
    seed = int(torch.randint(2**62, ())) if sampling.seed is None else sampling.seed
    return LogitsProcessorList([*steps, _Draw(prompts, seed, device)])
