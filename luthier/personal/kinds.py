"""Kinds of personal data: what a recipe calls them, what presidio calls them, which are looked for by default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of personal data. `entities`: its names in presidio; `needs`: without this character class in a text
    there is none of it (`digit`, `at`, or nothing)."""

    about: str
    entities: tuple[str, ...]
    default: bool = True
    needs: str = ""


KINDS: dict[str, Kind] = {
    "person": Kind("names of people", ("PERSON",)),
    "email": Kind("e-mail addresses", ("EMAIL_ADDRESS",), needs="at"),
    "phone": Kind("telephone and fax numbers", ("PHONE_NUMBER",), needs="digit"),
    "card": Kind("payment cards with a right checksum", ("CREDIT_CARD",), needs="digit"),
    "iban": Kind("bank accounts with a right checksum (IBAN)", ("IBAN_CODE",), needs="digit"),
    "national_id": Kind(
        "US SSN and ITIN, UK NINO and NHS numbers, Spanish DNI, NIE and social security, passports beside such a word",
        ("US_SSN", "US_ITIN", "UK_NINO", "UK_NHS", "ES_NIF", "ES_NIE", "ES_NSS", "US_PASSPORT", "ES_PASSPORT"),
        needs="digit",
    ),
    "address": Kind("streets with a number, post boxes, postcodes", ("STREET_ADDRESS",), needs="digit"),
    "ip": Kind("network addresses (IPv4, IPv6, MAC)", ("IP_ADDRESS", "MAC_ADDRESS")),
    "url_token": Kind("web addresses that carry a token or a password", ("URL_TOKEN",)),
    "secret": Kind("API keys, passwords, private keys", ("SECRET",)),
    "place": Kind("towns, regions, countries", ("LOCATION",), default=False),
    "organisation": Kind("companies and institutions", ("ORGANIZATION",), default=False),
    "date": Kind("dates and years", ("DATE_TIME",), default=False, needs="digit"),
    "age": Kind("ages", ("AGE",), default=False, needs="digit"),
    "group": Kind("nationality, religion, politics", ("NRP",), default=False),
    "url": Kind("every web address", ("URL",), default=False),
    "licence": Kind("US driving licences", ("US_DRIVER_LICENSE",), default=False, needs="digit"),
    "bank_account": Kind("US account numbers beside such a word", ("US_BANK_NUMBER",), default=False, needs="digit"),
    "crypto": Kind("bitcoin addresses with a right checksum", ("CRYPTO",), default=False, needs="digit"),
}
"""By name in the recipe."""

DEFAULT_KINDS = tuple(name for name, kind in KINDS.items() if kind.default)
KIND_OF = {entity: name for name, kind in KINDS.items() for entity in kind.entities}
"""The recipe's name of each of presidio's entities."""
NAMED_BY_MODEL = ("person", "place", "organisation", "group")
"""Kinds that mostly a language model finds: without one little of them is found."""
