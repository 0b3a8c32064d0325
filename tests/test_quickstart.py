"""The quickstart's parts, without network and without the model: rows, judge, downloads, picture, statistics."""

import io
import json
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rdro_jax.errors import ConfigError, RecordError, StorageError
from rdro_jax.models import ModelConfig, init_params, save_model
from rdro_jax.quickstart import fetch, figure, judge, reviews, samples, story, tell

LINES = [
    "1\t2.2\tA  funny film &amp; a kind one.",
    "2\t-1.5\tIt isn''t ''good''    at all.",
    "3\t0.4\tNeither here nor there.",
    "4\t-0.5\tTepid.",
    "5\t1.0\ta funny film - & a KIND one.",
    "6\t0.5\tFine.",
]


def review_file(folder: Path, lines: list[str] = LINES) -> Path:
    file = folder / "reviews.txt"
    file.write_bytes("\r\n".join(lines).encode())
    return file


def numbered(n: int) -> list[str]:
    return [f"{i}\t{1.0 if i % 3 else -1.0}\tSentence {i}." for i in range(n)]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sentences_are_cleaned_and_neutral_ones_left_out(tmp_path: Path) -> None:
    assert reviews.read_reviews(review_file(tmp_path)) == [
        ("A - funny film & a kind one.", 2.2),
        ('It isn"t "good" - at all.', -1.5),
        ("Tepid.", -0.5),
        ("a funny film - & a KIND one.", 1.0),
        ("Fine.", 0.5),
    ]


def test_a_sentence_is_kept_once(tmp_path: Path) -> None:
    lines = ["1\t1.0\tGood fun.", "2\t2.0\tOther.", "3\t-1.0\tgood FUN."]
    assert reviews.read_reviews(review_file(tmp_path, lines)) == [("Good fun.", 1.0), ("Other.", 2.0)]


def test_rows_are_labelled_by_sign_and_the_parts_are_disjoint(tmp_path: Path) -> None:
    file = review_file(tmp_path, numbered(60))
    split = reviews.write_rows(file, tmp_path / "rows", n_train=40, n_heldout=20, seed=3)
    train, heldout = rows_of(split.train), rows_of(split.heldout)
    assert (len(train), len(heldout)) == (40, 20)
    assert {row["completion"] for row in train + heldout} == {f"Sentence {i}." for i in range(60)}
    for row in train + heldout:
        assert row["prompt"] == reviews.PROMPT
        assert row["label"] is (int(row["completion"].split()[1][:-1]) % 3 != 0)


def test_the_held_out_rows_do_not_depend_on_the_number_of_training_rows(tmp_path: Path) -> None:
    file = review_file(tmp_path, numbered(60))
    few = reviews.write_rows(file, tmp_path / "few", n_train=10, n_heldout=20, seed=3)
    many = reviews.write_rows(file, tmp_path / "many", n_train=40, n_heldout=20, seed=3)
    again = reviews.write_rows(file, tmp_path / "again", n_train=40, n_heldout=20, seed=3)
    other = reviews.write_rows(file, tmp_path / "other", n_train=40, n_heldout=20, seed=4)
    assert few.heldout.read_bytes() == many.heldout.read_bytes() == again.heldout.read_bytes()
    assert many.train.read_bytes() == again.train.read_bytes() != other.train.read_bytes()


def test_a_line_that_is_no_review_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"reviews.txt:2: wanted id, rating and sentence"):
        reviews.read_reviews(review_file(tmp_path, ["1\t1.0\tFine.", "2\tgood\tFine."]))
    with pytest.raises(RecordError, match="60 usable sentences, wanted 61"):
        reviews.write_rows(review_file(tmp_path, numbered(60)), tmp_path, n_train=41, n_heldout=20, seed=0)


def test_the_judge_knows_good_from_bad() -> None:
    assert judge.score("", "A wonderful, funny and moving film.") > 0.5
    assert judge.score("", "A terrible, boring mess.") < -0.5
    assert judge.score("", "The film is 90 minutes long.") == 0.0


