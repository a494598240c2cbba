"""`python -m lclm_rag.cli`."""

from lclm_rag.cli.main import main

main()
