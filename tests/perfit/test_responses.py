"""Logits of responses alone: those that the whole model gives there."""

from __future__ import annotations

import torch
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq

from perfit.examples import IGNORE_INDEX
from perfit.responses import only_responses, response_tokens
from perfit.training import features

from .tiny import loaded


def test_labels_count_where_the_token_before_predicts_them():
    labels = torch.tensor([[9, 1, IGNORE_INDEX, 2], [IGNORE_INDEX, IGNORE_INDEX, 3, IGNORE_INDEX]])
    assert response_tokens(labels).tolist() == [1, 2, 3], "the first token of an example is not predicted"


def test_logits_and_gradients_are_those_of_the_whole_model(make_federation):
    model, data = loaded(make_federation())
    examples = [features(example) for example in (*data["ann"].train.examples, *data["bob"].train.examples)]
    batch = DataCollatorForSeq2Seq(model.tokenizer)(examples)
    labels = batch.pop("labels")
    whole = model.peft(**batch).logits
    response = torch.cat([row[:-1][expected[1:] != IGNORE_INDEX] for row, expected in zip(whole, labels, strict=True)])
    with only_responses(model.peft, labels):
        logits = model.peft(**batch).logits
    assert_close(logits, response)
    assert logits.shape[0] == response_tokens(labels).numel() < labels.numel()

    parameters = [parameter for parameter in model.peft.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad(part.square().sum(), parameters) for part in (logits, response)]
    assert_close(*gradients)
    assert model.peft(**batch).logits.shape == whole.shape, "outside of the context nothing is left out"
