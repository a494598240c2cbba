"""Decoding with transformers, through `inputs_embeds`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
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
from lclm_rag.decoding.background import BackgroundDecoder
from lclm_rag.decoding.decoder import (
    Completion,
    Finished,
    Outcome,
    Sampling,
    end_token_ids,
)
from lclm_rag.decoding.detokenizer import Detokenizer
from lclm_rag.decoding.lifecycle import Lifecycle, closed_meanwhile
from lclm_rag.decoding.streams import Generation, Put, in_thread
from lclm_rag.errors import DecoderError
from lclm_rag.forking import watch
from lclm_rag.printable import first_line
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.torch_setup import (
    is_out_of_memory,
    load_transformers_model,
    resolve_device,
    resolve_dtype,
)

__all__ = ["TransformersDecoder", "embed"]

_log = logging.getLogger(__name__)

_BATCH_POSITIONS = {"cpu": 8_192, "cuda": 65_536}
"""The most prompt positions, padding included, in one batch, by type of device."""

_BATCH_PROMPTS = {"cpu": 16, "cuda": 256}
"""The most prompts in one batch, by type of device."""


@dataclass(eq=False)
class _Request:
    """A prompt that waits or is being completed.

    Attributes:
        prompt: The prompt.
        sampling: How its tokens are chosen.
        future: Takes its completion. Whoever does not want it any more cancels it.
        detokenizer: Makes its text.
        put: Takes the pieces of a stream.
        finished: Takes the completion of a stream.
        ids: The tokens until now.
        first_token: Seconds that the first one took.
    """

    prompt: SoftPrompt
    sampling: Sampling
    detokenizer: Detokenizer
    put: Put | None = None
    finished: Finished | None = None
    future: Future[Any] = field(default_factory=Future)
    ids: list[int] = field(default_factory=list)
    first_token: float = 0.0

    def end(self, error: Exception) -> None:
        """Say why there is no completion."""
        with suppress(InvalidStateError):  # Cancelled.
            self.future.set_exception(error)


class _Rows(BaseStreamer, StoppingCriteria):
    """Gives each prompt of a batch its tokens, and ends it by itself.

    transformers calls `put` with the next token of all prompts, and then asks which of them end.
    """

    def __init__(self, requests: Sequence[_Request], ends: Iterable[int], open: Lifecycle) -> None:
        self._requests = requests
        self._ends = frozenset(ends)
        self._lifecycle = open
        self._started = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        if not value.numel():
            return  # The prompt, which is embeddings.
        for request, token in zip(self._requests, value.flatten().tolist(), strict=True):
            if not request.future.done():
                try:
                    self._take(request, token)
                except (
                    Exception
                ) as error:  # That of a reader whose event loop has ended, for example.
                    request.end(error)

    def _take(self, request: _Request, token: int) -> None:
        if not request.ids:
            request.first_token = time.perf_counter() - self._started
        request.ids.append(token)
        piece = request.detokenizer([token])
        last = token in self._ends or len(request.ids) >= request.sampling.max_tokens
        if last:
            piece += request.detokenizer.end()
        if request.put and piece:
            request.put(piece)
        if not last:
            return
        completion = Completion(
            text=request.detokenizer.text,
            token_ids=request.ids,
            finish_reason="stop" if token in self._ends else "length",
            first_token=request.first_token,
            total=time.perf_counter() - self._started,
        )
        if request.finished:
            request.finished(completion)
        with suppress(InvalidStateError):
            request.future.set_result(completion)

    def end(self) -> None:
        """Each prompt has ended by itself."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self._lifecycle.is_open:
            for request in self._requests:
                request.end(closed_meanwhile())
        done = [request.future.done() for request in self._requests]
        return torch.tensor(done, device=input_ids.device)


