"""versions, compact, convert, vacuum, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_FAILED, EXIT_IN_PART
from lclm_rag.cli.options import CODEC, as_json, kb_option, wait_option

if TYPE_CHECKING:
    from lclm_rag.store import Vacuumed
    from lclm_rag.verify import Findings

__all__ = ["compact", "convert", "vacuum", "verify", "versions"]

_LISTED = 20


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, fed with what is done and what there is."""
    from lclm_rag.cli.progress import progress_bar

    with progress_bar() as progress:
        task = progress.add_task(description, total=None, note="")
        yield lambda done, total: progress.update(task, completed=done, total=total)


@click.command()
@kb_option
@as_json
def versions(kb: str, as_json: bool) -> None:
    """List the versions of a knowledge base, oldest first.

    Every add, sync, delete, compact and convert makes one. An earlier one can be asked as it was:
    lclm-rag query --version N. vacuum removes those that are not needed any more.

    \b
    Example:
      lclm-rag versions --kb kb/
    """
    from lclm_rag.config import read_settings
    from lclm_rag.storage import open_folder
    from lclm_rag.store import read_versions

    folder = open_folder(kb)
    read_settings(folder)
    found = [
        {
            "version": m.version,
            "created": m.created,
            "operation": m.operation,
            **asdict(m.totals),
            "codec": m.layout.codec,
            "fragments": len(m.fragments),
            "bytes": m.bytes,
        }
        for m in read_versions(folder / "store")
    ]
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{'version':>7}  {'made (UTC)':23}  {'by':8}{'documents':>11}{'passages':>12}{'MB':>12}"
    )
    for v in found:
        made = str(v["created"])[:23].replace("T", " ")
        click.echo(
            f"{v['version']:>7}  {made:23}  {v['operation']:8}{v['documents']:>11,}{v['passages']:>12,}"
            f"{_megabytes(v['bytes']):>12}"
        )


@click.command()
@kb_option
@click.option(
    "--keep-versions",
    is_flag=True,
    help="Leave earlier versions, and the disk that they take, to a later vacuum.",
)
@wait_option
@as_json
def compact(kb: str, keep_versions: bool, wait: float, as_json: bool) -> None:
    """Merge small fragments, drop deleted passages, and free their disk.

    Fragments are written anew where they are small, or a tenth of them is deleted. Questions are answered
    meanwhile. Then versions that nobody has open are removed, as by vacuum.

    \b
    Example:
      lclm-rag compact --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        before = len(knowledge_base.store.manifest.fragments)
        with _bar("compacting") as on_row:
            knowledge_base.compact(on_row=on_row)
        vacuumed = None if keep_versions else knowledge_base.vacuum()
        manifest = knowledge_base.store.manifest
    if as_json:
        freed = vacuumed.bytes if vacuumed else 0
        facts = {"version": manifest.version, "fragments": len(manifest.fragments), "freed": freed}
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"{kb}: {before} fragments became {len(manifest.fragments)}, version {manifest.version}."
        )
        if vacuumed:
            _say_vacuumed(kb, vacuumed)


@click.command()
@kb_option
@click.option("--codec", type=click.Choice(CODEC), required=True, help="How latents are stored.")
@wait_option
@as_json
def convert(kb: str, codec: Any, wait: float, as_json: bool) -> None:
    """Store the latents in another codec, without the encoder.

    It makes one new version; the earlier ones keep theirs until vacuum. What a smaller codec has lost does
    not come back with a larger one.

    \b
    Example:
      lclm-rag convert --kb kb/ --codec int8
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        old = knowledge_base.store.manifest
        with _bar("converting") as on_row:
            knowledge_base.convert(codec, on_row=on_row)
        new = knowledge_base.store.manifest
    if as_json:
        click.echo(json.dumps({"version": new.version, "codec": codec, "bytes": new.bytes}))
    else:
        click.echo(
            f"{kb}: {old.layout.codec} became {codec}, {_megabytes(old.bytes)} MB became "
            f"{_megabytes(new.bytes)} MB. Version {old.version} is there until lclm-rag vacuum."
        )


@click.command()
@kb_option
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="So many of the newest versions stay.",
)
@wait_option
@as_json
def vacuum(kb: str, keep: int, wait: float, as_json: bool) -> None:
    """Free the disk that earlier versions and killed runs take.

    Versions that a process has open stay. What a killed build had finished goes as well: run the build again
    first, if it is to go on from there.

    \b
    Example:
      lclm-rag vacuum --kb kb/ --keep 3
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        vacuumed = knowledge_base.vacuum(keep=keep)
    if as_json:
        click.echo(json.dumps(asdict(vacuumed)))
    else:
        _say_vacuumed(kb, vacuumed)


@click.command()
@kb_option
@click.option("--repair", is_flag=True, help="Make room for adding what is damaged again.")
@wait_option
@as_json
def verify(kb: str, repair: bool, wait: float, as_json: bool) -> int:
    """Read every byte of a knowledge base and say what is not as it was written.

    With --repair the damaged documents are left out of a new version and listed: lclm-rag add heals them, and
    compresses nothing but them. A damaged passage index is made anew. Exit code 1 where something is wrong, 3
    where it was repaired but for documents to be added again.

    \b
    Examples:
      lclm-rag verify --kb kb/
      lclm-rag verify --kb kb/ --repair
    """
    from lclm_rag.verify import verify as check

    with _bar("verifying") as on_bytes:
        findings = check(kb, repair=repair, wait=wait, on_bytes=on_bytes)
    if as_json:
        click.echo(json.dumps(asdict(findings)))
    else:
        _print_findings(kb, findings)
    if not findings.problems:
        return 0
    if not repair:
        return EXIT_FAILED
    return EXIT_IN_PART if findings.damaged_documents or findings.nameless_passages else 0


def _print_findings(kb: str, findings: Findings) -> None:
    for problem in findings.problems:
        click.echo(problem)
    if findings.damaged_documents:
        click.echo(f"Damaged documents ({len(findings.damaged_documents):,}):")
        for document_id in findings.damaged_documents:
            click.echo(f"  {document_id}")
    if findings.nameless_passages:
        click.echo(f"Damaged passages of unknown documents: {findings.nameless_passages:,}")
    for sentence in findings.earlier:
        click.echo(f"Before the last repair: {sentence}")
    for sentence in findings.repaired:
        click.echo(f"Repaired: {sentence}")
    click.echo(
        f"{kb}: version {findings.version}, {findings.documents:,} documents, "
        f"{findings.passages:,} passages, {_megabytes(findings.bytes)} MB: "
        + (
            f"{len(findings.problems)} problems."
            if findings.problems
            else "all is as it was written."
        )
    )
    if findings.reclaimable_bytes:
        click.echo(
            f"Killed runs left {_megabytes(findings.reclaimable_bytes)} MB: the same command goes on from "
            "there, lclm-rag vacuum removes it."
        )


def _say_vacuumed(kb: str, vacuumed: Vacuumed) -> None:
    kept = ", ".join(map(str, vacuumed.kept[-_LISTED:]))
    click.echo(
        f"{kb}: {len(vacuumed.removed)} versions removed, {_megabytes(vacuumed.bytes)} MB freed; kept: "
        f"{kept}."
    )
    if "://" in kb and len(vacuumed.kept) > 1:
        click.echo("In an object store versions stay for a day after they were superseded.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
