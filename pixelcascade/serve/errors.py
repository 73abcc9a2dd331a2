"""What a server refuses and what went wrong, in the shape that clients of the OpenAI API know."""

import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pixelcascade.remote import StageUnreachableError
from pixelcascade.serve.engine import CancelledError, LateError, MemoryShortError
from pixelcascade.serve.queue import FullError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Refusal(HTTPException):
    """An answer that is an error. code: for programs. param: the field that is wrong. more: further fields."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ):
        super().__init__(status, message, headers)
        self.code, self.param, self.more = code or _CODES.get(status), param, more


def error_object(refusal: Refusal) -> dict[str, Any]:
    """The object under "error"."""
    status = refusal.status_code
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": refusal.detail, "type": kind, "param": refusal.param, "code": refusal.code, **refusal.more}


def answer(refusal: Refusal) -> Response:
    body = json.dumps({"error": error_object(refusal)})  # in ASCII: a refused text may hold anything
    return Response(body, refusal.status_code, refusal.headers, "application/json")


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error in its job; of our own faults, no more than that they are."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, FullError):
        seconds = str(error.retry_after_s)
        return Refusal(429, f"{error}", "queue_full", headers={"Retry-After": seconds})
    if isinstance(error, ValueError):
        return Refusal(400, str(error), "invalid_value")
    if isinstance(error, LateError):
        return Refusal(503, str(error), "deadline_exceeded", headers={"Retry-After": "10"})
    if isinstance(error, MemoryShortError):
        return Refusal(503, str(error), "out_of_memory", headers={"Retry-After": "30"})
    if isinstance(error, StageUnreachableError):
        return Refusal(503, str(error), "stage_unreachable", headers={"Retry-After": "5"})
    if isinstance(error, CancelledError):
        return Refusal(409, str(error), "cancelled")
    return Refusal(500, "a stage has failed; the server's log says why", "stage_failed")


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return answer(error)
    return answer(Refusal(error.status_code, str(error.detail), headers=dict(error.headers or {})))


async def on_invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = place[0][:80] if place and first["type"] != "json_invalid" else None
    message = first["msg"].removeprefix("Value error, ")
    return answer(Refusal(400, f"{param}: {message}" if param else message, "invalid_value", param))


async def on_fault(request: Request, error: Exception) -> Response:
    return answer(refusal_of(error))


HANDLERS: dict[Any, Any] = {
    HTTPException: on_http,
    RequestValidationError: on_invalid,
    FullError: on_fault,
    ValueError: on_fault,
}
