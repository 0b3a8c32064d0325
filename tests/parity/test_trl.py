"""The first steps of the losses TRL has against TRL itself, run live on the same rows of a tiny random model.

TRL's trainers tokenize, batch and train on the CPU in float32. The token ids they fed are packed into rows of ours, and
our train step takes the same optimizer steps: AdamW with weight decay and a clip that binds. The reference is the model
before step one. BCO left TRL after 1.13: its oracle is the formula in torch and float64, on batches TRL fed.
"""

from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers

import rdro_jax as rj
from rdro_jax.losses import BCO, DPO, KTO, APOZeroUnpaired
from rdro_jax.optim import OptimizerConfig, make_optimizer
from rdro_jax.train.metrics import Window

pytestmark = [
    pytest.mark.parity,
    # TRL 1.16 calls what transformers 5.23 has renamed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

STEPS, SEQUENCES = 4, 8
"""Optimizer steps of a run, and examples or pairs of each."""
LONGEST, SLOTS = 14, 2
"""Tokens of a sequence, the end token included, and sequences that share a row."""
WORDS = ["<pad>", "<eos>", *(f"w{number}" for number in range(46))]
OPTIMIZER = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "weight_decay": 0.5, "max_grad_norm": 0.1}
MOSTLY_DESIRABLE, MOSTLY_NOT = [True, True, False, True], [False, False, True, False]
"""Labels that repeat: every micro-batch has the same classes, and the KL estimate rises above 0 or falls below."""
FIGURES = (
    *("loss", "kl", "delta", "grad_norm", "logps/chosen", "logps/rejected"),
    *("rewards/chosen", "rewards/rejected", "rewards/margins"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a tiny random model that transformers wrote."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.Qwen2Config(**sizes, **heads, initializer_range=0.1, pad_token_id=0, eos_token_id=1)
    folder = tmp_path_factory.mktemp("trl") / "model"
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def word_tokenizer():
    """One word, one token: lengths are exact and ids are the words' places."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def sentences(count, seed):
    """Ragged prompts and completions; few words are frequent, so that one step moves the next step's completions."""
    rng = np.random.default_rng(seed)

    def sentence(longest):
        return " ".join(WORDS[2 + int(46 * rng.random() ** 3)] for _ in range(rng.integers(2, longest + 1)))

    return [(sentence(5), " " + sentence(LONGEST - 6), " " + sentence(LONGEST - 6)) for _ in range(count)]


def unpaired_rows(labels):
    """Prompt, completion and label; the labels repeat those given."""
    rows = sentences(STEPS * SEQUENCES, seed=1)
    return [
        {"prompt": prompt, "completion": completion, "label": labels[number % len(labels)]}
        for number, (prompt, completion, _) in enumerate(rows)
    ]


def paired_rows():
    """Prompt, chosen and rejected."""
    rows = sentences(STEPS * SEQUENCES, seed=2)
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in rows]


class Run(NamedTuple):
    """What TRL did."""

    fed: list[dict[str, np.ndarray]]
    """Token ids, masks and labels of every micro-batch."""
    lines: list[dict[str, float]]
    """Its log line of every optimizer step."""


KTO_OF_TRL, DPO_OF_TRL = (trl.KTOTrainer, trl.KTOConfig), (trl.DPOTrainer, trl.DPOConfig)


def run_trl(classes, folder, rows, *, micro_batches, **options) -> Run:
    """Train by TRL from the folder, and keep what it fed and what it logged."""
    run, (trainer_class, config_class) = Run([], []), classes

    class Recording(trainer_class):
        def compute_loss(self, model, inputs, *args, **kwargs):
            run.fed.append({name: value.numpy() for name, value in inputs.items() if torch.is_tensor(value)})
            return super().compute_loss(model, inputs, *args, **kwargs)

        def log(self, logs, *args, **kwargs):
            super().log(logs, *args, **kwargs)
            if "grad_norm" in logs:
                run.lines.append(dict(logs))

    config = config_class(
        output_dir=str(folder.parent / "trainer"),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=SEQUENCES // micro_batches,
        gradient_accumulation_steps=micro_batches,
        max_steps=STEPS,
        warmup_steps=0,
        max_length=LONGEST,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": "float32"},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **OPTIMIZER,
        **options,
    )
    disable_progress_bars()
    trainer = Recording(
        model=str(folder), args=config, train_dataset=Dataset.from_list(rows), processing_class=word_tokenizer()
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    assert len(run.lines) == STEPS
    assert len(run.fed) == STEPS * micro_batches
    return run


def sequences(fed, prefix=""):
    """(token ids, prompt tokens) of every sequence of a micro-batch; of pairs chosen, rejected, chosen ..."""
    lengths = fed[f"{prefix}attention_mask"].sum(axis=1)
    prompts = lengths - fed[f"{prefix}completion_mask"].sum(axis=1)
    found = [(ids[:n], p) for ids, n, p in zip(fed[f"{prefix}input_ids"], lengths, prompts, strict=True)]
    if "label" in fed:
        return found
    half = len(found) // 2  # TRL's collator lays all chosen before all rejected
    return [member for pair in zip(found[:half], found[half:], strict=True) for member in pair]


def pack(micro_batches, prefix="") -> rj.Batch:
    """One batch of the micro-batches of a step. The step takes row r into micro-batch r modulo their number."""
    parts = [sequences(fed, prefix) for fed in micro_batches]
    rows, seq = len(parts) * len(parts[0]) // SLOTS, SLOTS * LONGEST
    tokens, positions, segment_ids = (np.zeros((rows, seq), np.int32) for _ in range(3))
    loss_mask, desirable = np.zeros((rows, seq), bool), np.zeros((rows, SLOTS), bool)
    for part, (members, fed) in enumerate(zip(parts, micro_batches, strict=True)):
        labels = fed.get("label", np.tile([True, False], len(members) // 2))
        for number, ((ids, prompt), label) in enumerate(zip(members, labels, strict=True)):
            slot, row = number % SLOTS, number // SLOTS * len(parts) + part
            start = np.count_nonzero(segment_ids[row])
            end = start + len(ids)
            tokens[row, start:end], positions[row, start:end] = ids, np.arange(len(ids))
            segment_ids[row, start:end], loss_mask[row, start + prompt - 1 : end - 1] = slot + 1, True
            desirable[row, slot] = label
    weight, unknown = np.ones((rows, SLOTS), np.float32), np.full((rows, SLOTS), np.nan, np.float32)
    return rj.Batch(tokens, positions, segment_ids, loss_mask, desirable, weight, unknown)


@pytest.fixture(scope="module")
def apo_zero_run(folder):
    """Two micro-batches per step of TRL's APO-zero."""
    options = {"beta": 0.2, "loss_type": "apo_zero_unpaired"}
    return run_trl(KTO_OF_TRL, folder, unpaired_rows(MOSTLY_DESIRABLE), micro_batches=2, **options)


@pytest.fixture(scope="module")
def policy(folder):
    """Our parameters of the folder, the forward pass, and its compiled form that scores the reference."""
    params, model = rj.load_model(folder)
    forward = lambda params, batch: rj.completion_logps(params, model, batch)  # noqa: E731
    return params, forward, jax.jit(forward)


def our_lines(policy, loss, fed, *, micro_batches=1) -> list[dict[str, float | None]]:
    """What our train step logs, step by step, of the batches TRL fed."""
    params, forward, score = policy
    optimizer = make_optimizer(OptimizerConfig(warmup_ratio=0.0, **OPTIMIZER), STEPS)
    step = jax.jit(rj.make_train_step(forward, loss, optimizer, num_microbatches=micro_batches))
    with_reference = lambda batch: batch._replace(reference_logps=score(params, batch))  # noqa: E731
    state, lines, per_step = rj.init_state(params, loss, optimizer), [], len(fed) // STEPS
    for first in range(0, len(fed), per_step):
        batch = with_reference(pack(fed[first : first + per_step]))
        if loss.needs_mismatched:
            batch = batch._replace(mismatched=with_reference(pack(fed[first : first + per_step], "KL_")))
        state, metrics = step(state, batch)
        window = Window(loss)
        window.add({name: float(value) for name, value in metrics.items()})
        lines.append(window.means())
    return lines


def assert_same(ours, theirs, beta):
    """Every figure of every step, to 2e-4 of itself or to 2e-5, whichever is more."""
    assert len(ours) == len(theirs) == STEPS
    # A policy that stood still would agree with anything: its margin stays at 0.
    assert all(abs(line["rewards/margins"]) > 1e-3 for line in theirs[1:])
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True), start=1):
        for name in (name for name in FIGURES if name in our):
            # TRL's rewards are beta s, ours s in nats. It logs the clamped KL, we the estimate.
            got = our[name] * beta if name.startswith("rewards") else max(our[name], 0.0) if name == "kl" else our[name]
            assert got == pytest.approx(their[name], rel=2e-4, abs=2e-5), f"{name} of step {step}"


@pytest.mark.parametrize(
    ("loss", "labels", "theirs", "ours"),
    [
        (KTO(beta=0.2), MOSTLY_DESIRABLE, 1, 2),
        (KTO(beta=0.3, desirable_weight=0.7, undesirable_weight=1.3), MOSTLY_NOT, 1, 1),
        (KTO(beta=0.2, kl_scope="microbatch"), MOSTLY_DESIRABLE, 2, 2),
    ],
    ids=["global, in two micro-batches of ours", "weighted, KL below 0", "microbatch"],
)
def test_kto(folder, policy, loss, labels, theirs, ours):
    weights = {"desirable_weight": loss.desirable_weight, "undesirable_weight": loss.undesirable_weight}
    run = run_trl(KTO_OF_TRL, folder, unpaired_rows(labels), micro_batches=theirs, beta=loss.beta, **weights)
    lines = our_lines(policy, loss, run.fed, micro_batches=ours)
    assert_same(lines, run.lines, loss.beta)
    # Far from 0: else the comparison of the KL, or of its clamp, would be empty.
    side = 1 if labels == MOSTLY_DESIRABLE else -1
    assert all(side * line["kl"] > 0.1 for line in lines[1:])


def test_apo_zero_unpaired(policy, apo_zero_run):
    lines = our_lines(policy, APOZeroUnpaired(beta=0.2), apo_zero_run.fed, micro_batches=2)
    assert_same(lines, apo_zero_run.lines, 0.2)


@pytest.mark.parametrize(
    "loss",
    [
        DPO(beta=0.2),
        DPO(kind="robust", beta=0.2, label_smoothing=0.1),
        DPO(kind="ipo", beta=0.2),
        DPO(kind="hinge", beta=4.0),
        DPO(kind="nca_pair", beta=0.2),
        DPO(kind="sppo_hard", beta=0.2),
    ],
    ids=lambda loss: loss.kind,
)
def test_dpo(folder, policy, loss):
    options = {"beta": loss.beta, "loss_type": [loss.kind], "label_smoothing": loss.label_smoothing}
    run = run_trl(DPO_OF_TRL, folder, paired_rows(), micro_batches=2, **options)
    assert_same(our_lines(policy, loss, run.fed), run.lines, loss.beta)


def test_bco(folder, policy, apo_zero_run):
    loss = BCO(beta=0.2)
    lines = our_lines(policy, loss, apo_zero_run.fed, micro_batches=2)
    assert_same(lines, bco_lines(folder, apo_zero_run.fed, loss.beta), loss.beta)
    assert all(line["delta"] > 0.02 for line in lines[1:])  # else its comparison would be empty


def bco_lines(folder, fed, beta):
    """BCO as TRL 1.13 computed it where a step is one micro-batch, in float64.

    The shift delta is the mean reward of all examples so far, this step's included.
    """
    load = transformers.AutoModelForCausalLM.from_pretrained
    policy, reference = (load(folder, dtype=torch.float64) for _ in range(2))
    decay = lambda decayed: [weight for weight in policy.parameters() if (weight.ndim > 1) == decayed]  # noqa: E731
    groups = [
        {"params": decay(True), "weight_decay": OPTIMIZER["weight_decay"]},
        {"params": decay(False), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER["learning_rate"])
    lines, seen, per_step = [], [], len(fed) // STEPS
    for first in range(0, len(fed), per_step):
        of_step = fed[first : first + per_step]
        logps = torch.cat([torch_logps(policy, part) for part in of_step])
        with torch.no_grad():
            reference_logps = torch.cat([torch_logps(reference, part) for part in of_step])
        rewards, label = beta * (logps - reference_logps), torch.tensor(np.concatenate([x["label"] for x in of_step]))
        seen += rewards.tolist()
        margins = rewards - np.mean(seen)
        loss = -torch.nn.functional.logsigmoid(torch.where(label, margins, -margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), OPTIMIZER["max_grad_norm"])
        optimizer.step()
        line = {"loss": loss, "grad_norm": norm, "delta": np.mean(seen)}
        for kind, values in (("rewards", rewards), ("logps", logps)):
            line |= {f"{kind}/chosen": values[label].mean(), f"{kind}/rejected": values[~label].mean()}
        line["rewards/margins"] = line["rewards/chosen"] - line["rewards/rejected"]
        lines.append({name: float(torch.as_tensor(value).detach()) for name, value in line.items()})
    return lines


def torch_logps(model, fed):
    """Summed log-probability of every completion of a micro-batch, in nats."""
    ids, attention, completion = (
        torch.tensor(fed[name]) for name in ("input_ids", "attention_mask", "completion_mask")
    )
    log_probs = torch.log_softmax(model(input_ids=ids, attention_mask=attention).logits[:, :-1], -1)
    return (log_probs.gather(-1, ids[:, 1:, None])[..., 0] * completion[:, 1:]).sum(-1)
