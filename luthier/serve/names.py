"""What `model` names: the base, an adapter, one version of it, or several versions by their shares.

In: registered adapters with versions (`reviews`, `reviews@v2`). Out: for a request, the one that answers it. A version
that is taken away answers what it has begun first.
"""

from __future__ import annotations

import difflib
import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from luthier.serve.refusals import Refusal, shortened

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,31})?")
FIRST = "v1"
"""The version of an adapter that was registered without one."""
GRAIN = 1 << 32


@dataclass
class Versions:
    """One public name."""

    registered: dict[str, str] = field(default_factory=dict)
    """The engine's name of each version, in the order in which they came."""
    shares: dict[str, float] = field(default_factory=dict)
    """Which share of the requests each version gets; they sum to 1."""
    newest: int = 0
    """The highest number that a version without a name of its own got: none is used again."""


class Names:
    """All adapters by their public names. Only the event loop's thread uses it."""

    def __init__(self, base: str, remove: Callable[[str], None]) -> None:
        self.base = base
        self.versions: dict[str, Versions] = {}
        self.busy: dict[str, int] = {}
        """Requests under way on each registered adapter."""
        self.leaving: set[str] = set()
        """Those that go once nothing is under way on them."""
        self._remove = remove

    # Who answers

    def resolve(self, model: str, user: str | None = None) -> str | None:
        """The registered adapter that answers; None for the base model. One user always gets the same version.

        Raises:
            Refusal: there is no such model.
        """
        if model == self.base:
            return None
        name, _, version = model.partition("@")
        known = self.versions.get(name)
        if known is None or (version and version not in known.registered):
            raise self.unknown(model, self.public())
        return known.registered[version or self._drawn(name, known.shares, user)]

    def _drawn(self, name: str, shares: Mapping[str, float], user: str | None) -> str:
        if len(shares) == 1:
            return next(iter(shares))
        if user is None:
            place = random.random()
        else:
            digest = hashlib.blake2b(f"{name}\0{user}".encode("utf-8", "replace"), digest_size=4).digest()
            place = int.from_bytes(digest) / GRAIN
        for version, share in shares.items():
            place -= share
            if place < 0:
                return version
        return version

    def public(self) -> list[str]:
        """Every name that a request may give, the base first."""
        several = {name: each for name, each in self.versions.items() if len(each.registered) > 1}
        versions = [f"{name}@{version}" for name, each in several.items() for version in each.registered]
        return [self.base, *self.versions, *versions]

    def unknown(self, model: str, among: Iterable[str]) -> Refusal:
        """The refusal, with the nearest names of those that the asker may know of."""
        names = list(among)
        close = difflib.get_close_matches(shortened(model), names, n=3, cutoff=0.6)
        few = f"there are: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else ""
        hint = f"did you mean {' or '.join(close)}?" if close else few
        return Refusal("unknown_adapter", f"there is no model '{shortened(model)}'; {hint}")

    # What is under way

    def begin(self, registered: str | None) -> None:
        if registered is not None:
            self.busy[registered] = self.busy.get(registered, 0) + 1

    def end(self, registered: str | None) -> None:
        if registered is None:
            return
        self.busy[registered] -= 1
        if not self.busy[registered]:
            del self.busy[registered]
            self._leave(registered)

    def _leave(self, registered: str) -> None:
        if registered in self.leaving and registered not in self.busy:
            self.leaving.discard(registered)
            self._remove(registered)

    # What there is

    def free_name(self, model: str, replace: bool) -> tuple[str, str, str]:
        """Public name, version and engine's name for an adapter that comes.

        Raises:
            Refusal: no name, or one that is taken.
        """
        if not NAME.fullmatch(model):
            mend = "letters, digits, '.', '_' and '-', and perhaps '@' and a version"
            raise Refusal("malformed", f"'{shortened(model)}' is no name for a model: {mend}", param="name")
        name, _, version = model.partition("@")
        known = self.versions.get(name)
        if name == self.base or (known and not version and not replace):
            mend = "" if name == self.base else "; say replace: true to swap in another version, or name one: @v2"
            raise Refusal("taken", f"there is a model '{name}'{mend}")
        if not version:
            number = known.newest + 1 if known else 1
            while known and f"v{number}" in known.registered:
                number += 1
            version = f"v{number}"
        elif known and version in known.registered:
            raise Refusal("taken", f"there is a model '{name}@{version}'")
        registered = name if version == FIRST else f"{name}@{version}"
        if registered in self.leaving:
            raise Refusal("taken", f"the earlier '{registered}' still answers what it began", retry_after=5)
        return name, version, registered

    def add(self, name: str, version: str, registered: str, share: float | None, replace: bool) -> None:
        """Give a registered adapter its place: all requests (`replace`, or the first one), a share, or none yet."""
        known = self.versions.setdefault(name, Versions())
        known.registered[version] = registered
        if version[1:].isdecimal() and version.startswith("v"):
            known.newest = max(known.newest, int(version[1:]))
        if replace or not known.shares:
            known.shares = {version: 1.0}
            for other in [each for each in known.registered if each != version] if replace else []:
                self._take_away(known, other)
        elif share:
            known.shares = {other: old * (1 - share) for other, old in known.shares.items()} | {version: share}

    def share(self, name: str, shares: Mapping[str, float]) -> None:
        """Set which share of the requests each version gets, in percent. Raises `Refusal`."""
        known = self.versions.get(name)
        if known is None:
            raise self.unknown(name, self.public())
        wrong = [version for version in shares if version not in known.registered]
        if wrong:
            there = ", ".join(known.registered)
            raise Refusal("malformed", f"'{name}' has no version {shortened(wrong[0])}; there are: {there}")
        if abs(sum(shares.values()) - 100) > 1e-6 or min(shares.values()) < 0:
            raise Refusal("malformed", "shares are percentages that sum to 100", param="shares")
        known.shares = {version: share / 100 for version, share in shares.items() if share > 0}

    def take_away(self, model: str) -> list[str]:
        """Take one version or a whole name away; returns the engine's names. Raises `Refusal`."""
        name, _, version = model.partition("@")
        known = self.versions.get(name)
        if known is None or (version and version not in known.registered):
            raise self.unknown(model, self.public()[1:])
        if version and known.shares.get(version) and len(known.registered) > 1 and len(known.shares) == 1:
            raise Refusal("taken", f"'{model}' answers all requests for '{name}': give others a share first")
        gone = [known.registered[each] for each in ([version] if version else list(known.registered))]
        for each in [version] if version else list(known.registered):
            self._take_away(known, each)
        if not known.registered:
            del self.versions[name]
        return gone

    def _take_away(self, known: Versions, version: str) -> None:
        registered = known.registered.pop(version)
        if known.shares.pop(version, 0) and known.shares:
            total = sum(known.shares.values())
            known.shares = {each: share / total for each, share in known.shares.items()}
        self.leaving.add(registered)
        self._leave(registered)
