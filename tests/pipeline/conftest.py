"""A teacher, a text and a task of a user's own, all small, and a configuration that runs them in seconds."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel, BertTokenizerFast

GOOD = ["fine", "great", "lovely", "warm", "clever"]
BAD = ["dull", "awful", "cold", "weak", "tired"]
PLAIN = ["the", "a", "film", "plot", "story", "actor", "scene", "was", "is", "very", "quite", "and"]


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``teacher/``, ``corpus.txt`` and ``reviews.csv`` (columns ``review`` and ``stars``)."""
    folder = tmp_path_factory.mktemp("own")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    rng = np.random.default_rng(0)
    corpus = [" ".join(rng.choice(GOOD + BAD + PLAIN, size=rng.integers(5, 40))) for _ in range(200)]
    (folder / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    with (folder / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        for index in range(400):
            good = index % 2 == 0
            text = [*rng.choice(PLAIN, size=8), *rng.choice(GOOD if good else BAD, size=2), str(index)]
            writer.writerow([" ".join(text), "up" if good else "down"])
    return folder


def settings(own: Path) -> dict:
    """A configuration of every stage in a few steps."""
    training = {"steps": 8, "batch_size": 8, "lr": 1e-3, "checkpoint_every": 4}
    return {
        "space": {
            "preset": "nano", "num_layers": 2, "hidden_size": 24, "num_heads": 4, "bottleneck_size": 16,
            "ffn_start": 8, "ffn_step": 8, "ffn_max": 24, "embedding_size": 16,
        },
        "precision": "fp32",
        "teacher": {"name": str(own / "teacher"), "precision": "fp32"},
        "data": {"corpus": str(own / "corpus.txt"), "sequence_length": 16, "holdout_rows": 4},
        "tasks": [
            {
                "name": "reviews", "source": str(own / "reviews.csv"), "text": "review", "label": "stars",
                "max_length": 16,
            }
        ],
        "limits": {"max_params": 60000, "max_latency_ms": 1000},
        "latency": {"sequence_length": 16, "repeats": 3},
        "growth": {"top_k": 3, "budget": 60000, "epoch_steps": 4},
        "supernet": {"pretrain": training, "tasks": training},
        "search": {"population": 4, "generations": 3, "mutations": 2, "crossovers": 2, "validation_size": 32},
        "prune": {"sequences": 64, "eta": 0.999},
        "retrain": {"pretrain": training, "finetune": training},
    }  # fmt: skip


@pytest.fixture
def config_file(own: Path, tmp_path: Path) -> Path:
    """The configuration as a YAML file."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(settings(own)), encoding="utf-8")
    return path
