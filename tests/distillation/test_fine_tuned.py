import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    BertTokenizer,
)

from elm_nni.distillation.fine_tuned import fine_tune_teacher, load_classifier
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError

LETTERS = [chr(ord("a") + i) for i in range(26)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "good", "bad", "film", "!", *LETTERS, *[f"##{letter}" for letter in LETTERS]]
NAMES = ["negative", "positive"]


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path / "tokenizer", WORDS[:60])


def make_tokenizer(folder, words, lower=True):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    built = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lower)
    assert set(built.get_vocab()) == set(words)
    return built


class Rows:
    """Token ids and labels as a tokenised split; ``types`` are segments."""

    def __init__(self, ids, labels, types=None):
        self.ids, self.labels, self.types = ids, labels, types
        self.lengths = np.asarray([len(row) for row in ids], dtype=np.int64)

    def __len__(self):
        return len(self.ids)

    def batch(self, indices):
        ids_BT, mask_BT = padded([self.ids[index] for index in indices])
        labels = self.labels[list(indices)]
        if labels.ndim == 2 and labels.shape[1] > 2:
            labels = labels[:, : ids_BT.shape[1]].contiguous()
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels}
        if self.types is not None:
            batch["token_type_ids"] = torch.tensor([self.types[index] for index in indices])
        return batch


@pytest.fixture
def rows():
    """Rows of unequal length whose class is whether token 5 occurs."""
    generator = torch.Generator().manual_seed(0)
    ids, labels = [], []
    for n in range(64):
        body = torch.randint(7, 60, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator).tolist()
        ids.append([2, *([5, 5] if n % 2 else [6, 6]), *body, 3])
        labels.append(n % 2)
    return ids, torch.tensor(labels)


