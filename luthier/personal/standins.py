"""Stand-ins for personal data: of the same shape, drawn from a keyed hash of what they stand for.

In: a find's kind and text. Out: the text to write instead. The same text under the same key always gets the same
stand-in, whatever the order of rows and without a table of what stood for what. Key: BLAKE2b's (RFC 7693, section
2.9).
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from luthier.personal.words import ENDS, FIRST, STEMS
from luthier.texts.checksums import dni_letter, luhn_sum

TITLES = frozenset(
    ["mr", "mrs", "ms", "miss", "mx", "dr", "prof", "sir", "madam", "sr", "sra", "srta", "don", "dona", "dna", "dra"]
)
FORMAL = TITLES - {"don", "dona", "dna", "sir"}
"""Those that stand before a surname."""
PARTICLES = frozenset(
    ["de", "la", "los", "del", "da", "dos", "van", "der", "den", "von", "di", "le", "bin", "al", "el", "y"]
)
STAND_IN_HOSTS = ("example.com", "example.org", "example.net")
"""Kept for examples (RFC 2606)."""
STAND_IN_NETS = ("192.0.2.", "198.51.100.", "203.0.113.")
"""Kept for documentation (RFC 5737); for IPv6 2001:db8::/32 (RFC 3849)."""
STREET_WORDS = re.compile(
    r"(?i)\b(street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|place|square|calle|avenida|avda|plaza|paseo"
    r"|apt|suite|unit|piso|box|po|c)\b\.?"
)


class StandIns:
    """Stand-ins under one key (any length; it is hashed)."""

    def __init__(self, key: str) -> None:
        self.key = hashlib.blake2b(key.encode(), digest_size=32).digest()
        self.makers: dict[str, Callable[[str], str]] = {
            "person": self.person,
            "email": self.email,
            "phone": self.phone,
            "card": self.card,
            "iban": self.iban,
            "national_id": self.national_id,
            "address": self.address,
            "ip": self.ip,
            "url_token": self.url,
            "url": self.url,
            "place": self.place,
            "organisation": self.organisation,
            "group": self.organisation,
        }

    def of(self, kind: str, text: str) -> str:
        """The stand-in for `text`; never `text` itself."""
        make = self.makers.get(kind, partial(self.scrambled, kind))
        made = make(text)
        return made if made != text else self.scrambled(kind, make(text + " "))

    def numbers(self, kind: str, value: str) -> Iterator[int]:
        """Endless numbers from 0 to 255 that only kind, value and key decide."""
        block = 0
        while True:
            yield from hashlib.blake2b(f"{kind}\0{block}\0{value}".encode(), key=self.key).digest()
            block += 1

    def pick(self, kind: str, value: str, *lists: Sequence[str]) -> str:
        drawn = self.numbers(kind, value)
        return "".join(choices[(next(drawn) << 8 | next(drawn)) % len(choices)] for choices in lists)

    def person(self, text: str) -> str:
        """Word by word, so that `Ana` and `Ana Pérez` share what they share: the first word a first name, the others
        surnames; titles and particles stay."""
        words = re.split(r"([\s.,]+)", text)
        plains = [plainly(word) for word in words]
        names = sum(bool(plain) and plain not in TITLES and plain not in PARTICLES for plain in plains)
        seen = int(names == 1 and bool(FORMAL.intersection(plains)))  # Mr Pérez: a surname alone
        made: list[str] = []
        for word, plain in zip(words, plains, strict=True):
            if not plain or plain in TITLES or (seen and plain in PARTICLES):
                made.append(word)
                continue
            if len(plain) == 1:
                stand_in = self.pick("initial", plain, string.ascii_uppercase)
            else:
                stand_in = self.pick("last", plain, STEMS, ENDS) if seen else self.pick("first", plain, FIRST)
            made.append(cased(stand_in, word))
            seen += 1
        return "".join(made)

    def email(self, text: str) -> str:
        drawn = self.numbers("email", text.casefold())
        first, stem, end = (several[next(drawn) % len(several)] for several in (FIRST, STEMS, ENDS))
        number = "".join(str(next(drawn) % 10) for _ in range(3))
        return f"{plainly(first)}.{stem}{end}{number}@{STAND_IN_HOSTS[next(drawn) % 3]}".lower()

    def phone(self, text: str) -> str:
        """The same digits however they are parted; a leading + or 00 keeps the country's number. Of ten digits the
        middle ones are 555-01, which North America keeps for fiction."""
        extension = re.search(r"(?i)\s?(?:x|ext\.?)\s?\d+\Z", text)
        bare = text[: extension.start()] if extension else text
        country = re.match(r"(?:\+|00)\s?(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|\d{3})", bare)
        kept = country.group() if country else ""
        number = re.sub(r"\D", "", bare[len(kept) :])
        # the last nine digits tell the number; a zero or a country before them does not make another one
        drawn = self.numbers("phone", number[-9:])
        made = [str(next(drawn) % 10) for _ in range(9)]
        made = [str(2 + int(made[0]) % 8)] * (len(number) > 9) + made[: min(len(number), 9)]
        made += [str(next(drawn) % 10) for _ in range(len(number) - len(made))]
        if len(number) == 10 and number[0] not in "01":
            made[3:8] = list("55501")
        if number[:1] == "0":
            made[0] = "0"
        return kept + laid_over(bare[len(kept) :], "".join(made)) + (extension.group() if extension else "")

    def card(self, text: str) -> str:
        """Of the same length, with a checksum that is wrong."""
        number = re.sub(r"\D", "", text)
        drawn = self.numbers("card", number)
        body = "".join(str(next(drawn) % 10) for _ in number[:-1])
        right = (10 - luhn_sum(body + "0")) % 10
        return laid_over(text, body + str((right + 1 + next(drawn) % 9) % 10))

    def iban(self, text: str) -> str:
        """The country stays; the check digits are 00, which no account has (ISO 13616: 02 to 98)."""
        bare = re.sub(r"[ -]", "", text).upper()
        drawn = self.numbers("iban", bare)
        return laid_over(text, bare[:2] + "00" + "".join(alike(each, next(drawn)) for each in bare[4:]))

    def national_id(self, text: str) -> str:
        """A Spanish letter that is wrong; the area 000 of a US number and the British prefix QQ, which are never
        given."""
        bare = re.sub(r"[ ./-]", "", text).upper()
        drawn = self.numbers("national_id", bare)
        made = "".join(alike(each, next(drawn)) for each in bare)
        if re.fullmatch(r"[XYZ\d]\d{7}[A-Z]", bare):
            number = int(made[:-1].translate(str.maketrans("XYZ", "012")) if bare[0].isdigit() else "0" + made[1:-1])
            start = made[:-1] if bare[0].isdigit() else "X" + made[1:-1]
            others = [letter for letter in string.ascii_uppercase if letter != dni_letter(number)]
            made = start + others[next(drawn) % len(others)]
        elif re.fullmatch(r"\d{9}", bare):
            made = "000" + made[3:]
        elif re.fullmatch(r"[A-Z]{2}\d{6}[A-Z]", bare):
            made = "QQ" + made[2:]
        return laid_over(text, made)

    def address(self, text: str) -> str:
        """Numbers become others, words other names; `street`, `calle` and the like stay."""
        kept = {match.start() for match in STREET_WORDS.finditer(text)}

        def other(match: re.Match[str]) -> str:
            word = match.group()
            if match.start() in kept or plainly(word) in PARTICLES or (len(word) < 2 and word.isalpha()):
                return word
            if word.isdigit():
                return self.scrambled("address", word)
            return (
                cased(self.pick("street", plainly(word), STEMS, ENDS), word)
                if word.isalpha()
                else self.scrambled("address", word)
            )

        return re.sub(r"[^\W_]+", other, text)

    def ip(self, text: str) -> str:
        drawn = self.numbers("ip", text.lower())
        if "." in text:
            return f"{STAND_IN_NETS[next(drawn) % 3]}{1 + next(drawn) % 254}"
        if re.fullmatch(r"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}", text):
            return laid_over(text, "00005E0053" + f"{next(drawn):02X}")  # kept for documentation (RFC 7042)
        return "2001:db8:" + ":".join(f"{next(drawn) << 8 | next(drawn):x}" for _ in range(6))

    def url(self, text: str) -> str:
        scheme = re.match(r"(?:[a-z][a-z0-9+.-]*://)?", text)
        drawn = self.numbers("url", text)
        path = "".join(string.ascii_lowercase[next(drawn) % 26] for _ in range(12))
        return f"{scheme.group() if scheme else ''}{STAND_IN_HOSTS[next(drawn) % 3]}/{path}"

    def place(self, text: str) -> str:
        return cased(self.pick("place", plainly(text), STEMS, ENDS), text)

    def organisation(self, text: str) -> str:
        return cased(self.pick("organisation", plainly(text), STEMS, ENDS), text)

    def scrambled(self, kind: str, text: str) -> str:
        """Letters become letters and digits digits; the rest stays."""
        drawn = self.numbers(kind, text)
        return "".join(alike(each, next(drawn)) for each in text)


def plainly(text: str) -> str:
    """Small letters without accents and punctuation: how a name is told from another one."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(each for each in apart if each.isalnum() or each == " ").strip()


def cased(stand_in: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return stand_in.upper()
    return stand_in.lower() if like.islower() else stand_in


def alike(letter: str, number: int) -> str:
    """Another letter or digit of the same sort, or the mark itself."""
    if letter.isdigit():
        return str(number % 10)
    if letter.isalpha() and letter not in "ºª":
        drawn = string.ascii_lowercase[number % 26]
        return drawn.upper() if letter.isupper() else drawn
    return letter


def laid_over(shape: str, made: str) -> str:
    """The letters and digits of `made` in the places of those of `shape`; marks of `shape` stay."""
    drawn = iter(made)
    return "".join(next(drawn, "0") if each.isalnum() else each for each in shape)
