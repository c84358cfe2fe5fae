"""Personal data in text, by simple recognisers: what has a form of its own, and a checksum where there is one.

In: a text. Out: what was found, each with its kind, written in one way however it stood there. Names and addresses are
not recognised: that takes a language model of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from luthier.texts.checksums import digits, passes_iban, passes_luhn

EMAIL = re.compile(r"[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b")
PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{2,5}(?:[ .-]\d{2,5}){1,4}(?![\w.]*\d)")
INTERNATIONAL = re.compile(r"(?<![\w.])\+\d{8,15}\b")
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]*\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
ADDRESS = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
SOCIAL = re.compile(r"(?<!\d)(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?!\d)")
PHONE_DIGITS = (9, 15)


def is_phone(text: str) -> bool:
    """Nine to fifteen digits with a plus, brackets or a leading zero: not every row of numbers."""
    return PHONE_DIGITS[0] <= len(digits(text)) <= PHONE_DIGITS[1] and text[0] in "+(0"


def is_address(text: str) -> bool:
    parts = [int(part) for part in text.split(".")]
    return all(part <= 255 for part in parts) and parts[0] not in (0, 10, 127)


RECOGNISERS: dict[str, tuple[re.Pattern[str], Callable[[str], bool], Callable[[str], str]]] = {
    "e-mail": (EMAIL, lambda text: True, str.lower),
    "card": (CARD, passes_luhn, digits),
    "account": (IBAN, passes_iban, lambda text: text.replace(" ", "")),
    "social security number": (SOCIAL, lambda text: True, digits),
    "phone": (PHONE, is_phone, digits),
    "phone (international)": (INTERNATIONAL, is_phone, digits),
    "network address": (ADDRESS, is_address, str),
}
"""By kind: how it looks, what else must hold, and how it is written here."""


def personal_data(text: str) -> dict[str, str]:
    """What was found, with its kind."""
    found: dict[str, str] = {}
    for kind, (pattern, holds, written) in RECOGNISERS.items():
        for match in pattern.finditer(text):
            if holds(match.group()):
                found.setdefault(written(match.group()), kind.partition(" (")[0])
    return found


def masked(value: str) -> str:
    """Enough of it to be found again, not enough to be read."""
    return value[:2] + "…" + value[-2:] if len(value) > 6 else "…"
