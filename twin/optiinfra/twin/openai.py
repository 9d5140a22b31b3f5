"""The OpenAI wire shapes that the emulator speaks, in vLLM's dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from optiinfra.schemas.errors import Rejected


class StreamOptions(BaseModel):
    """`stream_options` of a request."""

    include_usage: bool = False


class _Generation(BaseModel):
    """What both endpoints accept; sampling parameters are taken and have no effect."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    n: Literal[1] = 1

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Generation):
    """`POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1)
    echo: Literal[False] | None = None
    logprobs: None = None

    @property
    def limit(self) -> int | None:
        """Output tokens asked for; None leaves it to the context length."""
        return self.max_tokens

    def prompt_text(self) -> str:
        """The one prompt; token ids become numbers a space apart, one token each."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise Rejected("the emulator takes one prompt a request")
            prompt = prompt[0]
        if not prompt:
            raise Rejected("the prompt is empty")
        return prompt if isinstance(prompt, str) else "".join(f" {token}" for token in prompt)


class Message(BaseModel):
    """One chat message; of content parts the text ones count."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, list):
            return "\n".join(str(p["text"]) for p in self.content if p.get("type") == "text")
        return self.content or ""


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Literal[False] | None = None

    @property
    def limit(self) -> int | None:
        """Output tokens asked for; None leaves it to the context length."""
        return self.max_completion_tokens or self.max_tokens

    def prompt_text(self) -> str:
        """All messages under a plain chat template."""
        return "".join(f"<|{m.role}|>\n{m.text}\n" for m in self.messages) + "<|assistant|>\n"


AnyRequest = CompletionRequest | ChatRequest


class Shape:
    """Builds the answers of one request; chunks are prepared once and filled a token at a time."""

    def __init__(self, request: AnyRequest, request_id: str, model: str, created_s: int) -> None:
        self.chat = isinstance(request, ChatRequest)
        kind = "chat.completion" if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        self._common = {
            "id": f"{prefix}-{request_id}",
            "object": kind,
            "created": created_s,
            "model": model,
        }
        chunk = {**self._common, "object": f"{kind}.chunk" if self.chat else kind}
        self._chunk = chunk
        field, tail = ('"delta":{"content":', "}") if self.chat else ('"text":', "")
        self._head = f'data: {_json(chunk)[:-1]},"choices":[{{"index":0,{field}'.encode()
        self._tail = f'{tail},"logprobs":null,"finish_reason":null}}]}}\n\n'.encode()
        self._tail_start = f'{tail},"logprobs":null,"finish_reason":'

    def opening(self) -> bytes:
        """What a chat stream says before its first token."""
        if not self.chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _event({**self._chunk, "choices": [choice]})

    def chunks(self, tokens: Sequence[str], finish_reason: str | None) -> bytes:
        """One event a token; `finish_reason` is given when the last of them ends the answer."""
        head, tail = self._head, self._tail
        events = [head + _text(token) + tail for token in tokens]
        if finish_reason is not None:
            end = f'{self._tail_start}{_json(finish_reason)},"stop_reason":null}}]}}\n\n'.encode()
            events[-1] = head + _text(tokens[-1]) + end
        return b"".join(events)

    def ending(self, usage: dict[str, Any] | None) -> bytes:
        """The usage chunk, if asked for, and the end of the stream."""
        said = _event({**self._chunk, "choices": [], "usage": usage}) if usage else b""
        return said + b"data: [DONE]\n\n"

    def whole(self, text: str, finish_reason: str, usage: dict[str, Any]) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "choices": [{**choice, "stop_reason": None}], "usage": usage}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object with vLLM's type names."""
    names = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}
    name = names.get(status, "InternalServerError")
    return {"error": {"message": message, "type": name, "param": param, "code": status}}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(token: str) -> bytes:
    return encode_basestring_ascii(token).encode()


def _event(value: object) -> bytes:
    return f"data: {_json(value)}\n\n".encode()
