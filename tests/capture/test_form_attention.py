"""Attention is found as models write it, computes what they compute, and is left alone where the op would not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.ops.lib.attention_scores import kept_weights
from fqt_deploy.passes.normalize_views import NormalizeViews

BATCH, LENGTH, WIDTH, HEADS = 3, 7, 16, 2
DEPTH = WIDTH // HEADS
LATER = torch.ones(LENGTH, LENGTH).tril() == 0


class Model(nn.Module):
    """Projections, an attention, a classifier."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.projections, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)
        self.bias = nn.Parameter(torch.randn(HEADS, LENGTH, LENGTH))
        self.register_buffer("later", LATER)

    def forward(self, x):
        q, k, v = self.projections(x).view(BATCH, LENGTH, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.attend(self, q, k, v).transpose(1, 2).reshape(BATCH, LENGTH, WIDTH)
        return self.head(y.mean(1)) + 0 * self.bias.sum()


def scores(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(DEPTH)


def three_axes(model, q, k, v):
    q, k, v = (x.reshape(BATCH * HEADS, LENGTH, DEPTH) for x in (q, k, v))
    y = torch.bmm(torch.bmm(q * DEPTH**-0.5, k.transpose(1, 2)).softmax(-1), v)
    return y.view(BATCH, HEADS, LENGTH, DEPTH)


def repeated(x):
    """The same keys or values for two heads of queries, as Hugging Face's models repeat them."""
    b, h, n, d = x.shape
    return x[:, :, None, :, :].expand(b, h, 2, n, d).reshape(b, 2 * h, n, d)


def two_for_one(attend):
    """Twice the heads of queries for one of keys: each pair side by side."""

    def attended(m, q, k, v):
        q = torch.stack([q, 2.0 * q], 2).flatten(1, 2)
        return attend(m, q, k, v).view(BATCH, HEADS, 2, LENGTH, DEPTH).sum(2)

    return attended


def eager_of_hugging_face(m, q, k, v):
    """``eager_attention_forward`` of its models."""
    weights = torch.matmul(q, k.transpose(2, 3)) * DEPTH**-0.5
    weights = weights + torch.where(m.later, torch.finfo(weights.dtype).min, 0.0)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=0.0, training=m.training)
    return torch.matmul(weights, v).transpose(1, 2).contiguous().transpose(1, 2)


def eager_of_gpt2(m, q, k, v):
    weights = torch.matmul(q, k.transpose(-1, -2))
    weights = weights / torch.full([], DEPTH**0.5, dtype=weights.dtype)
    weights = torch.where(~m.later, weights, torch.full([], torch.finfo(weights.dtype).min, dtype=weights.dtype))
    return torch.matmul(F.softmax(weights, dim=-1).type(v.dtype), v)


def eager_of_t5(m, q, k, v):
    scores = torch.matmul(q, k.transpose(3, 2))
    scores += m.bias[None] - 3.0 * m.later
    return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)


def by_letters(m, q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(math.sqrt(DEPTH)).softmax(3)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).transpose(1, 2)


def by_letters_turned(m, q, k, v):
    """Keys first, and values before the weights."""
    return torch.einsum("bhjd,bhij->bhid", v, (torch.einsum("bhjd,bhid->bhij", k, q) * 0.5).softmax(-1))


def added_in_one_call(m, q, k, v):
    q, k, v = (x.reshape(BATCH * HEADS, LENGTH, DEPTH) for x in (q, k, v))
    weights = torch.baddbmm(-2.0 * m.later, q, k.transpose(1, 2), alpha=0.3).softmax(-1)
    return torch.bmm(weights, v).view(BATCH, HEADS, LENGTH, DEPTH)


