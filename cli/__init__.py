"""The command line, `lclm-rag`. Only the commands that need models and engines import them."""

from lclm_rag.cli.interrupts import watch_imports

watch_imports()

from lclm_rag.cli.main import cli, main  # noqa: E402

__all__ = ["cli", "main"]
