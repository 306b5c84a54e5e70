"""What a page posts, checked before anything is done with it: sizes, ranges, finite numbers, printable text."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from f2i_runtime.errors import UsageError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from f2i_bench.core.protocol import BrowserFacts

MAX_JSON_BYTES = 1 << 18
"""The largest JSON that a page may post. A result of 1,000 runs of ten components has 120 kB."""
MAX_RUNS = 10_000
MAX_NS = 10**13
"""Almost three hours: no single run takes longer."""


def plain_text(text: str) -> str:
    """Returns text without control characters, so that what a browser says cannot steer a terminal, and with single spaces."""
    return " ".join(re.sub(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]|[\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", " ", text).split())


Text = Annotated[str, Field(max_length=500), AfterValidator(plain_text)]
Nanoseconds = Annotated[int, Field(ge=1, le=MAX_NS)]


class Posted(BaseModel):
    """Base of what a page posts: types are taken as they are, unknown keys are refused, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Arrival(Posted):
    """A browser that opened the page: what it is and can do."""

    user_agent: Text
    platform: Text = ""
    model: Text = ""
    architecture: Text = ""
    cores: int = Field(ge=0, le=4096)
    memory_gib: float | None = Field(default=None, ge=0, le=1 << 20)
    gpu: Text | None = None
    secure: bool
    isolated: bool
    simd: bool
    relaxed_simd: bool
    threads: bool
    jspi: bool
    webgpu: bool
    shader_f16: bool

    def facts(self) -> BrowserFacts:
        """Returns the part that stands in the results as it is."""
        return BrowserFacts(**{name: getattr(self, name) for name in BrowserFacts.model_fields})


class PostedItem(Posted):
    """One component's times. Their clock has steps of 5 to 1,000 microseconds, and a page never reports 0."""

    component: Text
    load_ns: Nanoseconds | None
    first_ns: Nanoseconds | None
    rounds: Annotated[list[Annotated[list[Nanoseconds], Field(max_length=MAX_RUNS)]], Field(max_length=1000)]
    error: Text | None


class PostedResult(Posted):
    """One variant on one backend at one number of threads."""

    job: int = Field(ge=0, lt=1000)
    backend: Text
    threads: int = Field(ge=1, le=256)
    engine: Text
    start_ns: Nanoseconds | None
    """The time from the first request for the runtime until it is ready."""
    items: Annotated[list[PostedItem], Field(min_length=1, max_length=64)]


AnyPosted = TypeVar("AnyPosted", bound=Posted)


def parse_posted(body: bytes, kind: type[AnyPosted]) -> AnyPosted:
    """Returns what a page posted. Raises UsageError with the first thing that is wrong: no JSON, a key, a type, a number out of range or not finite."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(plain_text(f"{where or 'the body'}: {first['msg']}")[:300]) from e