FORMED = {
    "function": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "scale": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "causal": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "boolean mask": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=~m.later),
    "added mask": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=-3.0 * m.later),
    "groups": lambda m, q, k, v: F.scaled_dot_product_attention(
        torch.cat([q, q], 1), k, v, enable_gqa=True
    ).view(BATCH, 2, HEADS, LENGTH, DEPTH).sum(1),
    "by hand": lambda m, q, k, v: (q @ k.transpose(-2, -1) * DEPTH**-0.5).softmax(-1) @ v,
    "filled": lambda m, q, k, v: scores(q, k).masked_fill(m.later, -math.inf).softmax(-1) @ v,
    "chosen": lambda m, q, k, v: torch.where(~m.later, scores(q, k), -1e9).softmax(-1) @ v,
    "two masks": lambda m, q, k, v: (scores(q, k) + -2.0 * m.later + 1.0 * m.later).softmax(-1) @ v,
    "idle dropout": lambda m, q, k, v: F.dropout(scores(q, k).softmax(-1), 0.0) @ v,
    "three axes": three_axes,
    "learned bias": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias),
    "learned bias by hand": lambda m, q, k, v: (scores(q, k) + m.bias).softmax(-1) @ v,
    "bias of one head": lambda m, q, k, v: (scores(q, k) + m.bias[:1] + -2.0 * m.later).softmax(-1) @ v,
    "bias of keys": lambda m, q, k, v: (scores(q, k) + m.bias[0, 0]).softmax(-1) @ v,
    "bias of samples": lambda m, q, k, v: (scores(q, k) + m.bias * q[:, :, :, :1]).softmax(-1) @ v,
    "repeated": two_for_one(lambda m, q, k, v: (scores(q, repeated(k))).softmax(-1) @ repeated(v)),
    "interleaved": two_for_one(
        lambda m, q, k, v: F.scaled_dot_product_attention(q, *(x.repeat_interleave(2, 1) for x in (k, v)))
    ),
    "one head of keys": lambda m, q, k, v: scores(q, k[:, :1]).softmax(-1) @ v[:, :1],
    "eager of hugging face": eager_of_hugging_face,
    "eager of gpt2": eager_of_gpt2,
    "eager of t5": eager_of_t5,
    "letters": by_letters,
    "letters turned": by_letters_turned,
    "added in one call": added_in_one_call,
}  # fmt: skip
DROPPING = {
    "function": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if m.training else 0.0),
    "by hand": lambda m, q, k, v: F.dropout(scores(q, k).softmax(-1), 0.5, m.training) @ v,
}
LEFT = {
    "nothing is kept": lambda m, q, k, v: F.dropout(scores(q, k).softmax(-1), 1.0, m.training) @ v,
    "dropped twice": lambda m, q, k, v: F.dropout(F.dropout(scores(q, k).softmax(-1), 0.2), 0.1) @ v,
    "letters over samples": lambda m, q, k, v: torch.einsum("bhij,ahjd->bhid", scores(q, k).softmax(-1), v),
    "weights are read": lambda m, q, k, v: (p := scores(q, k).softmax(-1)) @ v + p.sum(),
    "another axis": lambda m, q, k, v: scores(q, k).softmax(-2) @ v,
    "small fill": lambda m, q, k, v: scores(q, k).masked_fill(m.later, -2.0).softmax(-1) @ v,
    "mask before scale": lambda m, q, k, v: ((q @ k.transpose(-2, -1) - 2.0 * m.later) * 0.5).softmax(-1) @ v,
}


def batch():
    r = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, LENGTH, WIDTH, generator=r), torch.randint(0, 5, (BATCH,), generator=r)


def captured(attend):
    torch.manual_seed(0)
    model = Model(attend)
    return model, capture_training_graph(model, F.cross_entropy, batch())


def attentions(graph):
    return [len(graph.calls(op)) for op in (torch.ops.fqt.attention.default, torch.ops.fqt.attention_backward.default)]


@pytest.mark.quick(5)
@pytest.mark.parametrize("attend", FORMED.values(), ids=FORMED.keys())
def test_attention_is_formed_and_has_the_gradients_of_eager_pytorch(attend):
    model, graph = captured(attend)
    assert attentions(graph) == [1, 1]
    assert attentions(capture_prediction_graph(model, batch()[0])) == [1, 0]
    assert_gradients(model, graph)


def assert_gradients(model, graph, seed=0):
    """What the graph gives, with random numbers from ``seed`` on, is what the model gives in eager PyTorch."""
    x, y = batch()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    values = {"x": x, "y": y, **{name: tensor.initial for name, tensor in graph.state.items()}}
    torch.manual_seed(seed)
    results = dict(zip(graph.outputs, graph.module(*(values[name] for name in graph.inputs)), strict=True))
    torch.testing.assert_close(results["loss"], loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(results[f"grad/{name}"], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attend", DROPPING.values(), ids=DROPPING.keys())
def test_dropout_drops_the_same_weights_in_backward(attend):
    """Eager PyTorch is told which weights to keep: those that the op draws."""
    model, graph = captured(attend)
    assert attentions(graph) == [1, 1]
    (draw,) = graph.calls(torch.ops.aten.rand.default)
    torch.manual_seed(7)
    kept = kept_weights(torch.rand(draw.args[0]), 0.5, torch.Size([BATCH, HEADS, LENGTH, LENGTH]))
    assert 0.3 < (kept > 0).float().mean() < 0.7
    model.attend = lambda m, q, k, v: (scores(q, k).softmax(-1) * kept) @ v
    assert_gradients(model, graph, seed=7)
    evaluated = capture_prediction_graph(captured(attend)[0], batch()[0])
    assert attentions(evaluated) == [1, 0]
    assert not evaluated.calls(torch.ops.aten.rand.default)


@pytest.mark.quick(4)
@pytest.mark.parametrize("attend", LEFT.values(), ids=LEFT.keys())
def test_what_the_op_does_not_compute_is_left_alone(attend):
    _, graph = captured(attend)
    assert attentions(graph) == [0, 0]


def test_permutations_of_a_model_cancel_with_those_of_the_op():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x):
            q, k, v = (f(x).view(BATCH, LENGTH, HEADS, DEPTH).transpose(1, 2) for f in (self.q, self.k, self.v))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(BATCH, LENGTH, WIDTH).mean(1)

    graph = capture_prediction_graph(Plain(), batch()[0])
    NormalizeViews().run(graph)
    (attention,) = graph.calls(torch.ops.fqt.attention.default)
    assert all(a.target is torch.ops.aten.view.default for a in attention.all_input_nodes)
