"""Services over a small knowledge base, each over a copy of its own, so that tests may change it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.serving import Limits, ServedBase, create_app
from support.served import served
from support.services import LONG, ODD_ID, Serve, bearer

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding.transformers import TransformersDecoder
    from lclm_rag.evaluation.datasets.fact_sheets import FactSheet


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    sheets: list[FactSheet],
    decoder: TransformersDecoder,
    compressor: Compressor,
) -> Path:
    """Twelve fact sheets, a long document of another kind, and one whose id is hard to put into a path."""
    path = tmp_path_factory.mktemp("built") / "kb"
    with KnowledgeBase.create(path, passage_tokens=256, decoder=decoder) as kb:
        kb.__dict__["compressor"] = compressor
        kb.add(
            [
                *(sheet.document for sheet in sheets[:12]),
                Document("report", LONG, {"kind": "report", "year": 2026}),
                Document(ODD_ID, "The ferry to Isola leaves at noon.", {"kind": "note"}),
            ]
        )
    return path


@pytest.fixture
def copied_kb(
    tmp_path: Path, built: Path, decoder: TransformersDecoder, compressor: Compressor
) -> Iterator[KnowledgeBase]:
    """A copy of it, open."""
    shutil.copytree(built, tmp_path / "kb")
    with KnowledgeBase.open(tmp_path / "kb", decoder=decoder) as kb:
        kb.__dict__["compressor"] = compressor
        yield kb


@pytest.fixture
def serve(copied_kb: KnowledgeBase) -> Iterator[Serve]:
    """Serves it, as `support.services.Serve` says."""
    with ExitStack() as started:

        def start(*, key: str | None = None, **options: Any) -> httpx.Client:
            app = create_app({"towns": ServedBase("towns", copied_kb)}, **options)
            url = started.enter_context(served(app))
            client = httpx.Client(base_url=f"{url}/v1/", headers=bearer(key), timeout=60)
            return started.enter_context(client)

        yield start


@pytest.fixture
def client(serve: Serve) -> httpx.Client:
    """Of a service without keys, where everybody may write."""
    return serve(writable=True, limits=Limits(upload=500_000, question=500, top_k=8))


@pytest.fixture
def served_url(client: httpx.Client) -> str:
    """The URL of that service, without /v1."""
    return str(client.base_url).removesuffix("/v1/")


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where uploads are kept while they are worked on."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
