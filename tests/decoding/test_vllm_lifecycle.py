"""vLLM's engine when it is interrupted, forked from, killed and closed.

`python tests/decoding/test_vllm_lifecycle.py PATH MODEL QUESTION PIPE` asks, and says in the pipe what
becomes of it.
What ends an engine needs one of its own; what does not is in test_lifecycle.py, with the shared engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from lclm_rag import DecoderError, KnowledgeBase, Sampling
from lclm_rag.decoding import Completion, Decoder, all_answered
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.prompting import SoftPrompt
from support.processes import LIMIT, in_child

LONG = Sampling(max_tokens=8000)
SHORT = Sampling(max_tokens=2)

START = 300
"""Seconds after which an engine that starts is taken to hang."""

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_a_failure_of_the_engine_leaves_the_other_outcomes(
    items_decoder: VLLMDecoder, knowledge_base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.exceptions import EngineGenerateError

    prompts = [knowledge_base.assemble("Who signed it?", n) for n in (1, 2, 3)]
    wanted = all_answered(items_decoder.complete(prompts, SHORT))
    generate = items_decoder.engine.generate

    def failing(prompt: Any, *rest: Any) -> Any:
        if len(prompt["prompt_token_ids"]) == prompts[1].positions:
            raise EngineGenerateError
        return generate(prompt, *rest)

    monkeypatch.setattr(items_decoder.engine, "generate", failing)
    for outcomes in (
        items_decoder.complete(prompts, SHORT),
        asyncio.run(items_decoder.acomplete(prompts, SHORT)),
    ):
        assert str(outcomes[1]) == "vLLM's engine failed the request; see its log."
        for number in (0, 2):
            answered = outcomes[number]
            assert isinstance(answered, Completion)
            assert answered.token_ids == wanted[number].token_ids


@forks
def test_an_engine_of_the_parent_is_refused_in_a_child(
    items_decoder: VLLMDecoder, knowledge_base: KnowledgeBase
) -> None:
    prompt = knowledge_base.assemble("Who signed it?", 1)
    in_child(refuses, items_decoder, prompt)
    all_answered(items_decoder.complete([prompt], SHORT))


def refuses(decoder: Decoder, prompt: SoftPrompt) -> None:
    """What a decoder of the parent does in a forked child."""
    message = "the process that this one was forked from"
    with pytest.raises(DecoderError, match=message):
        decoder.complete([prompt], SHORT)
    with pytest.raises(DecoderError, match=message):
        list(decoder.stream(prompt, SHORT))
    with pytest.raises(DecoderError, match=message):
        asyncio.run(decoder.acomplete([prompt], SHORT))
    decoder.close()


@pytest.mark.slow
@pytest.mark.vllm
def test_an_engine_outlives_interrupts_and_forks_is_started_again_and_closed(
    tmp_path: Path, misleading: Path, endless_question: str
) -> None:
    """One program, because an engine takes a minute to start; it starts twice."""
    KnowledgeBase.create(tmp_path / "kb", device="cpu").close()
    with program(tmp_path / "kb", misleading, endless_question) as asks:
        first = asks.heard("engine")
        for way in INTERRUPTED:
            assert asks.heard("asks") == way
            os.killpg(asks.process.pid, signal.SIGINT)  # As a terminal does for Ctrl-C.
            assert asks.heard("ended") == "KeyboardInterrupt"
            assert asks.heard("next answer")
            assert asks.heard("engine") == first
        assert asks.heard("forked") == 0
        assert asks.heard("next answer")
        assert asks.heard("engine") == first

        waiting = asks.heard("waiting")
        os.kill(first, signal.SIGKILL)
        ends = asks.heard("killed")
        assert len(ends) == waiting
        assert set(ends) == {
            "DecoderError: vLLM's engine died; see its log. The next question starts it again."
        }
        assert all(asks.heard("later answers"))
        assert asks.heard("engine") != first
        assert asks.heard("log") == [
            "vLLM's engine had died; it is started again, which takes a minute or so."
        ]

        assert set(asks.heard("closed")) == {
            "DecoderError: This decoder was closed before the answer was complete."
        }
        said = asks.heard("afterwards")
        assert said["decoder"] == "DecoderError: This decoder is closed; make another."
        assert said["kb"] == f"KnowledgeBaseError: {tmp_path / 'kb'} is closed; open it again."
        assert asks.heard("engine lives") is False
        assert asks.process.wait(LIMIT) == 0


class Program:
    """A program that says what happens, a line at a time, apart from its log."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[str], log: Path) -> None:
        self.process = process
        self._said = said
        self._log = log

    def heard(self, name: str) -> Any:
        """The next thing that it says, which must have this name."""
        line = self._said.readline()
        assert line, f"It ended:\n{self._log.read_text()[-8000:]}"
        said, value = json.loads(line)
        assert said == name, self._log.read_text()[-8000:]
        return value


