"""Losses of the forwards of a step add up to the mean over its supervised tokens, whatever the model divides by."""

from __future__ import annotations

import pytest

from autopeft.engine.loss import batch_loss

torch = pytest.importorskip("torch")
IGNORED = -100


class AveragingModel(torch.nn.Module):
    """Like causal models of older transformers: takes no number of items and averages over the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(7, 7)

    def forward(self, input_ids, labels=None):
        logits = self.table(input_ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss}


class PassingModel(AveragingModel):
    """Like Gemma in transformers 4.48: hands what it does not know to its decoder, which takes nothing unknown."""

    def get_decoder(self):
        return self.table

    def forward(self, input_ids, labels=None, **unknown):
        self.table(input_ids, **unknown)
        return super().forward(input_ids, labels)


@pytest.mark.parametrize("model_class", [AveragingModel, PassingModel])
def test_forwards_of_unequal_length_weigh_by_their_tokens_even_if_the_model_averages(model_class):
    model = model_class()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    short = torch.tensor([[IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, 6]])
    num_items = 5 + 1
    parts = [batch_loss(model, {"input_ids": tokens, "labels": labels}, "transformers", num_items)[0]
             for labels in (tokens, short)]  # fmt: skip
    log_probabilities = torch.log_softmax(model.table(tokens), -1)
    each = [-log_probabilities[0, place, tokens[0, place + 1]] for place in range(5)]
    expected = (sum(each) + each[-1]) / num_items
    assert sum(parts).item() == pytest.approx(expected.item(), rel=1e-6)
