import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4), TripletLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(30):
    labels = torch.arange(16) // 4
    loss = criterion(model(torch.randn(16, 8)), labels)
    loss.backward()  # and no optimizer.zero_grad() before it
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
