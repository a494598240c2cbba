"""mcp: serve a knowledge base to agents."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import click

from lclm_rag.cli.config_file import from_file
from lclm_rag.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED
from lclm_rag.cli.formatting import say
from lclm_rag.cli.options import decoder_options, frame_option, kb_option, sampling_options
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["mcp"]


@click.command()
@kb_option
@click.option(
    "--name",
    help="What clients call the server.  [default: the name of the knowledge base's folder]",
)
@click.option(
    "--description",
    default="",
    metavar="SENTENCE",
    help="What the documents are, for agents that choose among several servers.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1, 64),
    default=from_file("top_k", DEFAULT_TOP_K),
    help=f"Passages to retrieve, if the client does not say.  [default: {DEFAULT_TOP_K}]",
)
@click.option(
    "--http",
    "port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve over HTTP on 127.0.0.1, at /mcp.  [default: over stdin and stdout]",
)
@frame_option
@sampling_options
@decoder_options
def mcp(
    kb: str,
    name: str | None,
    description: str,
    top_k: int,
    port: int | None,
    frame: Any,
    decoder: str,
    decoder_options: dict[str, Any],
    device: str,
    dtype: str,
    **sampling: Any,
) -> None:
    """Serve a knowledge base to agents over MCP: the tools search, ask, expand and fields.

    The client starts and stops the command, which follows new versions of the knowledge base. It needs
    pip install 'lclm-rag[mcp]'.

    \b
    Examples:
      lclm-rag mcp --kb kb/ --name minutes --description "Minutes of the board, 2010 to 2026"
      lclm-rag mcp --kb kb/ --decoder http://localhost:8000/v1 --top-k 4
      lclm-rag mcp --kb kb/ --http 8765
    What a client's configuration needs:
      {"mcpServers": {"notes": {"command": "lclm-rag", "args": ["mcp", "--kb", "/path/to/kb"]}}}
    """
    from lclm_rag.connectors.mcp import mcp_server, serve_http
    from lclm_rag.decoding import Sampling
    from lclm_rag.knowledge_base import KnowledgeBase

    # MCP's SDK logs what reaches the root logger, but our log already goes to stderr.
    logging.getLogger("lclm_rag").propagate = False
    with KnowledgeBase.open(
        kb,
        frame=frame,
        decoder=decoder,
        decoder_options=decoder_options,
        device=device,
        dtype=dtype,
    ) as knowledge_base:
        knowledge_base.index  # noqa: B018  If another process uses it, fail now, not in a tool call.
        server = mcp_server(
            knowledge_base,
            name=name,
            description=description,
            top_k=top_k,
            sampling=Sampling(**sampling),
        )
        try:
            if port is None:
                _in_a_thread(lambda: server.run("stdio"))
            else:
                say(f"Serving at http://127.0.0.1:{port}/mcp", err=True)
                _in_a_thread(lambda: serve_http(server, port))
        except (KeyboardInterrupt, SystemExit) as end:
            knowledge_base.close()
            _leave(end)


def _in_a_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread and wait for it: a signal can end the wait, but not a read of stdin."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _leave(end: KeyboardInterrupt | SystemExit) -> NoReturn:
    """Exit at once: Python itself would wait for an answer that another thread is still writing."""
    if isinstance(end, SystemExit):
        # The HTTP server exits with its own code if the port is taken, and has then printed the reason.
        os._exit(EXIT_TERMINATED if end.code == EXIT_TERMINATED else EXIT_FAILED)
    say("Interrupted.", err=True)
    os._exit(EXIT_INTERRUPTED)
