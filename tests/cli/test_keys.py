"""lclm-rag keys: who may ask a service, as a person at a shell says it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from lclm_rag.serving.keys import ApiKeys
from support.commands import Run


def test_add_list_and_remove(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    code, out, err = run("keys", "add", "--file", file, "--name", "alice", "--write")
    alice = out.strip()
    assert code == 0
    assert out == f"{alice}\n"
    assert "shown only now" in err
    assert alice not in err
    scope = ("--kb", "manuals", "--kb", "wiki", "--filter", "team=legal", "--filter", "year>=2020")
    code, out, _ = run("keys", "add", "--file", file, "--name", "bob", *scope)
    bob = out.strip()
    assert code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert alice not in file.read_text()
    assert bob not in file.read_text()

    keys = ApiKeys.load(file)
    found = keys.find(bob)
    assert found is not None
    assert (found.name, found.bases, found.write) == ("bob", frozenset({"manuals", "wiki"}), False)
    found = keys.find(alice)
    assert found is not None
    assert (found.bases, found.write, found.filters) == (None, True, None)

    code, out, _ = run("keys", "list", "--file", file)
    assert (code, out.splitlines()) == (
        0,
        [
            "alice  asks and writes all knowledge bases",
            "bob  asks manuals, wiki, where team=legal and year>=2020",
        ],
    )
    listed = json.loads(run("keys", "list", "--file", file, "--json")[1])
    assert [key["name"] for key in listed] == ["alice", "bob"]
    assert listed[1]["filters"] == ["team=legal", "year>=2020"]

    code, out, _ = run("keys", "remove", "--file", file, "--name", "alice")
    assert (code, out) == (0, "Removed the key of alice.\n")
    assert ApiKeys.load(file).find(alice) is None
    assert ApiKeys.load(file).find(bob) is not None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "--name", "bob"), 1, "has a key named bob already; remove it first"),
        (("add", "--name", "a b"), 2, "--name: The name 'a b' may hold letters, digits"),
        (("add", "--name", "x", "--kb", "s3://b/kb"), 2, "--kb: The name 's3://b/kb' may hold"),
        (("add", "--name", "x", "--filter", "team"), 2, "The filter 'team' cannot be read"),
        (("add", "--name", "x", "--filter", "a=b", "--write"), 2, "exclude each other"),
        (("remove", "--name", "carol"), 1, "has no key named 'carol'; lclm-rag keys list"),
    ],
)
def test_an_error_is_one_sentence_and_changes_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    file = tmp_path / "keys.json"
    assert run("keys", "add", "--file", file, "--name", "bob")[0] == 0
    before = file.read_text()
    found, out, err = run("keys", arguments[0], "--file", file, *arguments[1:])
    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]
    assert file.read_text() == before


def test_a_file_that_is_not_there_has_no_keys_to_list(run: Run, tmp_path: Path) -> None:
    code, out, err = run("keys", "list", "--file", tmp_path / "none.json")
    assert (code, out) == (1, "")
    assert "none.json" in err


@pytest.mark.parametrize("command", ["add", "list", "remove"])
def test_every_command_helps_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run("keys", command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"lclm-rag keys {command}" in out
