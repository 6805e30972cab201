"""GPT-2 as a student: what training reads of it is what transformers computes."""

from pathlib import Path

import pytest
import torch
from quality.decoders import StockDecoder, gpt2_config, load_decoders, save_decoder
from quality.trial import LeftOut
from transformers import AutoTokenizer, GPT2LMHeadModel

from elm_nni.data.language import next_tokens
from elm_nni.data.offline import teacher_folder
from elm_nni.distillation.student import StudentDistiller, inputs_of
from elm_nni.distillation.teacher import Teacher
from elm_nni.kinds import KINDS
from elm_nni.search_spaces.architecture import SpaceSettings

SETTINGS = SpaceSettings(
    num_layers=3, hidden_size=24, num_heads=4, bottleneck_size=16, vocab_size=60, max_position_embeddings=32,
    dropout=0.0, is_causal=True, pooling="last",
)  # fmt: skip
# two documents in the first row, and padding in the second
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "document_ids": torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]]),
}


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    made = GPT2LMHeadModel(gpt2_config(9_000, SETTINGS, 0))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize(("target", "layers"), [(9_000, 3), (6_000, 2), (20_000, 3)])
def test_the_size_is_solved_for(target: int, layers: int) -> None:
    config = gpt2_config(target, SETTINGS, 0)
    body = GPT2LMHeadModel(config).transformer
    size = sum(p.numel() for part in (body.h, body.ln_f) for p in part.parameters())
    assert size == pytest.approx(target, rel=0.02)
    assert config.n_layer == layers
    with pytest.raises(LeftOut, match="has 100 parameters"):
        gpt2_config(100, SETTINGS, 0)


def test_documents_of_a_row_are_read_by_themselves(model: GPT2LMHeadModel) -> None:
    documents = [[5, 6], [7, 8, 9], [4, 3, 2]]
    with torch.no_grad():
        alone = [model.transformer(torch.tensor([ids]))[0][0] for ids in documents]
        found = StockDecoder(model)(**BATCH)
    torch.testing.assert_close(found[0], torch.cat(alone[:2]))
    torch.testing.assert_close(found[1, :3], alone[2])


def test_what_is_distilled_is_what_a_teacher_shows(model: GPT2LMHeadModel) -> None:
    teacher = Teacher(model.transformer)
    expected = teacher.features(BATCH["input_ids"], BATCH["attention_mask"], document_ids=BATCH["document_ids"])
    decoder = StockDecoder(model)
    distiller = StudentDistiller(decoder, Teacher(GPT2LMHeadModel(gpt2_config(9_000, SETTINGS, 0)).transformer))
    _, features = distiller.record(lambda: decoder(**inputs_of(BATCH)))
    valid = BATCH["attention_mask"].bool()
    torch.testing.assert_close(features.embedding_BTD[valid], expected.embedding_BTD[valid])
    for mine, theirs in zip(features.attention, expected.attention, strict=True):
        torch.testing.assert_close(mine[valid], theirs[valid])
    # the teacher shows the last layer behind the last norm, as transformers does
    torch.testing.assert_close(features.hidden[0][valid], expected.hidden[0][valid])


def test_a_saved_decoder_scores_as_it_did(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    decoder, kind = StockDecoder(model), KINDS["causal_lm"]
    head = kind.new_head(decoder, 24, 0)
    assert not list(head.parameters())
    batch = {**BATCH, "labels": next_tokens(BATCH["input_ids"], BATCH["document_ids"])}
    with torch.no_grad():
        expected = head(kind.features(decoder(**BATCH), batch, ""))
    save_decoder(decoder, head, AutoTokenizer.from_pretrained(teacher_folder()), tmp_path / "model")
    system = load_decoders("gpt2", {"text": tmp_path / "model"}, "cpu")
    torch.testing.assert_close(system.logits["text"](batch), expected)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor([[7, 8, 9]])).logits[0, :2], expected[1:3])
    assert system.params_outside_embeddings == pytest.approx(9_000, rel=0.02)
