"""Shared, costly things: one knowledge base over the bundled checkpoint, one vLLM engine, one server.

Fixtures import what they need themselves: a test that needs no torch must not wait for it.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lclm_rag import KnowledgeBase
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding import Decoder
    from lclm_rag.decoding.server import ServerDecoder
    from lclm_rag.decoding.transformers import TransformersDecoder
    from lclm_rag.decoding.vllm import VLLMDecoder
    from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
    from lclm_rag.prompting import PromptTemplate
    from support.checkpoints import MakeCheckpoint
    from support.commands import Run
    from support.forked import Forks

VLLM_FIXTURES = {"items_decoder", "mixed_decoder", "server_decoder", "server_url"}


def pytest_configure() -> None:
    """Take Ctrl-C as usual: a shell starts what runs in its background with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs an engine or a server of vLLM, so that `-m "not vllm"` leaves it out."""
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    needs = {*getattr(item, "fixturenames", ()), *(v for v in values if isinstance(v, str))}
    if needs & VLLM_FIXTURES:
        item.add_marker(pytest.mark.vllm)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""
    from lclm_rag.cli.main import _run
    from lclm_rag.offline import OFFLINE_VARIABLES

    logger = logging.getLogger("lclm_rag")

    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        handlers, level = list(logger.handlers), logger.level
        before = {name: os.environ.get(name) for name in OFFLINE_VARIABLES}
        try:
            code = _run([str(argument) for argument in arguments])
        finally:
            # A command writes the library's log lines to stderr, and its process ends. This one goes on:
            # what a service of a later test logs between tests would be written into pytest's own output.
            logger.handlers[:] = handlers
            logger.setLevel(level)
            # --offline holds for its process, and would for the tests after it.
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The checkpoint that comes with the package."""
    from lclm_rag.checkpoint import Checkpoint

    return Checkpoint.open()


@pytest.fixture(scope="session")
def compressor(checkpoint: Checkpoint) -> Compressor:
    from lclm_rag.compression import Compressor

    return Compressor.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def decoder(checkpoint: Checkpoint) -> TransformersDecoder:
    from lclm_rag.decoding.transformers import TransformersDecoder

    return TransformersDecoder.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def misleading(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    """The decoder, with a generation config that asks for other sampling; that must never show."""
    from support.vllm_server import misleading_decoder

    folder = tmp_path_factory.mktemp("misleading") / "decoder"
    return misleading_decoder(checkpoint.path / "decoder", folder)


@pytest.fixture(scope="session")
def items_decoder(checkpoint: Checkpoint, misleading: Path) -> Iterator[VLLMDecoder]:
    """vLLM with the latent modality. The one engine of the whole run: it takes a minute to start."""
    from lclm_rag.decoding import load_decoder
    from lclm_rag.decoding.vllm import VLLMDecoder

    options: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}
    options |= {"max_num_seqs": 64, "model": str(misleading)}
    options |= {"hf_overrides": {"a_users_own": "setting"}}
    decoder = load_decoder("vllm", checkpoint, device="cpu", **options)
    assert isinstance(decoder, VLLMDecoder)
    assert decoder.inputs == "items"
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def mixed_decoder(items_decoder: VLLMDecoder) -> VLLMDecoder:
    """Mixed prompts, on the same engine."""
    return items_decoder.with_inputs("mixed")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory, misleading: Path) -> Iterator[str]:
    """A real `vllm serve` on loopback, as the README starts it. The one server of the whole run."""
    from support.vllm_server import vllm_server

    with vllm_server(misleading, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="session")
def server_decoder(server_url: str, checkpoint: Checkpoint) -> Iterator[ServerDecoder]:
    from lclm_rag.decoding import load_decoder
    from lclm_rag.decoding.server import ServerDecoder

    decoder = load_decoder(server_url, checkpoint)
    assert isinstance(decoder, ServerDecoder)
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def endless_question() -> str:
    """One that the bundled decoder, greedily, never stops answering."""
    return "Ω" * 30


DECODERS = ("decoder", "items_decoder", "mixed_decoder", "server_decoder")


@pytest.fixture(params=DECODERS)
def each_decoder(request: pytest.FixtureRequest) -> Decoder:
    """transformers, vLLM with latent items, vLLM with mixed prompts, a vLLM server."""
    found: Decoder = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def template(checkpoint: Checkpoint) -> PromptTemplate:
    from lclm_rag.prompting import PromptTemplate

    return PromptTemplate.of(checkpoint)


@pytest.fixture(scope="session")
def sheets() -> list[FactSheet]:
    from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets

    return list(itertools.islice(fact_sheets(seed=2026, held_out=True), 400))


@pytest.fixture(scope="session")
def questions(sheets: list[FactSheet]) -> list[FactQuestion]:
    from lclm_rag.evaluation.datasets.fact_sheets import held_out_questions

    return held_out_questions(100, sheets, seed=2026)


@pytest.fixture(scope="session")
def knowledge_base(
    tmp_path_factory: pytest.TempPathFactory,
    sheets: list[FactSheet],
    decoder: TransformersDecoder,
) -> Iterator[KnowledgeBase]:
    """400 fact sheets; for reading only."""
    from lclm_rag import KnowledgeBase

    path = tmp_path_factory.mktemp("shared") / "kb"
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add(sheet.document for sheet in sheets)
        yield kb


@pytest.fixture(scope="session")
def string_sheets(sheets: list[FactSheet]) -> list[FactSheet]:
    from lclm_rag.evaluation.datasets.exact_strings import with_exact_strings

    rng = random.Random(5)
    return [with_exact_strings(sheet, rng) for sheet in sheets[:80]]


@pytest.fixture(scope="session")
def string_kb(
    tmp_path_factory: pytest.TempPathFactory,
    string_sheets: list[FactSheet],
    decoder: TransformersDecoder,
) -> Iterator[KnowledgeBase]:
    """80 fact sheets with a code of 12 characters and a UUID in each; for reading only."""
    from lclm_rag import KnowledgeBase

    path = tmp_path_factory.mktemp("strings") / "kb"
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add(sheet.document for sheet in string_sheets)
        yield kb


@pytest.fixture(scope="session")
def string_questions(string_sheets: list[FactSheet]) -> list[FactQuestion]:
    from lclm_rag.evaluation.datasets.exact_strings import exact_string_questions

    return [exact_string_questions(sheet)[i % 4] for i, sheet in enumerate(string_sheets[:24])]


@pytest.fixture
def small_kb(
    tmp_path: Path, sheets: list[FactSheet], decoder: TransformersDecoder
) -> Iterator[KnowledgeBase]:
    """Five fact sheets, for tests that write."""
    from lclm_rag import KnowledgeBase

    with KnowledgeBase.create(tmp_path / "kb", decoder=decoder) as kb:
        kb.add(sheet.document for sheet in sheets[:5])
        yield kb


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Child processes for operations on a knowledge base, to be killed or to be left to run."""
    from support.forked import forks

    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.fixture
def make_checkpoint(tmp_path: Path, checkpoint: Checkpoint) -> MakeCheckpoint:
    """A small random checkpoint with the given settings; its encoder is narrower than its decoder."""
    from support.checkpoints import random_checkpoint

    def make(name: str = "checkpoint", *, seed: int = 0, **settings: Any) -> Path:
        return random_checkpoint(tmp_path / name, checkpoint, seed=seed, **settings)

    return make
