"""Every kind of file gives the rows that JSONL gives, and damage to it is one line naming the file."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from rdro_jax.data import DataConfig, Source, load_examples, sources
from rdro_jax.data.sources import read_rows
from rdro_jax.errors import RecordError
from rdro_jax.hub import DATA_FILES

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Question {i}?"}],
        "completion": [{"role": "assistant", "content": f"Answer {i}, née 🎈."}],
        "label": i % 3 == 0,
    }
    for i in range(40)
]
# Arrow gives both messages the keys that either has.
ROWS[5]["completion"][0]["name"] = "Ada"
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def write_zstd(path):
    with pa.output_stream(path, compression="zstd") as file:
        file.write(LINES)


def write_arrow(path, maker):
    table = pa.Table.from_pylist(ROWS)
    with maker(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_array_record(path):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()


def write_saved_folder(folder):
    """As `datasets` 5 leaves it: streams of record batches, named by a state file."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(ROWS)
    files = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(files, (table.slice(0, 25), table.slice(25)), strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text("{}")


def write_saved_splits(folder):
    write_saved_folder(folder / "train")
    write_saved_folder(folder / "test")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


def write_hub_folder(folder):
    (folder / "data").mkdir(parents=True)
    (folder / "dataset_infos.json").write_text("{}")
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table.slice(0, 25), folder / "data" / "train-00000-of-00002.parquet", row_group_size=9)
    pq.write_table(table.slice(25), folder / "data" / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(3, 2), folder / "data" / "test-00000-of-00001.parquet")


WRITERS = {
    "rows.jsonl": lambda path: path.write_bytes(LINES),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.jsonl.zst": lambda path: write_zstd(str(path)),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_bytes(LINES),
    "rows.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "stream.arrow": lambda path: write_arrow(str(path), pa.ipc.new_stream),
    "file.arrow": lambda path: write_arrow(str(path), pa.ipc.new_file),
    "rows.array_record": write_array_record,
    "saved": write_saved_folder,
}


@pytest.fixture(scope="module")
def wanted(chatml, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "rows.jsonl"
    path.write_bytes(LINES)
    return load_examples(str(path), chatml, DataConfig(train=str(path)))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_examples(name, wanted, chatml, tmp_path):
    WRITERS[name](tmp_path / name)
    examples = load_examples(str(tmp_path / name), chatml, DataConfig(train="-"))
    assert examples.tokens.tolist() == wanted.tokens.tolist()
    assert examples.hashes.tolist() == wanted.hashes.tolist()
    assert examples.report.ignored_columns == ()


def test_a_key_that_another_message_has_is_not_there(chatml, tmp_path, monkeypatch):
    """Parquet says `name: null` of every message but one, and a template may ask whether there is a name."""
    named = chatml.chat_template.replace(
        "{{ m.content }}", "{% if m.name is defined %}[{{ m.name }}]{% endif %}{{ m.content }}"
    )
    monkeypatch.setattr(chatml, "chat_template", named)
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl")
    WRITERS["rows.parquet"](tmp_path / "rows.parquet")
    plain, table = (
        load_examples(str(tmp_path / name), chatml, DataConfig(train="-")) for name in ("rows.jsonl", "rows.parquet")
    )
    assert table.tokens.tolist() == plain.tokens.tolist()
    assert chatml.decode(plain.tokens).count("[") == chatml.decode(plain.tokens).count("[Ada]") == 1


@pytest.mark.parametrize("writer", [write_saved_splits, write_hub_folder])
def test_a_split_is_chosen_by_name(writer, wanted, chatml, tmp_path):
    writer(tmp_path / "set")
    path = str(tmp_path / "set")
    examples = load_examples(Source(path, split="train"), chatml, DataConfig(train="-"))
    assert examples.tokens.tolist() == wanted.tokens.tolist()
    for split in (None, "validation"):
        with pytest.raises(RecordError, match=r"train") as error:
            load_examples(Source(path, split=split), chatml, DataConfig(train="-"))
        assert str(error.value).startswith(path)
        assert "\n" not in str(error.value)


def test_a_hub_name_is_a_downloaded_folder(wanted, chatml, tmp_path, monkeypatch):
    import huggingface_hub

    write_hub_folder(tmp_path / "set")
    asked = []

    def download(name, **settings):
        asked.append((name, settings["repo_type"], settings["revision"]))
        return str(tmp_path / "set")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = Source("hub:trl-lib/some-set", split="train", revision="0123abc")
    assert load_examples(source, chatml, DataConfig(train="-")).tokens.tolist() == wanted.tokens.tolist()
    assert asked == [("trl-lib/some-set", "dataset", "0123abc")]
    assert not any("py" in pattern for pattern in DATA_FILES)


def test_a_hub_data_set_that_cannot_be_had_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RecordError, match=r"hub:a/b: cannot be downloaded at revision main: .*HF_TOKEN") as error:
        list(read_rows(Source("hub:a/b")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"saved", "rows.jsonl", "lines.json"}))
@pytest.mark.parametrize("damage", ["truncated", "header only"])
def test_damage_is_one_line_naming_the_file(name, damage, chatml, tmp_path):
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3] if damage == "truncated" else whole[:6])
    skip = DataConfig(train="-", on_bad_row="skip", max_bad_fraction=1.0)
    with pytest.raises(RecordError) as error:
        load_examples(str(tmp_path / name), chatml, skip)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_faults_name_the_row_of_a_table(chatml, tmp_path):
    rows = [row | {"label": None} if i in (3, 30) else row for i, row in enumerate(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(RecordError) as error:
        load_examples(str(tmp_path / "rows.parquet"), chatml, DataConfig(train="-"))
    first, second, summary = str(error.value).splitlines()
    assert first == f"{tmp_path}/rows.parquet:4: label: is null"
    assert second == f"{tmp_path}/rows.parquet:31: label: is null"
    assert "2 of 40 rows" in summary


def test_sources_are_mixed_by_weight_and_said(chatml, write_rows):
    first = Source(write_rows(ROWS[:10], "a.jsonl"), weight=2.0)
    second = Source(write_rows(ROWS[10:], "b.jsonl"), weight=0.5, max_samples=20)
    rows = [*read_rows(first), *read_rows(second)]
    numbers = [row.number for row in rows if row.path == first.path]
    assert numbers == [n for i in range(1, 11) for n in (i, i)]
    drawn = [row.number for row in rows if row.path == second.path]
    assert 4 <= len(drawn) <= 16
    assert max(drawn) <= 20
    assert len(set(drawn)) == len(drawn)
    report = load_examples((first, second), chatml, DataConfig(train="-")).report
    assert [(source.path, source.rows) for source in report.sources] == [(first.path, 20), (second.path, len(drawn))]
    assert report.rows == 20 + len(drawn)
    assert report.duplicates == 10


def test_half_of_many_rows_is_half(write_rows):
    source = Source(write_rows([{"i": i} for i in range(10_000)]), weight=0.5)
    assert abs(sum(1 for _ in read_rows(source)) - 5000) < 5 * 50  # five standard errors of 10,000 coins


def test_an_array_on_a_line_beyond_reading_is_named(tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a" * 99}]))
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 50)
    with pytest.raises(RecordError, match="wanted JSONL, one row per line"):
        list(sources.read_file(str(tmp_path / "rows.json")))
