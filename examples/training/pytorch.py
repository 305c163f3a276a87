"""ResNet-18 on CIFAR-10 in PyTorch: python pytorch.py train.npz test.npz."""

import argparse
from pathlib import Path

import torch
from cifar10 import Cifar10, accuracy, decay_groups, resnet
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

parser = argparse.ArgumentParser()
parser.add_argument("train", type=Path)
parser.add_argument("test", type=Path)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--logs", default="runs")
args = parser.parse_args()

torch.manual_seed(0)
train = DataLoader(Cifar10(args.train, augment=True), args.batch, shuffle=True, drop_last=True)
test = DataLoader(Cifar10(args.test, augment=False), args.batch)
model = resnet(args.width)
loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=2e-3)
steps, warmup = args.epochs * len(train), len(train)
rise, fall = LinearLR(optimizer, 0.01, total_iters=warmup), CosineAnnealingLR(optimizer, max(1, steps - warmup))
scheduler = SequentialLR(optimizer, [rise, fall], milestones=[warmup])
writer, best, done = SummaryWriter(args.logs), 0.0, 0

for epoch in range(args.epochs):
    model.train()
    for x, y in train:
        loss = loss_fn(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        done += 1
        writer.add_scalar("loss", float(loss), done)
    model.eval()
    share = accuracy(model, test)
    writer.add_scalar("accuracy", share, done)
    print(f"epoch {epoch + 1}: loss {float(loss):.3f}, accuracy {share:.1%}")
    if share >= best:
        best = share
        torch.save(model.state_dict(), "best.pt")
