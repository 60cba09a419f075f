import torch
from torch import nn

from fastmine.health import Monitor

torch.manual_seed(0)
model = nn.Linear(8, 1)
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(60):
    x = torch.randn(16, 8)
    loss = criterion((4 * model(x)).round(), x.sum(dim=1, keepdim=True))  # rounding has slope 0
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
