"""TRL's KTO trainer on the rows of a file, one step at a time: the process the other side is measured against."""

import json
import os
import sys

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
from datasets import load_dataset
from gate import Gate
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import KTOConfig, KTOTrainer


class Turns(TrainerCallback):
    """Waits for its turn before each step; what was fetched and collated for it counts."""

    def __init__(self, gate: Gate):
        self.gate, self.batches = gate, []

    def on_train_begin(self, *_, **__):
        self.gate.step_done()

    def on_log(self, *_, logs, **__):
        if "loss" in logs:  # the summary at the end has none
            tokens, examples = self.batches.pop()
            self.gate.step_done(loss=logs["loss"], tokens=tokens, examples=examples)


class Counting(KTOTrainer):
    """Counts the tokens of the batches as they go by."""

    def compute_loss(self, model, inputs, *args, **more):
        mask = inputs["attention_mask"]
        self.turns.batches.append((int(mask.sum()), len(mask)))
        return super().compute_loss(model, inputs, *args, **more)


def main(settings: dict) -> None:
    """Train until the gate closes."""
    gate = Gate()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    arguments = KTOConfig(
        output_dir=f"{settings['scratch']}/trl",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=settings["examples"],
        max_steps=settings["max_steps"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        beta=0.1,
        loss_type=settings["loss_type"],
        precompute_ref_log_probs=settings["cached_reference"],
        gradient_checkpointing=False,  # the faster of the two
        disable_dropout=True,
        max_length=settings["max_length"],
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
    )
    turns = Turns(gate)
    rows = load_dataset("json", data_files=settings["rows"], split="train", cache_dir=f"{settings['scratch']}/datasets")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings["model"])
    trainer = Counting(
        model=settings["model"], args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[turns]
    )
    trainer.turns = turns
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