def wheel(folder: Path, name: str = "tiny_rdro_test", version: str = "1.0") -> Path:
    """A wheel small enough to write by hand."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def offline_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder pip takes for the package index; the network is not asked."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def digest(path: Path) -> str:
    # An implementation of sha256 that is not the one under test.
    script = "import sys,hashlib;print(hashlib.sha256(open(sys.argv[1],'rb').read()).hexdigest())"
    return subprocess.check_output([sys.executable, "-c", script, path], text=True).strip()


def test_download_takes_the_file_with_the_pinned_hash_only(tmp_path: Path, offline_index: Path) -> None:
    file = wheel(offline_index)
    pinned = fetch.Distribution("tiny_rdro_test==1.0", digest(file), ("--only-binary=:all:",), "a tiny wheel")
    (tmp_path / "good").mkdir()
    assert fetch.download(pinned, tmp_path / "good").read_bytes() == file.read_bytes()
    (tmp_path / "bad").mkdir()
    with pytest.raises(StorageError, match="sha256 differs") as caught:
        fetch.download(pinned._replace(sha256="0" * 64), tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_says_why_in_one_line(tmp_path: Path, offline_index: Path) -> None:
    absent = fetch.Distribution("tiny_rdro_test==9.0", "0" * 64, (), "nothing")
    with pytest.raises(StorageError, match="pip says: Could not find a version") as caught:
        fetch.download(absent, tmp_path)
    assert "\n" not in str(caught.value)


def test_cache_makes_once_and_never_leaves_half_a_file(tmp_path: Path) -> None:
    target, calls = tmp_path / "cache" / "thing", []

    def fails(scratch: Path, made: Path) -> None:
        made.write_text("half")
        raise StorageError("no network")

    def makes(scratch: Path, made: Path) -> None:
        calls.append(1)
        made.write_text("whole")

    with pytest.raises(StorageError, match="no network"):
        fetch.cached(target, fails)
    assert list(target.parent.iterdir()) == []
    assert fetch.cached(target, makes).read_text() == fetch.cached(target, makes).read_text() == "whole"
    assert calls == [1]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    metrics = [
        {
            "step": i,
            "loss": 2 * math.log(2) - i / 50,
            "rewards/chosen": i / 9,
            "rewards/rejected": -i / 9 if i else None,
        }
        for i in range(9)
    ]
    histogram = {"edges": [-2.0, -1.0, 0.0, 1.5], "chosen": [1, 4, 20], "rejected": [15, 9, 1]}
    panels = figure.Panels(metrics, histogram, 0.5, *rng.uniform(-1, 1, (2, 32)))
    picture = figure.draw(panels, tmp_path / "run.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
    assert figure.series(metrics, "rewards/rejected")[0] == list(range(1, 9))


def test_the_paired_interval_is_the_one_of_the_t_statistic() -> None:
    """A hand-computed case: differences 0.1, 0.3, 0.2 have mean 0.2 and standard error 0.1 / sqrt(3)."""
    shift = samples.paired_shift(np.array([0.0, 0.1, -0.2]), np.array([0.1, 0.4, 0.0]))
    assert shift == pytest.approx((0.2, 0.2 - 1.96 * 0.1 / math.sqrt(3), 0.2 + 1.96 * 0.1 / math.sqrt(3)))


def test_distinct_share_counts_repeats() -> None:
    assert samples.distinct_share(["a", "b", "a", "a"]) == 0.5


@pytest.mark.parametrize(("recipe", "loss"), [("sft.yaml", "sft"), ("rdro.yaml", "rdro")])
def test_the_recipes_load_with_any_folder_name(recipe: str, loss: str, tmp_path: Path) -> None:
    odd = tmp_path / "a b: {c} #1 'd'"
    config = story.stage_config(recipe, odd / "model", odd / "run", odd / "rows.jsonl")
    assert config.loss.name == loss
    assert (config.model.path, config.output_dir) == (str(odd / "model"), str(odd / "run"))
    assert config.data.train == str(odd / "rows.jsonl")


def test_both_stages_train_alike(tmp_path: Path) -> None:
    """RDRO's recipe inherits rows and batch: the stages differ in loss, steps, learning rate and held-out rows only."""
    sft, rdro = (
        story.stage_config(name, tmp_path / "m", tmp_path / "r", tmp_path) for name in ("sft.yaml", "rdro.yaml")
    )
    own = {"loss": rdro.loss, "max_steps": rdro.max_steps, "optimizer": rdro.optimizer, "eval_steps": rdro.eval_steps}
    own |= {"data": replace(sft.data, eval=rdro.data.eval)}
    assert sft.model_copy(update=own) == rdro


