"""A tag for each word: counts beside seqeval's, words and their pieces, tags outside the scheme, a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from luthier.chat import Conversation
from luthier.engine.generate import Sampling
from luthier.errors import UserError
from luthier.evaluate.baselines import BASELINES, Asked
from luthier.evaluate.metrics import METRICS, score, type_table
from luthier.evaluate.predict import predict
from luthier.evaluate.significance import resampled_sums
from luthier.models.describe import describe_model
from luthier.planning.combinations import can_learn
from luthier.prepare.read import read_data
from luthier.prepare.settings import DataSettings
from luthier.prompts import tokenise
from luthier.prompts.tagged import words_of_tokens
from luthier.recipe.scaffold import Answers, write_recipe
from luthier.records import Example, Prediction
from luthier.runs.run import Run
from luthier.tune.objectives import OBJECTIVES
from tests import tiny as make
from tests.tasks.runs import sentence, systems, whole_run

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
sequences = st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1), min_size=1)
Pairs = list[list[tuple[str, str]]]


def sides(pairs: Pairs) -> tuple[list[list[str]], list[list[str]]]:
    return [[a for a, _ in row] for row in pairs], [[b for _, b in row] for row in pairs]


def predictions(pairs: Pairs) -> list[Prediction]:
    both = zip(*sides(pairs), strict=True)
    return [Prediction(f"{n:032x}", a, b, " ".join("w" for _ in a)) for n, (a, b) in enumerate(both)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@given(pairs=sequences)
def test_metrics_equal_seqeval(pairs: Pairs) -> None:
    expected, predicted = sides(pairs)
    made = predictions(pairs)
    strict: dict[str, Any] = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    if any(tag != "O" for row in (*expected, *predicted) for tag in row):  # seqeval needs a type to count by
        ours = {name: score(made, f"entity_{name}", TAGS) for name in ("f1", "precision", "recall")}
        assert ours["precision"] == pytest.approx(seqeval.metrics.precision_score(expected, predicted, **strict))
        assert ours["recall"] == pytest.approx(seqeval.metrics.recall_score(expected, predicted, **strict))
        assert ours["f1"] == pytest.approx(seqeval.metrics.f1_score(expected, predicted, **strict))
        lenient = seqeval.metrics.f1_score(expected, predicted, zero_division=0)
        assert score(made, "entity_f1_lenient", TAGS) == pytest.approx(lenient)
        told = seqeval.metrics.classification_report(expected, predicted, output_dict=True, **strict)
        for row in type_table(made, TAGS):
            if row["support"] or row["predicted"]:
                theirs = told[row["label"]]
                found = (row["precision"], row["recall"], row["f1"], row["support"])
                assert found == pytest.approx(tuple(theirs[n] for n in ("precision", "recall", "f1-score", "support")))
    assert score(made, "token_accuracy") == pytest.approx(seqeval.metrics.accuracy_score(expected, predicted))


def test_resampled_sums_give_the_metric_of_the_drawn_rows() -> None:
    random = np.random.default_rng(3)
    pairs = [[(TAGS[a], TAGS[b]) for a, b in random.integers(0, 5, (8, 2))] for _ in range(30)]
    made, metric = predictions(pairs), METRICS["entity_f1"]
    values = metric.value(resampled_sums([metric.count(made, TAGS)], 5, 11)[0])
    for value, drawn in zip(values, np.random.default_rng(11).integers(0, 30, size=(5, 30)), strict=True):
        expected, predicted = sides([pairs[row] for row in drawn])
        assert value == pytest.approx(seqeval.metrics.f1_score(expected, predicted, mode="strict", scheme=IOB2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta", "xlnet"])
def test_the_first_piece_of_each_word_carries_its_tag(family: str, tiny: Callable[..., Path]) -> None:
    net = make.network(tiny(family), "tags")
    words = ["Überlebensgroße", "film", ",", "a", "Hawaii-Insel", "1234567", "?"]
    tags = ["B-film", "I-film", "O", "O", "B-film", "O", "O"]
    example = Example("0" * 32, {"tokens": words, "tags": tags}, "here", weight=0.5)
    (row,) = tokenise([example], net.tokenizer, make.prompt_format(net)).rows
    begins = [place for place, weight in enumerate(row.token_streams["weight"]) if weight]
    assert [row.token_streams["word"][place] for place in begins] == [1, 2, 3, 4, 5, 6, 7]
    assert [make.TAGS[int(row.token_streams["tag"][place])] for place in begins] == tags
    assert {row.token_streams["weight"][place] for place in begins} == {0.5} and len(row.tokens) > len(words)
    for place, following, word in zip(begins, [*begins[1:], None], words, strict=True):
        text = net.tokenizer.decode(row.tokens[place:following], skip_special_tokens=True)
        assert text.strip() == word


def test_words_without_a_token_of_their_own() -> None:
    assert words_of_tokens(["ab", "c", "de"], [(0, 0), (0, 1), (1, 2), (2, 4), (5, 7), (0, 0)]) == [0, 1, 0, 2, 3, 0]
    assert words_of_tokens(["a", "b", "c"], [(0, 3), (4, 5)]) == [1, 3], "b has no token of its own"
    assert words_of_tokens(["a", "x", "b"], [(0, 1), (4, 5)]) == [1, 3], "x became nothing"


@pytest.mark.parametrize("family", ["llama", "bert", "xlnet"])
def test_words_beyond_the_longest_row_are_o(family: str, tiny: Callable[..., Path]) -> None:
    net = make.network(tiny(family), "tags")
    words = ["film"] * 30
    example = Example("0" * 32, {"tokens": words, "tags": ["B-film"] * 30}, "here")
    cut = make.prompt_format(net, max_length=12)
    made = tokenise([example], net.tokenizer, cut)
    kept = sum(weight > 0 for weight in made.rows[0].token_streams["weight"])
    assert made.truncated == 1 and len(made.rows[0].tokens) == 12 and 0 < kept < 30
    (prediction,) = predict(net, [example], cut, 8)
    assert len(prediction.predicted) == 30 and set(prediction.predicted[kept:]) == {"O"}
    assert prediction.loss_tokens == kept


@pytest.mark.parametrize("family", ["llama", "bert", "distilbert", "xlnet"])
def test_answers_are_the_likeliest_tags(family: str, tiny: Callable[..., Path]) -> None:
    net = make.network(tiny(family), "tags")
    form, some = make.prompt_format(net), make.examples("tags", count=5)
    rows = tokenise(some, net.tokenizer, form).rows
    for prediction, row in zip(predict(net, some, form, 8), rows, strict=True):
        with torch.no_grad():
            logits = net.model(input_ids=torch.tensor([list(row.tokens)])).logits[0]
        begins = torch.tensor(row.token_streams["word"]).nonzero().squeeze(1)
        assert prediction.predicted == [make.TAGS[best] for best in logits[begins].argmax(dim=1).tolist()]
        losses = torch.nn.functional.cross_entropy(
            logits[begins], torch.tensor(row.token_streams["tag"])[begins].long(), reduction="sum"
        )
        assert prediction.loss == pytest.approx(float(losses), rel=1e-4)


def test_word_lookup_gives_each_word_its_commonest_tag(tiny: Callable[..., Path]) -> None:
    def example(words: str, tags: str) -> Example:
        return Example("0" * 32, {"tokens": words.split(), "tags": tags.split()}, "here")

    train = [example("Ann met Bo", "B-P O B-P"), example("Ann Ann x", "O O B-P"), example("x y", "O O")]
    net = make.network(tiny("llama"), "tags")
    asked = Asked(None, make.prompt_format(net), train, [example("x Ann Bo new", "O O O O")], 1, None, 8, None)
    answered = BASELINES["word_lookup"].run(asked, lambda done: None)
    (prediction,), note = answered.predictions, answered.note
    assert prediction.predicted == ["B-P", "O", "B-P", "O"] and "5 words" in note


def tagged(number: int) -> dict[str, Any]:
    words = sentence(number)
    return {"tokens": words, "ner_tags": [{"film": "B-WORK", "plot": "B-PART"}.get(word, "O") for word in words]}


ROWS = [tagged(n) for n in range(150)]


@pytest.fixture(scope="module", params=["llama", "bert"])
def run(request: pytest.FixtureRequest, tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    few_words = {"deduplicate": None}  # sentences of a dozen different words are near copies of each other
    return whole_run(
        folder, tiny(request.param), "tag", ROWS, prepare=few_words, train={"epochs": 20}, selection="full"
    )


def test_a_whole_run(run: Run) -> None:
    found = systems(run)
    assert list(found) == ["tuned", "word_lookup"] and found["word_lookup"]["entity_f1"] == 1
    assert found["tuned"]["entity_f1"] > 0.5 and run.verdict["outcome"] in ("no_difference", "hurts")
    assert [row["label"] for row in run.verdict["systems"][0]["classes"]] == ["PART", "WORK"]
    page, card = run.report.read_text(), (run.folder / "README.md").read_text()
    assert "By type" in page and "Entities" in page
    assert "AutoModelForTokenClassification" in card and "pipeline_tag: token-classification" in card
    loaded = run.load()
    assert loaded.prompt_format.labels == ("O", "B-PART", "I-PART", "B-WORK", "I-WORK")
    conversation = Conversation(loaded, Sampling(), 4)
    assert "(" in conversation.answer("the film was a plot").text


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O", "PER"]}, "tag 2 ('b') is 'PER', which is not in the scheme"),
        ({"tokens": ["a"], "ner_tags": ["X-PER"]}, "tag 1 ('a') is 'X-PER'"),
        ({"tokens": ["a"], "ner_tags": [3]}, "tag 1 ('a') is '3'"),
        ({"tokens": ["a"], "ner_tags": [None]}, "tag 1 ('a') is missing"),
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 tokens and 1 tags, where each token needs one"),
        ({"tokens": [], "ner_tags": []}, "the tokens are empty"),
        ({"tokens": ["a", " "], "ner_tags": ["O", "O"]}, "the token 2 is empty"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, "the tokens are text ('a b') where a list is expected"),
    ],
)
def test_rows_outside_the_scheme(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_data(written(tmp_path, [*ROWS[:5], row]), "tag")
    assert said in str(error.value) and "rows.jsonl, line 6" in str(error.value)


def test_no_entity_at_all_and_types_that_train_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every tag in train is O"):
        read_data(written(tmp_path, [{**row, "ner_tags": ["O"] * len(row["tokens"])} for row in ROWS]), "tag")
    (tmp_path / "test.jsonl").write_text(json.dumps({"tokens": ["Rome"], "ner_tags": ["B-LOC"]}))
    given_test = DataSettings(source=written(tmp_path, ROWS), splits={"test": str(tmp_path / "test.jsonl")})
    with pytest.raises(UserError, match=r"label 'LOC' \(1 held-out rows\) is in no row of train"):
        read_data(given_test, "tag")


def test_numbers_get_their_names_and_json_in_cells_is_read(tmp_path: Path) -> None:
    numbered = [
        {"words": json.dumps(row["tokens"]), "labels": json.dumps([int(tag != "O") for tag in row["ner_tags"]])}
        for row in ROWS
    ]
    named = DataSettings.model_validate({"source": written(tmp_path, numbered), "label_names": {0: "O", 1: "B-THING"}})
    data = read_data(named, "tag")
    assert data.labels == ["O", "B-THING", "I-THING"]
    assert {tag for example in data.splits["train"] for tag in example.fields["tags"]} == {"O", "B-THING"}


def test_class_numbers_of_a_hub_data_set_become_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-WORK", "B-PART"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    rows = [{"tokens": r["tokens"], "tags": [names.index(tag) for tag in r["ner_tags"]]} for r in ROWS]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    data = read_data(str(tmp_path / "rows.parquet"), "tag")
    assert data.labels == ["O", "B-PART", "I-PART", "B-WORK", "I-WORK"]


def test_an_inside_tag_that_continues_nothing_is_told(tmp_path: Path) -> None:
    rows = [{"tokens": [*r["tokens"], "end"], "ner_tags": [*r["ner_tags"], "I-WORK"]} for r in ROWS]
    data = read_data(written(tmp_path, rows), "tag")
    assert any("I tags continue no entity" in warning for warning in data.facts["warnings"])


def test_init_knows_tagged_words(tmp_path: Path) -> None:
    write_recipe(Answers(written(tmp_path, ROWS)), tmp_path / "recipe.yaml")
    assert "task: tag" in (tmp_path / "recipe.yaml").read_text()
    other = [{"w": row["tokens"], "t": row["ner_tags"]} for row in ROWS]
    write_recipe(Answers(written(tmp_path, other)), tmp_path / "other.yaml")
    text = (tmp_path / "other.yaml").read_text()
    assert "task: tag" in text and "tokens: w" in text


def test_a_family_without_such_a_head_is_refused(tiny: Callable[..., Path]) -> None:
    facts = describe_model(tiny("llama"))
    assert can_learn(OBJECTIVES["tag"], facts)
    assert not can_learn(OBJECTIVES["tag"], replace(facts, model_type="codegen")), "transformers has none for it"
