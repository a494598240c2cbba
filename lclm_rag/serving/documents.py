"""Routes for what a knowledge base holds: searching it, looking at documents, changing them."""

from __future__ import annotations

import asyncio
import bisect
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from math import inf
from typing import Annotated, Any, Literal, TypeVar

import anyio
import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette import EventSourceResponse
from starlette.convertors import Convertor, register_url_convertor

from lclm_rag.connectors.corpora import ReadingLimits
from lclm_rag.errors import PassageIndexError, StoreError
from lclm_rag.retrieval import Filter, PassageIndex, matches
from lclm_rag.serving.access import Access
from lclm_rag.serving.bases import ServedBase
from lclm_rag.serving.chat import citation
from lclm_rag.serving.errors import RequestError
from lclm_rag.serving.filters import Filters, both, parsed_filters
from lclm_rag.serving.jobs import Job, Jobs, Progress, events
from lclm_rag.serving.limits import Limits
from lclm_rag.serving.ranking import RankingFields, ranking_of
from lclm_rag.serving.uploads import Reading, Upload, json_documents, receive
from lclm_rag.store import LatentStore
from lclm_rag.store.manifest import committed_versions, read_manifest
from lclm_rag.store.parts import MANIFESTS
from lclm_rag.types import DEFAULT_TOP_K, AddReport, Document, Passage, PassageKey

__all__ = ["add_routes"]

T = TypeVar("T")

_NEIGHBORS = 20
"""Passages that may be read before or after one."""

_PAGE = 1000
"""Passages, and versions, in one response at most."""

_SKIPPED = 100
"""Records left out that a report lists."""

_LAST_ORDINAL = 2**31


