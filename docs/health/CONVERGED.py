import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
centres = torch.randn(4, 8)
model, criterion = nn.Linear(8, 4), TripletLoss(margin=2.0)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(150):
    labels = torch.arange(16) // 4
    loss = criterion(model(3 * centres[labels] + torch.randn(16, 8) / 20), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
