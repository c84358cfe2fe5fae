"""A model that labels texts by itself: many texts together are scored as each would be alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.engine.classify import class_scores
from luthier.engine.embed import embeddings
from luthier.engine.serving.labeler import Labeler
from luthier.engine.serving.request import RefusedError
from luthier.engine.serving.settings import EngineSettings
from luthier.models.save import load_saved
from luthier.records import Row
from luthier.tasks import Head
from tests.serving import FLOAT32, Heard, make_adapter

Tiny = Callable[..., Path]
TEXTS = [[5, 9, 7], [11], list(range(3, 60)), [5, 9, 8], [21, 4, 4, 4, 30]]
MODELS: dict[str, tuple[str, Head, dict[str, Any]]] = {
    "an encoder's LoRA": ("bert", "classes", {}),
    "an encoder's weights": ("bert", "classes", {"method": "full"}),
    "its mean of states": ("bert", "pooled", {"method": "full"}),
    "a number": ("roberta", "score", {}),
    "a decoder's last blocks": ("llama", "classes", {"method": "last_layers", "layers": 1}),
    "a decoder's scales": ("llama", "classes", {"method": "ia3"}),
    "on the plain path": ("xlnet", "classes", {"method": "head"}),
}


def made(tiny: Tiny, folder: Path, name: str, seed: int = 3) -> Path:
    family, head, how = MODELS[name]
    return make_adapter(tiny(family), folder, seed, head, **how)


@pytest.fixture
def labeler(tiny: Tiny, tmp_path: Path) -> Iterator[Labeler]:
    labeler = Labeler(load_saved(made(tiny, tmp_path / "model", "an encoder's weights")), EngineSettings(max_waiting=8))
    yield labeler
    labeler.stop()


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_scored_as_each_is_alone(tiny: Tiny, tmp_path: Path, name: str) -> None:
    folder = made(tiny, tmp_path / "model", name)
    alone = load_saved(folder, FLOAT32).network
    labeler = Labeler(load_saved(folder, FLOAT32))
    heard = {of: [Heard() for _ in TEXTS] for of in ("score", "embed")}

    def ask(of: str) -> None:
        for text, listen in zip(TEXTS, heard[of], strict=True):
            getattr(labeler, of)(None, text, listen)

    askers = [threading.Thread(target=ask, args=(of,)) for of in heard]
    for asker in askers:
        asker.start()
    labeler.start()
    for of, function in (("score", class_scores), ("embed", embeddings)):
        for text, each in zip(TEXTS, heard[of], strict=True):
            scores = each.wait().scores
            assert scores is not None and scores.prompt_tokens == len(text)
            torch.testing.assert_close(
                torch.tensor([scores.values]), function(alone, [Row("", text)]), atol=1e-5, rtol=1e-5
            )
    labeler.stop()
    facts = labeler.facts()
    assert facts.finished == 2 * len(TEXTS) and facts.running == facts.waiting == facts.refused == 0
    assert facts.prompt_tokens == 2 * sum(map(len, TEXTS)) and facts.steps < 2 * len(TEXTS)


def test_what_is_not_wanted_any_more_is_not_scored(labeler: Labeler) -> None:
    heard = [Heard() for _ in range(3)]
    texts = [labeler.score(None, [5, 6], each) for each in heard]
    labeler.cancel(texts[1])
    labeler.start()
    assert [each.wait().scores is None for each in heard] == [False, True, False]
    assert heard[1].end is not None and heard[1].end.reason == "cancelled"


def test_what_it_can_not_take_is_refused(labeler: Labeler, tmp_path: Path) -> None:
    window = labeler.network.window
    assert window is not None
    for prompt, said in (([], "empty"), ([5] * (window + 1), f"at most {window} fit")):
        with pytest.raises(RefusedError, match=said):
            labeler.score(None, prompt, Heard())
    waiting = [Heard() for _ in range(8)]
    for each in waiting:
        labeler.embed(None, [7], each)
    with pytest.raises(RefusedError, match="8 requests wait") as refused:
        labeler.score(None, [7], Heard())
    assert refused.value.trouble == "busy" and refused.value.retry_after
    with pytest.raises(RefusedError, match="adapters are served on a decoder"):
        labeler.adapters.register("more", tmp_path)
    assert labeler.facts().refused == 3
    labeler.start()
    assert all(each.wait().scores is not None for each in waiting)
    labeler.stop()
    with pytest.raises(RefusedError, match="shutting down"):
        labeler.score(None, [7], Heard())


def test_what_waits_at_the_end_is_told(labeler: Labeler) -> None:
    heard = Heard()
    labeler.score(None, [7], heard)
    labeler._ended = True  # it was never started: nobody comes to score it
    labeler._run()
    assert heard.wait().end is not None and heard.end is not None and heard.end.reason == "cancelled"


def test_a_broken_model_answers_with_an_error_and_goes_on(labeler: Labeler) -> None:
    with torch.no_grad():
        next(parameter for parameter in labeler.network.model.parameters() if parameter.dim() == 2)[9] = torch.nan
    labeler.start()
    for token, broken in ((9, True), (8, False), (10**6, True), (8, False)):
        heard = Heard()
        labeler.score(None, [token], heard)
        assert (heard.wait().scores is None) == broken, token
        assert not broken or (heard.end is not None and heard.end.reason == "error")