class _Draw(LogitsProcessor):
    """Draws each prompt's next token with a random state of its own: the highest score is the one drawn.

    Scores plus Gumbel noise have their maximum at a token with the probability that softmax gives it. So a
    seed means the same in a batch as alone, and no state of the whole process is touched.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._states = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, state in zip(noise, self._states, strict=True):
            row.exponential_(generator=state)
        return scores.float() - noise.log()


class TransformersDecoder(BackgroundDecoder):
    """A checkpoint's decoder on transformers; encoder and adapter are not loaded.

    Usually made by `from_pretrained`. Prompts wait in a queue that takes one of each caller in turn;
    those that wait together and are sampled alike are decoded together. When memory runs out, the batch is
    tried again in two halves, and later ones are no larger than these, with a warning.

    Args:
        checkpoint: The checkpoint.
        model: The decoder, loaded as a causal language model of transformers.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.context_length = checkpoint.context_length
        self.latent_dtype = model.dtype
        self._ends = end_token_ids(checkpoint)
        self._lifecycle = Lifecycle()
        # Prompt positions, once more of them did not fit into memory.
        self._fitting: int | None = None
        self._forget()
        # transformers would fill gaps in our settings from the checkpoint's config; ours alone must decide.
        model.generation_config = GenerationConfig()
        watch(self)

    def after_fork(self) -> None:
        """Begin anew in a forked child: what waits and what works is the parent's."""
        self._lifecycle.after_fork()
        self._forget()

    def _forget(self) -> None:
        # Reentrant, because a signal handler may close the decoder of the thread that it interrupts.
        self._lock = threading.RLock()
        self._waiting: deque[deque[_Request]] = deque()
        self._working: Generation | None = None
        self._queuing_in: int | None = None

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
        if self._queuing_in == threading.get_ident():
            return  # A signal handler closes it in a thread whose lock the last token may need.
        working = self._working
        if working and working.thread and working.thread is not threading.current_thread():
            working.thread.join()

    def _submit(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> Iterator[Future[Outcome]]:
        requests = [_Request(prompt, sampling, self._detokenizer()) for prompt in prompts]
        self._queue(requests)
        return iter([request.future for request in requests])

    def _start(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished, put: Put
    ) -> Generation:
        request = _Request(prompt, sampling, self._detokenizer(), put, finished)
        self._queue([request])
        return Generation(request.future, request.future.cancel)

    def _queue(self, requests: Sequence[_Request]) -> None:
        """Let the requests of one caller wait, and have them worked on."""
        # Prompts of similar length are padded least.
        ordered = sorted(requests, key=lambda request: -request.prompt.positions)
        with self._lock, self._lifecycle.kept_open():
            self._queuing_in = threading.get_ident()
            try:
                self._waiting.append(deque(ordered))
                if self._working is None:
                    self._working = in_thread(self._work, self._lifecycle.begin_to_close)
            finally:
                self._queuing_in = None

    def _work(self) -> None:
        """Complete what waits; ends when nothing does."""
        while True:
            with self._lock:
                if not (requests := self._next()):
                    self._working = None
                    return
            good = [request for request in requests if self._is_good(request)]
            if good:
                self._generate(good)

    def _next(self) -> list[_Request]:
        """The requests of the next batch, taken from the callers by turns."""
        budget = _BATCH_POSITIONS.get(self.model.device.type, 8_192)
        if self._fitting is not None:
            budget = min(budget, self._fitting)
        most = _BATCH_PROMPTS.get(self.model.device.type, 16)
        batch: list[_Request] = []

        def fits(request: _Request) -> bool:
            longest = max(r.prompt.positions for r in (*batch, request))
            return longest * (len(batch) + 1) <= budget and _alike(batch[0], request)

        taken = True
        while taken:
            taken = False
            for _ in range(len(self._waiting)):
                caller = self._waiting.popleft()
                while caller and caller[0].future.done():
                    caller.popleft()
                if caller and len(batch) < most and (not batch or fits(caller[0])):
                    batch.append(caller.popleft())
                    taken = True
                if caller:
                    self._waiting.append(caller)
        return batch

    def _is_good(self, request: _Request) -> bool:
        """Whether to decode a request; it is told if not."""
        try:
            self._lifecycle.require_open()
            self.check(request.prompt, request.sampling)
        except Exception as error:  # Whatever it is, the request must hear of it.
            request.end(error if self._lifecycle.is_open else closed_meanwhile())
        return not request.future.done()

    def _generate(self, requests: list[_Request]) -> None:
        """Complete some requests that are sampled alike."""
        error = self._tried(requests)
        if error is None:
            return
        if len(requests) > 1 and is_out_of_memory(error):
            self._halved(requests, error)
        else:
            self._failed(requests, error)

    @torch.inference_mode()
    def _tried(self, requests: list[_Request]) -> Exception | None:
        """Complete requests; the error if that fails."""
        rows = _Rows(requests, self._ends, self._lifecycle)
        config = GenerationConfig(
            max_new_tokens=max(request.sampling.max_tokens for request in requests),
            do_sample=False,  # `_drawing` chooses.
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
        )
        try:
            embeds, mask = embed(self.model, [request.prompt for request in requests])
            self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=config,
                logits_processor=_drawing([r.sampling for r in requests], self.model.device),
                stopping_criteria=StoppingCriteriaList([rows]),
                streamer=rows,
            )
        except Exception as error:  # Whatever it is, or the requests would wait for ever.
            if is_out_of_memory(error):
                # Its frames would keep the tensors that filled the memory.
                error.__context__ = error.__cause__ = None
                return error.with_traceback(None)
            return error
        return None

    def _halved(self, requests: list[_Request], error: Exception) -> None:
        """Decode the two halves of a batch, one after the other, for which there was too little memory."""
        longest = max(request.prompt.positions for request in requests)
        self._fitting = max(1, len(requests) * longest // 2)
        _log.warning(
            "Out of memory on %s with %s prompts of up to %s positions: going on with fewer at once.",
            self.model.device,
            len(requests),
            f"{longest:,}",
        )
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        left = []
        for request in requests:
            if request.future.done():
                continue
            if request.ids and request.put:
                request.end(_failure(error))  # What its reader has got cannot be taken back.
                continue
            request.ids.clear()
            request.detokenizer = self._detokenizer()
            left.append(request)
        half = (len(left) + 1) // 2
        for part in (left[:half], left[half:]):
            if part:
                self._generate(part)

    def _failed(self, requests: list[_Request], error: Exception) -> None:
        """Decode each request alone after a batch failed, so that one does not spoil the others."""
        for request in requests:
            if len(requests) == 1 or request.ids:
                request.end(_failure(error))
            elif not request.future.done():
                self._generate([request])


def _failure(error: Exception) -> DecoderError:
    reason = first_line(error)
    advice = ""
    if is_out_of_memory(error):
        advice = " Ask with fewer passages, or free memory."
    failure = DecoderError(f"transformers failed to decode: {reason}{advice}")
    failure.__cause__ = error
    return failure


def _alike(one: _Request, other: _Request) -> bool:
    """Whether two requests can be decoded together."""
    a, b = one.sampling, other.sampling
    return (a.temperature, a.top_p) == (b.temperature, b.top_p)


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


def _drawing(samplings: Sequence[Sampling], device: torch.device) -> LogitsProcessorList:
    """What to do with the scores of tokens, of which the highest is then taken."""
    temperature, top_p = samplings[0].temperature, samplings[0].top_p
    if not temperature:
        return LogitsProcessorList()
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    # Without a seed, torch's own state decides, so that torch.manual_seed still repeats a run.
    seeds = [int(torch.randint(2**62, ())) if s.seed is None else s.seed for s in samplings]
    return LogitsProcessorList([*steps, _Draw(seeds, device)])
