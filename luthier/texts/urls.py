"""URLs in text, and the passwords in them that must not be shown. In: text. Out: the same, `***` for each secret."""

from __future__ import annotations

import re

HIDDEN = "***"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
USER = re.compile(r"(?<=://)([^\s/:@?#'\"]*):([^\s/'\"]+)@")
PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|secret|token|signature|credential|sig|key|auth)[\w.-]*=)([^&;\s'\"#]+)",
    re.IGNORECASE,
)
VARIABLE = re.compile(r"\$\{(\w+)\}")


def is_url(text: str) -> bool:
    return bool(URL.match(text))


def scheme_of(url: str) -> str:
    return url.partition("://")[0].lower()


def without_secrets(text: str) -> str:
    """The text with `***` for each password (`user:PASSWORD@`) and each parameter of a URL that reads like a key or a
    token. A variable's name (`${NAME}`) is no secret and stays."""

    def hide(secret: str) -> str:
        return secret if VARIABLE.fullmatch(secret) else HIDDEN

    if "://" not in text:
        return text
    text = USER.sub(lambda match: f"{match[1]}:{hide(match[2])}@", text)
    return PARAMETER.sub(lambda match: match[1] + hide(match[2]), text)
