"""What a request may want between the search and the best `top_k`: reranking, diversity, neighbours."""

from __future__ import annotations

from pydantic import BaseModel, Field, StrictBool

from lclm_rag.querying.query import Ranking
from lclm_rag.serving.errors import RequestError
from lclm_rag.serving.limits import Limits

__all__ = ["RankingFields", "ranking_of"]


class RankingFields(BaseModel):
    """The fields of a body that say how hits are ranked."""

    rerank: StrictBool | None = None
    mmr: float | None = Field(None, ge=0, le=1)
    neighbours: int = Field(0, ge=0)


def ranking_of(body: RankingFields, limits: Limits, reranker: str | None) -> Ranking:
    """Check how a request wants its hits ranked.

    Args:
        body: The request.
        limits: What a client may ask for.
        reranker: The cross-encoder of this service; None if it has none. Clients cannot choose another.

    Returns:
        The ranking.

    Raises:
        RequestError: When it asks for what is not allowed.
    """
    if body.rerank and reranker is None:
        raise RequestError(400, "This service has no reranker; leave rerank out.", param="rerank")
    if body.neighbours > limits.neighbours:
        raise RequestError(
            400,
            f"neighbours is {body.neighbours:,}; at most {limits.neighbours:,} are allowed.",
            param="neighbours",
        )
    return {
        "rerank": reranker if body.rerank else None,
        "mmr": body.mmr,
        "neighbours": body.neighbours,
    }
