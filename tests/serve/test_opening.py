"""What a folder gives to serve, and the commands around it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.errors import UserError
from luthier.models.save import save_model
from luthier.selection import SELECTIONS
from luthier.serve.opening import find_adapters, find_served, load_served, name_of
from tests import tiny
from tests.serve.servers import ASKED, Served
from tests.serving import make_adapter


def test_a_runs_adapter_is_served_on_its_base(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "reviews 2"
    make_adapter(base, run / "model", 1)
    opened = find_served(str(run))
    assert opened.name == base.name and opened.adapter == ("reviews-2", run / "model")
    assert load_served(str(run), opened, "cpu", "float32").head == "language" and opened.prompt_format is None


def test_tuned_weights_are_a_base(base: Path, tmp_path: Path) -> None:
    for head, name in (("language", "whole"), ("classes", "labels")):
        net = tiny.fresh(base, head)  # type: ignore[arg-type]
        selection = SELECTIONS["full"].model_validate({})
        selection.apply(net)
        save_model(net, selection, tiny.prompt_format(net), tmp_path / name / "model")
    opened = find_served(str(tmp_path / "whole"))
    assert opened.name == "whole" and opened.adapter is None and opened.prompt_format is not None
    with pytest.raises(UserError, match="whole weights with a classes head"):
        find_served(str(tmp_path / "labels"))


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
