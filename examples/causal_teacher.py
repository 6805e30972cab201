"""A small GPT-2 with a tokenizer of its own, trained on text: a causal teacher for machines without a network.

    python examples/causal_teacher.py causal-teacher
    elm-nni run elm-causal-nano --set teacher.name=./causal-teacher

Learns a byte-level BPE vocabulary on the corpus and trains a GPT2LMHeadModel of transformers on it, in about 80
minutes with one thread. Killed and started again, it goes on from its last checkpoint. For your project, change the
corpus (a file, a hub data set, or a packaged one) and the sizes; any causal model of the hub serves as a teacher just
as well, and needs none of this.
"""

import argparse
import json
import math
import shutil
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from elm_nni.data.batches import StepBatchSampler
from elm_nni.data.corpora import CorpusSpec, corpus_digest, corpus_texts, load_corpus
from elm_nni.data.language import LanguageRows
from elm_nni.data.metrics import UNCOUNTED
from elm_nni.data.packing import pack_source
from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.pipeline.config import TrainingConfig
from elm_nni.pipeline.training import fit
from elm_nni.training import optimizer_and_schedule

END = "<|endoftext|>"


def make_tokenizer(corpus: CorpusSpec, vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 has it, on a fair sample of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(islice(corpus_texts(load_corpus(corpus, seed=seed)), 10_000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


class LanguageModelling(LightningModule):
    """Next tokens of packed rows; the first token of a document is not predicted from the one before."""

    def __init__(self, model: GPT2LMHeadModel, training: TrainingConfig) -> None:
        super().__init__()
        self.model, self.training_config = model, training

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits_BTV = self.model(input_ids=batch["input_ids"]).logits
        return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch["labels"].flatten())

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> dict:
        one = self.training_config
        return optimizer_and_schedule(
            self, steps=one.steps, lr=one.lr, weight_decay=one.weight_decay, warmup=one.warmup
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the model; checkpoints are beside it until it is finished")
    parser.add_argument("--corpus", default="offline:demo", help="offline:demo, a text file or a hub data set")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument(
        "--held-out", type=int, default=1024,
        help="last rows that are not trained on; a run of the same seed holds out fewer tokens from the same end",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0, help="that of the runs: it decides which text is held out")
    given = parser.parse_args()
    try:
        train(given)
    except UserError as error:
        sys.exit(f"causal_teacher.py: {error}")


def train(given: argparse.Namespace) -> None:
    """Everything, from the tokenizer to the saved model."""
    # text of a task's rows is split by the seed: that of the runs which the teacher serves
    corpus = replace(CorpusSpec.parse(given.corpus), split_seed=given.seed)
    every_work = given.out.with_name(f".{given.out.name}.work")
    # other arguments go on from no checkpoint of these
    asked = {**vars(given), "out": None, "corpus": corpus_digest(corpus)}
    work = every_work / digest(asked)[:12]
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer").exists():
        make_tokenizer(corpus, given.vocabulary, given.seed).save_pretrained(work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    packed = pack_source(corpus, tokenizer, sequence_length=given.length, folder=work, seed=given.seed)
    if len(packed) <= given.held_out:
        raise UserError(f"--held-out is {given.held_out}; it must be below {len(packed)}, the rows of the corpus")
    rows, held_out = (LanguageRows(part, tokenizer, None) for part in packed.split(given.held_out))
    torch.manual_seed(given.seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=512, n_embd=given.width, n_layer=given.layers, n_head=given.heads,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    training = TrainingConfig(
        steps=given.steps, batch_size=given.batch_size, lr=given.lr, checkpoint_every=min(100, given.steps)
    )
    module = LanguageModelling(GPT2LMHeadModel(config), training)
    sampler = StepBatchSampler(
        num_rows=len(rows), batch_size=given.batch_size, seed=given.seed, stage="teacher", num_steps=given.steps
    )
    fit(
        module, lambda step: rows.batch(sampler.batch(step)), training, folder=work / "checkpoints", seed=given.seed,
        stage="teacher", precision=given.precision, log=lambda event, **values: print(event, values, flush=True),
    )  # fmt: skip
    nats = held_out_nats(module, held_out)
    model = module.model.eval()
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    shutil.rmtree(every_work)
    facts = {
        "parameters": model.num_parameters(), "held-out perplexity": round(math.exp(nats), 2),
        "held-out rows": len(held_out), "tokens seen": given.steps * given.batch_size * given.length,
    }  # fmt: skip
    print(json.dumps(facts))


@torch.inference_mode()
def held_out_nats(module: LanguageModelling, rows: LanguageRows) -> float:
    """Mean negative log-likelihood of the held-out tokens."""
    module.eval()
    total = counted = 0.0
    for start in range(0, len(rows), 32):
        batch = rows.batch(range(start, min(start + 32, len(rows))))
        batch = {name: value.to(module.device) for name, value in batch.items()}
        number = float((batch["labels"] != UNCOUNTED).sum())
        total, counted = total + float(module.loss(batch)) * number, counted + number
    return total / counted


if __name__ == "__main__":
    main()
