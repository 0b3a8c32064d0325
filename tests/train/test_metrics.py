"""Lines of metrics: sums of steps turned into means and rates, also where numbers vanish or a run was stopped."""

import json

import pytest
from tiny import make_batch

from rdro_jax.losses import RDRO
from rdro_jax.train.metrics import MetricsWriter, Window, batch_metrics
from rdro_jax.train.step import loss_inputs

LOSS = RDRO(alpha=0.4)


def metrics_of(log_ratio):
    """What a step of four examples tells whose log-ratios are all `log_ratio`: 8 of 64 places hold tokens."""
    batch = make_batch([(1, 1)] * 4, rows=2, labels=[True, False, True, False])
    told = batch_metrics(loss_inputs(batch.reference_logps + log_ratio, batch), batch, LOSS)
    step = {"loss": 4.0, "weight": 4.0, "grad_norm": 1.0, "skipped": 0.0, "first_bad_leaf": 0.0}
    return step | {name: float(value) for name, value in told.items()}


@pytest.mark.parametrize(("log_ratio", "share"), [(-1.0, 1.0), (-60.0, None)])
def test_ratios_too_small_for_float32_leave_a_gap_and_no_fault(log_ratio, share):
    window = Window(LOSS)
    window.add(metrics_of(log_ratio))
    line = window.means()
    assert line["ratio/effective_share"] == (None if share is None else pytest.approx(share))
    assert line["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert line["padding"] == 1 - 8 / 64


def test_a_window_that_goes_on_has_all_its_sums_and_the_speed_of_its_own_steps():
    whole, first = Window(LOSS), Window(LOSS)
    for window in (whole, whole, whole, first, first):
        window.add(metrics_of(-1.0))
    resumed = Window(LOSS, json.loads(json.dumps(first.saved())))
    assert resumed.rates(2.0, 1.0) == {}
    resumed.add(metrics_of(-1.0))
    assert resumed.means() == whole.means()
    assert resumed.rates(2.0, 1.0) == {
        "time/step_s": 2.0,
        "time/data_wait": 0.5,
        "throughput/tokens_per_s": 4.0,
        "throughput/completion_tokens_per_s": 2.0,
    }


def test_lines_behind_the_resumed_step_go_and_a_full_disk_takes_none(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2}\n{"st')
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(OSError, match="no space"):
            MetricsWriter(file, resume_step=1)
    assert file.read_text().count("step") == 2
    writer = MetricsWriter(file, resume_step=1)
    writer.write({"step": 2, "loss": 1.0})
    writer.close()
    assert file.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    assert writer.latest == {"loss": 2.0}
