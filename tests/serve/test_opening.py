"""What a folder gives to serve, and the commands around it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from luthier.cli import main
from luthier.engine.classify import class_probabilities
from luthier.engine.serving.settings import EngineSettings
from luthier.errors import UserError
from luthier.models.save import load_saved, save_model
from luthier.prompts import prompt_row
from luthier.selection import SELECTIONS
from luthier.serve.opening import find_adapters, find_served, load_engine, name_of
from tests import tiny
from tests.serve.servers import ASKED, SECONDS, Served, process
from tests.serving import FLOAT32, make_adapter


def test_a_runs_adapter_is_served_on_its_base(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "reviews 2"
    make_adapter(base, run / "model", 1)
    opened = find_served(str(run))
    assert opened.name == base.name and opened.adapter == ("reviews-2", run / "model")
    engine = load_engine(str(run), opened, "cpu", "float32", EngineSettings())
    assert engine.network.head == "language" and opened.prompt_format is None


def test_tuned_weights_are_a_base(base: Path, tmp_path: Path) -> None:
    for head, name in (("language", "whole"), ("classes", "labels"), ("tags", "tags")):
        net = tiny.fresh(base, head)  # type: ignore[arg-type]
        selection = SELECTIONS["full"].model_validate({})
        selection.apply(net)
        save_model(net, selection, tiny.prompt_format(net), tmp_path / name / "model")
    opened = find_served(str(tmp_path / "whole"))
    assert opened.name == "whole" and opened.adapter is None and opened.prompt_format is not None
    labels = find_served(str(tmp_path / "labels"))
    assert labels.name == "labels" and labels.labeler == tmp_path / "labels" / "model"
    with pytest.raises(UserError, match="was tuned for task: tag"):
        find_served(str(tmp_path / "tags"))


def test_a_run_that_labels_by_itself_is_served(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder's adapter: no other adapter can share a batch with it."""
    run = tmp_path / "stars"
    folder = make_adapter(tiny("bert"), run / "model", 3, head="classes")
    saved = load_saved(folder, FLOAT32)
    with process(run) as server:
        texts = ["a warm film", "dull"]
        rows = [prompt_row({"text": text}, saved.network.tokenizer, saved.prompt_format) for text in texts]
        told = requests.post(f"{server.url}/v1/classify", json={"model": "stars", "input": texts}, timeout=60).json()
        for each, wanted in zip(told["data"], class_probabilities(saved.network, rows, False), strict=True):
            assert list(each["probabilities"].values()) == pytest.approx(wanted, abs=1e-5)
        (listed,) = requests.get(f"{server.url}/v1/models", timeout=60).json()["data"]
        assert (listed["id"], listed["task"]) == ("stars", "classify")
        body = {"model": "stars", "input": texts}
        vectors = requests.post(f"{server.url}/v1/embeddings", json=body, timeout=60).json()["data"]
        assert len(vectors) == 2 and sum(x * x for x in vectors[0]["embedding"]) == pytest.approx(1, abs=1e-5)
        asked = {"model": "stars", "messages": ASKED}
        refused = requests.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60)
        assert refused.status_code == 400 and "/v1/classify" in refused.json()["error"]["message"]
        assert main(["chat", "--server", server.url, "-m", "a warm film", "--json"]) == 0
        assert json.loads(capsys.readouterr().out).keys() == {"answer", "probabilities"}
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    other = make_adapter(tiny("bert"), tmp_path / "other", 4, head="classes")
    command = [sys.executable, "-m", "luthier", "serve", str(run), "--adapters", str(other), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2 and "adapters are served on a decoder" in done.stderr
    assert main(["serve", str(run), "--engine", "vllm", "--show-command"]) == 2
    assert "labels texts" in capsys.readouterr().err


def test_folders_of_adapters(adapters: dict[str, Path], tmp_path: Path) -> None:
    root = adapters["formal"].parent
    assert {name for name, _ in find_adapters([root])} == adapters.keys()
    assert list(find_adapters([adapters["formal"]])) == [("formal", adapters["formal"])]
    run = tmp_path / "run-1"
    run.mkdir()
    (run / "model").symlink_to(adapters["formal"])
    assert list(find_adapters([run])) == [("run-1", run / "model")]
    assert name_of(Path("runs/my run/model")) == "my-run"
    for wrong in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"no such folder|holds no adapter"):
            list(find_adapters([wrong]))


def test_wrong_options_are_told_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--port", "99999"], "is no port"),
        (["--host", "0.0.0.0"], "no keys are asked for"),
        (["--max-body", "big"], "is no size"),
        (["--max-batch", "0"], "max_running"),
        (["--adapters", str(tmp_path / "none")], "no such folder"),
        (["--adaptors", "x"], "did you mean '--adapters'"),
    ):
        assert main(["serve", "nowhere/model", *options]) == 2
        assert said in capsys.readouterr().err, options


def test_talking_to_a_server(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["chat", "--server", served.url, "--max-new-tokens", "8"]
    whole = served.client.chat.completions.create(model="formal", messages=ASKED, temperature=0, max_tokens=8)
    assert main([*options, "--model", "formal", "-m", "a warm film"]) == 0
    assert capsys.readouterr().out == f"{whole.choices[0].message.content}\n"
    assert main([*options, "--model", "reviews", "-m", "a warm film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"answer", "probabilities"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("a warm film\n/new\na warm film\n"))
    assert main([*options, "--model", "formal"]) == 0
    assert len(set(capsys.readouterr().out.strip().split("\n"))) == 1
    for wrong, said in (
        (["chat", "-m", "x"], "talk to whom"),
        ([*options, "--model", "formol", "-m", "x"], "did you mean 'formal'"),
        (["chat", "--server", "http://127.0.0.1:1", "-m", "x"], "can't be reached"),
        ([*options, "--key-variable", "NOT_SET_HERE", "-m", "x"], "is not set"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err


def test_the_playground_needs_nothing_from_elsewhere(served: Served) -> None:
    page = served.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text and "<script src" not in page.text