def padded(ids):
    width = max(map(len, ids))
    filled = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    return filled, (filled != 0).long()


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_fine_tunes_saves_and_loads(family, build_model, tokenizer, rows, tmp_path):
    ids, labels = rows
    teacher = Teacher(build_model(family), tokenizer=tokenizer)
    before = [parameter.clone() for parameter in teacher.model.parameters()]
    state = torch.get_rng_state()
    folder = fine_tune_teacher(
        teacher, Rows(ids, labels), NAMES, tmp_path / "tuned", epochs=12, lr=2e-3, batch_size=16, seed=1
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.model.parameters()))
    classifier = load_classifier(folder, NAMES, tokenizer)
    filled, mask = padded(ids)
    features, logits = classifier.features_and_logits(filled, mask)
    assert float((logits.argmax(1) == labels).float().mean()) > 0.9
    assert (len(features.hidden), len(features.attention), classifier.num_labels) == (4, 4, 2)
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(filled, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(features.hidden[-1], expected.hidden_states[-1])
    torch.testing.assert_close(classifier.teacher.features(filled, mask).hidden[-1], features.hidden[-1])
    assert reference.config.id2label == {0: "negative", 1: "positive"}


def test_segments_of_a_pair_are_read(build_model, tokenizer, tmp_path):
    teacher = Teacher(build_model("bert"), tokenizer=tokenizer)
    # the same tokens in every row: the class is in the segments alone
    ids = [[2, 5, 6, 7, 3]] * 64
    types = [[0, 0, 0, 1, 1] if n % 2 else [0, 1, 1, 1, 1] for n in range(64)]
    labels = torch.tensor([n % 2 for n in range(64)])
    folder = fine_tune_teacher(
        teacher, Rows(ids, labels, types), NAMES, tmp_path / "pairs", epochs=12, lr=2e-3, batch_size=16
    )
    filled, mask = padded(ids)
    logits = load_classifier(folder, NAMES, tokenizer).logits(filled, mask, token_type_ids=torch.tensor(types))
    assert torch.equal(logits.argmax(1), labels)


def test_is_seeded(build_model, tokenizer, rows, tmp_path):
    ids, labels = rows
    teacher = Teacher(build_model("bert"), tokenizer=tokenizer)
    states = []
    for run, seed in enumerate((3, 3, 4)):
        torch.manual_seed(run)
        folder = fine_tune_teacher(teacher, Rows(ids, labels), NAMES, tmp_path / str(run), epochs=1, seed=seed)
        states.append(AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_regression(build_model, tokenizer, rows, tmp_path):
    ids, labels = rows
    teacher = Teacher(build_model("bert"), tokenizer=tokenizer)
    targets = labels.float()
    folder = fine_tune_teacher(
        teacher, Rows(ids, targets), ["stars"], tmp_path / "tuned", kind="regression", epochs=30, lr=2e-3, batch_size=16
    )
    predicted = load_classifier(folder, ["stars"], tokenizer, kind="regression").logits(*padded(ids))
    assert predicted.shape == (64, 1)
    assert float((predicted[:, 0] - targets).square().mean()) < 0.1


def test_several_labels(build_model, tokenizer, rows, tmp_path):
    ids, labels = rows
    teacher = Teacher(build_model("bert"), tokenizer=tokenizer)
    targets = torch.stack([labels, torch.ones_like(labels), 1 - labels], dim=1).float()
    names = ["five", "always", "six"]
    folder = fine_tune_teacher(
        teacher, Rows(ids, targets), names, tmp_path / "tuned", kind="multi_label", epochs=40, lr=3e-3, batch_size=16
    )
    logits = load_classifier(folder, names, tokenizer, kind="multi_label").logits(*padded(ids))
    assert float(((logits > 0) == targets.bool()).float().mean()) > 0.9
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.problem_type == "multi_label_classification"


def test_classes_of_tokens(tokenizer, rows, tmp_path):
    ids, _ = rows
    torch.manual_seed(0)
    # of small weights, as at the start of training: large random ones mix the tokens
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    teacher = Teacher(BertModel(BertConfig(vocab_size=60, **sizes)), tokenizer=tokenizer)
    filled, mask = padded(ids)
    # whether a token is 5; padding and the first token do not count
    labels = (filled == 5).long().masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    folder = fine_tune_teacher(
        teacher, Rows(ids, labels), ["O", "B-five"], tmp_path / "tuned", kind="token_classification", epochs=30,
        lr=1e-2, batch_size=8,
    )  # fmt: skip
    classifier = load_classifier(folder, ["O", "B-five"], tokenizer, kind="token_classification")
    logits = classifier.logits(filled, mask)
    assert logits.shape == (*filled.shape, 2)
    counted = labels != -100
    assert float((logits.argmax(-1)[counted] == labels[counted]).float().mean()) > 0.95
    assert AutoModelForTokenClassification.from_pretrained(folder).config.id2label == {0: "O", 1: "B-five"}
    with pytest.raises(UserError, match="has labels"):
        load_classifier(folder, ["B-five", "O"], tokenizer, kind="token_classification")


def test_answers(build_model, tokenizer, rows, tmp_path):
    ids, _ = rows
    teacher = Teacher(build_model("bert"), tokenizer=tokenizer)
    # the answer is the two tokens after the first; a window that begins with 6 has none
    spans = torch.tensor([[1, 2] if row[1] == 5 else [0, 0] for row in ids])
    folder = fine_tune_teacher(
        teacher, Rows(ids, spans), (), tmp_path / "tuned", kind="question_answering", epochs=40, lr=3e-3, batch_size=16
    )
    logits = load_classifier(folder, (), tokenizer, kind="question_answering").logits(*padded(ids))
    assert logits.shape == (64, max(map(len, ids)), 2)
    assert float((logits.argmax(1) == spans).float().mean()) > 0.9
    with torch.no_grad():
        expected = AutoModelForQuestionAnswering.from_pretrained(folder).eval()(padded(ids)[0], padded(ids)[1])
    torch.testing.assert_close(logits[..., 1], expected.end_logits)


@pytest.fixture
def folder(build_model, tokenizer, rows, tmp_path):
    ids, labels = rows
    teacher = Teacher(build_model("bert"), tokenizer=tokenizer)
    return fine_tune_teacher(teacher, Rows(ids[:8], labels[:8]), NAMES, tmp_path / "tuned", epochs=1)


@pytest.mark.parametrize("names", [["positive", "negative"], ["bad", "good"], ["negative", "neutral", "positive"]])
def test_other_labels_stop(names, folder, tokenizer):
    with pytest.raises(UserError, match="has labels"):
        load_classifier(folder, names, tokenizer)


def test_other_tokenizers_stop(folder, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"another vocabulary \(60 tokens, 59 expected, 1 entries"):
        load_classifier(folder, NAMES, make_tokenizer(tmp_path / "smaller", WORDS[:59]))
    with pytest.raises(UserError, match="other token ids"):
        load_classifier(folder, NAMES, make_tokenizer(tmp_path / "cased", WORDS[:60], lower=False))


def test_other_folders_stop(build_model, tokenizer, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_classifier(tmp_path / "nowhere", NAMES, tokenizer)
    plain = Teacher(build_model("bert"), tokenizer=tokenizer).save(tmp_path / "plain")
    with pytest.raises(UserError, match=r"\['BertModel'\]: must be a model of AutoModelForSeq"):
        load_classifier(plain, NAMES, tokenizer)


def test_bad_input(build_teacher, tokenizer, rows, tmp_path):
    ids, labels = rows
    teacher = build_teacher("bert")
    with pytest.raises(ValueError, match="epochs=0"):
        fine_tune_teacher(teacher, Rows(ids, labels), NAMES, tmp_path, epochs=0)
    with pytest.raises(ValueError, match="lr=0"):
        fine_tune_teacher(teacher, Rows(ids, labels), NAMES, tmp_path, lr=0)
    with pytest.raises(UserError, match="one class"):
        fine_tune_teacher(teacher, Rows(ids, labels), ["only"], tmp_path)
    with pytest.raises(UserError, match=r"must be in 0\.\.1"):
        fine_tune_teacher(teacher, Rows(ids, labels + 1), NAMES, tmp_path)
    with pytest.raises(UserError, match="0 rows"):
        fine_tune_teacher(teacher, Rows([], labels[:0]), NAMES, tmp_path)
    with pytest.raises(UserError, match="no classification model"):
        fine_tune_teacher(Teacher(build_teacher("t5").model, tokenizer=tokenizer), Rows(ids, labels), NAMES, tmp_path)
    # before any training, not after it
    with pytest.raises(UserError, match="no tokenizer"):
        fine_tune_teacher(teacher, Rows(ids, labels), NAMES, tmp_path, epochs=10**9)
