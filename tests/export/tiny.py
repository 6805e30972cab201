"""A model of 4000 tokens that is exported in seconds, its tokenizer, and scripts run where torch cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from elm_nni.modeling import ElmConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "long", "the", "was", "##ly", "##s"]
VOCAB_SIZE = 4000
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
BLOCK_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "elm_nni"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_torch(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished process of a script that may import neither torch nor transformers nor elm_nni."""
    command = [sys.executable, "-c", BLOCK_TORCH, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def printed(script: Path, *arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of such a script."""
    done = run_without_torch(script, *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def tiny_config(pooling: str, **changes: Any) -> ElmConfig:
    def layer(block: str, heads: int, head_dim: int) -> dict[str, object]:
        return {"block": block, "ffn_size": 24, "num_heads": heads, "head_dim": head_dim}

    settings = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "embedding_size": 64, "bottleneck_size": 8,
        "max_position_embeddings": 40, "layers": [layer("bert_kv", 4, 8), layer("mobile_qv", 2, 2)],
        "classifier_pooling": pooling, "initializer_range": 0.2, "id2label": LABELS,
    }  # fmt: skip
    return ElmConfig(**{**settings, **changes})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and two pieces, in BERT's form of a text and a pair."""
    pieces = models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