SUMMARY = {
    "heldout": {
        "sentences": 400,
        "auc": 0.8484,
        "log_ratio_positive": 0.256,
        "log_ratio_negative": -2.361,
        "over_bound": 0.22,
    },
    "samples": {
        "count": 256,
        "mean_before": 0.18,
        "mean_after": 0.295,
        "shift": {"mean": 0.115, "low": 0.05, "high": 0.18},
        "human_sentences": {"positive": 0.355, "negative": -0.008},
        "distinct_before": 1.0,
        "distinct_after": 0.99,
    },
    "seconds": {"total": 840.0},
    "files": {"model": "runs/quickstart/model"},
}


def test_the_summary_tells_figures_sentences_and_limits() -> None:
    told = io.StringIO()
    tell.tell(SUMMARY, [("A [red]dull[/red] film.", "A joy.")], Console(file=told, width=110))
    text = told.getvalue()
    for wanted in ("0.848", "+0.26 / -2.36", "22%", "+0.115 [+0.050, +0.180]", "100% -> 99%", "14.0 min"):
        assert wanted in text
    assert "A [red]dull[/red] film." in text, "a sampled sentence is no markup"
    assert "sentiment demo" in text
    assert "lies above 0" in text
    assert "runs/quickstart/model" in text


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0.01, 0.2, "above 0"), (-0.1, 0.2, "holds 0"), (-0.2, -0.1, "wrong")]
)
def test_the_verdict_is_what_the_interval_says(low: float, high: float, wanted: str) -> None:
    assert wanted in tell.verdict({"mean": (low + high) / 2, "low": low, "high": high})


def tiny_model(folder: Path) -> Path:
    """A random Llama with a byte-level tokenizer and a ChatML template, as a Hugging Face folder."""
    special = ["<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    config = ModelConfig("llama", len(vocab), 16, 1, 2, 1, 8, 32, tie_word_embeddings=True, eos_token_ids=(1,))
    save_model(init_params(config, jax.random.key(0)), config, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special[1], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_the_story_from_rows_to_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chapter on a tiny random model: the files are there, and the summary follows from them."""
    model, file = tiny_model(tmp_path / "model"), review_file(tmp_path, numbered(40))
    monkeypatch.setattr(story, "fetch_model", lambda: model)
    monkeypatch.setattr(story, "fetch_reviews", lambda: file)
    for name, value in {"N_TRAIN": 24, "N_HELDOUT": 16, "N_SAMPLES": 5, "MAX_NEW_TOKENS": 4}.items():
        monkeypatch.setattr(story, name, value)
    out = tmp_path / "out"
    summary = story.run(out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["heldout"]["sentences"] == 16
    assert summary["samples"]["count"] == 5
    by_token, sampled = {"prompt", "label", "log_ratio", "tokens"}, {"before", "after", "score_before", "score_after"}
    samples = rows_of(out / "2-rdro" / "samples.jsonl")
    assert [set(row) for row in samples] == [by_token] * 8 + [sampled] * 5
    heldout = rows_of(out / "rows" / "heldout.jsonl")
    assert [row["label"] for row in samples[:8]] == [row["label"] for row in heldout[:8]]
    assert "".join(text for text, _ in samples[0]["tokens"]).startswith(heldout[0]["completion"])
    assert {path.name for path in (out / "model").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "after, score +0.000" in (out / "report.html").read_text()
    stages = [load_file(at / "model.safetensors") for at in (model, out / "1-sft", out / "2-rdro", out / "model")]
    before, sft, rdro, exported = (stage["model.embed_tokens.weight"] for stage in stages)
    assert np.abs(sft - before).max() > 0
    assert np.abs(rdro - sft).max() > 0
    np.testing.assert_array_equal(exported, rdro)


def test_what_is_missing_is_said_before_anything_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(ConfigError, match="needs matplotlib: pip install"):
        story.run(tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        story.run(tmp_path / "file" / "out")
    monkeypatch.setattr(story, "DISK_BYTES", 1e18)
    with pytest.raises(StorageError, match="GB free, wanted"):
        story.run(tmp_path / "out")
