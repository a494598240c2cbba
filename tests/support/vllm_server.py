"""A real `vllm serve` on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["misleading_decoder", "vllm_server"]


def misleading_decoder(decoder: Path, folder: Path) -> Path:
    """A decoder whose generation config asks for other sampling than any request of ours.

    A server takes from it whatever a request leaves out.

    Args:
        decoder: The decoder's folder.
        folder: The folder to make, with links to the decoder's files.

    Returns:
        The folder made.
    """
    folder.mkdir()
    for file in decoder.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((decoder / "generation_config.json").read_text())
    config |= {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "min_p": 1.0}
    config |= {"repetition_penalty": 1.9, "presence_penalty": 2.0, "frequency_penalty": 2.0}
    config |= {"max_new_tokens": 2}
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def vllm_server(decoder: Path, log: Path) -> Iterator[str]:
    """Serve a decoder as the documentation starts it.

    Args:
        decoder: Its folder.
        log: The file that takes what the server prints.

    Yields:
        The URL, up to `/v1`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("vllm"), "serve", decoder]
    command += ["--enable-prompt-embeds", "--enable-prompt-tokens-details"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    command += ["--dtype", "float32", "--block-size", "32", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(2**28)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: int = 300) -> None:
    for _ in range(seconds):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, f"vllm serve ended:\n{log.read_text()[-3000:]}"
            time.sleep(1)
        else:
            return
    raise AssertionError(f"vllm serve did not answer:\n{log.read_text()[-3000:]}")
