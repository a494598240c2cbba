"""serve: answer questions over HTTP, as OpenAI's clients ask them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.config_file import from_file
from lclm_rag.cli.formatting import say
from lclm_rag.cli.options import decoder_options, frame_option, order_option

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["serve"]


@click.command()
@click.option(
    "--kb",
    "kbs",
    multiple=True,
    metavar="[NAME=]LOCATION",
    help="A knowledge base: its folder or its URL such as s3://bucket/kb. Clients ask for it by the name, as "
    "for a model; without one, by the last part of the location. May be repeated.  [env: LCLM_RAG_KB]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to serve at. Any but this machine's own needs --api-keys, or --no-auth.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option(
    "--api-keys",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The file of API keys, as lclm-rag keys makes it; changes are seen without a restart.  "
    "[default: no key is needed]",
)
@click.option(
    "--no-auth", is_flag=True, help="Serve other machines without keys: everybody there may ask."
)
@click.option(
    "--writable", is_flag=True, help="Documents may be added and deleted.  [default: only read]"
)
@click.option(
    "--cors",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Another origin whose pages may ask, such as https://intranet.example. May be repeated.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name under which the service is reached, besides localhost and addresses; * for all. May be "
    "repeated.",
)
@click.option(
    "--rerank",
    "reranker",
    metavar="MODEL",
    help='A cross-encoder (sentence-transformers), by name or folder, for requests with "rerank": true.',
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most questions that are answered or wait at the same time; more get status 429.  [default: 256]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most tokens of an answer that a client may ask for.  [default: 4096]",
)
@click.option(
    "--max-top-k",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most passages that a client may ask for.  [default: 64]",
)
@click.option(
    "--max-upload-mb",
    type=click.IntRange(min=1),
    metavar="N",
    help="Largest document that may be uploaded, in MiB.  [default: 64]",
)
@click.option(
    "--convert-seconds",
    type=click.IntRange(1, 1 << 20),
    metavar="SECONDS",
    help="Most time for converting an uploaded HTML, PDF or DOCX file.  [default: 120]",
)
@click.option(
    "--convert-memory",
    type=click.IntRange(1, 1 << 20),
    metavar="MiB",
    help="Most memory for converting it (on Linux).  [default: 1024]",
)
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long answers may go on after SIGTERM or Ctrl-C.",
)
@frame_option
@order_option
@decoder_options
def serve(
    kbs: tuple[str, ...],
    host: str,
    port: int,
    key_file: Path | None,
    no_auth: bool,
    writable: bool,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    reranker: str | None,
    max_in_flight: int | None,
    max_tokens: int | None,
    max_top_k: int | None,
    max_upload_mb: int | None,
    convert_seconds: int | None,
    convert_memory: int | None,
    grace: int,
    **options: Any,
) -> None:
    """Serve knowledge bases over HTTP, as models of an OpenAI-compatible endpoint.

    Each answer names the passages that it rests on. A browser shows a page at /. Writes of other processes
    are served within a second. SIGTERM and Ctrl-C let running answers finish. /healthz, /readyz and /metrics
    are for machines, and stderr has a line of JSON for each request, without text of questions or documents.
    It needs pip install 'lclm-rag[serve]'.

    \b
    Examples:
      lclm-rag serve --kb kb/
      lclm-rag serve --kb manuals=kb/ --kb wiki=s3://bucket/kb --decoder vllm --port 8000
      lclm-rag keys add --file keys.json --name alice
      lclm-rag serve --kb kb/ --host 0.0.0.0 --api-keys keys.json --allow-host rag.example.org
    """
    try:
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Serving needs uvicorn, which is not there: pip install 'lclm-rag[serve]'"
        ) from error
    from lclm_rag.serving import Limits, create_app, open_bases, tracing
    from lclm_rag.serving.bases import close_bases
    from lclm_rag.serving.guards import is_loopback
    from lclm_rag.serving.keys import ApiKeys

    locations = _locations(kbs)
    if no_auth and key_file is not None:
        raise click.UsageError("--no-auth and --api-keys exclude each other.")
    if not (is_loopback(host) or key_file or no_auth):
        raise click.UsageError(
            f"Other machines can reach {host}: name the keys that may ask with --api-keys, or say "
            "--no-auth if everybody may."
        )
    given: dict[str, int | None] = {
        "in_flight": max_in_flight,
        "max_tokens": max_tokens,
        "top_k": max_top_k,
        "upload": None if max_upload_mb is None else max_upload_mb * 2**20,
        "convert_seconds": convert_seconds,
        "convert_memory": None if convert_memory is None else convert_memory * 2**20,
    }
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    keys = None if key_file is None else ApiKeys.load(key_file)
    # Before models are loaded: a taken port must not cost a minute.
    with _bound(host, port) as listening:
        bases = open_bases(locations, reranker, **options)
        end_of_spans = tracing.export()
        try:
            app = create_app(
                bases,
                keys=keys,
                writable=writable,
                limits=limits,
                hosts=("localhost", host, *hosts),
                origins=origins,
                reranker=reranker,
            )
            _run(app, listening, host, list(bases), grace, needs_key=keys is not None)
        finally:
            close_bases(bases)
            if end_of_spans is not None:
                end_of_spans()


def _locations(kbs: Sequence[str]) -> dict[str, str]:
    """The location of each knowledge base by its name."""
    from lclm_rag.serving.keys import check_name

    kbs = kbs or [kb for kb in (os.environ.get("LCLM_RAG_KB") or from_file("kb")(),) if kb]
    if not kbs:
        raise click.UsageError("Name the knowledge bases to serve with --kb.")
    found: dict[str, str] = {}
    for kb in kbs:
        name, equals, location = kb.partition("=")
        if not equals or "/" in name:
            location = kb
            name = kb.rstrip("/").rpartition("/")[2] if "://" in kb else Path(kb).resolve().name
        if not location:
            raise click.BadParameter(f"{kb!r} lacks a folder or a URL.", param_hint="--kb")
        try:
            check_name(name)
        except ValueError as error:
            raise click.BadParameter(
                f"{error} Give {location!r} one: NAME={location}", param_hint="--kb"
            ) from error
        if name in found:
            raise click.BadParameter(
                f"Two knowledge bases are named {name!r}; give one another name: NAME={location}",
                param_hint="--kb",
            )
        found[name] = location
    return found


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has its address, and does not listen yet."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.ClickException(
            f"Port {port} of {host} cannot be served: {reason}; choose others with --port and --host."
        ) from error
    return bound


def _run(
    app: FastAPI,
    listening: socket.socket,
    host: str,
    names: list[str],
    grace: int,
    *,
    needs_key: bool,
) -> None:
    """Serve until a signal comes, which is then raised again."""
    import uvicorn

    class Server(uvicorn.Server):
        """Says when it is there, and is not ready as soon as a signal has come."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                port = listening.getsockname()[1]
                _announce(host, port, names, needs_key=needs_key)

        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.readiness.begin_to_close()
            super().handle_exit(sig, frame)

    # A request that is ended because its time is over is no failure to be reported.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: (
            not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
        )
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        # What a proxy says of a client's address is believed nowhere.
        proxy_headers=False,
        # Longer than clients and proxies keep an idle connection (httpx 5 seconds, nginx 60), so that none
        # sends a request into one that is being closed here.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=grace,
    )
    server = Server(config)
    server.run(sockets=[listening])
    if not server.started:
        raise click.ClickException("The service did not start; the lines above say why.")


def _announce(host: str, port: int, names: list[str], *, needs_key: bool) -> None:
    place = f"[{host}]" if ":" in host else host
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, place)
    body = {"model": names[0], "messages": [{"role": "user", "content": "Your question?"}]}
    header = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    say(f"Serving {', '.join(names)} at http://{place}:{port}/v1", err=True)
    say(f"Page: http://{here}:{port}/", err=True)
    say(
        f"Ask:  curl http://{here}:{port}/v1/chat/completions{header} "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        err=True,
    )
