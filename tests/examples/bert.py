"""A small BERT of the library transformers, made from a Config: nothing is downloaded."""

from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification


class Scores(nn.Module):
    """What the recorder follows: tokens (B, T) to scores (B, C), with the trained model inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores (B, C)."""
        return self.model(input_ids=tokens).logits


def small_bert(input_shape: tuple[int, ...], num_classes: int) -> Scores:
    """The factory that a configuration names."""
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=input_shape[0],
            num_labels=num_classes,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.0,  # a function of torch's, drawn by place
            attn_implementation="eager",  # fused attention has no second derivative
        )
    )
    for name, parameter in model.named_parameters():
        # Attention does not depend on the key's bias; Adam would move it by rounding errors.
        parameter.requires_grad_(not name.endswith("key.bias"))
    return Scores(model)
