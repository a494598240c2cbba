"""What becomes of questions when a decoder or a knowledge base is closed, or when nobody waits any more.

`python tests/decoding/test_lifecycle.py` is a program that ends while a stream is half read.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

import lclm_rag.decoding
import lclm_rag.decoding.transformers
from lclm_rag import DecoderError, KnowledgeBase, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Completion, Decoder, all_answered, load_decoder
from lclm_rag.decoding.event_loop import EventLoopDecoder, EventLoopThread
from lclm_rag.decoding.server import ServerDecoder
from lclm_rag.decoding.streams import Generation
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.errors import KnowledgeBaseError, LclmRagError
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets
from lclm_rag.prompting import SoftPrompt
from support.processes import LIMIT, in_child, in_threads
from support.stand_in import StandIn, stand_in

pytestmark = pytest.mark.slow  # All of them, a minute.

LONG = Sampling(max_tokens=8000)
"""Minutes of an answer, where the prompt is endless: what goes on is found out."""

SHORT = Sampling(max_tokens=2)

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def chat(checkpoint: Checkpoint, question: str) -> SoftPrompt:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return SoftPrompt(checkpoint.decoder_tokenizer.encode(text).ids, (), ())


@pytest.fixture(scope="module")
def endless(checkpoint: Checkpoint, endless_question: str) -> SoftPrompt:
    return chat(checkpoint, endless_question)


@pytest.fixture
def imitation(checkpoint: Checkpoint) -> Iterator[StandIn]:
    with stand_in(checkpoint) as server:
        yield server


@pytest.fixture
def imitated(imitation: StandIn, checkpoint: Checkpoint) -> Iterator[ServerDecoder]:
    decoder = ServerDecoder(imitation.url, checkpoint, retries=0)
    yield decoder
    decoder.close()


@pytest.fixture(params=["decoder", "imitated", "items_decoder", "server_decoder"])
def asked(request: pytest.FixtureRequest) -> Decoder:
    """transformers, a server's stand-in, vLLM's engine, a real server."""
    found: Decoder = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def running(asked: Decoder, request: pytest.FixtureRequest) -> Callable[[], int]:
    """How many generations run, as far as can be seen from outside."""
    if isinstance(asked, TransformersDecoder):

        def count() -> int:
            return len([t for t in threading.enumerate() if t.name == "lclm-rag-stream"])

        return count
    if isinstance(asked, VLLMDecoder):
        vllm = asked
        return lambda: int(vllm.engine.get_num_unfinished_requests())
    if "imitation" in request.fixturenames:
        imitation: StandIn = request.getfixturevalue("imitation")
        return lambda: imitation.open
    assert isinstance(asked, ServerDecoder)
    metrics = asked.url.removesuffix("/v1") + "/metrics"

    def served() -> int:
        with urllib.request.urlopen(metrics, timeout=LIMIT) as answer:
            lines = answer.read().decode().splitlines()
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(names)))

    return served


def until(holds: Callable[[], bool], seconds: float = LIMIT / 2) -> bool:
    """Whether something comes true before it must be taken to hang."""
    end = time.monotonic() + seconds
    while not (true := holds()) and time.monotonic() < end:
        time.sleep(0.01)
    return true


def nothing_runs(running: Callable[[], int], decoder: Decoder, prompt: SoftPrompt) -> bool:
    """Whether everything ends, and a fresh question is answered."""
    ended = until(lambda: running() == 0)
    (completion,) = all_answered(decoder.complete([prompt], SHORT))
    return ended and len(completion.token_ids) >= 2


# --- cancelled, dropped, interrupted ----------------------------------------------------------------


def test_a_cancelled_acomplete_ends_the_generation(
    asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(asked.acomplete([endless] * 3, LONG))
        assert await asyncio.to_thread(until, lambda: running() > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert nothing_runs(running, asked, endless)


def test_astream_cancelled_at_its_first_piece_raises_what_was_asked_for(
    asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    async def read(first: asyncio.Event) -> None:
        async for _ in asked.astream(endless, LONG):
            first.set()

    async def cancelled() -> None:
        first = asyncio.Event()
        task = asyncio.create_task(read(first))
        await asyncio.wait_for(first.wait(), LIMIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert nothing_runs(running, asked, endless)


@pytest.mark.parametrize("asked", ["imitated", "items_decoder"], indirect=True)
def test_a_reader_that_is_gone_when_a_piece_comes_ends_the_generation(
    asked: EventLoopDecoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    """Its cancellation arrives while the stream is being closed already."""
    generation: list[Generation] = []
    started = threading.Event()

    def put(_: str) -> None:
        started.wait(LIMIT)
        generation[0].end()
        raise RuntimeError("Event loop is closed")

    generation.append(asked._start(endless, LONG, lambda _: None, put))
    assert until(lambda: running() == 1)
    started.set()
    assert nothing_runs(running, asked, endless)


def test_a_deadline_ends_a_stream_before_its_first_piece(
    asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    async def read() -> None:
        async for _ in asked.astream(endless, LONG):
            pass

    async def late() -> None:
        for seconds in (0.0, 0.001, 0.02):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(), seconds)

    asyncio.run(late())
    assert nothing_runs(running, asked, endless)


@pytest.mark.parametrize("how", ["break", "error", "kept"])
def test_an_asynchronous_stream_that_is_left_ends_without_a_word(
    how: str,
    asked: Decoder,
    running: Callable[[], int],
    endless: SoftPrompt,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[AsyncGenerator[str]] = []

    async def leave() -> None:
        stream = asked.astream(endless, LONG)
        kept.append(stream)
        if how != "kept":
            kept.clear()
        async for _ in stream:
            if how == "error":
                raise ZeroDivisionError
            break

    with caplog.at_level(logging.WARNING, "asyncio"):
        if how == "error":
            with pytest.raises(ZeroDivisionError):
                asyncio.run(leave())
        else:
            asyncio.run(leave())
        gc.collect()
        assert nothing_runs(running, asked, endless)
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_that_is_closed_or_dropped_ends_the_generation(
    how: str, asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    stream = asked.stream(endless, LONG)
    next(stream)
    assert running() > 0
    if how == "closed":
        closed = in_threads(stream.close)  # type: ignore[attr-defined]
        assert closed() == [None]
    del stream
    gc.collect()
    assert nothing_runs(running, asked, endless)


def test_an_error_in_the_reader_ends_the_stream(
    asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    def read() -> None:
        for _ in asked.stream(endless, LONG):
            raise ZeroDivisionError

    async def aread() -> None:
        async with aclosing(asked.astream(endless, LONG)) as pieces:
            async for _ in pieces:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(aread())
    assert nothing_runs(running, asked, endless)


def test_100_cancelled_of_200_leave_nothing_running(
    asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    async def joined(sampling: Sampling) -> str:
        return "".join([piece async for piece in asked.astream(endless, sampling)])

    async def texts(sampling: Sampling) -> str:
        (completion,) = all_answered(await asked.acomplete([endless], sampling))
        return completion.text

    async def ask_all() -> list[str]:
        ways = (joined, texts)
        unwanted, wanted = (
            [asyncio.create_task(ways[number % 2](how)) for number in range(100)]
            for how in (LONG, SHORT)
        )
        assert await asyncio.to_thread(until, lambda: running() > 0)
        for task in unwanted:
            task.cancel()
        ends = await asyncio.gather(*unwanted, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}
        return await asyncio.wait_for(asyncio.gather(*wanted), 2 * LIMIT)

    assert len(set(asyncio.run(ask_all()))) == 1
    assert nothing_runs(running, asked, endless)


@pytest.mark.parametrize("how", ["complete", "stream", "acomplete", "astream"])
def test_an_interrupt_ends_the_question_and_the_next_is_answered(
    how: str, asked: Decoder, running: Callable[[], int], endless: SoftPrompt
) -> None:
    def interrupt() -> None:
        if until(lambda: running() > 0):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    assert until(lambda: running() == 0)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        WAYS[how](asked, endless, LONG)
    assert nothing_runs(running, asked, endless)


# --- closed -------------------------------------------------------------------------------------------


def complete(decoder: Decoder, prompt: SoftPrompt, sampling: Sampling) -> Any:
    return all_answered(decoder.complete([prompt], sampling))


def stream(decoder: Decoder, prompt: SoftPrompt, sampling: Sampling) -> Any:
    return list(decoder.stream(prompt, sampling))


def acomplete(decoder: Decoder, prompt: SoftPrompt, sampling: Sampling) -> Any:
    return all_answered(asyncio.run(decoder.acomplete([prompt], sampling)))


def astream(decoder: Decoder, prompt: SoftPrompt, sampling: Sampling) -> Any:
    async def read() -> list[str]:
        return [piece async for piece in decoder.astream(prompt, sampling)]

    return asyncio.run(read())


WAYS = {way.__name__: way for way in (complete, stream, acomplete, astream)}


Make = Callable[[], Decoder]


@pytest.fixture(params=["transformers", "server"])
def make(
    request: pytest.FixtureRequest, decoder: TransformersDecoder, imitation: StandIn
) -> Iterator[Make]:
    """Makes decoders to be closed. vLLM's engine is closed in test_vllm_lifecycle.py."""
    made: list[Decoder] = []

    def make_one() -> Decoder:
        made.append(
            TransformersDecoder(decoder.checkpoint, decoder.model)
            if request.param == "transformers"
            else ServerDecoder(imitation.url, decoder.checkpoint, retries=0)
        )
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def test_a_closed_decoder_says_so_and_closing_twice_is_nothing(
    make: Make, endless: SoftPrompt
) -> None:
    one = make()
    all_answered(one.complete([endless], SHORT))
    one.close()
    one.close()
    for way in WAYS.values():
        with pytest.raises(DecoderError, match=r"^This decoder is closed; make another\.$"):
            way(one, endless, SHORT)
    with pytest.raises(DecoderError, match="is closed"):
        one.complete([endless], SHORT)
    one.close()


