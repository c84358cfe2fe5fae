"""Personal data found by Luthier and by plain presidio in one run: recall, precision, texts a second, peak memory.

In: options, and the sets `pii_presidio` and `pii_enterprise` in the folder that LUTHIER_DATA names (test splits;
nothing was tuned on them). Out: tables and, last, one JSON object. Presidio runs as installed (its default
recognisers, no threshold) in a process of its own, with the same spaCy model. Loading is not timed.
Run: python -m benchmarks.personal [--speed-rows 600] [--documents 300]

A marked span is found where finds of its kind cover half of its characters or more; a find is right where marked
spans of its kind cover half of it. Of finds that overlap, the surer one is taken, for both sides. Streets, towns and
postcodes are one kind, `location`. In the second table, of the kinds that Luthier looks for by default, towns and
countries count neither way. `characters` counts those of all kinds together: what of the personal data is covered by
any find.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contestants import ROOT
from benchmarks.rows import DATA_VARIABLE
from luthier.personal.finder import Span, apart
from luthier.personal.kinds import DEFAULT_KINDS, KIND_OF
from luthier.personal.settings import MODELS, AnonymiseSettings, is_installed
from luthier.personal.workers import Search
from luthier.runs.run import peak_memory
from luthier.text_table import columns

MARKED = {
    "PERSON": "person",
    "GPE": "location",
    "STREET_ADDRESS": "location",
    "ZIP_CODE": "location",
    "IP_ADDRESS": "ip",
    "CREDIT_CARD": "card",
    "DATE_TIME": "date",
    "PHONE_NUMBER": "phone",
    "IBAN_CODE": "iban",
    "NRP": "group",
    "EMAIL_ADDRESS": "email",
    "DOMAIN_NAME": "url",
    "US_SSN": "national_id",
    "US_DRIVER_LICENSE": "licence",
}
"""Our kind for each of the set's labels that presidio as installed has a recogniser for (not titles, ages, firms)."""
SAME = {"place": "location", "address": "location"}
ALL_KINDS = [*DEFAULT_KINDS, "place", "date", "group", "url", "licence"]
WARM_UP = 256
SPEED_ROUNDS = 5
SIDES = ("presidio", "luthier-1", "luthier-2")
Spans = list[Span]


class Score(NamedTuple):
    recall: float
    precision: float

    @property
    def f1(self) -> float:
        return 2 * self.recall * self.precision / ((self.recall + self.precision) or 1.0)


def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise SystemExit(f"set {DATA_VARIABLE} to the folder with pii_presidio and pii_enterprise")
    file = Path(folder) / name / f"{split}.jsonl"
    packed = file.with_name(f"{file.name}.gz")
    text = file.read_text() if file.exists() else gzip.decompress(packed.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def presidio_finder() -> Callable[[Iterable[str]], list[Spans]]:
    """Presidio as installed but for the spaCy model, which is the one that Luthier takes."""
    import logging

    import presidio_analyzer
    import yaml
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    configuration = yaml.safe_load((Path(presidio_analyzer.__file__).parent / "conf" / "spacy.yaml").read_text())
    model = next(name for name in MODELS["en"] if is_installed(name))
    configuration["models"] = [{"lang_code": "en", "model_name": model}]
    engine = NlpEngineProvider(nlp_configuration=configuration).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])

    def find(texts: Iterable[str]) -> list[Spans]:
        return [
            [
                Span(KIND_OF.get(each.entity_type, each.entity_type), each.start, each.end, each.score)
                for each in analyzer.analyze(text, "en")
            ]
            for text in texts
        ]

    return find


def luthier_finder(workers: int, kinds: Sequence[str]) -> Callable[[Iterable[str]], list[Spans]]:
    search = Search(AnonymiseSettings(kinds=list(kinds), workers=workers), alone=0)
    return lambda texts: list(search.find(texts))


