"""Language-model heads of teachers: their own, taken from any family, and fitted ones."""

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from elm_nni.distillation.language import FittedHead, LanguageTeacher, OwnHead, fit_head
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError

from .conftest import randomised

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
}  # fmt: skip
MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=8)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=20)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}
CAUSAL = {"gpt2", "llama"}


def auto_class(family: str) -> str:
    return "AutoModelForCausalLM" if family in CAUSAL else "AutoModelForMaskedLM"


@pytest.fixture
def saved(tmp_path: Path):
    def save(family: str) -> Path:
        torch.manual_seed(0)
        randomised(MODELS[family]()).save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


@pytest.mark.parametrize("family", sorted(MODELS))
def test_own_head_gives_the_logits_of_the_whole_model(family: str, saved) -> None:
    folder = saved(family)
    whole = type(MODELS[family]()).from_pretrained(folder).eval()
    head, teacher = OwnHead.load(str(folder), auto_class(family)), Teacher.load(folder)
    ids_BT = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    with torch.no_grad():
        expected = whole(ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    hidden_BTD = teacher.features(ids_BT, torch.ones_like(ids_BT)).hidden[-1]
    torch.testing.assert_close(head(hidden_BTD), expected, rtol=1e-4, atol=1e-4)
    # any number of positions, in any shape
    torch.testing.assert_close(head(hidden_BTD[0, 1:3]), expected[0, 1:3], rtol=1e-4, atol=1e-4)


def test_language_teacher_gives_logits_where_labels_count(saved) -> None:
    folder = saved("gpt2")
    teacher, whole = Teacher.load(folder), GPT2LMHeadModel.from_pretrained(folder).eval()
    language = LanguageTeacher(teacher, OwnHead.load(str(folder), "AutoModelForCausalLM"))
    # two documents in the first row: each is read by itself
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "document_ids": torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[6, -100, 8, 9, -100], [3, 2, -100, -100, -100]]),
    }
    with torch.no_grad():
        alone = [whole(torch.tensor([ids])).logits[0] for ids in ([5, 6], [7, 8, 9], [4, 3, 2])]
    expected = torch.stack([alone[0][0], alone[1][0], alone[1][1], alone[2][0], alone[2][1]])
    torch.testing.assert_close(language.logits(batch), expected, rtol=1e-4, atol=1e-4)
    features = teacher.features(
        batch["input_ids"], batch["attention_mask"], document_ids=batch["document_ids"]
    )
    torch.testing.assert_close(language.logits(batch, features), language.logits(batch))


def test_a_teacher_without_a_head_names_the_way_out(tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"no language-model head \(it holds BertModel\); set teacher.lm_head=refit"):
        OwnHead.load(str(tmp_path / "bare"), "AutoModelForMaskedLM")
    with pytest.raises(UserError, match="cannot be loaded as AutoModelForMaskedLM"):
        OwnHead.load(str(tmp_path / "nowhere"), "AutoModelForMaskedLM")


def test_a_fitted_head_learns_to_name_tokens_and_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES))
    with torch.no_grad():
        # tokens are far apart, and two layers of small weights leave them so
        model.embeddings.word_embeddings.weight.mul_(50)
    teacher = Teacher(model)
    before = [parameter.clone() for parameter in teacher.model.parameters()]

    def batch_of(step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(5, 60, (8, 12), generator=generator)
        # to name the token that stands there
        counted = torch.rand(ids_BT.shape, generator=generator) < 0.5
        return {
            "input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "document_ids": torch.ones_like(ids_BT),
            "labels": ids_BT.masked_fill(~counted, -100),
        }  # fmt: skip

    told: list[tuple[int, float]] = []
    torch.manual_seed(0)
    head = fit_head(teacher, batch_of, steps=120, lr=2e-2, log=lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [50, 100, 120]
    assert told[-1][1] < 0.2 * told[0][1]
    batch = batch_of(1000)
    logits_MV = LanguageTeacher(teacher, head).logits(batch)
    right = logits_MV.argmax(-1) == batch["labels"][batch["labels"] != -100]
    assert float(right.float().mean()) > 0.9
    head.save(tmp_path / "head.safetensors")
    again = FittedHead.load(tmp_path / "head.safetensors", teacher)
    torch.testing.assert_close(LanguageTeacher(teacher, again).logits(batch), logits_MV)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    # the teacher, its token table among it, stays as it is
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.model.parameters()))
