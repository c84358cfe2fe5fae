"""The model card: README.md of the run folder, with the metadata that the Hugging Face hub reads.

In: plain dictionaries: the verdict, and what is known of model, data and recipe. Out: `README.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml

from luthier.evaluate.outcome import TUNED
from luthier.evaluate.pages.uses import use_of
from luthier.models.describe import Kind
from luthier.page.words import facts, show_difference, show_p, show_value
from luthier.storage.files import read_json, write_text
from luthier.tasks import Head

Files = Literal["weights", "adapter", "own adapter"]
"""What `model/` holds: whole weights, an adapter that PEFT reads, or one that Luthier alone reads."""
LIBRARIES: dict[Files, str] = {"weights": "transformers", "adapter": "peft", "own adapter": "luthier"}

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(?<!\.gguf)")


@dataclass(frozen=True)
class CardData:
    """What the card tells. Facts about the data are counts; no row of it is shown."""

    verdict: Mapping[str, Any]
    """As `build_verdict` makes it."""
    base_model: str
    """As the recipe names it; it enters the metadata when it is a hub id."""
    title: str = "A model tuned with Luthier"
    kind: Kind = "decoder"
    head: Head = "language"
    """What the model gives, where the task leaves that open."""
    data_license: str = ""
    """The licence of the data, as the recipe states it."""
    added_tokens: bool = False
    """Whether the tokenizer was given tokens that the base model's does not have."""
    files: Files | None = None
    """What `model/` holds; left out: looked up beside the card."""
    license: str = ""
    language: str = ""
    dataset: str = ""
    """Where the rows come from, as the recipe names it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Counts, any keys, as in the report."""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] = ()
    """In the order of the model's outputs; left out: the verdict's, sorted."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Mean and deviation of the numbers that it learned from."""
    command: str = ""
    """What to type to repeat the run."""


def write_card(path: Path, card: CardData) -> None:
    """Write the card; a crash leaves the old one or the new one, whole."""
    write_text(path, render_card(card, card.files or files_of(path.parent / "model")))


def files_of(model: Path) -> Files:
    """What a model folder holds."""
    config = model / "adapter_config.json"
    if not config.exists():
        return "weights"
    return "own adapter" if "adapter_type" in read_json(config) else "adapter"


def is_hub_id(model: str) -> bool:
    return bool(HUB_ID.fullmatch(model)) and not Path(model).exists()


def render_card(card: CardData, files: Files) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(inline=inline)
    environment.globals.update(show_value=show_value, show_difference=show_difference, show_p=show_p)
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
    verdict = card.verdict
    use, labels = use_of(verdict["task"], card.head, card.kind), list(card.labels or verdict["labels"])
    few = len(verdict["labels"]) <= 8
    named = ", ".join(map(inline, verdict["labels"])) if few else f"one of {len(verdict['labels'])} labels"
    return template.render(
        card=card,
        verdict=verdict,
        files=files,
        use=use,
        purpose=use.purpose.replace("{labels}", named),
        size=environment.from_string(use.size).render(labels=labels),
        asking=environment.from_string(use.asking).render(labels=labels, scale=card.scale),
        metadata=yaml.safe_dump(metadata(card, files), sort_keys=False, allow_unicode=True).rstrip(),
        tuned=next(system for system in verdict["systems"] if system["name"] == TUNED),
        against={row["baseline"]: row for row in verdict["comparisons"] if row["metric"] == verdict["main_metric"]},
        counts=facts(card.data),
        recipe=yaml.safe_dump(dict(card.resolved), sort_keys=False, allow_unicode=True).rstrip(),
    )


def metadata(card: CardData, files: Files) -> dict[str, Any]:
    """The YAML block on top, in the hub's own keys; what is not known is left out."""
    verdict = card.verdict
    pipeline = use_of(verdict["task"], card.head, card.kind).pipeline
    tuned = next(system for system in verdict["systems"] if system["name"] == TUNED)
    results = [
        {"type": name, "name": verdict["metrics"][name]["title"], "value": round(found["value"], 6)}
        for name, found in tuned["metrics"].items()
        if found["value"] is not None
    ]
    known = {
        "license": card.license,
        "language": card.language,
        "base_model": card.base_model if is_hub_id(card.base_model) else "",
        "library_name": LIBRARIES[files],
        "pipeline_tag": pipeline,
        "tags": ["luthier", *(["lora"] if "lora" in card.resolved.get("selection", {}) else [])],
        "model-index": [
            {
                "name": card.title,
                "results": [
                    {
                        "task": {"type": pipeline},
                        "dataset": {
                            "name": card.dataset or "the user's own data",
                            "type": "custom",
                            "split": "test",
                        },
                        "metrics": results,
                    }
                ],
            }
        ],
    }
    return {key: value for key, value in known.items() if value}


def inline(text: Any) -> str:
    """Text that may hold anything, safe inside a Markdown line or table cell."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*_|\[\]<>])", r"\\\1", plain)
