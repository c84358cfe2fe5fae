"""Every method on real data, beside the closest peer on the same rows and steps.

In: options; data sets from the folder that LUTHIER_DATA names. Out: two tables (what learns, what the loss is) and,
last, one JSON object. Run: python -m benchmarks.methods [--only "lora; dpo"] [--seeds 0,1,2] [--json figures.json]
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.environments import SETFIT
from benchmarks.method_run import Entry, Line, asked_for, run_entry
from benchmarks.rows import REVIEWS, source_of
from benchmarks.train_speed import MINILM, SMOLLM
from luthier.evaluate.examinations import EXAMINATIONS
from luthier.text_table import columns

UNEXAMINED = dict.fromkeys(EXAMINATIONS)
"""A score is all that is asked here: none of the verdict's other examinations."""
LATE = 10**6
"""Validate at the last step only: no peer picks its best checkpoint either."""
LORA = {"peft": "LoraConfig", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TRAINER, PEFT_TRAINER = "transformers' Trainer", "PEFT, transformers' Trainer"


def recipe(
    data_set: str, rows: int, test: int, task: str = "classify", model: str = MINILM, **more: Any
) -> dict[str, Any]:
    """A run on some rows of a data set."""
    source = source_of(data_set) | {"max_rows": {"train": rows, "validation": 64, "test": test}} | more.pop("data", {})
    train = {"epochs": 2, "batch_size": 16, "validate_every": LATE} | more.pop("train", {})
    baselines = more.pop("baselines", ["majority"] if task == "classify" else None)
    evaluate = UNEXAMINED | {"baselines": baselines, "max_new_tokens": 64} | more.pop("evaluate", {})
    section = {"path": model, "dtype": "float32", "device": "cpu"}
    return {"model": section, "data": source, "task": task, "train": train, "evaluate": evaluate, **more}


def reviews(selection: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    train = {"epochs": 3} | more.pop("train", {})
    return recipe("rotten_tomatoes", 800, 1066, selection=dict(selection), train=train, **more)


def small_reviews(selection: Mapping[str, Any]) -> dict[str, Any]:
    """For the methods that need a decoder: fewer rows, for it is a larger model."""
    return recipe("rotten_tomatoes", 400, 400, model=SMOLLM, selection=dict(selection), train={"epochs": 1})


def writing(data_set: str, rows: int, test: int, task: str = "generate", **more: Any) -> dict[str, Any]:
    train = {"epochs": 1, "batch_size": 8} | more.pop("train", {})
    return recipe(data_set, rows, test, task, SMOLLM, selection={"lora": {}}, train=train, **more)


SEED = "; seed "
"""Between a line's name and the number of its seed, where that is not 0."""
SHORT = 700
"""Characters of a dialogue with the longer of its two answers: within 256 tokens."""
DRAWN = 24
"""Longest answer in tokens that a reward is drawn for."""
DRAWN_RATE = 5e-4
"""Learning rate of rewards: at the default, a tenth of it, eight steps teach neither side anything."""
COVERAGE = """
def coverage(prompt, answer, fields):
    words = [word.strip(",.").lower()[:4] for word in prompt.split()]
    return sum(word in answer.lower() for word in words) / max(1, len(words))
"""
TASK_TEXT = "Is this film review positive or negative?"


def selections() -> list[Entry]:
    """What learns, on film reviews."""

    def trainer(names: list[str] | None, **more: Any) -> dict[str, Any]:
        return {"trainer": "head", "learns": {"names": names}, **more}

    def peft(**learns: Any) -> dict[str, Any]:
        return {"trainer": "head", "learns": learns}

    virtual = {"num_virtual_tokens": 20}
    blocks = [f"layer.{number}." for number in range(2, 6)]
    added = ["coming-of-age", "pretentious"]  # frequent enough to be in the rows that are drawn
    return [
        Entry("full", reviews({"full": {}}, train={"learning_rate": 1e-4}), trainer(None), TRAINER),
        Entry(
            "full, adamw_8bit",
            reviews({"full": {}}, train={"learning_rate": 1e-4, "optimizer": "adamw_8bit"}),
            trainer(None),
            TRAINER,
        ),
        Entry("last_layers", reviews({"last_layers": {"layers": 4}}), trainer([*blocks, "pooler"]), TRAINER),
        Entry("head", reviews({"head": {}}), trainer([]), TRAINER),
        Entry("bias", reviews({"bias": {}}), trainer(["bias"]), TRAINER),
        Entry("norms", reviews({"norms": {}}), trainer(["LayerNorm"]), TRAINER),
        Entry("lora", reviews({"lora": {}}), peft(**LORA), PEFT_TRAINER),
        Entry("lora, rslora", reviews({"lora": {"rslora": True}}), peft(**LORA, use_rslora=True), PEFT_TRAINER),
        Entry("lora, dora", reviews({"lora": {"dora": True}}), peft(**LORA, use_dora=True), PEFT_TRAINER),
        Entry("lora, plus", reviews({"lora": {"plus": 16}}), peft(**LORA) | {"loraplus": 16}, PEFT_TRAINER),
        Entry("qlora", reviews({"qlora": {}}), peft(**LORA) | {"loading": {"bits": 4}}, PEFT_TRAINER),
        Entry("adapter, pfeiffer", reviews({"adapter": {}})),
        Entry("adapter, houlsby", reviews({"adapter": {"style": "houlsby"}})),
        Entry("ia3", reviews({"ia3": {}}), peft(peft="IA3Config"), PEFT_TRAINER),
        Entry("tokens", reviews({"tokens": {"add": added}})),
        Entry("lora (decoder)", small_reviews({"lora": {}}), peft(**LORA), PEFT_TRAINER),
        Entry(
            "prefix (decoder)",
            small_reviews({"prefix": {"init_text": TASK_TEXT}}),
            peft(peft="PrefixTuningConfig", **virtual),
            PEFT_TRAINER,
        ),
        Entry(
            "prompt (decoder)",
            small_reviews({"prompt": {"init_text": TASK_TEXT}}),
            peft(peft="PromptTuningConfig", **virtual),
            PEFT_TRAINER,
        ),
    ]


def objectives(made: Path) -> list[Entry]:
    """What the loss is, each on a fitting set; `made` is a folder for data cut for a method."""
    pairs = {"batch_size": 8, "max_length": 256}
    full: dict[str, Any] = {"selection": {"full": {}}}
    head = {"trainer": "head", "learns": {}}
    lora = {"trainer": "head", "learns": LORA}
    sft = {"trainer": "SFT", "config": {"max_length": None}}
    tags: dict[str, Any] = full | {"baselines": ["word_lookup"], "train": {"epochs": 3, "learning_rate": 2e-4}}
    likely: dict[str, Any] = {"evaluate": {"metrics": ["perplexity"], "max_new_tokens": 1}, "baselines": ["zero_shot"]}
    german: dict[str, Any] = {"data": {"columns": {"prompt": "en", "completion": "de"}}}
    maths: dict[str, Any] = {"data": {"columns": {"prompt": "question", "completion": "answer"}}}
    dialogues: dict[str, Any] = {"columns": {"prompt": "dialogue", "completion": "summary"}, "on_bad_row": "skip"}
    dialogues["splits"] = {"train": "validation.jsonl", "test": "test.jsonl"}  # it comes without training rows
    summary: dict[str, Any] = {"data": dialogues, "train": {"max_length": 512}}
    concepts: dict[str, Any] = {"data": {"columns": {"prompt": "concepts", "completion": "target"}}}
    few: dict[str, Any] = {"data": {"source": str(eight_of_each(made))}}
    unlabelled = {"unlabelled": str(Path(source_of("banking77")["source"]) / "train.jsonl.gz")}
    intents = {"name": "intents", "task": "classify", "data": source_of("banking77") | {"max_rows": {"train": 1500}}}
    teacher = {"distil": {"teacher": "base", "alpha": 0.3}}

    def preferring(name: str, trainer: str, objective: Mapping[str, Any], **config: Any) -> Entry:
        source = {"source": str(short_pairs(made)), "on_bad_row": "skip"}  # some do not end in an answer
        run = writing("hh_harmless", 80, 200, "prefer", data=source, objective=dict(objective), train=dict(pairs))
        return Entry(name, run, {"trainer": trainer, "config": config}, f"TRL {trainer}Trainer")

    def written(name: str, data_set: str, rows: int, test: int, **more: Any) -> Entry:
        return Entry(name, writing(data_set, rows, test, **more), sft, "TRL SFTTrainer")

    def drawing(name: str, trainer: str | None = None, **settings: Any) -> Entry:
        """Words to a sentence, which is worth the share of the words that it has."""
        reward = f"{written_reward(made)}:coverage"
        objective = {name: {"rewards": [reward], "max_new_tokens": DRAWN, **settings}}
        asked: dict[str, Any] = {"baselines": ["zero_shot"], "evaluate": {"max_new_tokens": DRAWN}}
        asked["evaluate"]["metrics"] = ["concept_coverage"]
        asked["data"] = {"columns": {**concepts["data"]["columns"], "concepts": "concepts"}}
        peer = {"num_generations": 4, "gradient_accumulation_steps": 4, "max_completion_length": DRAWN, "beta": 0.04}
        theirs = {"trainer": trainer, "config": peer} if trainer else None
        return Entry(
            name,
            writing("commongen", 64, 100, objective=objective, train={"learning_rate": DRAWN_RATE}, **asked),
            theirs,
            f"TRL {trainer}Trainer" if trainer else "",
        )

    return [
        Entry("classify", recipe("banking77", 1500, 1500, selection={"lora": {}}), lora, PEFT_TRAINER),
        Entry(
            "classify, 8 rows a label",
            recipe("banking77", 616, 1500, train={"epochs": 8}, **full, **few),
            head,
            TRAINER,
        ),
        Entry(
            "contrastive, 8 rows a label",
            recipe("banking77", 616, 1500, objective={"contrastive": {}}, **full, **few),
            head,
            "SetFit",
            SETFIT,
        ),
        Entry(
            "selftrain, 8 rows a label",
            recipe("banking77", 616, 1500, objective={"selftrain": unlabelled}, train={"epochs": 8}, **full, **few),
        ),
        Entry("multitask, reviews and intents", reviews({"lora": {}}, mix=[intents])),
        Entry("regress", scored_reviews(), lora, PEFT_TRAINER),
        Entry("tag, wnut17", recipe("wnut17", 1500, 1000, "tag", **tags), head, TRAINER),
        Entry("tag, conll2002_es", recipe("conll2002_es", 1500, 1000, "tag", **tags), head, TRAINER),
        written("lm, es_prose", "es_prose", 8, 6, task="lm", train={"max_length": 512}, baselines=["untouched"]),
        written("sft, multi30k_en_de", "multi30k_en_de", 200, 100, **german, **likely),
        written("sft, commongen", "commongen", 300, 150, **concepts, **likely),
        written("sft, dialogsum", "dialogsum", 40, 50, **summary, **likely),
        written("sft, gsm8k", "gsm8k", 80, 100, **maths, **likely),
        preferring("dpo", "DPO", {"dpo": {}}),
        preferring("dpo, ipo", "DPO", {"dpo": {"variant": "ipo"}}, loss_type="ipo", beta=0.1),
        preferring("kto", "KTO", {"kto": {}}),
        preferring("reward", "Reward", {"reward": {}}),
        drawing("grpo", "GRPO", samples=4),
        drawing("ppo"),
        Entry("distil, commongen", writing("commongen", 300, 150, objective=teacher, **concepts, **likely)),
    ]


def written_reward(folder: Path) -> Path:
    """A file with a reward function."""
    file = folder / "coverage.py"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(COVERAGE)
    return file


def scored_reviews() -> dict[str, Any]:
    """Film reviews with the mean of people's scores."""
    data = {"columns": {"text": "text", "score": "score"}, "label_bins": None}
    return recipe(REVIEWS, 1000, 1000, "regress", data=data, selection={"lora": {}}, train={"epochs": 3})


def eight_of_each(folder: Path) -> Path:
    """banking77 with the first 8 training rows of each label."""
    whole = Path(source_of("banking77")["source"])
    counts: dict[str, int] = {}
    kept = []
    for line in gzip.decompress((whole / "train.jsonl.gz").read_bytes()).decode().splitlines():
        label = json.loads(line)["label_name"]
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= 8:
            kept.append(line)
    cut = folder / "banking77_8"
    cut.mkdir(parents=True, exist_ok=True)
    (cut / "train.jsonl").write_text("\n".join(kept) + "\n")
    shutil.copy(whole / "test.jsonl", cut)
    return cut


def short_pairs(folder: Path) -> Path:
    """hh_harmless without long dialogues: TRL cuts or drops what is longer than its limit in ways of its own."""
    whole = Path(source_of("hh_harmless")["source"])
    cut = folder / "hh_short"
    cut.mkdir(parents=True, exist_ok=True)
    for file in whole.glob("*.jsonl*"):
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        kept = []
        for line in raw.decode().splitlines():
            row = json.loads(line)
            if len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) <= SHORT:
                kept.append(line)
        (cut / file.name.removesuffix(".gz")).write_text("\n".join(kept) + "\n")
    return cut


# ---- what is printed


def score(values: Mapping[str, Any] | None, metric: str) -> str:
    """A figure with its interval, as a percentage where the metric is one."""
    from luthier.evaluate.metrics import METRICS

    if values is None or values["value"] is None:
        return "-"
    if METRICS[metric].percent:
        return f"{100 * values['value']:.1f}% ({100 * values['low']:.1f} to {100 * values['high']:.1f})"
    return f"{values['value']:.3g} ({values['low']:.3g} to {values['high']:.3g})"


def against(difference: Mapping[str, Any] | None) -> str:
    """Luthier less the peer, and whether that is worse beyond its interval."""
    if difference is None:
        return "-"
    apart = difference["low"] > 0 or difference["high"] < 0
    verdict = ("better" if difference["better"] else "worse") if apart else "no difference"
    low, middle, high = (difference[name] for name in ("low", "difference", "high"))
    return f"{middle:+.3g} ({low:+.3g} to {high:+.3g}), {verdict}"


def table(lines: Sequence[Line]) -> str:
    names = [
        "",
        "metric",
        "before",
        "after",
        "peer",
        "Luthier less peer",
        "learned",
        "tokens/s",
        "peer",
        "GiB",
        "saved MB",
    ]
    rows = [names]
    for line in lines:
        if not line.figures:
            rows.append([line.name, f"failed: {line.failed}", *[""] * (len(names) - 2)])
            continue
        found = line.figures
        metric = found["metric"]
        before = ", ".join(f"{name} {value:.3g}" for name, value in found["before"].items() if value is not None)
        speed = found.get("peer_tokens_per_second")
        rows.append(
            [
                line.name,
                metric,
                before or "-",
                score(found["after"], metric),
                score(found.get("peer_after"), metric),
                against(found.get("against_peer")) if not line.failed else f"failed: {line.failed}",
                f"{found['parameters']:,} ({found['parameters'] / found['of_parameters']:.2%})",
                f"{found['tokens_per_second']:,.0f}",
                f"{speed:,.0f}" if speed else "-",
                f"{found['peak_memory'] / 2**30:.2f}",
                f"{found['saved_bytes'] / 1e6:.2f}",
            ]
        )
    return columns(rows)


@dataclass(frozen=True)
class Pooled:
    """One entry's difference from its peer over several seeds."""

    name: str
    seeds: int
    after: float
    peer_after: float
    against_peer: Mapping[str, Any]


def over_seeds(lines: Sequence[Line]) -> list[Pooled]:
    """The mean difference of the lines that have run with several seeds.

    Its half-interval is the root of two squares' sum: Student's interval of the seeds' differences, and the mean of
    their own half-intervals, which are over test rows. That is on the wide side, for seeds may draw other rows too.
    """
    from scipy.stats import t

    from luthier.evaluate.metrics import METRICS

    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.figures.get("against_peer"):
            groups.setdefault(line.name.partition(SEED)[0], []).append(line.figures)
    found = []
    for name, figures in groups.items():
        if (count := len(figures)) < 2:
            continue
        apart = [one["against_peer"] for one in figures]
        middle = mean(one["difference"] for one in apart)
        by_seed = t.ppf(0.975, count - 1) * stdev(one["difference"] for one in apart) / count**0.5
        half = math.hypot(by_seed, mean((one["high"] - one["low"]) / 2 for one in apart))
        better = middle > 0 if METRICS[figures[0]["metric"]].higher_is_better else middle < 0
        difference = {"difference": middle, "low": middle - half, "high": middle + half, "better": better}
        ours, theirs = (mean(one[which]["value"] for one in figures) for which in ("after", "peer_after"))
        found.append(Pooled(name, count, ours, theirs, difference))
    return found


def summary(lines: Sequence[Line], pooled: Sequence[Pooled]) -> dict[str, Any]:
    """How many lines there are, and which are worse than their peer beyond the interval (over seeds, if run so)."""
    apart = {line.name: line.figures["against_peer"] for line in lines if line.figures.get("against_peer")}
    apart = {name: d for name, d in apart.items() if name.partition(SEED)[0] not in {one.name for one in pooled}}
    apart |= {one.name: one.against_peer for one in pooled}
    worse = [name for name, d in apart.items() if not d["better"] and (d["low"] > 0 or d["high"] < 0)]
    return {"lines": len(lines), "compared": len(apart), "worse_beyond_interval": worse}


def seeds_table(found: Sequence[Pooled]) -> str:
    rows = [["", "seeds", "after", "peer", "Luthier less peer"]]
    rows += [
        [one.name, str(one.seeds), f"{one.after:.3g}", f"{one.peer_after:.3g}", against(one.against_peer)]
        for one in found
    ]
    return columns(rows)


def seeded(entry: Entry, seed: int) -> Entry:
    """The same with another seed, under another name."""
    if not seed:
        return entry
    return replace(entry, name=f"{entry.name}{SEED}{seed}", recipe={**entry.recipe, "seed": seed})


def seeds(text: str) -> list[int]:
    """The numbers of `--seeds`. Raises `ValueError` where one is no whole number, which argparse tells."""
    return [int(seed) for seed in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of lines, separated by semicolons; a name takes what starts with it")
    parser.add_argument("--no-peers", action="store_true", help="Luthier alone")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; gone at the end without it")
    parser.add_argument(
        "--seeds", type=seeds, default="0", help="of both sides, separated by commas; lines of others than 0 say so"
    )
    parser.add_argument(
        "--json", type=Path, help="a file for all figures; lines that it has are kept, failed ones tried again"
    )
    options = parser.parse_args()
    kept_folder = nullcontext(options.folder) if options.folder else TemporaryDirectory(prefix="luthier-methods-")
    with kept_folder as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Every line that is asked for and not there yet, then all that are there."""
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    groups = {"What learns": selections(), "What the loss is": objectives(folder)}
    found: dict[str, Line] = {name: Line(**values) for name, values in kept.items()}
    entries = asked_for([entry for group in groups.values() for entry in group], options.only)
    for entry in (seeded(entry, seed) for entry in entries for seed in options.seeds):
        if entry.name in found and not found[entry.name].failed:
            continue
        line = run_entry(entry, folder / entry.name.replace(", ", "-").replace(" ", "_"), not options.no_peers)
        print(table([line]), flush=True)
        found[entry.name] = line
        if options.json:
            options.json.write_text(json.dumps({name: asdict(each) for name, each in found.items()}, indent=1))
    for title, entries in groups.items():
        print(f"\n{title}\n")
        names = {entry.name for entry in entries}
        print(table([line for name, line in found.items() if name.partition(SEED)[0] in names]))
    pooled = over_seeds(list(found.values()))
    if pooled:
        print(f"\nOver several seeds\n\n{seeds_table(pooled)}")
    print(json.dumps(summary(list(found.values()), pooled)))


if __name__ == "__main__":
    main()
