import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4, bias=False), TripletLoss()
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    labels, images = torch.arange(16) // 4, torch.randn(16, 8)
    images[::4] = 0  # padding that takes part
    loss = criterion(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
