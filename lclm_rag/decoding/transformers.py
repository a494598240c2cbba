"""Decoding with transformers, through `inputs_embeds`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression.batching import batches_by_size
from lclm_rag.decoding.decoder import (
    Completion,
    Decoder,
    Sampling,
    end_token_ids,
)
from lclm_rag.errors import PromptError
from lclm_rag.forking import watch
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.torch_setup import load_transformers_model, resolve_device, resolve_dtype

__all__ = ["TransformersDecoder", "embed"]

_BATCH_POSITIONS = {"cpu": 8_192, "cuda": 65_536}
"""The most prompt positions, padding included, in one batch, by type of device."""


class _TokenStreamer(BaseStreamer):
    """Queues the token ids of one answer, and None at its end.

    The text streamers of transformers would hold each word back until a space follows.
    """

    def __init__(self) -> None:
        self.tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        for token in value.flatten().tolist():
            self.tokens.put(token)

    def end(self) -> None:
        self.tokens.put(None)


class _Watch(StoppingCriteria):
    """Notes when the first token comes, and ends the generation once `cancelled` is set."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self.cancelled = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


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
        self._tokenizer = checkpoint.chat_tokenizer
        self._stop_ids = end_token_ids(checkpoint)
        self._generating = threading.Lock()
        # transformers would fill gaps in our settings from the checkpoint's config; ours alone must decide.
        model.generation_config = GenerationConfig()
        watch(self)

    def after_fork(self) -> None:
        """Renew the lock in a forked child: another thread of the parent may have held it."""
        self._generating = threading.Lock()

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

    def complete(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        """See `Decoder.complete`. Prompts of similar length are decoded together."""
        results: dict[int, Completion | PromptError] = {}
        for number, prompt in enumerate(prompts):
            try:
                self.check(prompt, sampling)
            except PromptError as error:
                results[number] = error
        good = [number for number in range(len(prompts)) if number not in results]
        budget = _BATCH_POSITIONS.get(self.model.device.type, 8_192)
        for batch in batches_by_size([prompts[i].positions for i in good], budget):
            numbers = [good[i] for i in batch]
            done = self._complete_batch([prompts[i] for i in numbers], sampling)
            results.update(zip(numbers, done, strict=True))
        return [results[number] for number in range(len(prompts))]

    def stream(self, prompt: SoftPrompt, sampling: Sampling) -> Iterator[str]:
        """See `Decoder.stream`. The generation runs in another thread."""
        self.check(prompt, sampling)
        streamer = _TokenStreamer()
        watch, failure = _Watch(), []

        def run() -> None:
            try:
                self._generate([prompt], sampling, watch, streamer=streamer)
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield from self._pieces(iter(streamer.tokens.get, None))
        finally:
            watch.cancelled = True
            thread.join()
        if failure:
            raise failure[0]

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """Text as soon as the tokens make up whole characters; joined, it is the completion's text."""
        decoding, ids, text = DecodeStream(skip_special_tokens=True), [], ""
        for token in tokens:
            ids.append(token)
            piece = decoding.step(self.checkpoint.decoder_tokenizer, token)
            if piece:
                text += piece
                yield piece
        # An incomplete character at the end appears as it does in a completion's text.
        rest = str(self._tokenizer.decode(ids, skip_special_tokens=True)).removeprefix(text)
        if rest:
            yield rest

    def _complete_batch(self, prompts: list[SoftPrompt], sampling: Sampling) -> list[Completion]:
        watch = _Watch()
        generated = self._generate(prompts, sampling, watch).tolist()
        total = time.perf_counter() - watch.started
        return [self._completion(ids, watch.first_token or total, total) for ids in generated]

    def _completion(self, ids: list[int], first_token: float, total: float) -> Completion:
        ended = next((i for i, token in enumerate(ids) if token in self._stop_ids), None)
        ids = ids if ended is None else ids[: ended + 1]
        return Completion(
            text=str(self._tokenizer.decode(ids, skip_special_tokens=True)),
            token_ids=ids,
            finish_reason="length" if ended is None else "stop",
            first_token=first_token,
            total=total,
        )

    @torch.inference_mode()
    def _generate(
        self, prompts: list[SoftPrompt], sampling: Sampling, watch: _Watch, **extra: Any
    ) -> torch.Tensor:
        """New token ids [prompts, new tokens], padded with the first stop token."""
        embeds, mask = embed(self.model, prompts)
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_p=sampling.top_p if sampling.temperature else None,
            top_k=0 if sampling.temperature else None,
            eos_token_id=self._stop_ids,
            pad_token_id=self._stop_ids[0],
        )
        # One generation at a time: the random state is shared by the whole process.
        with self._generating, _seeded(sampling.seed):
            ids: torch.Tensor = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([watch]),
                **extra,
            )
        return ids


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


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
