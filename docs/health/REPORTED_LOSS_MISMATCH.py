import torch
from torch import nn

from fastmine.health import Monitor

torch.manual_seed(0)
model, criterion = nn.Linear(8, 8), nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, criterion, optimizer, speak=False)
logged = 0.0
for step in range(50):
    x = torch.randn(16, 8)
    loss = criterion(model(x), x.flip(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 1000 == 999:  # never, in an epoch of 50 steps
        logged += loss.item()
    monitor.step(loss, logged=logged)
print(monitor.report())
