"""`VLLMDecoder`: decoding with a vLLM engine that is started from this process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression.adapter import Adapter, load_adapter
from lclm_rag.decoding.decoder import (
    Completion,
    Finished,
    Sampling,
    end_token_ids,
    vllm_sampling,
)
from lclm_rag.decoding.event_loop import EventLoopDecoder
from lclm_rag.decoding.vllm.engine import Engine, item_latents, latent_architecture, start_engine
from lclm_rag.decoding.vllm.inputs import item_prompt, mixed_prompt, token_prompt
from lclm_rag.errors import DecoderError, PromptError
from lclm_rag.prompting.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["Inputs", "VLLMDecoder"]

log = logging.getLogger(__name__)

Inputs = Literal["items", "mixed"]
"""How latents reach the engine: "items" of the `latent` modality, or "mixed" into `prompt_embeds`."""

_TRIES = 3
"""How often a request is sent. It is repeated if the engine has dropped an item; more misses are a fault."""

_request_numbers = itertools.count()


class VLLMDecoder(EventLoopDecoder):
    """vLLM's asynchronous engine (`AsyncLLM`) with a checkpoint's decoder. Usually made by `from_pretrained`.

    One engine serves `complete` and `stream` from any thread, and `acomplete` and `astream` from any event
    loop; it batches all requests that arrive at the same time. The engine runs in a separate process, so a
    script that makes a decoder needs `if __name__ == "__main__":`, as with vLLM itself.

    Args:
        checkpoint: The checkpoint.
        engine: The engine, which decoders may share.
        inputs: How latents reach the engine, "items" or "mixed".
    """

    def __init__(self, checkpoint: Checkpoint, engine: Engine, inputs: Inputs) -> None:
        super().__init__(engine.thread)
        self.checkpoint = checkpoint
        self.inputs = inputs
        self.takes_encoder_space = inputs == "items"
        self.context_length = int(engine.running.model_config.max_model_len)
        self.latent_dtype = engine.running.model_config.dtype
        self._engine = engine
        self._ends = end_token_ids(checkpoint)

    @property
    def engine(self) -> AsyncLLM:
        """The engine of vLLM, in the event loop of `thread`; another one after it has died."""
        return self._engine.running

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        *,
        inputs: Inputs | None = None,
        **options: Any,
    ) -> VLLMDecoder:
        """Start an engine, which takes a minute or so.

        Args:
            checkpoint: A folder, a hub id or an open checkpoint.
            device: "auto", or "cpu" or "cuda" if that is what vLLM is built for. CUDA_VISIBLE_DEVICES says
                which GPUs it uses.
            dtype: See `Compressor.from_pretrained`.
            inputs: How latents reach the engine, "items" or "mixed". By default "items" if the decoder's
                architecture has a latent class (plugin.py), else "mixed".
            **options: vLLM's engine arguments, as for `start_engine`.

        Returns:
            The decoder.

        Raises:
            CheckpointError: When the checkpoint cannot be found or is incomplete.
            ValueError: When an option is unknown, `inputs` is "items" but the architecture has no latent
                class, or the device or the dtype is unknown or not available.
            ImportError: When vLLM is not installed, or cannot be imported.
            DecoderError: When the engine does not start.
        """
        checkpoint = Checkpoint.open(checkpoint)
        architecture = latent_architecture(checkpoint)
        if inputs == "items" and architecture is None:
            named = (checkpoint.decoder_config.get("architectures") or ["unnamed"])[0]
            raise ValueError(
                f"There is no latent modality for the architecture {named}; use mixed."
            )
        chosen: Inputs = inputs or ("mixed" if architecture is None else "items")
        log.info("vLLM's engine starts; this takes a minute or so.")
        items = architecture is not None
        start = partial(start_engine, checkpoint, device, dtype, latent_items=items, **options)
        decoder = cls(checkpoint, Engine(start), chosen)
        if chosen == "items":
            log.info("vLLM takes passages as latent items (%s).", architecture)
        else:
            log.info("vLLM takes passages as prompt embeddings.")
        return decoder

    def with_inputs(self, inputs: Inputs) -> VLLMDecoder:
        """A decoder on the same engine that gives it latents as `inputs` says: "items" or "mixed"."""
        return VLLMDecoder(self.checkpoint, self._engine, inputs)

    def close(self) -> None:
        """Stop the engine, also for all other decoders that share it. See `Decoder.close`."""
        self._engine.close()

    async def _complete(self, prompt: SoftPrompt, sampling: Sampling) -> Completion:
        called = time.time()  # The clock that the engine's own metrics use.
        async with aclosing(self._outputs(prompt, sampling, streaming=False)) as outputs:
            async for last in outputs:
                output = last
        return self._completion(list(output.outputs[0].token_ids), output, called)

    def _completion(self, ids: list[int], output: RequestOutput, called: float) -> Completion:
        """The completion with these tokens, from the last output of its request."""
        total = time.time() - called
        written, metrics = output.outputs[0], output.metrics
        arrived = metrics and metrics.arrival_time + metrics.first_token_latency
        return Completion(
            text=self._detokenizer().all(ids),
            token_ids=ids,
            finish_reason="stop" if written.finish_reason == "stop" else "length",
            first_token=arrived - called if arrived else total,
            total=total,
            cached_positions=output.num_cached_tokens,
        )

    async def _stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished
    ) -> AsyncGenerator[str]:
        called, ids = time.time(), list[int]()
        detokenizer = self._detokenizer()
        async with aclosing(self._outputs(prompt, sampling, streaming=True)) as outputs:
            async for output in outputs:
                ids += output.outputs[0].token_ids
                if piece := detokenizer(output.outputs[0].token_ids):
                    yield piece
        if piece := detokenizer.end():
            yield piece
        finished(self._completion(ids, output, called))

    async def _outputs(
        self, prompt: SoftPrompt, sampling: Sampling, *, streaming: bool
    ) -> AsyncGenerator[RequestOutput]:
        """The engine's outputs for one request, which is repeated if the engine lacks items.

        vLLM sends only the identifier of an item that it believes the engine holds. If the engine has dropped
        the item, the request ends in "error" before anything is generated, and vLLM drops that belief. The
        next try then sends the item itself.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            parameters = self._parameters(sampling, streaming)
            engine_prompt = await asyncio.to_thread(self._prompt, prompt)
            for _ in range(_TRIES):
                engine = await self._engine.alive()
                (rendered,) = await engine.renderer.render_cmpl_async([engine_prompt])
                name = f"lclm-{next(_request_numbers)}"
                generated = engine.generate(rendered, parameters, name)
                async with aclosing(generated) as outputs:
                    async for output in outputs:
                        reason = output.outputs[0].finish_reason
                        if reason == "error":
                            break
                        if reason == "abort":
                            raise DecoderError("vLLM's engine gave up the request; see its log.")
                        yield output
                    else:
                        return
        except EngineDeadError as error:
            raise DecoderError(
                "vLLM's engine died; see its log. The next question starts it again."
            ) from error
        except EngineGenerateError as error:
            raise DecoderError("vLLM's engine failed the request; see its log.") from error
        except (PromptError, DecoderError):
            raise
        except (VLLMClientError, ValueError) as error:  # A temperature above 2, for example.
            raise PromptError(f"vLLM refuses the prompt: {error}") from error
        raise DecoderError(f"vLLM's engine failed a request {_TRIES} times; see its log.")

    def _prompt(self, prompt: SoftPrompt) -> dict[str, Any]:
        if not prompt.spans:
            return token_prompt(prompt)
        if self.inputs == "mixed":
            return mixed_prompt(
                prompt, self.checkpoint.decoder_width, self.engine.model_config.dtype
            )
        return item_prompt(
            self._with_whole_passages(prompt),
            placeholder=self.checkpoint.placeholder_id,
            most_latents=item_latents(self.checkpoint),
            fingerprint=self.checkpoint.fingerprint("decoder"),
        )

    def _with_whole_passages(self, prompt: SoftPrompt) -> SoftPrompt:
        """The prompt itself, unless a passage longer than an item has to pass the adapter as a whole.

        An adapter with attention layers must see all of a passage. What does not fit into one item is
        projected here, instead of in the engine.
        """
        if prompt.space == "decoder" or self.checkpoint.config.adapter_type == "mlp":
            return prompt
        if max(span.length for span in prompt.spans) <= item_latents(self.checkpoint):
            return prompt
        counts = [span.length for span in prompt.spans]
        projected = self._adapter.project(torch.cat(prompt.latents), counts)
        return replace(prompt, latents=projected.split(counts), space="decoder")

    @cached_property
    def _adapter(self) -> Adapter:
        dtype = str(self.engine.model_config.dtype).removeprefix("torch.")
        return load_adapter(self.checkpoint, "cpu", dtype)

    def _parameters(self, sampling: Sampling, streaming: bool) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            **vllm_sampling(sampling, self._ends),
            detokenize=False,  # Text is made here, from the tokens.
            output_kind=RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY,
        )
