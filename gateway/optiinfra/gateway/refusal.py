"""The gateway's own errors, in the shape that OpenAI clients understand."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web
from pydantic_core import to_json

from optiinfra.gateway.headers import REQUEST_ID


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: HTTP status, stable code, what to tell the client, the field at fault."""

    status: int
    code: str
    message: str
    param: str | None = None

    def body(self) -> bytes:
        fault = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": fault, "param": self.param, "code": self.code}
        return to_json({"error": error})

    def event(self) -> bytes:
        """As a server-sent event; the blank line ends whatever event had begun."""
        return b"\n\ndata: " + self.body() + b"\n\n"

    def response(self, request_id: str) -> web.Response:
        headers = {REQUEST_ID: request_id}
        if self.status == 503:
            headers["Retry-After"] = "1"
        return web.Response(
            status=self.status,
            body=self.body(),
            content_type="application/json",
            headers=headers,
        )


class Refusal(Exception):
    """Ends the handling of a request that no backend will see."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refuse(status: int, code: str, message: str, param: str | None = None) -> Refusal:
    return Refusal(Problem(status, code, message, param))
