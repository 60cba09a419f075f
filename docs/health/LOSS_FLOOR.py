import torch
from torch import nn

from fastmine.health import Monitor


class Floored(nn.Module):
    def forward(self, prediction, target):
        return nn.functional.mse_loss(prediction, target).clamp(min=0.5)  # so that it is "never zero"


torch.manual_seed(0)
model, criterion = nn.Linear(8, 8), Floored()
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(200):
    x = torch.randn(64, 8)
    loss = criterion(model(x), x.flip(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
