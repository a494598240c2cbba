"""The group of commands, and how their errors are reported."""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lclm_rag import __version__
from lclm_rag.cli.add import add
from lclm_rag.cli.build import build
from lclm_rag.cli.chat import chat
from lclm_rag.cli.compact import compact
from lclm_rag.cli.completion import completion
from lclm_rag.cli.convert import convert
from lclm_rag.cli.delete import delete
from lclm_rag.cli.demo import demo
from lclm_rag.cli.doctor import doctor
from lclm_rag.cli.estimate import estimate
from lclm_rag.cli.eval import evaluate
from lclm_rag.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOCKED, EXIT_TERMINATED
from lclm_rag.cli.formatting import say
from lclm_rag.cli.generate import generate
from lclm_rag.cli.help import help_
from lclm_rag.cli.info import info
from lclm_rag.cli.keys import keys
from lclm_rag.cli.ls import ls
from lclm_rag.cli.mcp import mcp
from lclm_rag.cli.query import query
from lclm_rag.cli.reindex import reindex
from lclm_rag.cli.search import search
from lclm_rag.cli.serve import serve
from lclm_rag.cli.show import show
from lclm_rag.cli.sync import sync
from lclm_rag.cli.train import train
from lclm_rag.cli.vacuum import vacuum
from lclm_rag.cli.verify import verify
from lclm_rag.cli.versions import versions
from lclm_rag.errors import LclmRagError, LockedError
from lclm_rag.interrupts import imports_are_done

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="lclm-rag")
def cli() -> None:
    """Compress documents once, then ask questions of their latents.

    \b
    A first look, with the small checkpoint that is bundled:
      lclm-rag demo
    Your own documents:
      lclm-rag build notes/ --kb kb/ --checkpoint latent-context/0.6b-4b-LCLM-16x
      lclm-rag query --kb kb/ "Who signed the contract?"

    Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage,
    3 done in part (what was skipped is listed) or no passages found to answer from, 4 locked by another
    process, 130 interrupted, 143 terminated. LCLM_RAG_OFFLINE=1 is --offline.

    \b
    What is not given is looked up, in this order:
      LCLM_RAG_KB      the knowledge base
      lclm-rag.toml    in the current folder or the first one above it that has one; its paths are relative
                       to it, and its keys are kb, decoder, checkpoint, top_k
    """
    logger = logging.getLogger("lclm_rag")
    if not logger.handlers:
        logger.addHandler(_ToStderr())
        logger.setLevel(logging.INFO)


class _ToStderr(logging.Handler):
    """Writes log lines to whatever stderr is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(record.getMessage(), err=True)
        except OSError:
            # A full disk or a closed terminal: what is logged about work must not end the work.
            self.handleError(record)


def _go_offline(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        from lclm_rag.offline import go_offline

        go_offline()


def _with_offline(command: click.Command) -> None:
    """Give a command, and those below it, --offline: it comes before libraries are imported."""
    option = click.Option(
        ["--offline"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_go_offline,
        help="Contact nobody: no hub, no server, no object store.  [env: LCLM_RAG_OFFLINE]",
    )
    command.params.append(option)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _with_offline(below)


for command in (
    *(build, add, sync, delete, query, search, show, ls, chat, generate, mcp, serve, keys),
    *(
        info,
        versions,
        verify,
        compact,
        convert,
        reindex,
        vacuum,
        estimate,
        evaluate,
        train,
        demo,
        doctor,
        completion,
        help_,
    ),
):
    cli.add_command(command)
_with_offline(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: the entry point of `lclm-rag`.

    Errors that a person can act on are printed as one line, unless LCLM_RAG_DEBUG is set.

    Args:
        arguments: The arguments; None for those of the process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    # SIGTERM must also end vLLM's processes, so it becomes an ordinary exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    sys.excepthook = _say_traceback
    try:
        imports_are_done()
        code = _run(arguments)
    except KeyboardInterrupt:  # Right before or after the command.
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _with_kb_named(error: click.ClickException, arguments: Sequence[str]) -> click.ClickException:
    """The error as it is, or what to write if a knowledge base stands where no command takes it."""
    match error:
        case click.BadParameter(param=click.Argument(), ctx=click.Context() as context):
            pass  # It has pushed another argument out of its place.
        case click.UsageError(ctx=click.Context() as context) if type(error) is click.UsageError:
            pass  # There is no --kb, or an argument too many.
        case _:
            return error
    takes = {name for param in context.command.params for name in param.opts}
    path, rest = context.command_path.split(), list(arguments)
    for word in path[1:]:
        rest.remove(word)
    given = [each for each in rest if each == "--kb" or each.startswith("--kb=")]
    bases = [each for each in rest if _is_knowledge_base(each)]
    if "--kb" not in takes or given or not bases:
        return error
    rest.remove(bases[0])
    meant = shlex.join([*path, "--kb", bases[0], *rest])
    return click.UsageError(f"{bases[0]} is a knowledge base, which --kb names: {meant}", context)


def _is_knowledge_base(argument: str) -> bool:
    from lclm_rag.config import SETTINGS

    if argument.startswith(("s3://", "gs://")):
        return True
    try:
        return (Path(argument) / SETTINGS).is_file()
    except (OSError, ValueError):
        return False


def _say_traceback(*error: Any) -> None:
    """A message may quote whatever was read."""
    say("".join(traceback.format_exception(*error)), err=True, nl=False)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="lclm-rag", standalone_mode=False)
    except click.ClickException as error:
        error = _with_kb_named(error, sys.argv[1:] if arguments is None else arguments)
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue(), err=True, nl=False)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted.", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, say) has seen enough; keep Python from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (LclmRagError, ValueError, OSError, ImportError) as error:
        if os.environ.get("LCLM_RAG_DEBUG"):
            raise
        say(f"Error: {error}", err=True)
        return EXIT_LOCKED if isinstance(error, LockedError) else EXIT_FAILED
    return result if isinstance(result, int) else 0