@contextmanager
def program(path: Path, model: Path, endless: str) -> Iterator[Program]:
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    log = path.parent / "log"
    reading, writing = os.pipe()
    command = [sys.executable, __file__, str(path), str(model), endless, str(writing)]
    with log.open("wb") as output, os.fdopen(reading) as said, subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, env=here, start_new_session=True,
        pass_fds=(writing,),
        # Shells start background jobs, these tests among them, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        os.close(writing)
        # What hangs is killed, with its engine.
        watch = threading.Timer(2 * START, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        try:
            yield Program(process, said, log)
        finally:
            watch.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


# --- the program --------------------------------------------------------------------------------------


def say(name: str, value: Any) -> None:
    os.write(int(sys.argv[4]), json.dumps([name, value]).encode() + b"\n")


def end_of(work: Callable[[], Any]) -> str:
    try:
        return str(work())
    except (DecoderError, KnowledgeBaseError) as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return type(error).__name__


def lives(process: int) -> bool:
    """Whether it still runs after a while; a process that ended and is not waited for does not."""
    status = Path(f"/proc/{process}/status")
    for _ in range(10 * LIMIT):
        try:
            if "State:\tZ" in status.read_text():
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


def _query(kb: KnowledgeBase, question: str) -> str:
    return kb.query(question, context="none", sampling=LONG).text


def _stream(kb: KnowledgeBase, question: str) -> str:
    return "".join(kb.stream(question, context="none", sampling=LONG))


def _aquery(kb: KnowledgeBase, question: str) -> str:
    return asyncio.run(kb.aquery(question, context="none", sampling=LONG)).text


def _astream(kb: KnowledgeBase, question: str) -> str:
    async def read() -> str:
        pieces = kb.astream(question, context="none", sampling=LONG)
        return "".join([piece async for piece in pieces])

    return asyncio.run(read())


INTERRUPTED = ["_query", "_stream", "_aquery", "_astream"]


def main(path: str, model: str, endless: str) -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lclm_rag").addHandler(handler)
    options = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28, "model": model}
    kb = KnowledgeBase.open(path, device="cpu", decoder="vllm", decoder_options=options)
    decoder: Any = kb.decoder
    ways = [globals()[name] for name in INTERRUPTED]

    def engine() -> int:
        manager = decoder.engine.engine_core.resources.engine_manager
        return int(manager.processes[0].pid)

    def running() -> int:
        return int(decoder.engine.get_num_unfinished_requests())

    def until(count: int) -> None:
        while running() != count:
            time.sleep(0.01)

    def answer() -> str:
        return kb.query("Who?", context="none", sampling=Sampling(max_tokens=8)).text

    say("engine", engine())
    for way in ways:

        def tell(name: str = way.__name__) -> None:
            until(1)
            say("asks", name)

        teller = threading.Thread(target=tell)
        teller.start()
        ended = end_of(lambda way=way: way(kb, endless))  # type: ignore[misc]
        teller.join()
        say("ended", ended)
        until(0)
        say("next answer", answer())
        say("engine", engine())

    pid = os.fork()
    if pid == 0:  # It ends in the ordinary way, with all that the interpreter does at its end.
        signal.alarm(LIMIT)
        refuses(decoder, SoftPrompt([5, 6, 7], (), ()))
        sys.exit(0)
    say("forked", os.waitpid(pid, 0)[1])
    say("next answer", answer())
    say("engine", engine())

    with ThreadPoolExecutor(16) as pool:

        def asked(count: int) -> list[Future[str]]:
            works = [lambda way=way: way(kb, endless) for way in ways[:count]]  # type: ignore[misc]
            return [pool.submit(end_of, work) for work in works]

        waiting = asked(4)
        until(4)
        say("waiting", 4)
        # The engine dies here, and questions go on coming before and after that is known.
        dead = engine()
        while not decoder.engine.errored:
            pass
        later = [pool.submit(answer) for _ in range(4)]
        say("killed", [future.result() for future in waiting])
        say("later answers", [future.result() for future in later])
        assert engine() != dead
        say("engine", engine())
        say("log", lines)

        last, waiting = engine(), asked(4)
        until(4)
        kb.close()
        kb.close()
        decoder.close()
        say("closed", [future.result() for future in waiting])
    prompt = SoftPrompt([5, 6, 7], (), ())
    closed = {end_of(lambda: decoder.complete([prompt], SHORT))}
    closed |= {end_of(lambda: list(decoder.stream(prompt, SHORT)))}
    (sentence,) = closed
    say("afterwards", {"decoder": sentence, "kb": end_of(answer)})
    say("engine lives", lives(last))


if __name__ == "__main__":
    main(*sys.argv[1:4])
