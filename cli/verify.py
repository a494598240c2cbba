"""verify: read every byte of a knowledge base."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lclm_rag.cli.exit_codes import EXIT_FAILED, EXIT_IN_PART
from lclm_rag.cli.formatting import megabytes, one_line, say, say_json
from lclm_rag.cli.options import as_json, kb_option, wait_option

if TYPE_CHECKING:
    from lclm_rag.verify import Findings

__all__ = ["verify"]


@click.command()
@kb_option
@click.option(
    "--repair",
    is_flag=True,
    help="Leave damaged documents out of a new version, so that they can be added again.",
)
@wait_option
@as_json
def verify(kb: str, repair: bool, wait: float, as_json: bool) -> int:
    """Read every byte of a knowledge base and report damage.

    With --repair the damaged documents are listed and left out of a new version. To restore them, run
    lclm-rag add, which compresses nothing but them. A damaged passage index is rebuilt. The exit code is 1 if
    something is wrong, and 3 if it was repaired except for documents that have to be added again.

    \b
    Examples:
      lclm-rag verify --kb kb/
      lclm-rag verify --kb kb/ --repair
    """
    from lclm_rag.cli.progress import counting_bar
    from lclm_rag.verify import verify as check

    with counting_bar("verifying") as on_bytes:
        findings = check(kb, repair=repair, wait=wait, on_bytes=on_bytes)
    if as_json:
        say_json(asdict(findings))
    else:
        _print_findings(kb, findings)
    if not findings.problems:
        return 0
    if not repair:
        return EXIT_FAILED
    return EXIT_IN_PART if findings.damaged_documents or findings.nameless_passages else 0


def _print_findings(kb: str, findings: Findings) -> None:
    for problem in findings.problems:
        say(problem)
    if findings.damaged_documents:
        say(f"Damaged documents ({len(findings.damaged_documents):,}):")
        for document_id in findings.damaged_documents:
            say(f"  {one_line(document_id)}")
    if findings.nameless_passages:
        say(f"Damaged passages of unknown documents: {findings.nameless_passages:,}")
    for sentence in findings.earlier:
        say(f"Before the last repair: {sentence}")
    for sentence in findings.repaired:
        say(f"Repaired: {sentence}")
    say(
        f"{kb}: version {findings.version}, {findings.documents:,} documents, "
        f"{findings.passages:,} passages, {megabytes(findings.bytes)} MB: "
        + (
            f"{len(findings.problems)} problems."
            if findings.problems
            else "all is as it was written."
        )
    )
    if findings.reclaimable_bytes:
        say(
            f"Killed runs left {megabytes(findings.reclaimable_bytes)} MB: running the same command again "
            "continues from there, and lclm-rag vacuum removes it."
        )
