"""KnowledgeBase: a folder with a latent store and a passage index, and a decoder to answer from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lclm_rag.checkpoint import Space
from lclm_rag.errors import KnowledgeBaseError, NoPassagesError
from lclm_rag.opening import OpenKnowledgeBase, finished_already
from lclm_rag.prompting import AssembledPrompt, ChatMessage, PassageForm, SoftPrompt
from lclm_rag.types import AddReport, Answer, Document, DocumentParts, Hit, Passage, PassageKey

if TYPE_CHECKING:
    from lclm_rag.answering import Answering
    from lclm_rag.asking import Asked, Found, GivenPassage
    from lclm_rag.decoding import Completion, Sampling
    from lclm_rag.indexing.passage_index import Spread
    from lclm_rag.ingestion.ray import RayEngine
    from lclm_rag.querying.expansion import Expand
    from lclm_rag.retrieval.filters import Filter
    from lclm_rag.store import (
        CodecName,
        LatentStore,
        Manifest,
        Operation,
        StoreWriter,
        Vacuumed,
    )

__all__ = ["KnowledgeBase"]

DEFAULT_TOP_K = 8

_log = logging.getLogger(__name__)


class KnowledgeBase(OpenKnowledgeBase):
    """The one object that ties store, index, prompt and decoder together.

    Make one with `create` or `open`. Models are loaded when they are first needed: `add` loads the
    encoder, `query` the decoder (and the adapter), `retrieve` neither.
    """

    # --- writing --------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document] | DocumentParts,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Compress documents and commit them as one new version; upsert by document id.

        A document whose text and metadata are unchanged is skipped; of a changed one only the passages whose
        text has changed are compressed. An error, a duplicate id among them too, leaves the last version as
        it stands; what was compressed until then, or until the process was killed, is taken over by the next
        `add` of the same documents. split: False makes each document one passage, however long and without a
        header: for what was split elsewhere. resume: False compresses everything that is not committed.
        engine: None compresses in this process; a `RayEngine` on a Ray cluster, whose workers also read the
        documents where these are given as parts. `on_progress` gets the running totals.
        """
        return self._write(documents, "add", split, resume, engine, on_progress)

    def sync(
        self,
        documents: Iterable[Document] | DocumentParts,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        keep: Callable[[], bool] = lambda: False,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """As `add`, and delete every other document: then the knowledge base holds `documents` and no others.

        keep: asked at the end; True deletes nothing (because some of the corpus could not be read, say; what
        the engine skips counts, too).
        Raises KnowledgeBaseError where none of the documents was there before: that is another corpus.
        """
        return self._write(documents, "sync", split, resume, engine, on_progress, keep)

    def _write(
        self,
        documents: Iterable[Document] | DocumentParts,
        operation: Literal["add", "sync"],
        split: bool,
        resume: bool,
        engine: RayEngine | None,
        on_progress: Callable[[AddReport], None],
        keep: Callable[[], bool] = lambda: True,
    ) -> AddReport:
        from lclm_rag.ingestion.sync import Others

        with self._writing(operation, resumable=resume) as writer:
            others = Others(writer.base)
            on_document = others.note if operation == "sync" else lambda _: None
            report = self._compress(writer, documents, split, engine, on_progress, on_document)
            if operation == "sync" and not keep() and not report.skipped:
                report = replace(report, deleted=others.delete(writer))
            self._show(writer.commit(), None if engine is None else engine.upsert)
            with self._opening:
                if self._index is not None:
                    self._index.loaded(self.store, report.passages)
        return report

    def _compress(
        self,
        writer: StoreWriter,
        documents: Iterable[Document] | DocumentParts,
        split: bool,
        engine: RayEngine | None,
        on_progress: Callable[[AddReport], None],
        on_document: Callable[[str], None],
    ) -> AddReport:
        from lclm_rag.ingestion.passages import Splitting

        settings = self.settings
        splitting = Splitting(
            settings.passage_tokens if split else None, settings.contextual_headers
        )
        if engine is None:
            from lclm_rag.ingestion.local import add_documents

            if isinstance(documents, DocumentParts):
                raise ValueError("Only an engine's workers read parts of a corpus; give documents.")
            return add_documents(
                writer,
                documents,
                self.checkpoint,
                lambda: self.compressor,
                splitting,
                on_progress=on_progress,
                on_document=on_document,
            )
        from lclm_rag.ingestion.ray.engine import add_documents_on_ray

        return add_documents_on_ray(
            writer,
            documents,
            self.checkpoint,
            splitting,
            engine,
            device=self.device,
            dtype=self.dtype,
            compressor_options=self.compressor_options,
            on_progress=on_progress,
            on_document=on_document,
        )

    def delete(
        self,
        document_ids: Sequence[str] = (),
        *,
        filters: Filter | Mapping[str, Any] | None = None,
    ) -> int:
        """Delete documents by id, or all of which a passage matches `filters` (as for `retrieve`); returns
        how many passages went.

        Raises KnowledgeBaseError, and deletes nothing, where one of the ids is not there, nothing matches, or
        the filters ask for a key that no passage has: `!=` and `~` would match everything.
        """
        from lclm_rag.store import LatentStore

        if bool(document_ids) == (filters is not None):
            raise ValueError("Say what to delete: either ids or filters.")
        with self._writing("delete") as writer:
            if filters is not None:
                self._show(LatentStore.open(self.folder / "store"))
                document_ids = self.matching_documents(filters)
                if not document_ids:
                    raise KnowledgeBaseError(f"No document of {self.folder} matches the filter.")
            unknown = [i for i in document_ids if writer.base.document_hash(i) is None]
            if unknown:
                raise KnowledgeBaseError(f"There is no document {unknown[0]!r} in {self.folder}.")
            gone = sum(writer.delete_document(i) for i in document_ids)
            self._show(writer.commit())
        return gone

    def matching_documents(self, filters: Filter | Mapping[str, Any]) -> list[str]:
        """The ids of the documents that `delete` would delete by these filters. Raises as `delete`, but for
        none."""
        from lclm_rag.asking import check_keys

        check_keys(self, filters)
        return sorted({key.document_id for key in self.find(filters)})

    def compact(self, *, on_row: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Merge small fragments and leave deleted passages out, as a new version; optimize the passage index.
        `vacuum` then frees the disk that the versions before it took. Nobody waits meanwhile but other
        writers. on_row: rows done, rows in all."""
        from lclm_rag.store import compact

        self._refuse_reading()
        self._show(compact(self.folder / "store", wait=self.wait, on_row=on_row))
        with self._opening:
            if self._index is not None:
                self._index.optimize(self.store)

    def convert(
        self,
        codec: CodecName,
        *,
        on_row: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write the latents in another codec, without the encoder, as a new version. From a smaller codec to
        a larger one nothing comes back that the smaller one had lost. on_row: as for `compact`."""
        from lclm_rag.store import convert

        self._refuse_reading()
        self._show(convert(self.folder / "store", codec, wait=self.wait, on_row=on_row))

    def vacuum(self, *, keep: int = 1) -> Vacuumed:
        """Remove all versions but the newest `keep` and those that are open anywhere, and every file that no
        version needs, such as what killed runs left behind (unfinished builds then start from nothing)."""
        from lclm_rag.errors import PassageIndexError
        from lclm_rag.indexing.snapshots import SnapshotFolder
        from lclm_rag.store import LatentStore, vacuum

        self._refuse_reading()
        # A snapshot of a version that is removed would be of no use. On a full disk it goes all the same.
        with self._opening, suppress(PassageIndexError):
            self._show(LatentStore.open(self.folder / "store"))
            if self._index is not None:
                self._index.publish(self.store)
        vacuumed = vacuum(self.folder / "store", keep=keep, wait=self.wait)
        if self.settings.qdrant_url is None:
            freed = SnapshotFolder(self.folder / "index").remove_superseded()
            vacuumed = replace(vacuumed, bytes=vacuumed.bytes + freed)
        return vacuumed

    def versions(self) -> list[Manifest]:
        """Every version that can be opened, oldest first."""
        from lclm_rag.store import read_versions

        return read_versions(self.folder / "store")

    @contextmanager
    def _writing(self, operation: Operation, *, resumable: bool = False) -> Iterator[StoreWriter]:
        from lclm_rag.store import writing

        self._refuse_reading()
        with writing(
            self.folder / "store", operation, wait=self.wait, resumable=resumable
        ) as writer:
            if self._to_be_first and writer.base.version:
                raise finished_already(self.folder, writer.base)
            self._to_be_first = False
            yield writer

    def _refuse_reading(self) -> None:
        if self.read_only:
            raise KnowledgeBaseError(
                f"{self.folder} is open at version {self.store.version}, for reading; open it without a "
                "version to write."
            )

    def follow_server(self) -> bool:
        """Turn to the newest version where the passage index is on a server, which shows that one only.
        False where this is it already, or the index is not on a server."""
        from lclm_rag.store import LatentStore, newest_version

        with self._opening:
            store = self.folder / "store"
            if self.settings.qdrant_url is None or newest_version(store) == self.store.version:
                return False
            old, self.store = self.store, LatentStore.open(store)
            old.close()
            return True

    def _show(self, store: LatentStore, spread: Spread | None = None) -> None:
        """Turn to another version, the passage index with it."""
        with self._opening:
            old, self.store = self.store, store
            try:
                if self._index is None:
                    self.index_and_store(spread)
                else:
                    self._index.follow(old, store, spread)
            except BaseException:
                # Half at one version, half at another: it is opened anew when it is needed.
                self._index = None
                raise
            finally:
                old.close()

    # --- reading --------------------------------------------------------------------------------

    def retrieve(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """The best passages for a question, best first.

        filters: {"lang": "en"} for equality, or an expression made with `lclm_rag.retrieval.field`. What of
        it cannot hold for any passage, such as a misspelt key, is logged as a warning.
        """
        from lclm_rag.asking import retrieve, unmatchable

        hits = [hit for hit, _ in retrieve(self, question, top_k, filters)]
        for sentence in unmatchable(self, filters):
            _log.warning("%s", sentence)
        return hits

    def why_no_passages(self, filters: Filter | Mapping[str, Any] | None = None) -> str:
        """For who got no hits of `retrieve` with these filters: why, in a sentence."""
        from lclm_rag.asking import why_none

        return why_none(self, filters)

    def find(self, filters: Filter | Mapping[str, Any]) -> list[PassageKey]:
        """All passages whose metadata match, in the order of their keys.

        filters: as for `retrieve`. Raises ValueError where there is none.
        """
        from lclm_rag.retrieval import as_filter

        condition = as_filter(filters)
        if condition is None:
            raise ValueError("Say what to find: {'lang': 'en'}, or field('year') >= 2000.")
        return self.index.keys(condition)

    def expand(self, key: PassageKey, before: int = 0, after: int = 0) -> list[Passage]:
        """A passage verbatim, with so many of its neighbours in the document, in reading order.

        Raises KnowledgeBaseError where there is no such passage.
        """
        if before < 0 or after < 0:
            raise ValueError("before and after count passages; they cannot be negative.")
        document_id, ordinal = key
        keys = [
            PassageKey(document_id, i)
            for i in range(max(0, ordinal - before), ordinal + after + 1)
            if i == ordinal or PassageKey(document_id, i) in self.store
        ]
        try:
            return [row.passage for row in self.store.read(keys)]
        except KeyError as error:
            raise KnowledgeBaseError(f"There is no passage {key} in {self.folder}.") from error

    def assemble(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        expand: Expand = "auto",
        space: Space = "decoder",
        max_tokens: int = 256,
    ) -> SoftPrompt:
        """What the decoder would be given first.

        form: "latents"; "text", the same passages pasted; "none", no passages. expand: as for `query`.
        space: "decoder", which every decoder takes; "encoder", as a store in encoder space keeps latents, for
        decoders that have the adapter.
        Raises NoPassagesError where nothing is found, unless the form is "none".
        """
        return self._ask(question, top_k, filters, form, space, max_tokens, expand).prompt

    def assemble_chat(
        self,
        messages: Sequence[ChatMessage],
        passages: Sequence[GivenPassage],
        *,
        question: str = "",
        expand: Expand = "never",
        max_tokens: int = 256,
    ) -> AssembledPrompt:
        """The prompt of a chat in which passages stand that something else has picked, best first.

        messages: (role, words); in one of them stands `lclm_rag.prompting.PASSAGES`, once. passages: those
        of the store go in as latents, others as text; they are taken while they fit into the decoder's
        context, which is loaded here. Give the prompt to `decoder`. expand: as for `stream`; "auto" goes by
        `question`.
        Raises ValueError, ContextLengthError, or KeyError for a key that the store does not hold.
        """
        from lclm_rag.asking import assemble_chat

        space = self.decoder.space
        return assemble_chat(self, messages, passages, question, expand, space, max_tokens)

    def query(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Answer:
        """Retrieve, assemble, decode; and again where passages are to be read word for word.

        expand: which of the passages go in word for word, not as latents. "never"; "always", all of them; a
        number, so many of the best; "auto", the best where the question asks for a code, an id or an exact
        wording, and, where the answer holds strings that its sources do not have (`Answer.grounding`), the
        best three and once more; "model", those that the decoder asks for, in up to three rounds; "tool", the
        same by a tool that it calls. `Answer.rounds` is the transcript.

        Where no passage is found, nothing is decoded: `Answer.no_passages` is true, `Answer.reason` says why.
        form: as for `assemble`; "none" asks the decoder alone.
        """
        from lclm_rag.decoding import all_answered

        decoder = self.decoder
        steps = self.answering(question, top_k, filters, form, expand, sampling)
        sampling = _or_default(sampling)
        step = _step(steps, None)
        while not isinstance(step, Answer):
            (completion,) = all_answered(decoder.complete([step], sampling))
            step = _step(steps, completion)
        return step

    def stream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """As `query`, in pieces of text as they are written; joined, they are its text.

        What is shown cannot be taken back: "auto" goes by the question alone, and does not ask once more;
        "model" and "tool" are refused by ValueError. Where no passage is found there is no piece, and a
        warning in the log says why.
        """
        from lclm_rag.decoding import stripped

        sampling, decoder = _or_default(sampling), self.decoder
        prompt = self._streamed(question, top_k, filters, form, expand, sampling)
        if prompt is not None:
            yield from stripped(decoder.stream(prompt, sampling))

    async def aquery(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Answer:
        """As `query`; the event loop stays free. On vLLM any number of questions is decoded together, and
        cancelling one ends its generation."""
        from lclm_rag.decoding import all_answered

        decoder = await asyncio.to_thread(lambda: self.decoder)
        steps = self.answering(question, top_k, filters, form, expand, sampling)
        sampling = _or_default(sampling)
        step = await asyncio.to_thread(_step, steps, None)
        while not isinstance(step, Answer):
            (completion,) = all_answered(await decoder.acomplete([step], sampling))
            step = await asyncio.to_thread(_step, steps, completion)
        return step

    async def astream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> AsyncIterator[str]:
        """As `stream`; the event loop stays free, and closing it ends the generation."""
        from lclm_rag.decoding import astripped

        sampling = _or_default(sampling)
        decoder = await asyncio.to_thread(lambda: self.decoder)
        prompt = await asyncio.to_thread(
            self._streamed, question, top_k, filters, form, expand, sampling
        )
        if prompt is None:
            return
        async with aclosing(decoder.astream(prompt, sampling)) as pieces:
            async for piece in astripped(pieces):
                yield piece

    def answering(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        form: PassageForm = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Answering:
        """`query` without the decoding: a generator that gives prompts, takes the completion of each, and
        returns the answer. For who decodes many questions together."""
        from lclm_rag.answering import answering
        from lclm_rag.asking import retrieve_some

        return answering(
            self,
            question,
            lambda: retrieve_some(self, question, top_k, filters, form),
            form=form,
            space=self.decoder.space,
            max_tokens=_or_default(sampling).max_tokens,
            expand=expand,
        )

    def _streamed(
        self,
        question: str,
        top_k: int,
        filters: Filter | Mapping[str, Any] | None,
        form: PassageForm,
        expand: Expand,
        sampling: Sampling,
    ) -> SoftPrompt | None:
        """None where no passage is found, which is logged."""
        if expand in ("model", "tool"):
            raise ValueError(
                f"expand={expand!r} takes several rounds, which no stream shows; query."
            )
        space, length = self.decoder.space, sampling.max_tokens
        try:
            return self._ask(question, top_k, filters, form, space, length, expand).prompt
        except NoPassagesError as error:
            _log.warning("%s", error)
            return None

    def _ask(
        self,
        question: str,
        top_k: int,
        filters: Filter | Mapping[str, Any] | None,
        form: PassageForm,
        space: Space,
        max_tokens: int,
        expand: Expand,
    ) -> Asked:
        from lclm_rag.asking import ask, retrieve_some

        def found() -> Found:
            return retrieve_some(self, question, top_k, filters, form)

        return ask(self, question, found, form, space, max_tokens, expand)


def _step(steps: Answering, completion: Completion | None) -> SoftPrompt | Answer:
    """The next prompt, or the answer. completion: of the prompt before."""
    try:
        return next(steps) if completion is None else steps.send(completion)
    except StopIteration as finished:
        answer: Answer = finished.value
        return answer


def _or_default(sampling: Sampling | None) -> Sampling:
    from lclm_rag.decoding import Sampling

    return sampling or Sampling()