def test_who_waits_when_the_decoder_is_closed_gets_a_decoder_error(
    make: Make, endless: SoftPrompt
) -> None:
    """At whatever moment that is: at the start, in the middle, while it waits for its turn."""
    rng = random.Random(7)
    for round_ in range(25):
        one = make()
        ways = [way for way in WAYS.values() for _ in range(2)]
        wait = in_threads(*(partial(way, one, endless, LONG) for way in ways))
        time.sleep(rng.random() * 0.15 if round_ else 1.0)
        one.close()
        for result in wait():
            assert isinstance(result, DecoderError), repr(result)
            assert "closed" in str(result)


def test_each_prompt_of_a_closed_decoder_has_its_outcome(make: Make, endless: SoftPrompt) -> None:
    one = make()
    wait = in_threads(lambda: one.complete([endless] * 5, LONG))
    time.sleep(0.5)
    one.close()
    (outcomes,) = wait()
    assert [type(outcome) for outcome in outcomes] == [DecoderError] * 5
    assert str(outcomes[0]) == "This decoder was closed before the answer was complete."


def test_questions_that_arrive_while_it_is_closed_do_not_hang(
    make: Make, endless: SoftPrompt
) -> None:
    rng, messages = random.Random(8), set[str]()
    for _ in range(15):
        one = make()

        def go_on(way: Callable[..., Any], one: Decoder = one) -> int:
            for answered in range(10**6):
                try:
                    way(one, endless, SHORT)
                except DecoderError as error:
                    if str(error) == "This decoder is closed; make another.":
                        return answered
                    messages.add(str(error))
            raise AssertionError

        wait = in_threads(*(partial(go_on, way) for way in WAYS.values()))
        time.sleep(rng.random() * 0.1)
        closed = in_threads(one.close, one.close, one.close)
        assert closed() == [None] * 3
        results = wait()
        assert all(isinstance(result, int) for result in results), results
    assert messages <= {"This decoder was closed before the answer was complete."}


