"""Who asks, and which knowledge base: what every route needs first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from lclm_rag.retrieval import Filter
from lclm_rag.serving.bases import ServedBase
from lclm_rag.serving.errors import RequestError
from lclm_rag.serving.keys import ApiKey, ApiKeys

__all__ = ["Access"]


@dataclass(frozen=True)
class Access:
    """The knowledge bases, and who may use them.

    Attributes:
        bases: The knowledge bases by name.
        keys: The API keys; None if everybody may ask.
        writable: Whether documents may be changed at all.
    """

    bases: Mapping[str, ServedBase]
    keys: ApiKeys | None
    writable: bool

    def key(self, request: Request) -> ApiKey | None:
        """The key of a request; None if the service needs none.

        Raises:
            RequestError: 401, when there is no key or an unknown one.
        """
        if self.keys is None:
            return None
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        found = self.keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise RequestError(
                401,
                "A valid API key is needed: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        request.state.key = found.name
        return found

    def visible(self, request: Request) -> list[ServedBase]:
        """The knowledge bases that a request may ask."""
        key = self.key(request)
        return [base for base in self.bases.values() if key is None or key.may_ask(base.name)]

    def may_write(self, request: Request) -> bool:
        """Whether a request may change documents.

        Raises:
            RequestError: 401, as for `key`.
        """
        key = self.key(request)
        # A key that is bound by a filter could replace documents that it must not see.
        return self.writable and (key is None or (key.write and key.filters is None))

    def bound(self, request: Request) -> Filter | None:
        """The filter that a request is bound by; None for no filter.

        Raises:
            RequestError: 401, as for `key`.
        """
        key = self.key(request)
        return None if key is None else key.filters

    def base(
        self, request: Request, name: str | None, *, write: bool = False
    ) -> tuple[ServedBase, Filter | None]:
        """The knowledge base that a request names, and the filter that the request is bound by.

        Args:
            request: The request.
            name: The knowledge base's name; None for the only one.
            write: Whether the request changes documents.

        Returns:
            The knowledge base, and the filter; None for no filter.

        Raises:
            RequestError: 401 or 403, when the request is not allowed; 404, when there is no such knowledge
                base, or none that the key may ask.
        """
        visible = self.visible(request)
        if name is None and len(visible) == 1:
            name = visible[0].name
        found = next((base for base in visible if base.name == name), None)
        if found is None:
            names = ", ".join(base.name for base in visible) or "none"
            what = (
                "Name a knowledge base" if name is None else f"There is no knowledge base {name!r}"
            )
            raise RequestError(
                404, f"{what}; there are: {names}.", code="model_not_found", param="model"
            )
        request.state.base = found.name
        if write:
            if not self.writable:
                raise RequestError(
                    403, "This service only reads; it was started without --writable."
                )
            if not self.may_write(request):
                raise RequestError(403, "This API key may not change documents.")
        return found, self.bound(request)