def run_side(name: str, job: Mapping[str, list[str]], rounds: int) -> dict[str, Any]:
    """One contestant: what it finds in each set, and how long it takes."""
    started = time.perf_counter()
    find = presidio_finder() if name == "presidio" else luthier_finder(int(name[-1]), ALL_KINDS)
    find(job["speed"][:1] if name == "presidio" else job["speed"][:WARM_UP])
    loading = time.perf_counter() - started
    texts = list(islice(cycle(job["speed"]), rounds * len(job["speed"])))
    started = time.perf_counter()
    find(texts)
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {}
    if name != "luthier-1":
        found = {key: find(several) for key, several in job.items() if key != "speed"}
    if name == "luthier-2":
        found["defaults"] = luthier_finder(1, DEFAULT_KINDS)(job["pii_presidio"])
        found["pii_enterprise"] = [[s for s in spans if s.kind in DEFAULT_KINDS] for spans in found["pii_enterprise"]]
    peak = peak_memory()
    return {"texts_a_second": len(texts) / seconds, "loading": loading, "found": found, "peak": peak}


def in_own_process(name: str, job: Mapping[str, list[str]], rounds: int) -> dict[str, Any]:
    """`run_side` in a process of its own; the peak is that of it and of its workers together."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        command = [
            sys.executable,
            "-m",
            "benchmarks.personal",
            "--side",
            name,
            "--job",
            folder,
            "--rounds",
            str(rounds),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        peak = 0
        while process.poll() is None:
            time.sleep(0.2)
            try:
                whole = psutil.Process(process.pid)
                peak = max(peak, sum(each.memory_info().rss for each in [whole, *whole.children(recursive=True)]))
            except psutil.NoSuchProcess:
                continue
        if process.returncode:
            raise SystemExit(f"{name} failed")
        made: dict[str, Any] = json.loads((Path(folder) / "out.json").read_text())
        made["peak"] = peak
        made["found"] = {
            key: [[Span(**s) for s in spans] for spans in several] for key, several in made["found"].items()
        }
        return made


def covered(start: int, end: int, spans: Iterable[tuple[int, int]]) -> float:
    """The share of these characters that lie in the spans."""
    inside = {place for low, high in spans for place in range(max(start, low), min(end, high))}
    return len(inside) / (end - start)


def scores(
    rows: Sequence[Mapping[str, Any]], found: Sequence[Spans], kinds: set[str], ignored: set[str]
) -> dict[str, Score]:
    """Recall and precision by kind, over all (`all kinds`), and of characters whatever their kind (`characters`)."""
    counts: Counter[tuple[str, str]] = Counter()
    for row, several in zip(rows, found, strict=True):
        gold = [(MARKED[s["label"]], s["start"], s["end"]) for s in row["spans"] if s["label"] in set(MARKED) - ignored]
        gold = [each for each in gold if each[0] in kinds]
        aside = [(s["start"], s["end"]) for s in row["spans"] if s["label"] in ignored]
        finds = [(SAME.get(s.kind, s.kind), s.start, s.end) for s in apart(several, row["text"])]
        finds = [each for each in finds if each[0] in kinds and covered(*each[1:], aside) < 0.5]
        for left, right, (yes, no) in ((gold, finds, ("found", "missed")), (finds, gold, ("right", "wrong"))):
            everything = [each[1:] for each in right]
            for kind, start, end in left:
                hit = covered(start, end, [each[1:] for each in right if each[0] == kind]) >= 0.5
                letters = round(covered(start, end, everything) * (end - start))
                for name in (kind, "all kinds"):
                    counts[name, yes if hit else no] += 1
                counts["characters", yes] += letters
                counts["characters", no] += end - start - letters
    return {
        name: Score(
            counts[name, "found"] / ((counts[name, "found"] + counts[name, "missed"]) or 1),
            counts[name, "right"] / ((counts[name, "right"] + counts[name, "wrong"]) or 1),
        )
        for name in [*sorted(kinds & {key for key, _ in counts}), "all kinds", "characters"]
    }


def documents(rows: Sequence[Mapping[str, Any]], found: Sequence[Spans]) -> Score:
    """A document is said to hold sensitive data where anything is found in it."""
    said = [any(span.kind in DEFAULT_KINDS or span.kind == "place" for span in spans) for spans in found]
    right = sum(each and row["label"] == 1 for each, row in zip(said, rows, strict=True))
    return Score(right / (sum(row["label"] == 1 for row in rows) or 1), right / (sum(said) or 1))


def shown(title: str, ours: Mapping[str, Score], theirs: Mapping[str, Score]) -> None:
    header = [title, "recall", "presidio", "precision", "presidio", "F1", "presidio"]
    body = [
        [
            name,
            *(
                f"{getattr(side.get(name, Score(0, 0)), of):.3f}"
                for of in ("recall", "precision", "f1")
                for side in (ours, theirs)
            ),
        ]
        for name in dict.fromkeys([*ours, *theirs])
    ]
    print(columns([header, *body]), end="\n\n")


def as_json(score: Score) -> dict[str, float]:
    return {"recall": round(score.recall, 4), "precision": round(score.precision, 4), "f1": round(score.f1, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed-rows", type=int, default=600, help="texts whose time is taken")
    parser.add_argument("--documents", type=int, default=300, help="of pii_enterprise")
    parser.add_argument("--split", default="test")
    for hidden in ("--side", "--job", "--rounds"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        job = json.loads((Path(options.job) / "job.json").read_text())
        made = run_side(options.side, job, int(options.rounds))
        (Path(options.job) / "out.json").write_text(json.dumps(made, default=vars))
        return
    rows, business = (
        rows_of("pii_presidio", options.split),
        rows_of("pii_enterprise", options.split)[: options.documents],
    )
    speed = [row["text"] for split in ("train", "validation", "test") for row in rows_of("pii_presidio", split)]
    job = {
        "pii_presidio": [row["text"] for row in rows],
        "pii_enterprise": [row["text"] for row in business],
        "speed": speed[:: max(1, len(speed) // options.speed_rows)][: options.speed_rows],
    }
    sides = {name: in_own_process(name, job, 1 if name == "presidio" else SPEED_ROUNDS) for name in SIDES}
    report(rows, business, sides)


def report(rows: list[dict[str, Any]], business: list[dict[str, Any]], sides: dict[str, dict[str, Any]]) -> None:
    theirs, ours = sides["presidio"]["found"], sides["luthier-2"]["found"]
    kinds = set(MARKED.values())
    every = [scores(rows, side["pii_presidio"], kinds, set()) for side in (ours, theirs)]
    shown(f"pii_presidio, {len(rows)} texts", *every)
    defaults = {SAME.get(kind, kind) for kind in DEFAULT_KINDS} & kinds
    usual = [scores(rows, found, defaults, {"GPE"}) for found in (ours["defaults"], theirs["pii_presidio"])]
    shown("kinds by default", *usual)
    whole = [documents(business, side["pii_enterprise"]) for side in (ours, theirs)]
    shown(f"pii_enterprise, {len(business)} texts", {"documents": whole[0]}, {"documents": whole[1]})
    table = [["", "texts a second", "times presidio", "peak MiB", "seconds to load"]]
    base = sides["presidio"]["texts_a_second"]
    for name, side in sides.items():
        rate = side["texts_a_second"]
        table.append(
            [name, f"{rate:.1f}", f"{rate / base:.2f}", f"{side['peak'] / 2**20:.0f}", f"{side['loading']:.1f}"]
        )
    print(columns(table))
    figures = {
        "all_kinds": {"luthier": as_json(every[0]["all kinds"]), "presidio": as_json(every[1]["all kinds"])},
        "characters": {"luthier": as_json(every[0]["characters"]), "presidio": as_json(every[1]["characters"])},
        "default_kinds": {"luthier": as_json(usual[0]["all kinds"]), "presidio": as_json(usual[1]["all kinds"])},
        "pii_enterprise": {"luthier": as_json(whole[0]), "presidio": as_json(whole[1])},
        "texts_a_second": {name: round(side["texts_a_second"], 1) for name, side in sides.items()},
        "times_faster": round(sides["luthier-2"]["texts_a_second"] / base, 2),
        "peak_mib": {name: round(side["peak"] / 2**20) for name, side in sides.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
