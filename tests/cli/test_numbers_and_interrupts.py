"""Numbers that are none are wrong usage, and Ctrl-C before a command runs is no traceback."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from lclm_rag.cli import cli


def options_with_decimals() -> list[tuple[str, str]]:
    found = []
    for name, command in sorted(cli.commands.items()):
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.type, click.FloatRange):
                found.append((name, option.opts[0]))
    return found


@pytest.mark.parametrize(("command", "option"), options_with_decimals())
def test_no_option_takes_infinity_or_nan(command: str, option: str) -> None:
    parsed = cli.commands[command]
    for value in ("nan", "inf", "1e999", "-nan"):
        done = CliRunner().invoke(parsed, [option, value])
        assert done.exit_code == 2
        assert option in done.output


def test_no_option_takes_any_decimal_number() -> None:
    for command in cli.commands.values():
        for option in command.params:
            assert option.type is not click.FLOAT, option.name


AT_IMPORT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *more):
        if name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, getattr(signal, sys.argv[2]))
sys.argv[0] = sys.argv[1]
sys.orig_argv = ["python", "-m", "lclm_rag.cli"]
sys.meta_path.insert(0, Interrupt())
from lclm_rag.cli import main
assert sys.argv[2] == "SIG_IGN" or signal.getsignal(signal.SIGINT) != signal.default_int_handler
sys.argv[1:] = ["--version"]
main()
"""


def interrupted(
    name: str, handler: str = "default_int_handler", at: str = "lclm_rag.cli.doctor"
) -> tuple[int, str]:
    command = [sys.executable, "-c", AT_IMPORT, name, handler, at]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_ctrl_c_while_python_imports_is_no_traceback() -> None:
    for name in ("/usr/bin/lclm-rag", "-m"):
        assert interrupted(name) == (130, "Interrupted.\n")
    assert interrupted("lclm-rag", at="lclm_rag.types") == (130, "Interrupted.\n")


def test_a_program_that_imports_the_command_line_is_interrupted_as_ever() -> None:
    _, said = interrupted("program.py")
    assert said.endswith("KeyboardInterrupt\n")


def test_a_command_that_is_to_ignore_ctrl_c_ignores_it_from_the_start() -> None:
    assert interrupted("lclm-rag", "SIG_IGN") == (0, "")
