"""Queries to databases: SQLite in a file, and a real PostgreSQL that these tests start and stop."""

from __future__ import annotations

import json
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.sources.database import Query
from luthier.recipe.reading import read_recipe
from tests.prepare import postgres
from tests.servers import closed_port

pytest.importorskip("sqlalchemy", reason="needs the extra `database`")
pytest.importorskip("psycopg", reason="needs the extra `database`")

QUERY = "SELECT review AS text, stars AS label FROM reviews ORDER BY id"
ROWS = [(n, f"film {n} was 100% “fun” :x é\n", n % 2) for n in range(3000)]


def read(folder: Path, **chosen: Any) -> Dataset:
    return read_data(DataSettings(**chosen), "classify", folder)


def error(folder: Path, **chosen: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, **chosen)
    assert caught.value.problems[0].mend
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE reviews (id INTEGER, review TEXT, stars INTEGER)")
        database.executemany("INSERT INTO reviews VALUES (?, ?, ?)", ROWS)
    database.close()
    return tmp_path


# ── SQLite ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_a_query_are_those_of_the_table(file: Path) -> None:
    found = read(file, source="sqlite:///shop.db", query=QUERY)
    rows = [{"text": text, "label": label} for _, text, label in ROWS]
    assert found.facts["splits"] == read_data(rows, "classify").facts["splits"]
    assert found.splits["train"][0].place.startswith("sqlite:///shop.db (train), row ")
    before = found.key
    assert read(file, source="sqlite:///shop.db", query=QUERY).key == before
    with sqlite3.connect(file / "shop.db") as database:
        database.execute("UPDATE reviews SET stars = 1 - stars WHERE id = 7")
    database.close()
    assert read(file, source="sqlite:///shop.db", query=QUERY).key != before


def test_a_query_for_each_split(file: Path) -> None:
    parts = {
        "train": QUERY.replace("ORDER", "WHERE id < 2000 ORDER"),
        "test": QUERY.replace("ORDER", "WHERE id >= 2000 ORDER"),
    }
    found = read(file, source="sqlite:///shop.db", splits=parts)
    assert len(found.splits["test"]) == 1000


def test_what_can_be_wrong_with_a_query(file: Path) -> None:
    url = "sqlite:///shop.db"
    assert 'near "SELEC": syntax error' in error(file, source=url, query="SELEC 1")
    assert "attempt to write a readonly database" in error(file, source=url, query="DELETE FROM reviews")
    assert "gives no row" in error(file, source=url, query=f"{QUERY} LIMIT 0")
    assert "two columns are named 'id'" in error(file, source=url, query="SELECT id, id FROM reviews")
    assert "what should the database be asked" in error(file, source=url)
    assert "did you mean 'shop.db'" in error(file, source="sqlite:///shp.db", query=QUERY)
    assert not (file / "shp.db").exists()
    assert "names no file" in error(file, source="sqlite://", query=QUERY)
    assert "only a database is asked" in error(file, source="shop.csv", query=QUERY)
    assert "a database knows its own" in error(file, source=url, query=QUERY, format="csv")
    (file / "broken.db").write_bytes(b"no database at all" * 100)
    assert "file is not a database" in error(file, source="sqlite:///broken.db", query=QUERY)
    assert len(read(file, source=url, query=QUERY.replace("stars", "CAST(stars AS BLOB)")).labels) == 2
    assert "is an object where text is expected" in error(file, source=url, query=QUERY.replace("review A", "x'ff' A"))


def test_passwords_are_written_nowhere(file: Path) -> None:
    url = "postgresql://me:geh%40eim@localhost:1/shop?sslpassword=geheim"
    recipe, _ = read_recipe({"model": "m", "data": {"source": url, "query": "SELECT 1"}, "task": "classify"})
    assert "geh" not in json.dumps(recipe.resolved()) and "me:***@localhost:1" in json.dumps(recipe.resolved())
    assert "geh" not in error(file, source=url, query="SELECT 1")
    assert "left out of this copy" in error(file, source="postgresql://me:***@localhost:1/shop", query="SELECT 1")
    assert "variable SHOP_SECRET is not set" in error(
        file, source="postgresql://me:${SHOP_SECRET}@h/s", query="SELECT 1"
    )


