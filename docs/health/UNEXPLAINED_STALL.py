import torch
from torch import nn

from fastmine.health import Monitor

torch.manual_seed(0)
model, shown = nn.Linear(8, 8), torch.tensor(0.3)
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, None, optimizer, speak=False)
for _ in range(80):
    x = torch.randn(16, 8)
    loss = (model(x) - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(shown + 0 * loss)  # something upstream of the report is constant
print(monitor.report())
