"""A BERT-like classifier of texts: token ids and an attention mask go in, the model returns the loss.

It is the shape of a Hugging Face model (`BertForSequenceClassification`) without needing transformers; such a model
takes its place unchanged. The texts are made here (see ``texts``): reviews of words, of which some praise and some
complain, and "not" turns the next one round. ``tools/train_texts.py`` trains it on them.
"""

import torch
from torch import nn
from torch.nn import functional as F

NEUTRAL, GOOD, BAD, NOT = range(8, 200), range(200, 280), range(280, 360), 7
WORDS, LENGTH, WIDTH, LAYERS, HEADS, CLASSES = 360, 32, 128, 2, 4, 2


def texts(samples: int, length: int = LENGTH, seed: int = 0) -> dict[str, torch.Tensor]:
    """Made-up reviews by name, padded with zeros: ids and mask [samples, length] int64, labels [samples] int64.

    A text has 6 to ``length`` words, one in four of them praise or complaint; one in five of these follows "not",
    which turns it round. The label is 1 where praise prevails; texts without a majority are drawn again.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(samples, length, dtype=torch.int64), torch.zeros(samples, length, dtype=torch.int64)
    labels = torch.zeros(samples, dtype=torch.int64)

    def draw(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    for sample in range(samples):
        score = 0
        while score == 0:
            words: list[int] = []
            wanted = 6 + draw(length - 5)
            while len(words) < wanted:
                if draw(4) or wanted - len(words) < 2:
                    words.append(NEUTRAL[draw(len(NEUTRAL))])
                    continue
                good, turned = draw(2), draw(5) == 0
                words += [NOT] * turned + [(GOOD if good else BAD)[draw(len(GOOD))]]
                score += 1 if bool(good) != turned else -1
        ids[sample, : len(words)] = torch.tensor(words)
        mask[sample, : len(words)] = 1
        labels[sample] = int(score > 0)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Layer(nn.Module):
    """Attention over the words that are there, then two linear layers; each with a residual and LayerNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map x [N, length, width] to the same shape; mask [N, 1, 1, length] bool says which words there are."""
        n, length, width = x.shape
        q, k, v = (
            layer(x).view(n, length, HEADS, width // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.output(attended.transpose(1, 2).reshape(n, length, width)))
        result: torch.Tensor = self.norm2(x + self.narrow(F.gelu(self.wide(x))))
        return result


class TextClassifier(nn.Module):
    """Embeddings of words and places, layers of attention, and a head on the mean over the words that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Map ids and mask [N, length] to logits [N, classes] and, where labels [N] are given, the loss."""
        x = self.norm(self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])))
        for layer in self.layers:
            x = layer(x, attention_mask.bool()[:, None, None, :])
        there = attention_mask.to(x.dtype)[:, :, None]
        logits = self.head((x * there).sum(1) / there.sum(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def build_model() -> nn.Module:
    """The classifier with random weights; embeddings begin small, as BERT's do."""
    torch.manual_seed(0)
    model = TextClassifier()
    for embedding in (model.words, model.places):
        nn.init.normal_(embedding.weight, std=0.02)
    return model


def example_inputs() -> list[dict[str, torch.Tensor]]:
    """Two batches by name, of long and of short texts: the step is compiled for both, and both train the same state."""
    return [texts(32), texts(32, LENGTH // 2)]


def compile_options() -> dict[str, object]:
    """AdamW, as BERT is fine-tuned."""
    return {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01}
