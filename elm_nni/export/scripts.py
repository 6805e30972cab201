"""Scripts beside ONNX files that need no torch: a head that all share, and what each kind makes of its outputs.

Shapes in the scripts: T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from elm_nni.modeling import ElmConfig

TOKENIZER_FILE, SCRIPT_FILE = "tokenizer.json", "infer.py"

IMPORTS = """import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer
"""

HEAD = """
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
given = sys.argv[1:] or sys.exit(__doc__)
session = InferenceSession(Path(__file__).with_name(MODEL), providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
tokenizer.enable_truncation(LENGTH)
tokenizer.enable_padding(pad_id=PAD_ID, pad_token=PAD_TOKEN)


def run(encodings):
    inputs = {i.name: np.array([getattr(e, FIELDS[i.name]) for e in encodings]) for i in session.get_inputs()}
    return session.run(None, inputs)


"""

SEQUENCES = """parts = [tuple(text.split("\\t", 1)) if "\\t" in text else text for text in given]
encodings = tokenizer.encode_batch(parts)
for text, logits in zip(given, run(encodings)[0]):
    print(json.dumps({"text": text, **found(logits), "logits": logits.tolist()}, ensure_ascii=False))
"""

CLASS = """def found(logits):
    return {"label": labels[int(logits.argmax())]}


"""

SEVERAL_LABELS = """def found(logits):
    return {"labels": [label for label, logit in zip(labels, logits) if logit > 0]}


"""

VALUE = """def found(logits):
    return {"value": float(logits[0])}


"""

TAGS = """def ids(text):
    return tokenizer.encode(text, is_pretokenized=isinstance(text, list)).ids


# some tokenizers mark a word by the blank before it
blank = " " if ids(["a", "b"]) != ids("a b") == ids(["a", " b"]) else ""
sentences = [text.split() for text in given]
marked = [[blank * (place > 0) + word for place, word in enumerate(words)] for words in sentences]
encodings = tokenizer.encode_batch(marked, is_pretokenized=True)
for words, encoding, logits in zip(sentences, encodings, run(encodings)[0]):
    first = {word: place for place, word in reversed(list(enumerate(encoding.word_ids)))}
    tags = [labels[int(logits[first[word]].argmax())] if word in first else None for word in range(len(words))]
    print(json.dumps({"words": words, "tags": tags}, ensure_ascii=False))
"""

ANSWERS = """MOST_TOKENS = 30


def cut(question):
    tokenizer.no_truncation()
    kept = tokenizer.encode(question.strip(), add_special_tokens=False).offsets[: min(64, LENGTH // 4)]
    return question.strip()[: kept[-1][1]] if kept else ""


def best_span(start_T, end_T, window):
    outside_T = np.where(np.array(window.sequence_ids) == 1, 0, -np.inf)
    order_TT = np.triu(np.ones((len(start_T), len(start_T)), bool))
    scores_TT = (start_T + outside_T)[:, None] + end_T + outside_T
    scores_TT = np.where(order_TT & ~np.triu(order_TT, MOST_TOKENS), scores_TT, -np.inf)
    first, last = np.unravel_index(scores_TT.argmax(), scores_TT.shape)
    return scores_TT[first, last], window.offsets[first][0], window.offsets[last][1]


for text in given:
    question, tab, context = text.partition("\\t")
    if not tab:
        sys.exit(f"no tab in {text!r}: write a question, a tab and its context")
    asked = cut(question)
    tokenizer.enable_truncation(LENGTH, stride=LENGTH // 3, strategy="only_second")
    encoding = tokenizer.encode(asked, context)
    windows = [encoding, *encoding.overflowing]
    starts, ends = run(windows)
    score, begin, end = max(best_span(*one) for one in zip(starts, ends, windows))
    answer = {"answer": context[begin:end].strip(), "score": float(score)} if score > -np.inf else {"answer": ""}
    answer["no_answer"] = float((starts[:, 0] + ends[:, 0]).min())
    print(json.dumps({"question": question, **answer}, ensure_ascii=False))
"""

VECTORS = """vectors = run(tokenizer.encode_batch(given))[0]
for text, vector in zip(given, vectors):
    print(json.dumps({"text": text, "embedding": vector.tolist()}, ensure_ascii=False))
if len(vectors) == 2:
    lengths = np.linalg.norm(vectors, axis=1)
    print(json.dumps({"cosine": float(vectors[0] @ vectors[1] / lengths.prod())}, ensure_ascii=False))
"""

HIDDEN_TOKENS = """def best_tokens(logits):
    odds = np.exp(logits - logits.max())
    best = np.argsort(-logits)[:5].tolist()
    names = [tokenizer.decode([token], skip_special_tokens=False) for token in best]
    return list(zip(names, (odds[best] / odds.sum()).tolist()))


encodings = tokenizer.encode_batch(given)
for text, encoding, logits in zip(given, encodings, run(encodings)[0]):
    masks = [place for place, token in enumerate(encoding.tokens) if token == MASK_TOKEN]
    print(json.dumps({"text": text, "masks": [best_tokens(logits[place]) for place in masks]}, ensure_ascii=False))
"""


@dataclass(frozen=True)
class Script:
    """What a script says of its use, and what follows the head."""

    usage: str
    body: str


_PAIR = "(a pair: first, tab, second)"
_SEQUENCE_SCRIPTS = {
    "single_label_classification": Script(f'Classify texts: python infer.py "a text" "another" {_PAIR}.', CLASS),
    "multi_label_classification": Script(f'Label texts: python infer.py "a text" "another" {_PAIR}.', SEVERAL_LABELS),
    "regression": Script(f'Score texts: python infer.py "a text" "another" {_PAIR}.', VALUE),
}
_SCRIPTS = {
    "ElmForTokenClassification": Script('Tag words: python infer.py "words with blanks between" "more words".', TAGS),
    "ElmForQuestionAnswering": Script(
        "Answer questions: python infer.py with a question, a tab and its context in each argument.\n\n"
        "A no_answer above the score says that the context has no answer, if the training rows had such questions.\n",
        ANSWERS,
    ),
    "ElmForSentenceEmbedding": Script('Embed texts; of two also their cosine: python infer.py "a" "another".', VECTORS),
    "ElmForMaskedLM": Script(
        "The five best tokens for each mask: python infer.py with texts that have the mask token in them.",
        HIDDEN_TOKENS,
    ),
}


def write_script(
    tokenizer_folder: Path, target: Path, architecture: str, config: ElmConfig, model_file: str, max_length: int
) -> Path | None:
    """Write ``infer.py`` for a model file beside it; it needs ``tokenizer.json`` there too.

    Args:
        tokenizer_folder: Where the tokenizer was saved.
        target: Folder of the script.
        architecture: Class of the model.
        config: Of the model.
        model_file: Name of the ONNX file.
        max_length: Tokens that texts are cut at, or windows of a context have.

    Returns:
        The script, or None for a class that has none or a language model whose tokenizer has no mask token.
    """
    script = _script(architecture, config)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    if script is None or (architecture == "ElmForMaskedLM" and tokenizer.mask_token is None):
        return None
    pad_id = config.pad_token_id or 0
    constants: dict[str, str | int] = {
        "MODEL": model_file,
        "LENGTH": max_length,
        "PAD_ID": pad_id,
        "PAD_TOKEN": tokenizer.convert_ids_to_tokens(pad_id) or "[PAD]",
    }
    if architecture == "ElmForMaskedLM":
        constants["MASK_TOKEN"] = tokenizer.mask_token
    lines = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    path = target / SCRIPT_FILE
    path.write_text(f'"""{script.usage}"""\n{IMPORTS}\n{lines}{HEAD}{script.body}', encoding="utf-8")
    return path


def _script(architecture: str, config: ElmConfig) -> Script | None:
    if architecture != "ElmForSequenceClassification":
        return _SCRIPTS.get(architecture)
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    script = _SEQUENCE_SCRIPTS[problem]
    return Script(script.usage, script.body + SEQUENCES)
