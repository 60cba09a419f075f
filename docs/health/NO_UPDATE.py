import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4), TripletLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # a warm-up that never advances
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    labels = torch.arange(16) // 4
    loss = criterion(model(torch.randn(16, 8)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