class _AnyText(Convertor[str]):
    """A document's id in a path, whatever it holds: "path" leaves out line ends."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class SearchRequest(RankingFields):
    """The body of a search."""

    query: str
    model: str | None = None
    top_k: int = Field(DEFAULT_TOP_K, ge=1)
    filters: Filters = None


Model = Annotated[str | None, Query(description="The knowledge base; needed if there are several.")]
Conditions = Annotated[
    list[str] | None,
    Query(description='year>=2020, once for each condition; or one JSON object: {"lang": "en"}.'),
]


def add_routes(app: FastAPI, access: Access, limits: Limits, reranker: str | None = None) -> None:
    """Add the routes for searching, documents, passages, versions and jobs.

    Args:
        app: The application.
        access: Who may ask what.
        limits: What a client may ask for.
        reranker: The cross-encoder of this service, if it has one.
    """
    register_url_convertor("anytext", _AnyText())
    jobs = Jobs(len(access.bases), limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await jobs.close()

    routes = APIRouter(prefix="/v1", lifespan=lifespan)
    _add_reading(routes, access, limits, reranker)
    _add_writing(routes, access, limits, jobs)
    _add_jobs(routes, access, jobs)
    app.include_router(routes)


def _add_reading(routes: APIRouter, access: Access, limits: Limits, reranker: str | None) -> None:
    ids: dict[str, _Ids] = {}

    @routes.post("/search")
    async def search(request: Request, body: SearchRequest) -> dict[str, Any]:
        """Find the passages that fit a query best."""
        base, bound = access.base(request, body.model)
        if len(body.query) > limits.question:
            raise RequestError(
                400,
                f"The query has {len(body.query):,} characters; at most {limits.question:,} are allowed.",
                param="query",
            )
        if body.top_k > limits.top_k:
            raise RequestError(
                400,
                f"top_k is {body.top_k:,}; at most {limits.top_k:,} are allowed.",
                param="top_k",
            )
        own = parsed_filters(body.filters)
        kb, filters = base.kb, both(own, bound)
        ranking = ranking_of(body, limits, reranker)
        hits = await kb.aretrieve(body.query, body.top_k, filters, **ranking)
        request.state.passages, reason = len(hits), ""
        if not hits:
            # Why nothing passes a key's filter is not for its holder, who may not know the filter.
            why = kb.why_no_passages if bound is None else lambda _: "No passage was found."
            reason = (await asyncio.to_thread(why, own)).replace(str(kb.folder), base.name)
        return {
            "object": "list",
            "model": base.name,
            "data": [citation(hit) for hit in hits],
            "reason": reason,
        }

    @routes.get("/documents")
    async def documents(
        request: Request,
        model: Model = None,
        filters: Conditions = None,
        after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> dict[str, Any]:
        """List documents by id, page by page."""
        base, bound = access.base(request, model)
        condition = both(_conditions(filters), bound)

        def page(index: PassageIndex, store: LatentStore) -> dict[str, Any]:
            if condition is None:
                found = _all_ids(ids, base.name, store)
            else:
                found = sorted({key.document_id for key in index.keys(condition)})
            start = 0 if after is None else bisect.bisect_right(found, after)
            shown = found[start : start + limit]
            described = (_document(store, document_id, bound) for document_id in shown)
            return {
                "object": "list",
                "model": base.name,
                "version": store.version,
                "data": [document for document in described if document is not None],
                "has_more": start + limit < len(found),
                "last_id": shown[-1] if shown else None,
            }

        return await asyncio.to_thread(_read, base, page)

    @routes.get("/documents/{document:anytext}")
    async def document(
        request: Request,
        document: str,
        model: Model = None,
        after: Annotated[
            int, Query(ge=-1, le=_LAST_ORDINAL, description="The last passage of the page before.")
        ] = -1,
        limit: Annotated[int, Query(ge=1, le=_PAGE)] = _PAGE,
    ) -> dict[str, Any]:
        """Describe a document: its metadata, and where its passages are."""
        base, bound = access.base(request, model)

        def describe(index: PassageIndex, store: LatentStore) -> dict[str, Any]:
            described = _document(store, document, bound)
            if described is None:
                raise _no_document(base, document)
            last = min(described["passages"], after + 1 + limit)
            places = [_place(store, PassageKey(document, i)) for i in range(after + 1, last)]
            more = last < described["passages"]
            return {
                **described,
                "model": base.name,
                "version": store.version,
                "data": places,
                "has_more": more,
            }

        return await asyncio.to_thread(_read, base, describe)

    @routes.get("/passages/{document:anytext}/{ordinal:int}")
    async def passages(
        request: Request,
        document: str,
        ordinal: int,
        model: Model = None,
        before: Annotated[int, Query(ge=0, le=_NEIGHBORS)] = 0,
        after: Annotated[int, Query(ge=0, le=_NEIGHBORS)] = 0,
    ) -> dict[str, Any]:
        """Read a passage verbatim, with its neighbors in the document."""
        base, bound = access.base(request, model)

        def read(index: PassageIndex, store: LatentStore) -> dict[str, Any]:
            wanted = range(max(0, ordinal - before), ordinal + after + 1)
            keys = [PassageKey(document, i) for i in wanted] if ordinal < _LAST_ORDINAL else []
            found = [row.passage for row in store.read(key for key in keys if key in store)]
            if not _may_see(next((p for p in found if p.key.ordinal == ordinal), None), bound):
                raise RequestError(
                    404, f"There is no passage {document}#{ordinal} in {base.name!r}."
                )
            return {
                "object": "passages",
                "model": base.name,
                "version": store.version,
                "document": document,
                "passage": ordinal,
                "metadata": dict(found[0].metadata),
                "span": [found[0].start, found[-1].end],
                "data": [
                    {"passage": p.key.ordinal, "span": [p.start, p.end], "text": p.text}
                    for p in found
                ],
            }

        return await asyncio.to_thread(_read, base, read)

    @routes.get("/models/{name}/versions")
    async def versions(
        request: Request, name: str, limit: Annotated[int, Query(ge=1, le=_PAGE)] = 100
    ) -> dict[str, Any]:
        """List the newest versions of a knowledge base, oldest of them first."""
        base, bound = access.base(request, name)

        def read(index: PassageIndex, store: LatentStore) -> dict[str, Any]:
            folder = store.folder / MANIFESTS
            numbers = committed_versions(folder)
            found = [read_manifest(folder, number) for number in numbers[-limit:]]
            return {
                "object": "list",
                "model": base.name,
                "version": store.version,
                "data": [
                    {
                        "version": manifest.version,
                        "created": manifest.created,
                        "operation": manifest.operation,
                        # Who is bound by a filter is not told how much it hides.
                        **(asdict(manifest.totals) if bound is None else {}),
                    }
                    for manifest in found
                ],
                "has_more": len(numbers) > limit,
            }

        return await asyncio.to_thread(_read, base, read)


def _add_writing(routes: APIRouter, access: Access, limits: Limits, jobs: Jobs) -> None:
    @routes.put("/documents")
    async def put(
        request: Request,
        model: Model = None,
        filename: Annotated[str | None, Query(description="What the file is called.")] = None,
        wait: bool = False,
        text_column: str = "text",
        id_column: str = "id",
        metadata_columns: Annotated[list[str] | None, Query()] = None,
        number_columns: Annotated[list[str] | None, Query()] = None,
        on_error: Literal["fail", "skip"] = "fail",
    ) -> JSONResponse:
        """Add documents, or replace those with the same ids: as JSON, or a file."""
        base, _ = access.base(request, model, write=True)
        costs = ReadingLimits(seconds=limits.convert_seconds, memory=limits.convert_memory)
        reading = Reading(text_column, id_column, metadata_columns, number_columns, on_error, costs)
        with jobs.place():
            upload = await receive(request, filename, limits.upload)
            try:
                if upload.name is None:
                    await asyncio.to_thread(json_documents, upload.path)
            except BaseException:
                await asyncio.to_thread(upload.discard)
                raise
            job = jobs.start(
                base,
                "add",
                _owner(access, request),
                lambda progress: _add(base, upload, reading, progress),
                upload.discard,
            )
        return await _accepted(jobs, job, wait)

    @routes.delete("/documents")
    async def delete_matching(
        request: Request, model: Model = None, filters: Conditions = None, wait: bool = True
    ) -> JSONResponse:
        """Delete the documents that a filter matches."""
        base, _ = access.base(request, model, write=True)
        condition = _conditions(filters)
        if condition is None:
            raise RequestError(
                400, "Say what to delete: ?filters=lang=en, or a document's id.", param="filters"
            )
        return await _accepted(jobs, _deletion(request, base, filters=condition), wait)

    @routes.delete("/documents/{document:anytext}")
    async def delete(
        request: Request, document: str, model: Model = None, wait: bool = True
    ) -> JSONResponse:
        """Delete a document."""
        base, _ = access.base(request, model, write=True)
        return await _accepted(jobs, _deletion(request, base, document_ids=[document]), wait)

    def _deletion(request: Request, base: ServedBase, **what: Any) -> Job:
        with jobs.place():
            return jobs.start(
                base,
                "delete",
                _owner(access, request),
                lambda progress: _delete(base, progress, **what),
            )


def _add_jobs(routes: APIRouter, access: Access, jobs: Jobs) -> None:
    @routes.get("/jobs")
    async def listed(request: Request) -> dict[str, Any]:
        """List the jobs of this key, newest first."""
        owner = _owner(access, request)
        return {"object": "list", "data": [job.describe() for job in jobs.of(owner)]}

    @routes.get("/jobs/{job_id}")
    async def job(request: Request, job_id: str) -> dict[str, Any]:
        """Describe a job."""
        return jobs.find(_owner(access, request), job_id).describe()

    @routes.get("/jobs/{job_id}/events")
    async def job_events(request: Request, job_id: str) -> EventSourceResponse:
        """Follow a job until it ends."""
        found = jobs.find(_owner(access, request), job_id)
        stopping = anyio.Event()
        stream = events(found, jobs, stopping)
        # When the service stops, the job ends soon, and its last event is sent.
        return EventSourceResponse(
            stream, sep="\n", shutdown_event=stopping, shutdown_grace_period=inf
        )


def _owner(access: Access, request: Request) -> str | None:
    key = access.key(request)
    return None if key is None else key.hash


async def _accepted(jobs: Jobs, job: Job, wait: bool) -> JSONResponse:
    """The job as a response: 200 if it has ended, 202 if not."""
    if wait:
        await jobs.wait(job)
    return JSONResponse(
        job.describe(), 200 if job.ended else 202, {"Location": f"/v1/jobs/{job.id}"}
    )


# --- work, in threads ------------------------------------------------------------------------------------


def _add(base: ServedBase, upload: Upload, reading: Reading, progress: Progress) -> dict[str, Any]:
    skipped: list[str] = []
    done = (0, 0)

    def documents() -> Iterator[Document]:
        # Read with the writer's lock held. Until the job commits, the newest version is what others had
        # committed before, and it may be new here.
        base.kb.follow()
        for document in upload.documents(reading, skipped):
            progress(*done)
            yield document

    def on_progress(report: AddReport) -> None:
        nonlocal done
        done = report.added + report.updated + report.unchanged, report.passages
        progress(*done)

    report = asdict(base.kb.add(documents(), on_progress=on_progress))
    del report["workers"], report["deleted"]
    if len(skipped) > _SKIPPED:
        skipped[_SKIPPED:] = [f"… and {len(skipped) - _SKIPPED:,} more."]
    return {**report, "skipped": skipped, "version": base.kb.store.version}


def _delete(base: ServedBase, progress: Progress, **what: Any) -> dict[str, Any]:
    progress(0, 0)
    base.kb.follow()
    before = base.kb.store.manifest.totals
    passages = base.kb.delete(**what)
    after = base.kb.store.manifest
    documents = before.documents - after.totals.documents
    progress(documents, passages)
    return {"deleted": documents, "passages": passages, "version": after.version}


# --- reading ---------------------------------------------------------------------------------------------

_Ids = tuple[tuple[int, str], list[str]]
"""A version, by number and date, and the ids of its documents, sorted."""


def _read(base: ServedBase, read: Callable[[PassageIndex, LatentStore], T]) -> T:
    """Read from one version; again from the next one if another thread has moved there meanwhile."""
    while True:
        index, store = base.kb.reader.at_one_version()
        try:
            return read(index, store)
        except (StoreError, PassageIndexError, OSError, KeyError):
            # `vacuum` may have removed the version that was left.
            if base.kb.store is store:
                raise


def _all_ids(known: dict[str, _Ids], name: str, store: LatentStore) -> list[str]:
    """The ids of all documents, sorted once for each version: the store has them in another order."""
    version = store.version, store.manifest.created
    found = known.get(name)
    if found is None or found[0] != version:
        found = version, sorted(store.document_ids(np.empty(0, np.uint64)))
        known[name] = found
    return found[1]


def _document(store: LatentStore, document_id: str, bound: Filter | None) -> dict[str, Any] | None:
    """A document as clients get it; None if there is none that they may see."""
    first = _passage(store, PassageKey(document_id, 0))
    if first is None or not _may_see(first, bound):
        return None
    # A document has all passages from 0 to its last. Long ones have many, which need not all be looked up.
    last, beyond = 0, 1
    while PassageKey(document_id, beyond) in store:
        last, beyond = beyond, 2 * beyond
    while beyond - last > 1:
        middle = (last + beyond) // 2
        if PassageKey(document_id, middle) in store:
            last = middle
        else:
            beyond = middle
    end = _passage(store, PassageKey(document_id, last))
    return {
        "id": document_id,
        "object": "document",
        "passages": last + 1,
        "characters": end.end if end is not None else first.end,
        "metadata": dict(first.metadata),
    }


def _passage(store: LatentStore, key: PassageKey) -> Passage | None:
    place = store.place(key)
    return None if place is None else store.fragment(place[0]).passage(place[1])


def _place(store: LatentStore, key: PassageKey) -> dict[str, Any]:
    place = store.place(key)
    if place is None:
        raise KeyError(key)
    fragment = store.fragment(place[0])
    passage = fragment.passage(place[1])
    return {
        "passage": key.ordinal,
        "span": [passage.start, passage.end],
        "tokens": fragment.tokens(place[1]),
    }


def _may_see(passage: Passage | None, bound: Filter | None) -> bool:
    return passage is not None and (
        bound is None or matches(bound, passage.metadata, passage.key.document_id)
    )


def _no_document(base: ServedBase, document_id: str) -> RequestError:
    return RequestError(404, f"There is no document {document_id!r} in {base.name!r}.")


def _conditions(filters: list[str] | None) -> Filter | None:
    """The conditions in the query of a URL.

    Raises:
        ValueError: When they cannot be read.
    """
    if filters and len(filters) == 1 and filters[0].lstrip().startswith("{"):
        return parsed_filters(json.loads(filters[0]))
    return parsed_filters(filters)
