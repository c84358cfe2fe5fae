"""SetFit on a few rows a label: an encoder taught by pairs of texts, then a logistic regression on its embeddings.

In: a folder with `peer.json` (model, settings, the same rows as Luthier's). Out there: `result.json`. Its command line:
FOLDER. SetFit 1.2.0 wants transformers below 5, so it runs in an environment of its own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.job import peak_memory


def run(folder: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    job = json.loads((folder / "peer.json").read_text())
    settings = job["settings"]
    texts = {name: [row["fields"]["text"] for row in job[name]] for name in ("train", "test")}
    words = Transformer(job["folder"])
    # The folder names these two layers in modules.json and may lack the folders of their settings.
    body = SentenceTransformer(
        modules=[words, Pooling(words.get_word_embedding_dimension()), Normalize()], device="cpu"
    )
    model = SetFitModel(model_body=body, model_head=LogisticRegression(), labels=job["labels"])
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "trainer"),
            batch_size=settings["batch_size"],
            num_epochs=1,
            num_iterations=round(settings["epochs"]),  # so many pairs of either kind for each row
            body_learning_rate=settings["learning_rate"],
            seed=job["seed"],
            report_to="none",
            show_progress_bar=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"text": texts["train"], "label": [row["label"] for row in job["train"]]}),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    tokens = sum(len(row["tokens"]) for row in job["train"]) * 4 * settings["epochs"]
    result = {
        "predictions": [str(label) for label in model.predict(texts["test"])],
        "parameters": sum(parameter.numel() for parameter in model.model_body.parameters()),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory": peak_memory(),
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