def test_a_signal_handler_may_close_the_decoder_that_it_interrupts(
    make: Make, endless: SoftPrompt
) -> None:
    one = make()
    before = signal.signal(signal.SIGALRM, lambda *_: one.close())
    try:
        for way in WAYS.values():
            one = make()
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(DecoderError, match="closed before the answer"):
                way(one, endless, LONG)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_close_the_decoder_that_just_takes_a_question(
    make: Make, endless: SoftPrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, submit = lclm_rag.decoding.transformers.in_thread, EventLoopThread._ended_by_close

    def interrupted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGALRM)
            return work(*arguments)

        return run

    for way in WAYS.values():
        one = make()
        with monkeypatch.context() as patch:
            patch.setattr(lclm_rag.decoding.transformers, "in_thread", interrupted(start))
            patch.setattr(EventLoopThread, "_ended_by_close", interrupted(submit))
            before = signal.signal(signal.SIGALRM, lambda *_, one=one: one.close())
            try:
                with pytest.raises(DecoderError, match="closed before the answer"):
                    way(one, endless, LONG)
            finally:
                signal.signal(signal.SIGALRM, before)
        with pytest.raises(DecoderError, match="is closed"):
            way(one, endless, SHORT)


def test_the_reader_of_a_stream_may_close_its_decoder(make: Make, endless: SoftPrompt) -> None:
    def read(one: Decoder) -> None:
        for _ in one.stream(endless, LONG):
            one.close()

    with pytest.raises(DecoderError, match="closed before the answer"):
        read(make())

    async def aread(one: Decoder) -> None:
        async for _ in one.astream(endless, LONG):
            one.close()

    with pytest.raises(DecoderError, match="closed before the answer"):
        asyncio.run(aread(make()))


