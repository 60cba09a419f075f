import torch
from torch import nn

from fastmine.health import Monitor


class SquaredError(nn.Module):
    def forward(self, prediction, target):
        return ((prediction - target) ** 2).mean()  # [16, 1] - [16] is [16, 16]


torch.manual_seed(0)
model, criterion = nn.Linear(8, 1), SquaredError()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    x = torch.randn(16, 8)
    loss = criterion(model(x), x.sum(dim=1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
