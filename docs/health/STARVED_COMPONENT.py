import torch
from torch import nn
from torch.nn import functional as F

from fastmine.health import Monitor
from fastmine.losses import CompositeLoss

torch.manual_seed(0)
model = nn.Linear(8, 8)
criterion = CompositeLoss(
    {"main": lambda y, t: 1e4 * F.mse_loss(y, t), "spread": lambda y, _: (1 - y.std(dim=0)).square().mean()},
    {"main": 1.0, "spread": 1.0},
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    x = torch.randn(16, 8)
    loss = criterion(model(x), x.flip(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