def test_a_decoder_that_is_forgotten_leaves_no_thread(
    imitation: StandIn, checkpoint: Checkpoint
) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "vllm-server"]

    before = len(threads())
    ServerDecoder(imitation.url, checkpoint)
    gc.collect()
    assert until(lambda: len(threads()) == before)


@pytest.mark.slow
def test_a_program_may_end_while_a_stream_is_half_read() -> None:
    """Its thread is inside of torch then, where the interpreter would abort it."""
    command = [sys.executable, __file__]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT, env=here)
    assert (done.returncode, done.stdout) == (0, "half read\n"), done.stderr


# --- outcomes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, KeyError])
def test_a_failure_of_transformers_leaves_the_other_outcomes(
    kind: type[Exception],
    together: bool,
    decoder: TransformersDecoder,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder, "_fitting", None)
    prompts = [chat(checkpoint, "x " * n) for n in (1, 60, 120)]
    wanted = all_answered(decoder.complete(prompts, SHORT))
    if not together:
        monkeypatch.setitem(lclm_rag.decoding.transformers._BATCH_POSITIONS, "cpu", 1)
    generate = decoder.model.generate

    def failing(**options: Any) -> Any:
        if prompts[1].positions in options["attention_mask"].sum(1):
            raise kind("out of memory")
        return generate(**options)

    with monkeypatch.context() as patch:
        patch.setattr(decoder.model, "generate", failing)
        for outcomes in (
            decoder.complete(prompts, SHORT),
            asyncio.run(decoder.acomplete(prompts, SHORT)),
        ):
            assert isinstance(outcomes[1], DecoderError)
            assert "transformers failed to decode: " in str(outcomes[1])
            assert "out of memory" in str(outcomes[1])
            for number in (0, 2):
                answered = outcomes[number]
                assert isinstance(answered, Completion)
                assert answered.token_ids == wanted[number].token_ids
        with pytest.raises(DecoderError, match="failed to decode"):
            list(decoder.stream(prompts[1], SHORT))
    assert complete(decoder, prompts[1], SHORT)[0].token_ids == wanted[1].token_ids


def test_a_failure_of_a_server_leaves_the_other_outcomes(
    imitation: StandIn, imitated: ServerDecoder, endless: SoftPrompt
) -> None:
    imitation.refused.add(7)
    prompts = [endless, SoftPrompt([7, 8, 9], (), ()), endless]
    for outcomes in (
        imitated.complete(prompts, SHORT),
        asyncio.run(imitated.acomplete(prompts, SHORT)),
    ):
        assert [type(outcome) for outcome in outcomes] == [Completion, DecoderError, Completion]
        assert "answered 500: out of luck" in str(outcomes[1])


# --- knowledge bases ----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path, sheets: list[FactSheet]) -> Path:
    """Five fact sheets; closed."""
    with KnowledgeBase.create(tmp_path / "kb", device="cpu") as kb:
        kb.add(sheet.document for sheet in sheets[:5])
    return tmp_path / "kb"


