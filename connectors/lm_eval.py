r"""lm-evaluation-harness: its tasks, with the context of each request compressed into latents.

```
python -m lclm_rag.connectors.lm_eval --model lclm-rag --model_args checkpoint=bundled,context=latents \
    --device auto --batch_size auto --include_path my_tasks/ --tasks my_task
```

`--model_args` takes the arguments of `CompressedContextLM`. The harness's own defaults are `--device cuda:0`
and one request at a time. Run the same with context=text to see what latents lose against pasted text, and
with context=none to see what the decoder answers without any context. `--use_cache` does not tell these runs
apart, so give each its own file.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
    from lm_eval.api.utils import maybe_delimit
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ImportError(
        "lclm_rag.connectors.lm_eval needs lm-evaluation-harness: pip install 'lclm-rag[lm-eval]'."
    ) from error

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from lclm_rag.checkpoint import BUNDLED, MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.compression.batching import batches_by_size
from lclm_rag.decoding import Decoder, Sampling, load_decoder
from lclm_rag.decoding.decoder import check_prompt
from lclm_rag.errors import DecoderError, LclmRagError, PromptError
from lclm_rag.prompting import Context, PromptTemplate, SoftPrompt, Span
from lclm_rag.prompting.markup import MarkupPrompt
from lclm_rag.prompting.template import plain_ids

__all__ = ["QUESTION_STARTS", "CompressedContextLM", "Cost", "cut_context", "log_probabilities"]

QUESTION_STARTS = r"\n\n(?=[^\n])"
"""By default the context ends at the last blank line of a request that is followed by text."""

_MEMORY = re.compile(re.escape(MEMORY_START) + "(.*?)" + re.escape(MEMORY_END), re.DOTALL)
_AT_ONCE = 64  # requests, if batch_size is "auto"
_SCORED_POSITIONS = 8_192  # padded, in one forward pass
_UNDERSTOOD = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")

# A child of the harness's own logger, so that its command line shows the messages.
_log = logging.getLogger("lm_eval.lclm_rag")


@dataclass(frozen=True)
class Cost:
    """The size of the prompts of requests; answers and continuations are not counted.

    Attributes:
        requests: The number of requests.
        positions: Positions in the decoder.
        latents: How many of these positions are latents.
        source_tokens: Encoder tokens that the latents stand for.
    """

    requests: int = 0
    positions: int = 0
    latents: int = 0
    source_tokens: int = 0

    @property
    def positions_per_request(self) -> float:
        """The mean number of positions; 0 without requests."""
        return self.positions / max(1, self.requests)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests,
            self.positions + other.positions,
            self.latents + other.latents,
            self.source_tokens + other.source_tokens,
        )


class CompressedContextLM(LM):  # type: ignore[misc]  # lm_eval is not typed.
    """A checkpoint as a model of the harness; each request is one user turn of the decoder's chat template.

    Tasks with continuations (multiple choice) need the transformers decoder; tasks that generate run on every
    decoder. Text from the harness is never markup: `<|im_end|>` in it ends nothing.

    A request with memory marks, `<|memory_start|>context<|memory_end|>`, is cut at these marks and nowhere
    else. Any other request is cut by `question_starts` and `context_starts`.

    Args:
        checkpoint: A folder, a hub id, "english" or "bundled".
        decoder: The decoder as for `load_decoder`, or a `Decoder`, which brings its own checkpoint.
        device: As for `load_decoder`; also the device of the compressor.
        dtype: As for `load_decoder`; also the dtype of the compressor.
        context: How the context of a request goes into its prompt: as "latents", as "text", or not at all
            ("none": closed book). None means "none", because the harness reads context=none that way.
        question_starts: A regular expression (Python's `re`). The context ends where its last match in a
            request begins; what follows stays text.
        context_starts: A regular expression. The context starts where its first match ends; what comes before
            stays text. By default the context starts at the beginning of the request, and so includes a
            task's description and examples.
        max_gen_toks: Longest answer, in tokens, for tasks that do not set it.
        batch_size: How many requests to process at once: a number, "auto" or "auto:N".
        max_batch_size: The most requests at once if `batch_size` is "auto".
        **decoder_options: As for `load_decoder`.

    Raises:
        ValueError: When an argument is invalid.
        CheckpointError: When the checkpoint is invalid.

    Attributes:
        costs: The cost of the prompts so far, by task. The harness's results have it under "config".
    """

    def __init__(
        self,
        checkpoint: str | Path | Checkpoint = BUNDLED,
        decoder: str | Decoder = "transformers",
        device: str = "auto",
        dtype: str = "auto",
        *,
        context: Context | None = "latents",
        question_starts: str = QUESTION_STARTS,
        context_starts: str | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        **decoder_options: Any,
    ) -> None:
        super().__init__()
        # The harness reads context=none in a string of arguments as None.
        form = "none" if context is None else context
        if form not in get_args(Context):
            raise ValueError(f"Unknown context {form!r}; use {', '.join(get_args(Context))}.")
        self.context: Context = form
        self.question_starts = _pattern("question_starts", question_starts)
        self.context_starts = (
            None if context_starts is None else _pattern("context_starts", context_starts)
        )
        self.max_gen_toks = max_gen_toks
        self.batch_size = _at_once(batch_size, max_batch_size)
        if isinstance(decoder, str):
            opened = Checkpoint.open(checkpoint)
            decoder = load_decoder(decoder, opened, device, dtype, **decoder_options)
        elif checkpoint != BUNDLED or decoder_options:
            raise ValueError(
                "A decoder that is loaded already brings its checkpoint and options; leave them out."
            )
        self.decoder = decoder
        self.checkpoint = self.decoder.checkpoint
        self._template = PromptTemplate.of(self.checkpoint)
        self._compressor = (
            Compressor.from_pretrained(self.checkpoint, device, dtype)
            if self.context == "latents"
            else None
        )
        self.costs: dict[str, Cost] = {}

    # --- what the harness calls -----------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Generate answers, each cut where the first of its stop strings begins.

        Args:
            requests: Requests of the harness: the context string and the generation arguments.

        Returns:
            The answers, in the order of the requests.

        Raises:
            PromptError: Before anything is generated, when it is not clear which part of a request is its
                context, a request does not fit into the decoder's context, or a generation argument is not
                supported. The message names task and document.
            DecoderError: When the decoder fails. The harness's cache has the answers until then.
        """
        ways = [_generation(request, self.max_gen_toks) for request in requests]
        self._check(requests, [sampling.max_tokens for sampling, _ in ways])
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="Running generate_until requests") as progress:
            for batch in _batches([sampling for sampling, _ in ways], self.batch_size):
                prompts = self._prompts([requests[i] for i in batch])
                outcomes = self.decoder.complete(prompts, ways[batch[0]][0])
                failures: list[LclmRagError] = []
                for i, outcome in zip(batch, outcomes, strict=True):
                    if isinstance(outcome, PromptError):
                        failures.append(_named(requests[i], outcome))
                    elif isinstance(outcome, DecoderError):
                        failures.append(outcome)
                    else:
                        answers[i] = _cut_at_stop(outcome.text, ways[i][1])
                        self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                if failures:  # Now that the answers of the others are in the harness's cache.
                    raise failures[0]
                progress.update(len(batch))
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Score continuations by their log-probability.

        A continuation begins where the decoder's answer begins.

        Args:
            requests: Requests of the harness: the context string and the continuation.

        Returns:
            For each continuation the sum of its tokens' log-probabilities (natural), and whether greedy
            decoding would have generated it.

        Raises:
            NotImplementedError: When the decoder does not give logits.
            PromptError: As for `generate_until`, or when a continuation is empty.
        """
        from lclm_rag.decoding.transformers import TransformersDecoder

        if not isinstance(self.decoder, TransformersDecoder):
            raise NotImplementedError(
                f"Task {requests[0].task_name} asks for log-probabilities of continuations, and only the "
                "transformers decoder gives them; run it with decoder=transformers."
            )
        continuations = [plain_ids(self._template.inert, request.args[1]) for request in requests]
        for request, ids in zip(requests, continuations, strict=True):
            if not ids:
                raise _named(request, "the continuation to be scored is empty.")
        self._check(requests, [len(ids) for ids in continuations])
        scores: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), desc="Running loglikelihood requests") as progress:
            for first in range(0, len(requests), self.batch_size):
                batch = requests[first : first + self.batch_size]
                wanted = continuations[first : first + self.batch_size]
                found = log_probabilities(self.decoder.model, self._prompts(batch), wanted)
                for request, score in zip(batch, found, strict=True):
                    self.cache_hook.add_partial("loglikelihood", request.args, score)
                scores += found
                progress.update(len(batch))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Not supported: whole texts have no context to compress.

        Args:
            requests: Requests of the harness.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"Task {requests[0].task_name} asks for the perplexity of whole texts, in which there is no "
            "context to compress."
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Join the messages to the text of one user turn, with a system message at its start.

        The chat template itself is rendered later, around the latents.

        Args:
            chat_history: One user message, or a system message and a user message.
            add_generation_prompt: Ignored.

        Raises:
            ValueError: When there are other turns.
        """
        roles = [message["role"] for message in chat_history]
        if roles not in (["user"], ["system", "user"]):
            raise ValueError(
                f"The harness made a chat of the turns {' → '.join(roles)}, but a request is one user turn "
                "here; give examples with fewshot_as_multiturn=False, and run tasks that have a gen_prefix "
                "without apply_chat_template."
            )
        *instruction, words = [message["content"] for message in chat_history]
        return str(maybe_delimit("".join(instruction), words, "\n\n"))

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness keeps cached requests apart."""
        return self.checkpoint.name

    def get_model_info(self) -> dict[str, Any]:
        """What the harness stores with the results, under "config"."""
        return {
            "checkpoint": self.checkpoint.name,
            "checkpoint_fingerprint": self.checkpoint.fingerprint("decoder"),
            "context": self.context,
            "question_starts": self.question_starts.pattern,
            "context_starts": self.context_starts and self.context_starts.pattern,
            "costs": {
                task: {**asdict(cost), "positions_per_request": cost.positions_per_request}
                for task, cost in self.costs.items()
            },
        }

    # --- requests → prompts ---------------------------------------------------------------------

    def _check(self, requests: Sequence[Instance], answer_tokens: Sequence[int]) -> None:
        """Refuse bad requests before any work is done, and add up the cost of their prompts."""
        costs: dict[str, Cost] = {}
        numbered = zip(requests, answer_tokens, strict=True)
        # The continuations of one question are adjacent, so its text is tokenized once.
        for words, group in itertools.groupby(numbered, key=lambda each: str(each[0].args[0])):
            plan: MarkupPrompt | None = None
            for request, tokens in group:
                try:
                    plan = plan or self._plan(words)
                    check_prompt(
                        SoftPrompt(plan.token_ids),
                        self.checkpoint,
                        context_length=self.decoder.context_length,
                        max_tokens=tokens,
                    )
                except ValueError as error:
                    raise _named(request, error) from error
                task = str(request.task_name)
                costs[task] = costs.get(task, Cost()) + _cost(plan)
        for task, cost in costs.items():
            self.costs[task] = self.costs.get(task, Cost()) + cost
            _log.info(
                "%s, context as %s: %d requests of %.1f positions on average; %d latents for %d tokens.",
                *(task, self.context, cost.requests, cost.positions_per_request),
                *(cost.latents, cost.source_tokens),
            )

    def _plan(self, words: str) -> MarkupPrompt:
        """The token ids of a request's prompt, with placeholders for the latents."""
        pieces = cut_context(words, self.question_starts, self.context_starts)
        template = self._template
        token_ids, spans = template.markup_ids(template.opening), []
        memories: list[list[int]] = []
        if self.context == "latents":
            memories = self.checkpoint.encoder_token_ids(pieces[1::2])
        elif self.context == "text":
            pieces = ["".join(pieces)]
        else:
            # No turn should begin with the blank line that followed the context.
            pieces = ["".join(pieces[::2]).lstrip()]
        for number, piece in enumerate(pieces):
            if number % 2 == 0:
                token_ids += plain_ids(template.inert, piece)
                continue
            source_tokens = len(memories[number // 2])
            latents = -(-source_tokens // self.checkpoint.config.compression_ratio)
            spans.append(Span(len(token_ids) + 1, latents))
            token_ids += template.memory_span(latents)
        token_ids += template.markup_ids(template.closing)
        return MarkupPrompt(token_ids, memories, tuple(spans))

    def _prompts(self, requests: Sequence[Instance]) -> list[SoftPrompt]:
        """The prompts with their latents; a context that occurs more than once is compressed once."""
        words = [str(request.args[0]) for request in requests]
        plans = {each: self._plan(each) for each in dict.fromkeys(words)}
        contexts = list({tuple(ids): None for plan in plans.values() for ids in plan.memories})
        space = self.decoder.space
        latents: dict[tuple[int, ...], torch.Tensor] = {}
        if self._compressor is not None and contexts:
            found = self._compressor.compress_token_ids([list(ids) for ids in contexts], space)
            latents = dict(zip(contexts, found, strict=True))
        prompts = {
            each: plan.with_latents([latents[tuple(ids)] for ids in plan.memories], space)
            for each, plan in plans.items()
        }
        return [prompts[each] for each in words]


# --- the parts --------------------------------------------------------------------------------


def cut_context(
    words: str, question_starts: re.Pattern[str], context_starts: re.Pattern[str] | None = None
) -> list[str]:
    """Cut a request into text, context, text, context, …, text, of which the contexts get compressed.

    A request with memory marks is cut at these. Any other request is cut by the regular expressions, as
    `CompressedContextLM` describes. An empty request, which the harness sends to get the probability of a
    choice by itself, is one empty text.

    Args:
        words: The request.
        question_starts: The context ends where the last match of this begins.
        context_starts: The context starts where the first match of this ends; None: at the beginning.

    Returns:
        The pieces in order; those at odd indexes are contexts. Joined, they give the request without its
        marks.

    Raises:
        ValueError: When a memory mark has no partner, a regular expression matches nowhere, or a context is
            empty.
    """
    if MEMORY_START in words or MEMORY_END in words:
        pieces = _MEMORY.split(words)
        if any(mark in text for text in pieces[::2] for mark in (MEMORY_START, MEMORY_END)):
            raise ValueError(f"there is a {MEMORY_START} or {MEMORY_END} without its partner.")
    elif not words:
        return [""]
    else:
        ends = [match.start() for match in _matches("question_starts", question_starts, words)]
        starts = [0]
        if context_starts:
            starts = [match.end() for match in _matches("context_starts", context_starts, words)]
        pieces = [words[: starts[0]], words[starts[0] : ends[-1]], words[ends[-1] :]]
    if not all(context.strip() for context in pieces[1::2]):
        raise ValueError("there is nothing to compress: the context is empty.")
    return pieces


def _matches(name: str, expression: re.Pattern[str], words: str) -> list[re.Match[str]]:
    found = list(expression.finditer(words))
    if not found:
        raise ValueError(
            f"{name} ({expression.pattern!r}) matches nowhere, so that it is not clear what to compress; "
            "give another regular expression."
        )
    return found


@torch.inference_mode()
def log_probabilities(
    model: Any, prompts: Sequence[SoftPrompt], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """The log-probability of continuations of prompts.

    Args:
        model: A causal LM of transformers.
        prompts: One prompt for each continuation, with latents in decoder space.
        continuations: Token ids, at least one each.

    Returns:
        For each continuation the sum of its tokens' log-probabilities (natural, in float32), and whether each
        of its tokens is the most probable one.
    """
    sizes = [p.positions + len(c) - 1 for p, c in zip(prompts, continuations, strict=True)]
    from lclm_rag.decoding.transformers import embed

    scores: dict[int, tuple[float, bool]] = {}
    for batch in batches_by_size(sizes, _SCORED_POSITIONS):
        most = max(len(continuations[i]) for i in batch)
        # With padding on the left, all continuations end at the same position.
        embeds, mask = embed(
            model,
            [
                replace(prompts[i], token_ids=[*prompts[i].token_ids, *continuations[i][:-1]])
                for i in batch
            ],
        )
        logits = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            # For a long prompt, all logits would take far more memory than the pass itself.
            logits_to_keep=most,
        ).logits
        for row, i in enumerate(batch):
            wanted = torch.tensor(continuations[i], device=logits.device)
            found = logits[row, -len(wanted) :].float().log_softmax(-1)
            total = found.gather(1, wanted[:, None]).sum()
            scores[i] = float(total), bool((found.argmax(-1) == wanted).all())
    return [scores[i] for i in range(len(prompts))]


def _generation(request: Instance, max_gen_toks: int) -> tuple[Sampling, list[str]]:
    """The sampling that the harness asks for, and the strings before which the answer ends."""
    requested = normalize_gen_kwargs(request.args[1], max_gen_toks)
    for key, value in requested.items():
        if key not in _UNDERSTOOD and (key, value) != ("num_beams", 1):
            raise _named(
                request,
                f"the generation argument {key}={value!r} is not supported; there are "
                f"{', '.join(_UNDERSTOOD)}.",
            )
    # As in transformers, sampling without a temperature uses 1.
    temperature = requested.get("temperature", 1.0) if requested["do_sample"] else 0.0
    try:
        sampling = Sampling(
            max_tokens=requested["max_gen_toks"],
            temperature=float(temperature),
            top_p=float(requested.get("top_p", 1.0)),
        )
    except ValueError as error:
        raise _named(request, error) from error
    return sampling, [stop for stop in requested["until"] if stop]


def _cut_at_stop(text: str, stops: Sequence[str]) -> str:
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text


def _batches(keys: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Groups of indexes of `keys` with equal keys, at most `size` in each."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        yield from (group[first : first + size] for first in range(0, len(group), size))


def _at_once(batch_size: int | str, most: int | None) -> int:
    """How many requests to process at once, from a number, "auto" or "auto:N" (which is the same here)."""
    if isinstance(batch_size, str) and batch_size.split(":")[0] == "auto":
        return min(_AT_ONCE, most or _AT_ONCE)
    if not str(batch_size).isdigit() or not int(batch_size):
        raise ValueError(f"batch_size must be a whole number or auto, not {batch_size!r}.")
    return int(batch_size)


def _pattern(name: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"{name} {expression!r} is no regular expression: {error}.") from error


def _cost(plan: MarkupPrompt) -> Cost:
    latents = sum(span.length for span in plan.spans)
    return Cost(1, len(plan.token_ids), latents, sum(map(len, plan.memories)))


def _named(request: Instance, problem: object) -> PromptError:
    return PromptError(f"Task {request.task_name}, document {request.doc_id}: {problem}")


# Registered by name: with `python -m`, this module is loaded twice, but there must be only one class.
model_registry.register("lclm-rag", target="lclm_rag.connectors.lm_eval:CompressedContextLM")


def main() -> None:
    """Run lm-eval's own command line, with "lclm-rag" among its models."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except LclmRagError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
