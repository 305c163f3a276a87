"""Small models on inputs [8, 4, 8, 8] whose samples move about: each is a kind of model that people train."""

import torch
from torch import nn
from torch.nn import functional as F


def tokens(x):
    """Four tokens of 64 features a sample."""
    return x.flatten(2)


class ClassToken(nn.Module):
    """A token of the model's own in front of the others, read alone."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(64, 32), nn.Parameter(torch.ones(1, 1, 32))
        self.mix, self.up, self.head = nn.Linear(5, 5), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        t = torch.cat([self.token.expand(len(x), -1, -1), self.embed(tokens(x))], 1)
        t = t + self.mix(t.transpose(1, 2)).transpose(1, 2)
        return self.head((t + torch.relu(self.up(t)))[:, 0])


class Attention(nn.Module):
    """Query, key and value of one projection, split in one of the usual ways."""

    def __init__(self, split):
        super().__init__()
        self.split = split
        self.embed, self.qkv, self.out, self.head = (
            nn.Linear(64, 32), nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4),
        )  # fmt: skip

    def forward(self, x):
        t = self.embed(tokens(x))
        b, n, d = t.shape
        if self.split == "permute":
            q, k, v = self.qkv(t).reshape(b, n, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.split == "select":
            packed = self.qkv(t).reshape(b, n, 3, 2, 16).permute(2, 0, 3, 1, 4)
            q, k, v = packed[0], packed[1], packed[2]
        else:
            q, k, v = (part.reshape(b, n, 2, 16).transpose(1, 2) for part in self.qkv(t).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        return self.head((t + self.out(attended)).mean(1))


class Encoder(nn.Module):
    """PyTorch's encoder layer, batch first or time first."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.embed, self.head = nn.Linear(64, 32), nn.Linear(32, 4)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=batch_first)

    def forward(self, x):
        t = self.embed(tokens(x))
        if self.batch_first:
            return self.head(self.layer(t).mean(1))
        return self.head(self.layer(t.transpose(0, 1)).mean(0))


class Recurrent(nn.Module):
    """The last state of a recurrence over four steps; time first inside."""

    def __init__(self, kind):
        super().__init__()
        self.recurrent = kind(64, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.recurrent(tokens(x))[0][:, -1])


class Heads(nn.Module):
    """Two heads that read different layers, the second in training only."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head, self.early = (
            nn.Linear(256, 40), nn.Linear(40, 40), nn.Linear(40, 4), nn.Linear(40, 4),
        )  # fmt: skip

    def forward(self, x):
        h = torch.tanh(self.first(x.flatten(1)))
        out = self.head(torch.tanh(self.second(h)))
        return out + 0.4 * self.early(h) if self.training else out


class Matrices(nn.Module):
    """Weights that lie [in, out]: ``x @ W``."""

    def __init__(self):
        super().__init__()
        self.first, self.w = nn.Linear(256, 40), nn.Parameter(torch.randn(40, 40) / 8)
        self.v = nn.Parameter(torch.randn(40, 4) / 8)

    def forward(self, x):
        return torch.relu(torch.relu(self.first(x.flatten(1))) @ self.w) @ self.v


class Folded(nn.Module):
    """The batch is split over two axes, which no row can follow."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(256, 40), nn.Linear(40, 40), nn.Linear(40, 4)

    def forward(self, x):
        h = torch.relu(self.first(x.flatten(1))).view(2, 4, 40)
        return self.head(torch.relu(self.second(h * h.mean(0))).view(8, 40))


def pixels():
    """A fully convolutional net: the classifier is a convolution, averaged over positions."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def shifted():
    """Axes that move away and come back around a layer."""
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 32), Moved(nn.Linear(32, 32)), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


class Moved(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(1, 0, 2)).permute(1, 0, 2)


SELECTED = {
    "class-token": ClassToken,
    "fused-permute": lambda: Attention("permute"),
    "fused-select": lambda: Attention("select"),
    "fused-chunk": lambda: Attention("chunk"),
    "encoder": lambda: Encoder(batch_first=True),
    "encoder-time-first": lambda: Encoder(batch_first=False),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "pixels": pixels,
    "shifted": shifted,
    "matrices": Matrices,
}
"""Models for which samples can be selected for the whole backward."""
