"""Checksums of numbers that have one. In: a number as it stands in a text. Out: whether its check digits are right."""

from __future__ import annotations

import re

DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
"""The letter of a Spanish identity number is the one at its number modulo 23 (Real Decreto 1553/2005, article 11)."""


def digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


def luhn_sum(number: str) -> int:
    """The sum of digits modulo 10 by Luhn's rule (ISO/IEC 7812-1, annex B); 0 where the check digit is right."""
    numbers = [int(each) for each in reversed(number)]
    doubled = [2 * each - 9 * (each > 4) for each in numbers[1::2]]
    return (sum(numbers[::2]) + sum(doubled)) % 10


def passes_luhn(text: str) -> bool:
    """Whether the digits hold Luhn's check digit; one digit over and over does not count."""
    number = digits(text)
    return len(set(number)) > 1 and luhn_sum(number) == 0


def passes_iban(text: str) -> bool:
    """The checksum of account numbers (ISO 13616: modulo 97 is 1). Blanks and hyphens do not count."""
    bare = re.sub(r"[ -]", "", text).upper()
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}", bare) or not 2 <= int(bare[2:4]) <= 98:
        return False
    return int("".join(str(int(each, 36)) for each in bare[4:] + bare[:4])) % 97 == 1


def dni_letter(number: int) -> str:
    return DNI_LETTERS[number % 23]


def passes_dni(text: str) -> bool:
    """A Spanish DNI (eight digits and a letter) or NIE (X, Y or Z, seven digits and a letter) with its right letter."""
    bare = re.sub(r"[ .-]", "", text).upper()
    if not re.fullmatch(r"(?:[XYZ][0-9]{7}|[0-9]{8})[A-Z]", bare):
        return False
    number = bare[:-1].translate(str.maketrans("XYZ", "012"))
    return bare[-1] == dni_letter(int(number))


def passes_nhs(text: str) -> bool:
    """The check digit of British NHS numbers (modulo 11 of the first nine digits, weighted 10 to 2)."""
    number = digits(text)
    if len(number) != 10:
        return False
    rest = 11 - sum(int(each) * weight for each, weight in zip(number, range(10, 1, -1), strict=False)) % 11
    return rest % 11 == int(number[9]) and rest != 10