# ── PostgreSQL ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    if reason := postgres.why_not():
        pytest.skip(reason)
    with postgres.running(closed_port()) as found:
        yield found


def run(server: postgres.Postgres, sql: str) -> None:
    import psycopg

    with psycopg.connect(server.url(), connect_timeout=5) as connection:
        connection.execute(sql)


def test_postgresql(server: postgres.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(server, "CREATE TABLE reviews (id int, review text, stars numeric, at timestamptz DEFAULT now(), more jsonb)")
    run(
        server,
        "INSERT INTO reviews SELECT n, 'film ' || n || ' was 100% “fun” :x é', n % 2, now(), '{\"a\": [1, null]}' "
        "FROM generate_series(0, 4999) AS n",
    )
    query = QUERY.replace(" FROM", ", at, more FROM")
    found = read(tmp_path, source=server.url(), query=query)
    rows = [{"text": f"film {n} was 100% “fun” :x é", "label": n % 2} for n in range(5000)]
    assert found.facts["splits"] == read_data(rows, "classify").facts["splits"]
    assert server.password not in json.dumps(found.facts) and "gehe" not in json.dumps(found.facts)
    assert read(tmp_path, source=server.url(), query=query).key == found.key

    monkeypatch.setenv("PGPASSWORD", server.password)
    assert read(tmp_path, source=server.url(""), query=query).facts["splits"] == found.facts["splits"]
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("SHOP_SECRET", "gehe%3Aim%2F%401")
    secret = server.url("").replace("@", ":${SHOP_SECRET}@")
    assert read(tmp_path, source=secret, query=query).facts["rows_read"] == 5000

    said = error(tmp_path, source=server.url("wrong"), query=query)
    assert "password authentication failed" in said and "wrong" not in said
    assert "does not exist" in error(tmp_path, source=server.url(), query="SELECT text FROM nothing")
    assert "syntax error" in error(tmp_path, source=server.url(), query="DELETE FROM reviews RETURNING *")
    run(server, "CREATE FUNCTION sneak() RETURNS int LANGUAGE sql AS 'DELETE FROM reviews; SELECT 1'")
    assert "read-only transaction" in error(tmp_path, source=server.url(), query="SELECT sneak()")
    gone = "SELECT n::text AS text, CASE WHEN n = 4500 THEN pg_terminate_backend(pg_backend_pid()) END AS label "
    said = error(tmp_path, source=server.url(), query=gone + "FROM generate_series(1, 9000) AS n")
    assert "the database went away after 4,000 rows" in said and "nothing was kept" in said
    assert "Connection refused" in error(tmp_path, source=f"postgresql://a:b@127.0.0.1:{closed_port()}/c", query=QUERY)


def test_a_server_that_stops_in_the_middle(tmp_path: Path) -> None:
    if reason := postgres.why_not():
        pytest.skip(reason)
    import threading

    with postgres.running(closed_port()) as server:
        threading.Timer(2, server.stop).start()
        slow = "SELECT n::text AS text, n % 2 AS label, pg_sleep(0.001) FROM generate_series(1, 60000) AS n"
        said = error(tmp_path, source=server.url(), query=slow)
    assert "the database went away after" in said or "the database says: " in said


def test_memory_does_not_grow_with_the_rows(file: Path) -> None:
    def peak(count: int) -> int:
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        tracemalloc.start()
        query = numbers + "SELECT hex(zeroblob(500)) || i AS text FROM n"
        found = Query("sqlite:///shop.db", query, "train", file).table()
        assert sum(1 for _ in found.rows) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # what is imported on the way
    assert peak(6000) - peak(2000) < 2**20, "the larger answer is 4 MB longer"
