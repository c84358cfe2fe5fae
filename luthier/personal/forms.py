"""Forms of personal data that presidio has no recogniser for, or none that is good enough: regular expressions.

In: nothing. Out: `FORMS`, by presidio entity. Every repetition is bounded, so that no text makes a search long. Only
the group `value` is taken where a form has one; `(?i:...)` marks what may be written in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from luthier.personal.words import ENGLISH_NAMES, SPANISH_NAMES
from luthier.texts.checksums import passes_dni, passes_iban, passes_luhn, passes_nhs


@dataclass(frozen=True)
class Form:
    """How something looks, how sure that makes it (0 to 1), and what else must hold."""

    pattern: re.Pattern[str]
    score: float
    holds: Callable[[str], bool] | None = None

    @classmethod
    def of(cls, pattern: str, score: float, holds: Callable[[str], bool] | None = None) -> Form:
        return cls(re.compile(pattern, re.MULTILINE), score, holds)


UPPER, LOWER = "A-ZÀ-ÖØ-ÞĀŁŚŠŽČĆĐĽŇŘŤİŐŰÅ", "a-zß-öø-ÿāăąćčďđęěğīıłľńňňőřśšşťůűūźżž'’"
WORD = f"[{UPPER}][{LOWER}]{{1,20}}"
NAME_WORD = f"(?:[{UPPER}][{LOWER}]{{1,20}}(?:-[{UPPER}][{LOWER}]{{1,20}})?|[{UPPER}]\\.)"
PARTICLE = r"(?:de la|de los|del|de|da|dos|van der|van den|van|von|di|la|le|bin|al|el|y|O'|Mc|Mac)"
NAME = f"(?P<value>{NAME_WORD}(?: (?:{PARTICLE} )?{NAME_WORD}){{0,3}})"
LONE_NAME = f"(?P<value>{NAME_WORD}(?: (?:{PARTICLE} )?{NAME_WORD}){{1,3}})"

TITLES = r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Madam|Sra?|Srta|Don|Doña|Dña|Dra|Ing|Lic|D\.ª)\.?"
CUES_EN = (
    r"(?i:my (?:full |first |last |maiden |middle )?name(?: is|'s)|(?:maiden|full|first|last|middle) name(?: is|:)"
    r"|(?:i am|i'm|this is|call me|name is|named him|named her|was called|is called|people call me|to the name of"
    r"|(?:partner|wife|husband|brother|sister|son|daughter|kid|mother|father|boss|colleague|friend)(?:'s name)?)"
    r"|(?:name|contact|attn|attention|customer|patient|employee|from|to|cc|signed|directed by|starring)\s{0,3}:"
    r"|follow up with|regards,|sincerely,|yours,|cheers,|best,|thanks,|dear|hi|hello)"
)
CUES_ES = (
    r"(?i:me llamo|mi nombre es|se llama|llamado|llamada|le saluda|le escribe|firmado(?: por)?:?|atentamente,|saludos,"
    r"|un abrazo,|estimad[oa]s?|querid[oa]s?|(?:nombre(?: y apellidos)?|paciente|cliente|titular|empleado|empleada"
    r"|contacto|solicitante|remitente|destinatario)\s{0,3}:)"
)
"""Words after which a name comes."""

GIVEN = "|".join(sorted({*ENGLISH_NAMES, *SPANISH_NAMES}, key=len, reverse=True))
COMPANIES = r"(?i:inc|llc|ltd|plc|corp|corporation|company|co|gmbh|ag|s\.?a|s\.?l|bv|nv|and sons|incorporated|limited)"
MAIL_LINE = r"(?:\d{1,6}[ ,]|PSC |Unit \d|USS |USNS |USCGC |P\.? ?O\.? )"
PHONE_LABELS = (
    r"phone|telephone|tel|mobile|cell|fax|desk|office|work|home|teléfono|tfno|tlf|móvil|fijo|whatsapp|direct|hotline"
)
STREETS_EN = (
    r"(?i:street|st|avenue|ave|av|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|place|pl|square|sq|terrace|ter"
    r"|way|parkway|pkwy|circle|cir|highway|hwy|close|crescent|cres|row|mews|trail|trl|alley|route|hoog|strand|quay)"
)
STREETS_ES = (
    r"(?i:calle|c/|cl\.|avenida|avda\.?|av\.|plaza|pza\.?|paseo|pº|camino|carretera|ctra\.?|ronda|travesía|glorieta"
    r"|rambla|callejón|urbanización|urb\.|polígono|carrer|rúa|rua|vía|via|viale|corso|rue|rua|praça|piazza|carrera)"
)
STREET_ENDS = (
    r"(?i:straat|strasse|straße|str\.|gasse|weg|laan|plein|platz|gatan|gata|vägen|vej|gade|katu|kuja|veien"
    r"|vegen|gränd|stræde|dreef|singel|kade|dijk|allee|gaten|steig|ufer|damm)"
)
HOUSE = r"\d{1,5}[A-Za-z]?(?:[-/]\d{1,4}[A-Za-z]?)?"
UNIT = r"(?i:apartment|apt|suite|ste|unit|flat|floor|room|rm|piso|puerta|bajo|local|portal|esc(?:alera)?|#)\.?"
UNIT_PART = rf"(?:,?\s{{1,4}}{UNIT}\s{{0,2}}[\dA-Z]{{1,6}}[ºª]?[A-Z]?\b)"
STATE = (
    r"(?:A[AEKLPRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT"
    r"|V[AT]|W[AIVY])"
)
TOWN = f"(?:{WORD}|[{UPPER}]{{3,20}})(?:[ -](?:{WORD}|[{UPPER}]{{2,20}}|de|del|la|los)){{0,3}}"
TOWN_PART = (
    rf"(?:,?\s{{1,4}}{TOWN}\s?,?\s{{1,4}}(?:[A-Z]{{2,3}}|nan),?\s{{1,4}}(?:{WORD}\s)?\d{{4,6}}(?:-\d{{4}})?\b"
    rf"|,\s{{1,2}}{TOWN}(?:,\s{{1,2}}{TOWN}){{1,2}}(?:\s\d{{4,6}})?\b)"
)
CODE_PART_ES = rf"(?:,?\s{{1,3}}\d{{5}}\s{{1,3}}{TOWN})"
FLOOR_PART_ES = r"(?:,?\s{1,3}\d{1,2}[ºª°](?:\s{0,2}(?:[A-Z]|izq\.?|dcha\.?|izquierda|derecha))?)"
UK_POSTCODE = r"(?:[A-Z]{1,2}\d[A-Z\d]? \d[A-BD-HJLNP-UW-Z]{2})"

TOKEN_WORDS = (
    r"(?i:(?:access|auth|api|refresh|id|session|reset|csrf|sas)?[_-]?token|api[_-]?key|key|sig|signature|secret"
    r"|password|passwd|pwd|code|session(?:id)?|sid|auth|otp|jwt|x-amz-signature|x-amz-credential|invite)"
)
SECRET_WORDS = (
    r"(?i:api[_ -]?key|secret[_ -]?key|access[_ -]?key|client[_ -]?secret|auth[_ -]?token|access[_ -]?token|bearer"
    r"|password|passwd|passphrase|pwd|contraseña|clave(?: de acceso)?|secret|token)"
)


def is_no_company(text: str) -> bool:
    """Whether a line of words is a name rather than a firm or a street."""
    return not re.search(
        rf"\b(?:{COMPANIES}|{STREETS_EN})\b|\b(?:Group|Data|Bank|Capital|University|School|The|Services|Street)\b", text
    )


def has_phone_digits(text: str) -> bool:
    return 9 <= sum(map(str.isdigit, text)) <= 12


def looks_random(text: str) -> bool:
    """Letters and digits mixed, and more than a few different ones: no word, no plain number."""
    return any(each.isdigit() for each in text) and any(each.isalpha() for each in text) and len(set(text)) > 5


def is_ssn_es(text: str) -> bool:
    """Spanish social security numbers: the last two digits are the first ten modulo 97."""
    bare = re.sub(r"[^0-9]", "", text)
    number = int(bare[:2] + (bare[3:10] if bare[2] == "0" else bare[2:10]))
    return len(bare) == 12 and number % 97 == int(bare[10:])


FORMS: dict[str, tuple[Form, ...]] = {
    "PERSON": (
        Form.of(rf"\b{TITLES} {NAME}", 0.8),
        Form.of(rf"\b{CUES_EN}[ \t]{{0,12}}(?:\n[ \t]{{0,4}})?(?:{TITLES} )?{NAME}\b", 0.6),
        Form.of(rf"\b{CUES_ES}[ \t]{{0,12}}(?:\n[ \t]{{0,4}})?(?:{TITLES} )?{NAME}\b", 0.6),
        Form.of(
            rf"^[>?*\s]{{0,6}}{LONE_NAME}(?=(?:\n[^\n\d]{{0,60}}){{0,3}}\n[>?*\s]{{0,6}}{MAIL_LINE})",
            0.6,
            is_no_company,
        ),
        Form.of(
            rf"\b(?P<value>(?:{GIVEN})(?:[ -](?:{GIVEN}))?(?: (?:{PARTICLE} )?{NAME_WORD}){{1,3}})(?!\w)",
            0.6,
            is_no_company,
        ),
        Form.of(rf"^{NAME}(?=: ?[\"“])", 0.6),
        Form.of(
            r"(?i:\b(?:full |last |first )?name:[ \t]{1,12})(?P<value>[^\W\d_]{2,20}(?:[ -][^\W\d_]{1,20}\.?){0,3})$",
            0.6,
        ),
        Form.of(
            r"(?i:\b(?:my name is|me llamo|mi nombre es) (?!on |in |not |also |still |wrong|spelled|incorrect)"
            r"(?P<value>[^\W\d_]{2,20}(?: [^\W\d_]{1,20}\.?){0,2}))(?=[.,!;]|\s{0,3}$)",
            0.6,
        ),
    ),
    "CREDIT_CARD": (
        Form.of(r"(?<![\w.-])\d{12,19}(?![\w.-]*\d)", 0.3, passes_luhn),
        Form.of(r"(?<![\w.-])(?:[3-6]\d|2[2-7])\d{2}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\d.]*\d)", 1.0, passes_luhn),
    ),
    "IBAN_CODE": (Form.of(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b", 1.0, passes_iban),),
    "ES_NIF": (Form.of(r"(?<![\w.])(?:\d{8}|\d{2}\.\d{3}\.\d{3})[ -]?[A-Za-z]\b", 1.0, passes_dni),),
    "ES_NIE": (Form.of(r"\b[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]\b", 1.0, passes_dni),),
    "ES_NSS": (Form.of(r"(?<![\d/])\d{2}[ /-]\d{7,8}[ /-]\d{2}(?!\d)", 1.0, is_ssn_es),),
    "UK_NHS": (Form.of(r"(?<!\d)\d{3}[ -]\d{3}[ -]\d{4}(?!\d)", 0.2, passes_nhs),),
    "PHONE_NUMBER": (
        Form.of(r"(?<![\w.+-])(?:\+|00)\d{1,3}[ .-]?(?:\(0?\)[ .-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,5}(?![\w-]*\d)", 0.6),
        Form.of(
            r"(?<![\w.+/-])(?:\+?1[-. ]?|001[-. ]?)?\(?[2-9]\d{2}\)?[-. ]\d{3}[-. ]\d{4}"
            r"(?: ?(?:x|ext\.?) ?\d{1,6})?(?!\d)",
            0.6,
        ),
        Form.of(r"(?<![\w.+/-])\(\d{2,5}\) ?\d{2,5}(?:[ .-]?\d{2,5}){1,3}(?![\w-]*\d)", 0.5),
        Form.of(r"(?<![\w.+/-])0\d{1,4}[ -]\d{2,4}(?:[ -]\d{2,4}){1,3}(?![\w./-]*\d)", 0.45, has_phone_digits),
        Form.of(
            rf"(?i:\b(?:{PHONE_LABELS})\.?\s{{0,2}}(?:no\.?|number|número)?\s{{0,2}}[:=]\s{{0,8}})"
            r"(?P<value>\+?\(?\d[\d ()./-]{5,20}\d(?: ?(?:x|ext\.?) ?\d{1,6})?)",
            0.7,
        ),
        Form.of(rf"(?<![\w.+/-])\+?\(?\d[\d ()./-]{{5,20}}\d(?=[ -]{{0,2}}\(?(?i:{PHONE_LABELS})\b)", 0.6),
        Form.of(r"(?<![\w.+/-])[6-9]\d{2}[ .-]\d{3}[ .-]\d{3}(?![\d.-])", 0.45),
        Form.of(r"(?<![\w.+/-])[6-9]\d{2}(?:[ .-]\d{2}){3}(?![\d.-])", 0.5),
        Form.of(
            r"(?<![\w.+/-])\(?0?\d{1,5}\)?(?:[ ./-]{1,2}\d{2,8}){1,5}(?: ?(?:x|ext\.?) ?\d{1,6})?(?![\w-]*\d)", 0.15
        ),
        Form.of(r"(?<![\w.+/-])\d{9,11}(?:x\d{1,6})?(?![\w-]*\d)", 0.1),
    ),
    "STREET_ADDRESS": (
        Form.of(
            rf"(?<![\w.,$€£-]){HOUSE},?(?: \d{{1,5}})? (?:[NSEW]\.? )?(?:[{UPPER}\d][\w.'’-]{{0,20}} ){{1,4}}"
            rf"{STREETS_EN}\b\.?{UNIT_PART}?{TOWN_PART}?",
            0.75,
        ),
        Form.of(
            rf"(?<!\w)(?:{HOUSE} )?{STREETS_ES} (?:(?:de|del|la|las|los|el|san|santa|l')\s){{0,3}}"
            rf"{WORD}(?:\s(?:(?:de|del|la|las|los|y|el)\s){{0,2}}{WORD}){{0,4}},?\s(?:(?i:núm\.?|nº|n\.º|número)\s?)?"
            rf"{HOUSE}\b{FLOOR_PART_ES}?{UNIT_PART}?{CODE_PART_ES}?",
            0.8,
        ),
        Form.of(
            rf"(?<!\w)(?:\d{{1,5}} )?(?:{WORD}[ -]){{0,2}}[{UPPER}][{LOWER}]{{1,20}}[ -]?{STREET_ENDS}\s{HOUSE}\b"
            rf"{UNIT_PART}?{TOWN_PART}?",
            0.75,
        ),
        Form.of(rf"(?<![\w.,$€£-]){HOUSE} (?:{WORD} ){{1,4}}{HOUSE}\b{UNIT_PART}?{TOWN_PART}", 0.75),
        Form.of(
            rf"(?<![\w.,$€£-])\d{{1,5}}(?:,? [{UPPER}\d][\w.'’-]{{0,20}}){{1,5}}{UNIT_PART}{TOWN_PART}?",
            0.7,
        ),
        Form.of(rf"(?<![\w.,$€£-])\d{{1,5}}(?:,? [{UPPER}\d][\w.'’-]{{0,20}}){{1,5}}{TOWN_PART}", 0.7),
        Form.of(r"\b(?i:p\.? ?o\.? ?box|apartado(?: de correos)?|apdo\.?)\s{1,2}\d{1,7}\b", 0.8),
        Form.of(r"\b(?:PSC|Unit|CMR) \d{3,5},? Box \d{1,5}(?:\s{1,3}(?:APO|FPO|DPO)\s{1,3}A[AEP]\s{1,3}\d{5})?", 0.9),
        Form.of(rf"\bUS(?:S|NS|CGC|NV) {WORD}\s{{1,3}}(?:APO|FPO|DPO)\s{{1,3}}A[AEP]\s{{1,3}}\d{{5}}\b", 0.9),
        Form.of(rf"\b{TOWN},\s{STATE}\s\d{{5}}(?:-\d{{4}})?\b", 0.7),
        Form.of(rf"\b{UNIT}\s{{1,2}}\d{{1,5}}\b", 0.3),
        Form.of(rf"^[>?*\s]{{0,6}}(?P<value>{WORD}(?: {WORD}){{0,2}},? \d{{5}})$", 0.5),
        Form.of(rf"\b{UK_POSTCODE}\b", 0.7),
        Form.of(
            r"(?i:\b(?:zip|postal|post)[ -]?code(?: is)?:?\s{1,3}|\bzip:\s{0,3}|\bC\.?P\.?:?\s{1,3})"
            r"(?P<value>(?:\d{3,5}(?:[ -]\d{2,5})?|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2})(?: [A-Z]{2}\b)?)",
            0.7,
        ),
    ),
    "URL_TOKEN": (
        Form.of(rf"\bhttps?://[^\s<>\"']{{1,400}}?[?&#;]{TOKEN_WORDS}=[^\s<>\"'&]{{6,2000}}[^\s<>\"']{{0,400}}", 0.9),
        Form.of(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@<>\"']{1,100}:[^\s/@<>\"']{1,200}@[^\s<>\"']{1,400}", 0.95),
        Form.of(
            r"\bhttps?://[^\s<>\"']{1,400}/(?P<token>[A-Za-z0-9_-]{24,400})(?![^\s<>\"'])",
            0.5,
            lambda text: looks_random(text.rsplit("/", 1)[-1]),
        ),
        Form.of(r"\bhttps://hooks\.slack\.com/services/[A-Za-z0-9/]{20,100}", 0.95),
    ),
    "URL": (
        Form.of(r"(?i:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"']{3,1000}", 0.7),
        Form.of(
            r"(?i)(?<![\w@.-])(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,5}"
            r"(?:com|org|net|edu|gov|info|io|ai|app|dev|co|es|uk|us|eu|de|fr|it|mx|ar)\b(?:/[^\s<>\"']{0,500})?",
            0.5,
        ),
    ),
    "SECRET": (
        Form.of(r"\b(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{16}\b", 0.95),
        Form.of(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,60})\b", 0.95),
        Form.of(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,200}", 0.95),
        Form.of(r"\b(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,200}\b", 0.95),
        Form.of(r"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{20,200}", 0.95),
        Form.of(r"\b(?:AIza[\w-]{35}|ya29\.[\w-]{20,400}|GOCSPX-[\w-]{20,60})", 0.95),
        Form.of(r"\b(?:hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{30,60}|pypi-[\w-]{50,250}|dop_v1_[a-f0-9]{64})\b", 0.95),
        Form.of(r"\bSG\.[\w-]{16,40}\.[\w-]{30,60}", 0.95),
        Form.of(r"\beyJ[\w-]{10,2000}\.eyJ[\w-]{10,3000}\.[\w-]{10,1000}", 0.95),
        Form.of(r"\b\d{8,10}:AA[\w-]{32,35}\b", 0.9),
        Form.of(r"(?i:AccountKey=|SharedAccessKey=)(?P<value>[A-Za-z0-9+/=]{40,100})", 0.95),
        Form.of(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]{16,3500}(?:-----END [A-Z ]{0,30}KEY-----)?",
            1.0,
        ),
        Form.of(
            rf"\b{SECRET_WORDS}[\"']?\s{{0,3}}(?::|=|\bis\b|\bes\b)\s{{0,3}}[\"']?(?P<value>[^\s\"',;<>]{{6,200}})",
            0.7,
            lambda text: any(each.isdigit() for each in text) or not text.isalpha(),
        ),
        Form.of(r"\b(?i:bearer)\s(?P<value>[A-Za-z0-9._~+/=-]{16,2000})", 0.8, looks_random),
    ),
    "AGE": (
        Form.of(
            r"(?i:\b(?:aged?|turned|turning|tengo|tiene|cumplió|cumple)\s{1,2})(?P<value>\d{1,3})(?=[\s.,;!?)]|$)", 0.7
        ),
        Form.of(r"\b(?P<value>\d{1,3})(?=[ -](?i:years?[ -]old|y/?o\b|yrs?[ -]old|años\b))", 0.8),
    ),
    "DATE_TIME": (
        Form.of(r"(?<![\d.-])(?:1[89]|20)\d{2}-[01]?\d-[0-3]?\d(?:[T ][0-2]?\d:[0-5]\d(?::[0-5]\d)?)?(?![\d-])", 0.8),
        Form.of(r"(?<![\d/.-])[0-3]?\d([/.-])[0-3]?\d\1(?:19|20)?\d{2}(?![\d/.-])", 0.7),
        Form.of(r"(?<![\w.,$€£#/-])(?:1[89]\d{2}|20[0-4]\d)(?=s?\b)(?![-\d/]|[.,]\d)", 0.45),
    ),
}
"""By presidio's name of the entity."""

CONTEXT: dict[str, list[str]] = {
    "PHONE_NUMBER": [
        *("phone", "number", "telephone", "cell", "mobile", "call", "fax", "tel", "desk", "office", "dial", "contact"),
        *("sms", "whatsapp", "teléfono", "tfno", "tlf", "móvil", "llamar", "llame", "llámame"),
    ],
    "STREET_ADDRESS": ["address", "live", "located", "street", "dirección", "domicilio", "vivo", "vive", "send"],
    "UK_NHS": ["nhs"],
    "CREDIT_CARD": ["card", "credit", "debit", "visa", "mastercard", "amex", "cc", "tarjeta", "crédito"],
}
"""Words that, near a find, make it surer by presidio's 0.35."""
