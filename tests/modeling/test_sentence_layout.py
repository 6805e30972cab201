"""sentence-transformers, where it is installed, reads the folder and gives the model's own embeddings."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from elm_nni.modeling import ElmForSentenceEmbedding, ElmModel, save_with_code

TEXTS = ["one two three four", "five", "three one"]
WORDS = ["[PAD]", "[UNK]", "one", "two", "three", "four", "five"]


@pytest.mark.parametrize(
    ("settings", "folders"),
    [
        ({"classifier_pooling": "mean", "sentence_embedding_size": 6}, ["1_Pooling", "2_Dense", "3_Normalize"]),
        ({"classifier_pooling": "cls"}, ["1_Pooling", "2_Normalize"]),
        ({"classifier_pooling": "last", "normalize_embeddings": False}, ["1_Pooling"]),
    ],
)
def test_sentence_transformers_gives_the_same_embeddings(
    settings: dict, folders: list[str], make_config, randomise, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = randomise(ElmForSentenceEmbedding(make_config(**settings)))
    save_with_code(model, tmp_path)
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)

    embedder = sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    expected = model(**inputs).sentence_embeddings
    found = torch.from_numpy(embedder.encode(TEXTS))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert embedder.max_seq_length == 32
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders


def test_other_models_have_no_such_files(make_config, tmp_path: Path) -> None:
    save_with_code(ElmModel(make_config()), tmp_path)
    assert not (tmp_path / "modules.json").exists()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_elm.ElmModel"