@cache
def question() -> str:
    """One that the first sheet answers."""
    return next(fact_sheets(seed=2026, held_out=True)).questions[0].question


def _query(kb: KnowledgeBase, **options: Any) -> Any:
    return kb.query(question(), **options).text


def _stream(kb: KnowledgeBase, **options: Any) -> Any:
    return "".join(kb.stream(question(), **options))


def _aquery(kb: KnowledgeBase, **options: Any) -> Any:
    return asyncio.run(kb.aquery(question(), **options)).text


def _astream(kb: KnowledgeBase, **options: Any) -> Any:
    async def read() -> str:
        pieces = [piece async for piece in kb.astream(question(), **options)]
        return "".join(pieces)

    return asyncio.run(read())


def _retrieve(kb: KnowledgeBase, **options: Any) -> Any:
    return kb.retrieve(question())


QUESTIONS = (_query, _stream, _aquery, _astream, _retrieve)


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_closed_knowledge_base_says_so_and_loads_nothing(
    asked_before: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kb = KnowledgeBase.open(path, device="cpu")
    loaded = kb.decoder if asked_before else None
    if asked_before:
        assert _query(kb)
    kb.close()
    kb.close()
    monkeypatch.setattr(lclm_rag.decoding, "load_decoder", lambda *_, **__: pytest.fail("loads"))
    for ask in QUESTIONS:
        for context in ("latents", "none"):
            with pytest.raises(KnowledgeBaseError, match=rf"^{path} is closed; open it again\.$"):
                ask(kb, context=context)
    for rest in (lambda: kb.add([]), lambda: kb.delete(["x"]), lambda: kb.decoder):
        with pytest.raises(KnowledgeBaseError, match="is closed; open it again"):
            rest()
    kb.close()
    if loaded is not None:
        with pytest.raises(DecoderError, match="is closed"):
            loaded.complete([], SHORT)


def test_a_decoder_that_was_given_stays_open(path: Path, decoder: TransformersDecoder) -> None:
    kb = KnowledgeBase.open(path, device="cpu", decoder=decoder)
    kb.close()
    with pytest.raises(KnowledgeBaseError, match="is closed"):
        _query(kb)
    assert decoder.complete([], SHORT) == []


@pytest.mark.parametrize("name", ["transformers", "server"])
def test_a_knowledge_base_is_closed_at_any_moment(
    name: str, path: Path, imitation: StandIn, decoder: TransformersDecoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While it searches, reads, loads its decoder, or decodes."""

    def load(*arguments: Any, **options: Any) -> Decoder:
        if name == "transformers":  # Without the seconds that the weights take.
            return TransformersDecoder(decoder.checkpoint, decoder.model)
        return load_decoder(*arguments, **options)

    monkeypatch.setattr(lclm_rag.decoding, "load_decoder", load)
    rng, ends = random.Random(9), set[type]()
    which = imitation.url if name == "server" else name
    options = {"context": "text", "sampling": LONG}
    for number in range(100):
        if number >= 12 and ends >= {DecoderError, KnowledgeBaseError}:
            break
        kb = KnowledgeBase.open(path, device="cpu", decoder=which, decoder_options={})
        if number % 2:
            assert kb.decoder
        wait = in_threads(*(partial(ask, kb, **options) for ask in QUESTIONS[:4]))
        time.sleep(rng.random() * (0.05 if number % 3 else 0.5 + number / 20))
        kb.close()
        assert kb._decoder is None
        for result in wait():
            assert isinstance(result, str) or "closed" in str(result), repr(result)
            ends.add(type(result))
    assert ends - {str} == {DecoderError, KnowledgeBaseError}


def test_a_decoder_that_is_being_loaded_is_closed_too(
    path: Path, decoder: TransformersDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, made = threading.Event(), []

    def load(*_: Any, **__: Any) -> Decoder:
        begun.set()
        time.sleep(0.5)
        made.append(TransformersDecoder(decoder.checkpoint, decoder.model))
        return made[-1]

    monkeypatch.setattr(lclm_rag.decoding, "load_decoder", load)
    kb = KnowledgeBase.open(path, device="cpu")
    wait = in_threads(lambda: _query(kb), lambda: _stream(kb))
    assert begun.wait(LIMIT)
    kb.close()
    for result in wait():
        assert isinstance(result, LclmRagError)
        assert "closed" in str(result)
    assert len(made) == 1
    with pytest.raises(DecoderError, match="is closed"):
        made[0].complete([], SHORT)


def test_a_signal_handler_may_close_a_knowledge_base_that_loads_its_decoder(
    path: Path, decoder: TransformersDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def load(*_: Any, **__: Any) -> Decoder:
        signal.raise_signal(signal.SIGALRM)
        made.append(TransformersDecoder(decoder.checkpoint, decoder.model))
        return made[-1]

    monkeypatch.setattr(lclm_rag.decoding, "load_decoder", load)
    kb = KnowledgeBase.open(path, device="cpu")
    before = signal.signal(signal.SIGALRM, lambda *_: kb.close())
    try:
        with pytest.raises(KnowledgeBaseError, match="is closed"):
            _query(kb)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(DecoderError, match="is closed"):
        made[0].complete([], SHORT)


# --- forks --------------------------------------------------------------------------------------------


@forks
def test_a_forked_child_reads_no_stream_of_its_parent(make: Make, endless: SoftPrompt) -> None:
    one = make()
    stream = one.stream(endless, LONG)
    next(stream)

    def read_on() -> None:
        with pytest.raises(DecoderError, match="the process that this one was forked from"):
            list(stream)

    in_child(read_on)
    assert next(stream)
    stream.close()

    async def aread() -> None:
        pieces = one.astream(endless, LONG)
        await anext(pieces)

        def aread_on() -> None:
            with pytest.raises(DecoderError, match="the process that this one was forked from"):
                asyncio.run(anext(pieces))  # type: ignore[arg-type]

        in_child(aread_on)
        assert await anext(pieces)
        await pieces.aclose()

    asyncio.run(aread())


@forks
def test_transformers_answers_in_a_child_that_was_forked_while_others_ask(
    decoder: TransformersDecoder, endless: SoftPrompt
) -> None:
    one = TransformersDecoder(decoder.checkpoint, decoder.model)
    (wanted,) = all_answered(one.complete([endless], SHORT))
    wait = in_threads(lambda: complete(one, endless, LONG), lambda: stream(one, endless, LONG))
    time.sleep(0.3)

    def work() -> list[int]:
        (answer,) = all_answered(one.complete([endless], SHORT))
        assert "".join(one.stream(endless, SHORT)) == answer.text
        one.close()
        with pytest.raises(DecoderError, match="is closed"):
            one.complete([endless], SHORT)
        return answer.token_ids

    assert in_child(work) == wanted.token_ids
    one.close()
    assert [type(result) for result in wait()] == [DecoderError] * 2
    with pytest.raises(DecoderError, match="is closed"):
        in_child(lambda: None) or one.complete([], SHORT)


@forks
def test_a_connection_of_the_parent_is_refused_in_a_child_and_left_alone(
    imitated: ServerDecoder, endless: SoftPrompt
) -> None:
    (wanted,) = all_answered(imitated.complete([endless], SHORT))

    def work() -> None:
        for way in WAYS.values():
            with pytest.raises(DecoderError, match="the process that this one was forked from"):
                way(imitated, endless, SHORT)
        imitated.close()

    in_child(work)
    assert all_answered(imitated.complete([endless], SHORT))[0].token_ids == wanted.token_ids


@forks
def test_a_child_opens_a_named_decoder_anew(path: Path, imitation: StandIn) -> None:
    with KnowledgeBase.open(path, device="cpu", decoder=imitation.url) as kb:
        options = {"context": "none", "sampling": SHORT}
        wanted = _query(kb, **options)
        assert in_child(lambda: [ask(kb, **options) for ask in QUESTIONS[:4]]) == [wanted] * 4
        assert _query(kb, **options) == wanted


if __name__ == "__main__":
    bundled = Checkpoint.open()
    half = TransformersDecoder.from_pretrained(bundled, device="cpu").stream(
        chat(bundled, "Ω" * 30), LONG
    )
    next(half)
    print("half read")
