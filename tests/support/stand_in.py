"""A stand-in for a vLLM server: it writes one token after another, and knows what it is still asked for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lclm_rag.checkpoint import Checkpoint

__all__ = ["StandIn", "stand_in"]

_PAUSE = 0.005
"""Seconds between two tokens."""


class StandIn:
    """The server, as a test sees it.

    Attributes:
        url: Its URL, up to `/v1`.
        open: How many requests it is answering; one is over when the client has hung up.
        refused: First token ids of prompts that it answers with the status 500.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.open = 0
        self.refused: set[int] = set()
        self._counting = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._counting:
            self.open += 1
        try:
            yield
        finally:
            with self._counting:
                self.open -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Clients hang up here."""


@contextmanager
def stand_in(checkpoint: Checkpoint) -> Iterator[StandIn]:
    """Run the stand-in. It answers prompts without latents with an x for each of `max_tokens`."""
    token = checkpoint.decoder_tokenizer.encode("x").ids[0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            models = {"data": [{"id": "m", "object": "model", "max_model_len": 16384}]}
            self._send(200, models)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.counted():
                if asked["prompt"][0] in server.refused:
                    self._send(500, {"error": {"message": "out of luck"}})
                else:
                    self._answer(asked)

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _answer(self, asked: dict[str, Any]) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            length, prompt = asked["max_tokens"], len(asked["prompt"])
            for number in range(length):
                reason = "length" if number == length - 1 else None
                choice = {"index": 0, "text": "x", "token_ids": [token], "finish_reason": reason}
                self._chunk({"choices": [choice]})
                time.sleep(_PAUSE)
            usage = {"prompt_tokens": prompt, "completion_tokens": length}
            self._chunk({"choices": [], "usage": {**usage, "total_tokens": prompt + length}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _chunk(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    with _Server(("127.0.0.1", 0), Handler) as http:
        server = StandIn(http.server_port)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
