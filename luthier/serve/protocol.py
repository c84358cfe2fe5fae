"""What clients send, in OpenAI's protocol. In: JSON. Out: typed bodies, or all that is wrong with them.

Fields that change nothing here (`store`, `metadata`, ...) are taken and left aside; those that would change the answer
and cannot be had are refused, so that nobody believes in them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from luthier.serve.refusals import Refusal

MOST_CHOICES = 32
MOST_TEXTS = 2048
"""Texts of one request for labels or embeddings, as at OpenAI."""


COMPACT = {"x-guidance": {"whitespace_flexible": False}}
"""llguidance's word for JSON with a blank after ',' and ':' and no other white space, which a model could go on with
for ever."""


def encodable(text: str) -> str:
    """JSON can say half a character (a lone surrogate); no text can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a character (a lone surrogate) is no text") from None
    return text


Text = Annotated[str, AfterValidator(encodable)]
Name = Annotated[str, Field(max_length=512), AfterValidator(encodable)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, protected_namespaces=())


class Part(Body):
    """A part of a message."""

    type: str
    text: Text | None = None


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]

    def plain(self) -> dict[str, str]:
        """As chat templates take it. Raises `Refusal` for parts that are no text."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        for part in self.content:
            if part.text is None:
                raise Refusal("unsupported", "only parts of text can be read here", param="messages")
        return {"role": role, "content": "".join(part.text or "" for part in self.content)}


class JsonSchema(Body):
    """A named JSON schema."""

    name: Text = "answer"
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")


class ResponseFormat(Body):
    """What the answer must fit."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def schema_text(self) -> str | None:
        """The schema as the engine takes it."""
        if self.type == "text":
            return None
        if self.type == "json_schema" and self.json_schema is None:
            raise Refusal("malformed", "json_schema is missing", param="response_format")
        schema = self.json_schema.schema_ if self.json_schema is not None else {"type": "object"}
        return json.dumps(COMPACT | schema if isinstance(schema, dict) else schema)


class StreamOptions(Body):
    include_usage: bool | None = None
    """Send one more event, with the number of tokens."""


class Generation(Body):
    """What chats and completions have in common."""

    model: Name
    """An adapter, one of its versions (`name@v2`), or the base model."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    """0 takes the likeliest token; 1 when it is not said, as at OpenAI."""
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    """So many answers."""
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = None
    """Whoever asks in your application: of several versions by shares, one user always gets the same."""
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    def refuse_unsupported(self) -> None:
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise Refusal("unsupported", f"{name} is not supported: leave it out", param=name)


class ChatRequest(Generation):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise Refusal("unsupported", f"{name} are not supported: leave them out", param=name)
        if self.modalities and self.modalities != ["text"]:
            raise Refusal("unsupported", "answers are text only", param="modalities")
        if self.messages[-1].role == "assistant":
            raise Refusal("unsupported", "the last message is the assistant's: there is no turn left", param="messages")


class CompletionRequest(Generation):
    """POST /v1/completions"""

    prompt: Text | list[Text] | Tokens | list[Tokens]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    suffix: Text | None = None
    best_of: int | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.echo or self.suffix or (self.best_of or 1) > (self.n or 1):
            raise Refusal("unsupported", "echo, suffix and best_of are not supported: leave them out")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        return several(self.prompt, "prompt")


class ClassifyRequest(Body):
    """POST /v1/classify"""

    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    """A text, or several."""
    hand_over_below: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """Texts whose answer is less probable than this go to a person; without it, those whose label set is not one label.
    """
    user: Text | None = None


class EmbeddingsRequest(Body):
    """POST /v1/embeddings"""

    model: Name
    input: Text | list[Text] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Text | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if self.dimensions is not None:
            raise Refusal("unsupported", "dimensions is not supported: leave it out", param="dimensions")
        return several(self.input, "input")


def several(given: Any, name: str) -> Any:
    """One text or many, one list of tokens or many: as many."""
    many = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not many or len(many) > MOST_TEXTS:
        raise Refusal("malformed", f"{name} holds {len(many)} texts; from 1 to {MOST_TEXTS} may be asked", param=name)
    return many


class LoadRequest(Body):
    """POST /admin/adapters"""

    name: Name
    """`reviews`, or a version of it: `reviews@v2`."""
    folder: Text
    """A run or model folder on the server's machine."""
    replace: bool = False
    """Swap it in for all versions there are: those finish what they began, and go."""
    share: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    """Percent of the requests for the name that this version gets: a canary."""
    pin: bool = False
    """Keep its weights in memory."""


class PinRequest(Body):
    """PUT /admin/adapters/{name}/pin"""

    pinned: bool = True


class SharesRequest(Body):
    """PUT /admin/shares/{name}"""

    shares: Annotated[dict[Name, Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]], Field(min_length=1)]
    """Percent by version: `{"v1": 90, "v2": 10}`."""


class FeedbackRequest(Body):
    """POST /v1/feedback"""

    id: Name
    """Of the answer: `chatcmpl-...`."""
    thumbs: Literal["up", "down"] | None = None
    corrected: Text | None = None
    """What the answer should have been."""
    comment: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        if self.thumbs is None and self.corrected is None and self.comment is None:
            raise ValueError("thumbs, corrected or comment is needed")
        return self


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal has this form."""

    error: ErrorDetail
